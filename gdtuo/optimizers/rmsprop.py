"""RMSProp."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..domains import Positive, UnitInterval
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State, safe_sqrt, silenced
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RMSProp", "RMSPropRule"]


@dataclass(frozen=True)
class RMSPropRule(PenalizedRule):
    """s ← α s + (1-α) g²; if centered a ← α a + (1-α) g; d = g / (√(s - a²) + ε); b ← μ b + d; w ← w - η b."""

    centered: bool = False

    hyperparameters = {
        "lr": (1e-2, Positive()),
        "alpha": (0.99, UnitInterval()),
        "eps": (1e-8, Positive()),
        "weight_decay": (0.0, Positive()),
        "momentum": (0.0, UnitInterval()),
    }
    optional = frozenset(("weight_decay", "momentum"))
    direct = frozenset(("lr",))
    closed_form: ClassVar[bool] = True
    divisors = frozenset(("alpha", "momentum"))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        names = ["square_avg"] + ["momentum_buffer"] * ("momentum" in hyper) + ["grad_avg"] * self.centered
        return {name: torch.zeros_like(weights) for name in names}

    def _root(self, state: State) -> Tensor:
        variance = state["square_avg"]
        return safe_sqrt(variance - state["grad_avg"] ** 2 if self.centered else variance)

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        g, alpha = self.descent(weights, gradient, hyper), hyper["alpha"]
        after = {"square_avg": alpha * state["square_avg"] + (1 - alpha) * (g * g)}
        if self.centered:
            after["grad_avg"] = alpha * state["grad_avg"] + (1 - alpha) * g
        direction = silenced(g / (self._root(after) + hyper["eps"]), g, after["square_avg"])
        if "momentum" in hyper:
            direction = after["momentum_buffer"] = hyper["momentum"] * state["momentum_buffer"] + direction
        return -hyper["lr"] * direction, after

    def remembers(self, learned: Collection[str], hyper: Collection[str]) -> frozenset[str]:
        if "momentum" in hyper and set(learned) == {"lr"}:
            return frozenset()  # the buffer is the direction
        return frozenset(("gradient", "weights") if "weight_decay" in hyper else ("gradient",))

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        lr, alpha, buffer = hyper["lr"], hyper["alpha"], state.get("momentum_buffer")
        if buffer is not None and learned == ("lr",):
            return -lr * buffer, [-buffer]
        g = self.descent(weights, gradient, hyper)
        root = self._root(state)
        denominator = root + hyper["eps"]
        scaled = g / denominator
        direction = scaled if buffer is None else buffer

        def through_root(square_change: Tensor, mean_change: Tensor) -> Tensor:
            # d(denominator) for changes of s and a: √(s - a²) moves by (∂s - 2 a ∂a) / (2 √(s - a²))
            if not self.centered:
                return square_change / root * 0.5
            change = (square_change - 2 * state["grad_avg"] * mean_change) / root * 0.5
            # below `tiny` the root is held constant, as `safe_sqrt` does (a centred first step has variance noise only)
            return torch.where(root > torch.finfo(root.dtype).tiny ** 0.5, change, 0.0)

        def derivative(name: str) -> Tensor:  # ∂direction/∂name
            if name == "momentum":  # the old buffer is (b - g / denominator) / μ
                return (direction - scaled) / hyper["momentum"]
            if name == "eps":
                return -scaled / denominator
            if name == "weight_decay":  # ∂g = w
                change = through_root(2 * (1 - alpha) * g * weights, (1 - alpha) * weights)
                return (weights - scaled * change) / denominator
            # the averages before the update are (s - (1 - α) g²) / α and its like, so ∂s/∂α = (s - g²) / α
            mean_change = (state["grad_avg"] - g) / alpha if self.centered else g
            return -scaled / denominator * through_root(state["square_avg"] / alpha - g * g / alpha, mean_change)

        return -lr * direction, [-direction if name == "lr" else -lr * derivative(name) for name in learned]


class RMSProp(Level):
    r"""RMSProp, as `torch.optim.RMSprop`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w, \qquad s \leftarrow \alpha s + (1 - \alpha) g^2 \\
        a &\leftarrow \alpha a + (1 - \alpha) g \quad \text{(centered; otherwise } a = 0) \\
        b &\leftarrow \mu b + \frac{g}{\sqrt{s - a^2} + \epsilon}, \qquad w \leftarrow w - \eta b

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 1e-2.
        alpha: smoothing α in [0, 1]. Default: 0.99.
        eps: ε >= 0, in units of gradient. Default: 1e-8.
        weight_decay: λ >= 0, an L2 penalty. Default: 0.
        momentum: μ in [0, 1]. Default: 0.
        centered: divide by the standard deviation instead of the root mean square.
        maximize: ascend instead of descend.
        foreach: torch's choice between its own implementations of this same update; recorded in the groups, as torch
            does, so that scripts and checkpoints move between the two, and of no effect.
        capturable: do a step with tensors alone, so that a CUDA graph can hold it: counts of updates stand with the parameters.
            Slower where none does. `torch.compile(optimizer.step)` sets it on a GPU. Default: False.
        fused: compile pull-back and update to one pass over memory each where parameters are large, as in `Adam`.
            Keyword only; torch's RMSprop has no such argument. Default: None, no compiling.
        differentiable: only False; a tower needs no differentiable step, and `True` raises.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, alpha, eps, weight_decay, momentum.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Tieleman, Hinton, "Lecture 6.5: rmsprop", Coursera 2012; centered: Graves, "Generating Sequences With
        Recurrent Neural Networks", 2013. Where rounding makes the centred variance negative it counts as 0
        (torch: NaN).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> str(RMSProp(model.parameters(), optimizer=RMSProp()))
        'rmsprop / rmsprop'
    """

    rule = RMSPropRule

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        switches = {"centered": centered, "maximize": maximize}
        hints = {"capturable": capturable, "foreach": foreach, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)
