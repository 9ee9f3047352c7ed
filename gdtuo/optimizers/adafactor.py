"""Adafactor: the second moment of a matrix from those of its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..domains import Positive, Real
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State, safe_sqrt
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adafactor", "AdafactorRule"]


@dataclass(frozen=True)
class AdafactorRule(PenalizedRule):
    """U = g / √V with V from averages of rows and columns; w ← w - η λ w - max(ε2, RMS(w)) min(η, 1/√t) U / max(1, RMS(U)/d)."""

    eps1: float | None = None  # that of the weights' dtype

    hyperparameters = {
        "lr": (1e-2, Positive()),
        "beta2_decay": (-0.8, Real(maximum=0.0)),
        "eps2": (1e-3, Positive()),
        "d": (1.0, Positive(minimum=1.0)),
        "weight_decay": (0.0, Positive()),
    }
    optional = frozenset(("weight_decay",))
    direct = frozenset(("lr", "weight_decay"))
    elementwise = False
    decoupled = True

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        if weights.dim() < 2:
            return {"variance": torch.zeros_like(weights)}
        return {"row_var": torch.zeros_like(weights[..., :1]), "col_var": torch.zeros_like(weights[..., :1, :])}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        g = self.descent(weights, gradient, hyper)
        floor = torch.finfo(weights.dtype).eps if self.eps1 is None else self.eps1
        fresh = step ** hyper["beta2_decay"]  # 1 - β2 of this step
        if fresh.dim():
            raise ValueError(
                "Adafactor got a beta2_decay for each weight, but averages are of rows and columns. Give one number a tensor: "
                "shape [] or [steps]."
            )
        square = g * g
        if "variance" in state:
            variance = (1 - fresh) * state["variance"] + fresh * square
            after = {"variance": variance}
        else:
            rows = (1 - fresh) * state["row_var"] + fresh * square.mean(-1, keepdim=True)
            columns = (1 - fresh) * state["col_var"] + fresh * square.mean(-2, keepdim=True)
            after = {"row_var": rows, "col_var": columns}
            variance = rows * columns / rows.mean(-2, keepdim=True).clamp_min(floor)
        unit = g * variance.clamp_min(floor * floor).rsqrt()
        rate = torch.maximum(hyper["eps2"], rms(weights)) * hyper["lr"].clamp_max(step**-0.5)
        clipped = (rms(unit) / hyper["d"]).clamp_min(1.0)
        return self.shrunk(weights, -(rate / clipped) * unit, hyper), after


def rms(x: Tensor) -> Tensor:
    """Root mean square; 0 of nothing."""
    return safe_sqrt(x.square().sum() / max(x.numel(), 1))


class Adafactor(Level):
    r"""Adafactor, as `torch.optim.Adafactor`, and itself optimizable.

    .. math::
        R &\leftarrow (1 - t^\tau) R + t^\tau \, \mathrm{mean}_{rows}(g^2), \qquad
        C \leftarrow (1 - t^\tau) C + t^\tau \, \mathrm{mean}_{columns}(g^2) \\
        U &= g \big/ \max\left(\sqrt{R C / \max(\mathrm{mean}(R), \epsilon_1)}, \epsilon_1\right) \\
        w &\leftarrow w - \eta \lambda w
            - \max(\epsilon_2, \mathrm{RMS}(w)) \min(\eta, 1 / \sqrt t) \frac{U}{\max(1, \mathrm{RMS}(U) / d)}

    over the last two dimensions, R one number for each row and C one for each column; a vector has the plain average
    V ← (1 - t^τ) V + t^τ g² in the place of the quotient.

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: the largest relative step size η >= 0, a change per weight's size. Default: 1e-2.
        beta2_decay: τ <= 0, how fast the averages lengthen. Default: -0.8.
        eps: (ε1, ε2). ε1 >= 0, a floor under √V, in units of gradient; None for the eps of the parameter's dtype.
            ε2 >= 0, a floor under RMS(w), in units of weight: with which parameters that start at 0 move. Default:
            (None, 1e-3).
        d: at least 1: RMS(U) is clipped to it. Default: 1.
        weight_decay: λ >= 0; each step shrinks the weights by the factor 1 - η λ. Default: 0.
        foreach: torch's choice between its own implementations of this same update; recorded in the groups, as torch
            does, so that scripts and checkpoints move between the two, and of no effect.
        maximize: ascend instead of descend.
        learning: the keywords of `Learning`: optimizer, learn, per ("group" or "tensor"), hypergradient, horizon, trust, domains.

    Learnable: lr, beta2_decay, eps2 (or "eps"), d, weight_decay. Where a maximum or a minimum is another number than the
    one that is learned, its derivative is 0: that of ε2 while RMS(w) is above it, of d while nothing is clipped, of η
    from step 1 / η² on (10,000 at the default), but for the weight decay. What is learned costs an array the size of the
    weights for each name, which Adafactor itself does without.

    Raises:
        ValueError: a number outside its range, or a complex parameter; before anything has changed.

    References:
        Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, algorithms 4 and 5. As
        in torch, ε1 is a floor instead of a term of g², η bounds the step size, and averages are means instead of sums.

    Example:
        >>> import torch, gdtuo
        >>> model = torch.nn.Linear(64, 10)
        >>> optimizer = Adafactor(model.parameters(), lr=0.01, optimizer=gdtuo.SGD())
        >>> str(optimizer), {k: tuple(v.shape) for k, v in optimizer.state[model.weight].items() if "var" in k}
        ('adafactor / sgd', {'row_var': (10, 1), 'col_var': (1, 64)})
    """

    rule = AdafactorRule
    aliases = {"eps": ("eps1", "eps2")}

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, Number] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: Number = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        super().__init__(params, **numbers, maximize=maximize, foreach=foreach, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Ranges that no domain describes."""
        floor = group["eps"][0]
        if floor is not None and not 0 <= floor < math.inf:
            raise ValueError(f"Adafactor got eps[0]={floor}: a floor under √V is >= 0. The default is None, the dtype's own eps.")
        if not group["beta2_decay"] <= 0:
            raise ValueError(
                f"Adafactor got beta2_decay={group['beta2_decay']}: averages lengthen with the power of the step that it is, "
                "so it is <= 0. The default is -0.8."
            )
        if not group["d"] >= 1:
            raise ValueError(f"Adafactor got d={group['d']}: updates are clipped to a size >= 1. The default is 1.")

    @classmethod
    def check_parameter(cls, p: Tensor) -> None:
        """Squares of complex numbers are no variances."""
        if p.is_complex():
            raise ValueError(
                f"Adafactor got a complex parameter of shape {tuple(p.shape)}. Give it to an elementwise optimizer, as "
                "gdtuo.Adam, which takes its real and imaginary parts one by one."
            )
