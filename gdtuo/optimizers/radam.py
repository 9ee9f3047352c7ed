"""RAdam: Adam that waits until it knows the variance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State, safe_sqrt, silenced
from .moments import MomentsRule, check_betas

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RAdam", "RAdamRule"]


class Rectification(NamedTuple):
    """How much of the update is Adam's, m / (√v + ε), and how much is m itself: one of the two is 0."""

    adaptive: Tensor  # r √(1-β2^t)
    slope: Tensor  # its derivative with respect to β2
    plain: Tensor  # 1, or 0

    @classmethod
    def of(cls, beta2: Tensor, step: Number) -> Rectification:
        """ρ∞ = 2 / (1-β2) - 1; ρ = ρ∞ - 2 t β2^t / (1-β2^t); r² = (ρ-4) (ρ-2) ρ∞ / ((ρ∞-4) (ρ∞-2) ρ), from ρ > 5 on."""
        bias = 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / bias
        known = length > 5
        # where it is not known, any numbers that make no NaN, which derivatives would carry on
        longest, length = torch.where(known, longest, 6.0), torch.where(known, length, 6.0)
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        adaptive = torch.where(known, (square * bias) ** 0.5, 0.0)
        # the logarithm's derivative: of each factor over that factor
        of_bias = -step * beta2 ** (step - 1)
        of_longest = 2 / (1 - beta2) ** 2
        of_length = of_longest + 2 * step * of_bias / bias**2
        relative = of_bias / bias + of_length * (1 / (length - 4) + 1 / (length - 2) - 1 / length)
        relative = relative + of_longest * (1 / longest - 1 / (longest - 4) - 1 / (longest - 2))
        return cls(adaptive, 0.5 * adaptive * relative, torch.where(known, torch.zeros_like(adaptive), 1.0))


@dataclass(frozen=True)
class RAdamRule(MomentsRule):
    """Adam's moments; w ← w - η m̂ r √(1-β2^t) / (√v + ε) where the variance is known, ρ_t > 5, else w ← w - η m̂."""

    decoupled_weight_decay: bool = False

    closed_form: ClassVar[bool] = True
    divisors = frozenset(("beta1", "beta2"))

    @property
    def decoupled(self) -> bool:
        return self.decoupled_weight_decay

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        first, second = self.moments(self.descent(weights, gradient, hyper), state, hyper)
        share = Rectification.of(hyper["beta2"], step)
        unit = silenced(first / (safe_sqrt(second) + hyper["eps"]), first, second)
        delta = (-hyper["lr"] / (1 - hyper["beta1"] ** step)) * (share.adaptive * unit + share.plain * first)
        return self.shrunk(weights, delta, hyper), {"exp_avg": first, "exp_avg_sq": second}

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        lr, beta1, beta2 = hyper["lr"], hyper["beta1"], hyper["beta2"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        share, bias1 = Rectification.of(beta2, step), 1 - beta1**step
        root = safe_sqrt(second)
        denominator = root + hyper["eps"]
        unit = first / denominator
        direction = share.adaptive * unit + share.plain * first
        rate = lr / bias1  # Δ = -rate · direction

        def through_root(square_change: Tensor) -> Tensor:
            # d(unit) for a change of v: √v moves by half of it over √v
            return -unit / denominator * (square_change / root) * 0.5

        def derivative(name: str) -> Tensor:  # ∂Δ/∂name
            if name == "lr":
                return self.shrunk(weights, direction * (-1 / bias1), {**hyper, "lr": 1.0})
            if name == "eps":
                return rate * share.adaptive * (unit / denominator)
            if name == "weight_decay" and self.decoupled:
                return -lr * weights
            g = self.descent(weights, gradient, hyper)
            if name == "weight_decay":  # ∂g = w
                unit_change = (1 - beta1) * (weights / denominator) + through_root(2 * (1 - beta2) * (g * weights))
                return -rate * (share.adaptive * unit_change + share.plain * (1 - beta1) * weights)
            # the moments before the update are (m - (1 - β1) g) / β1 and its like, so ∂m/∂β1 = (m - g) / β1; the other
            # terms come from the bias correction and the rectification
            if name == "beta1":
                mean_change = first * (1 / beta1 + step * beta1 ** (step - 1) / bias1) - g / beta1
                return -rate * (share.adaptive * (mean_change / denominator) + share.plain * mean_change)
            return -rate * (share.slope * unit + share.adaptive * through_root(second / beta2 - g * g / beta2))

        return self.shrunk(weights, -rate * direction, hyper), [derivative(name) for name in learned]


class RAdam(Level):
    r"""Rectified Adam, as `torch.optim.RAdam`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \qquad \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        w &\leftarrow w - \eta \frac{m}{1 - \beta_1^t} \cdot \begin{cases}
            \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}
            \frac{\sqrt{1 - \beta_2^t}}{\sqrt v + \epsilon} & \rho_t > 5 \\ 1 & \text{else} \end{cases}

    With the default betas the first five steps are momentum's, in units of weight² per loss.

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 1e-3.
        betas: (β1, β2), each in [0, 1). Default: (0.9, 0.999).
        eps: ε >= 0, in units of gradient. Default: 1e-8.
        weight_decay: λ >= 0, an L2 penalty that enters the gradient. Default: 0.
        decoupled_weight_decay: the penalty shrinks the weights by the factor 1 - η λ at each step instead, as in `AdamW`.
        maximize: ascend instead of descend.
        foreach, capturable: torch's choice between its own implementations of this same update; recorded in the groups, as torch
            does, so that scripts and checkpoints move between the two, and of no effect.
        fused: compile pull-back and update to one pass over memory each where parameters are large, as in `Adam`.
            Keyword only; torch's RAdam has no such argument. Default: None, no compiling.
        differentiable: only False; a tower needs no differentiable step, and `True` raises.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, beta1, beta2 (together "betas"), eps, weight_decay. The change from one case to the other is not
    differentiated: a derivative is that of the case that a step is in.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Liu, Jiang, He, Chen, Liu, Gao, Han, "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020,
        algorithm 2. As in torch, ε is added to √v before its bias correction, and rectification begins above ρ = 5
        (the paper: 4). A weight whose gradient has always been 0 stays put even with eps = 0 (torch: NaN).

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = RAdam([w], lr=0.1)
        >>> w.grad = torch.full((1,), 3.0)
        >>> optimizer.step()
        >>> w.data
        tensor([0.7000])
    """

    rule = RAdamRule
    aliases = {"betas": ("beta1", "beta2")}

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
        hints = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """A beta of 1 would never take anything in."""
        check_betas(cls.__name__, group)
