"""Muon: momentum, made orthogonal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..domains import Positive, UnitInterval
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, Rule, State

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Muon", "MuonRule"]

#: In which the iteration runs: it is most of an update's work, and what it returns need not be exact.
PRECISION = torch.bfloat16

SCALINGS = (None, "original", "match_rms_adamw")


@dataclass(frozen=True)
class MuonRule(Rule):
    """b ← μ b + (1-μ) g; w ← w - η λ w - η s NS(b), with Nesterov NS(μ b + (1-μ) g); s by the shape."""

    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None

    hyperparameters = {"lr": (1e-3, Positive()), "weight_decay": (0.1, Positive()), "momentum": (0.95, UnitInterval())}
    optional = frozenset(("weight_decay",))
    direct = frozenset(("lr", "weight_decay"))
    elementwise = False

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"momentum_buffer": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        momentum, fresh = hyper["momentum"].to(weights), (1 - hyper["momentum"]).to(weights)
        buffer = torch.lerp(state["momentum_buffer"], gradient, fresh)  # torch's own operation, whose rounding NS magnifies
        direction = self._orthogonal(torch.lerp(gradient, buffer, momentum) if self.nesterov else buffer)
        delta = -hyper["lr"] * self._scale(weights) * direction
        if "weight_decay" in hyper:
            delta = delta - hyper["lr"] * hyper["weight_decay"] * weights
        return delta, {"momentum_buffer": buffer}

    def _scale(self, weights: Tensor) -> float:
        rows, columns = weights.shape
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * max(rows, columns) ** 0.5
        return max(1.0, rows / max(columns, 1)) ** 0.5

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        rough = self._iterated(matrix.to(PRECISION)).to(matrix.dtype)
        if not torch.is_grad_enabled() and forward_ad.unpack_dual(matrix).tangent is None:
            return rough
        # the value as it is, with the derivative of the iteration in the weights' precision: rounding has none
        smooth = self._iterated(matrix)
        return rough.detach() + (smooth - smooth.detach())

    def _iterated(self, matrix: Tensor) -> Tensor:
        """Newton and Schulz: singular values s ← a s + b s³ + c s⁵ towards 1, after all are brought below 1."""
        a, b, c = self.ns_coefficients
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / x.norm().clamp_min(self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


class Muon(Level):
    r"""Muon, as `torch.optim.Muon`, and itself optimizable: momentum for matrices, its singular values all made about 1.

    .. math::
        b &\leftarrow \mu b + (1 - \mu) g \\
        O &= \mathrm{NS}(\mu b + (1 - \mu) g) \quad \text{(nesterov; otherwise } \mathrm{NS}(b)) \\
        w &\leftarrow w - \eta \lambda w - \eta \sqrt{\max(1, n / m)} \, O \qquad \text{of an } n \times m \text{ matrix}

    NS divides a matrix by its norm and applies `ns_steps` times X ← a X + (b X Xᵀ + c (X Xᵀ)²) X.

    Args:
        params: matrices: parameters, named parameters or parameter groups; without them the level is a template. Biases,
            embeddings and convolutions belong to another optimizer, for example `AdamW`.
        lr: step size η >= 0, in units of spectral norm per step. Default: 1e-3.
        weight_decay: λ >= 0; each step shrinks the weights by the factor 1 - η λ. Default: 0.1.
        momentum: μ in [0, 1], how much of the average is kept. Default: 0.95.
        nesterov: look one step ahead. Default: True.
        ns_coefficients: (a, b, c). Default: (3.4445, -4.775, 2.0315), which bring singular values into 0.7 ... 1.2.
        eps: a floor under the norm, in units of gradient. Default: 1e-7.
        ns_steps: how often, 0 to 99. Default: 5.
        adjust_lr_fn: what multiplies η: None or "original", as above; "match_rms_adamw": 0.2 √max(n, m), with which
            learning rates and weight decays of AdamW serve.
        learning: the keywords of `Learning`: optimizer, learn, per ("group" or "tensor"), hypergradient, horizon, trust, domains.

    Learnable: lr, weight_decay, momentum. NS runs in bfloat16, as torch's does, and so has steps instead of slopes: the
    derivative with respect to the momentum is that of the same iteration in the weights' precision. It is run besides
    where momentum is learned, and then takes many times the time of an update without, and in whole-training
    hypergradients.

    Raises:
        ValueError: a number outside its range, or a parameter that is no real matrix; before anything has changed.

    References:
        Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for hidden layers in neural networks",
        2024, kellerjordan.github.io/posts/muon; match_rms_adamw: Liu, Su, et al., "Muon is Scalable for LLM Training",
        arXiv 2502.16982. As in torch the momentum averages, which NS undoes. A momentum above 1 is refused (torch: not).

    Example:
        >>> import torch, gdtuo
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = Muon([w], lr=0.1, optimizer=gdtuo.SGD())
        >>> w.grad = torch.tensor([[5.0, 0.0], [0.0, 2.0]])
        >>> optimizer.step()
        >>> bool((torch.linalg.svdvals(w.data - 1) - 0.1).abs().max() < 0.04)
        True
    """

    rule = MuonRule

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-3,
        weight_decay: Number = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        switches = {"nesterov": nesterov, "ns_coefficients": tuple(ns_coefficients), "eps": eps, "ns_steps": ns_steps}
        super().__init__(params, **numbers, **switches, adjust_lr_fn=adjust_lr_fn, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """The iteration's own settings."""
        steps, coefficients, scaling = group["ns_steps"], group["ns_coefficients"], group["adjust_lr_fn"]
        if not isinstance(steps, int) or isinstance(steps, bool) or not 0 <= steps < 100:
            raise ValueError(f"Muon got ns_steps={steps!r}: it counts iterations, an integer in 0 ... 99. The usual number is 5.")
        if len(coefficients) != 3:
            raise ValueError(f"Muon got ns_coefficients={coefficients!r}. Give three numbers, as (3.4445, -4.775, 2.0315).")
        if not group["eps"] >= 0:
            raise ValueError(f"Muon got eps={group['eps']}: a floor under the norm is >= 0. The default is 1e-7.")
        if scaling not in SCALINGS:
            raise ValueError(f"Muon got adjust_lr_fn={scaling!r}. It is one of {', '.join(map(repr, SCALINGS))}.")

    @classmethod
    def check_parameter(cls, p: Tensor) -> None:
        """Only matrices can be orthogonal."""
        if p.dim() != 2 or p.is_complex():
            what = "complex parameter" if p.is_complex() else "parameter"
            raise ValueError(
                f"Muon got a {what} of shape {tuple(p.shape)}: it makes updates orthogonal, so it takes real matrices. Give the "
                "others to another optimizer: gdtuo.Muon([p for p in model.parameters() if p.ndim == 2]) beside "
                "gdtuo.AdamW([p for p in model.parameters() if p.ndim != 2])."
            )
