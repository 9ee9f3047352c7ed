"""Stochastic gradient descent along a running average of the gradients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..domains import Positive, UnitInterval
from ..level import Learning, Level, Params
from ..rules import Hyper, MomentumForm, Number, State
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AveragingSGD", "AveragingSGDRule"]


@dataclass(frozen=True)
class AveragingSGDRule(PenalizedRule):
    """v ← γ v - (1-γ) g;  w ← w + α v."""

    hyperparameters = {
        "lr": (1e-2, Positive()),
        "momentum": (0.9, UnitInterval()),
        "weight_decay": (0.0, Positive()),
    }
    optional = frozenset(("weight_decay",))
    direct = frozenset(("lr",))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"velocity": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        momentum = hyper["momentum"]
        velocity = momentum * state["velocity"] - (1 - momentum) * self.descent(weights, gradient, hyper)
        return hyper["lr"] * velocity, {"velocity": velocity}

    def momentum_form(self, weights: Tensor, gradient: Tensor, hyper: Hyper, step: Number) -> MomentumForm | None:
        return MomentumForm("velocity", "momentum", (hyper["momentum"] - 1) * self.descent(weights, gradient, hyper), hyper["lr"])


class AveragingSGD(Level):
    r"""Stochastic gradient descent whose momentum averages the gradients instead of adding them up.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w \\
        v &\leftarrow \gamma v - (1 - \gamma) g \\
        w &\leftarrow w + \alpha v

    The step does not grow with the momentum: the lr is that of plain descent, where `SGD`'s is 1 - γ times it. The
    velocity points downhill. It starts at 0, without bias correction; in a `Training` it may start elsewhere, at
    `hyper["optimizer"]["state"]["velocity"]`.

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size α >= 0, in units of weight² per loss. Default: 1e-2.
        momentum: γ in [0, 1], how much of the average is kept. Default: 0.9.
        weight_decay: λ >= 0, an L2 penalty. Default: 0.
        maximize: ascend instead of descend.
        capturable, fused: as in `SGD`.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, momentum, weight_decay.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML
        2015, algorithm 1; their code's order of operations. torch has no optimizer of this kind: `SGD` with
        dampening=momentum differs in its first step.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = AveragingSGD([w], lr=1.0, momentum=0.9)
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000])
    """

    rule = AveragingSGDRule

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-2,
        momentum: float = 0.9,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, **numbers, maximize=maximize, capturable=capturable, fused=fused, **learning)
