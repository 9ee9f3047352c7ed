"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..domains import Positive
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State, safe_sqrt, silenced
from .moments import MomentsRule, check_betas

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NAdam", "NAdamRule"]

LOG = math.log(0.96)  # 0.96^x = exp(x LOG)


@dataclass(frozen=True)
class NAdamRule(MomentsRule):
    """w ← w - η (μ' m / (1-Π μ') + (1-μ) g / (1-Π)) / (√v̂ + ε): Adam's moments, μ of this step, μ' of the next, Π ← Π μ."""

    decoupled_weight_decay: bool = False

    hyperparameters = {**MomentsRule.hyperparameters, "lr": (2e-3, Positive()), "momentum_decay": (4e-3, Positive())}
    uniform = frozenset(("mu_product",))

    @property
    def decoupled(self) -> bool:
        return self.decoupled_weight_decay

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {**super().init(weights, hyper), "mu_product": torch.ones_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        g = self.descent(weights, gradient, hyper)
        first, second = self.moments(g, state, hyper)
        mu, following = (hyper["beta1"] * (1 - 0.5 * (t * hyper["momentum_decay"] * LOG).exp()) for t in (step, step + 1))
        product = state["mu_product"] * mu
        ahead = (following / (1 - product * following)) * first + ((1 - mu) / (1 - product)) * g
        scale = (1 - hyper["beta2"] ** step) ** 0.5  # 1 / (√v̂ + ε) = scale / (√v + scale ε)
        direction = silenced(ahead / (safe_sqrt(second) + scale * hyper["eps"]), first, second)
        after = {"exp_avg": first, "exp_avg_sq": second, "mu_product": product}
        return self.shrunk(weights, (-hyper["lr"] * scale) * direction, hyper), after


class NAdam(Level):
    r"""Adam with Nesterov's momentum, as `torch.optim.NAdam`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w, \qquad \mu_t = \beta_1 (1 - \tfrac12 0.96^{t \psi}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta \left( \frac{\mu_{t+1} m}{1 - \prod_{i=1}^{t+1} \mu_i}
            + \frac{(1 - \mu_t) g}{1 - \prod_{i=1}^t \mu_i} \right) \Big/
            \left( \sqrt{v / (1 - \beta_2^t)} + \epsilon \right)

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 2e-3.
        betas: (β1, β2), each in [0, 1). Default: (0.9, 0.999).
        eps: ε >= 0, in units of gradient. Default: 1e-8.
        weight_decay: λ >= 0, an L2 penalty that enters the gradient. Default: 0.
        momentum_decay: ψ >= 0, per step: how fast the momentum rises from β1 / 2 to β1. Default: 4e-3.
        decoupled_weight_decay: the penalty shrinks the weights by the factor 1 - η λ at each step instead, as in `AdamW`.
        maximize: ascend instead of descend.
        foreach, capturable: torch's choice between its own implementations of this same update; recorded in the groups, as torch
            does, so that scripts and checkpoints move between the two, and of no effect.
        fused: compile pull-back and update to one pass over memory each where parameters are large, as in `Adam`.
            Keyword only; torch's NAdam has no such argument. Default: None, no compiling.
        differentiable: only False; a tower needs no differentiable step, and `True` raises.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, beta1, beta2 (together "betas"), eps, weight_decay, momentum_decay.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016. As in torch, ε is added after the bias
        correction of √v. The product of the μ is one number for each parameter, kept in the parameter's precision
        (torch: in the default dtype's, until a checkpoint is loaded). A weight whose gradient has always been 0 stays
        put even with eps = 0 (torch: NaN).

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = NAdam([w], lr=0.1)
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> optimizer.state[w]["mu_product"]
        tensor(0.4501)
    """

    rule = NAdamRule
    aliases = {"betas": ("beta1", "beta2")}

    def __init__(
        self,
        params: Params = None,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
        switches = {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
        hints = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """A beta of 1 would never take anything in."""
        check_betas(cls.__name__, group)
