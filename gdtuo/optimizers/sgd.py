"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..domains import Positive, UnitInterval
from ..level import Learning, Level, Params
from ..rules import Hyper, MomentumForm, Number, State
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGD", "SGDRule"]


@dataclass(frozen=True)
class SGDRule(PenalizedRule):
    """b ← μ b + (1 - τ) g (b ← g at the first step);  w ← w - η b, or w ← w - η (g + μ b) with Nesterov."""

    nesterov: bool = False

    hyperparameters = {
        "lr": (1e-2, Positive()),
        "momentum": (0.0, UnitInterval()),
        "dampening": (0.0, UnitInterval()),
        "weight_decay": (0.0, Positive()),
    }
    optional = frozenset(("momentum", "dampening", "weight_decay"))
    direct = frozenset(("lr", "weight_decay"))
    proportional = True
    closed_form: ClassVar[bool] = True
    divisors = frozenset(("momentum",))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"momentum_buffer": torch.zeros_like(weights)} if "momentum" in hyper else {}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        direction = self.descent(weights, gradient, hyper)
        if "momentum" in hyper:
            dampening = hyper.get("dampening", 0.0) * (step > 1)
            buffer = hyper["momentum"] * state["momentum_buffer"] + (1 - dampening) * direction
            direction = direction + hyper["momentum"] * buffer if self.nesterov else buffer
            state = {"momentum_buffer": buffer}
        return -hyper["lr"] * direction, state

    def native(
        self, weights: list[Tensor], gradients: list[Tensor], state: Mapping[str, list[Tensor]], hyper: Hyper, steps: list[Tensor]
    ) -> bool:
        if hyper.get("momentum") == 0:  # torch's kernel takes no buffer then
            return False
        kernel: Callable[..., None] = torch._fused_sgd_
        numbers = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, **hyper}
        switches = {"nesterov": self.nesterov, "maximize": self.maximize, "is_first_step": bool(steps[0] == 1)}
        kernel(weights, gradients, state.get("momentum_buffer", []), **numbers, **switches)
        return True

    def momentum_form(self, weights: Tensor, gradient: Tensor, hyper: Hyper, step: Number) -> MomentumForm | None:
        if "momentum" not in hyper or self.nesterov:  # Nesterov's step needs the gradient that is to be undone
            return None
        fresh = 1 - hyper.get("dampening", 0.0) * (step > 1)
        return MomentumForm("momentum_buffer", "momentum", fresh * self.descent(weights, gradient, hyper), -hyper["lr"])

    def remembers(self, learned: Collection[str], hyper: Collection[str]) -> frozenset[str]:
        buffer_is_direction = "momentum" in hyper and not self.nesterov
        needs = set()
        if not buffer_is_direction or not {"lr", "weight_decay"}.issuperset(learned):
            needs.add("gradient")
        if "weight_decay" in hyper and (needs or "weight_decay" in learned):
            needs.add("weights")
        return frozenset(needs)

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        momentum, buffer = hyper.get("momentum", 0.0), state.get("momentum_buffer")
        later = step > 1
        fresh = 1 - hyper.get("dampening", 0.0) * later
        if buffer is not None and not self.nesterov:
            direction = buffer
        else:
            g = self.descent(weights, gradient, hyper)
            direction = g if buffer is None else g + momentum * buffer

        def through_buffer(change: Tensor) -> Tensor:
            # d(direction) when the new buffer changes: Nesterov looks ahead by another factor of momentum
            return momentum * change if self.nesterov else change

        def derivative(name: str) -> Tensor:  # ∂direction/∂name
            if name == "weight_decay":
                # ∂g = w enters the buffer with the weight (1 - τ), and with Nesterov the direction itself as well
                if buffer is None:
                    return weights
                change = through_buffer(fresh * weights)
                return change + weights if self.nesterov else change
            if buffer is None:
                return torch.zeros_like(direction)
            g = self.descent(weights, gradient, hyper)
            if name == "dampening":
                return through_buffer(-g * later)
            # momentum: the old buffer is (b - (1 - τ) g) / μ, and 0 before the first step
            change = through_buffer((buffer - fresh * g) * (later / momentum))
            return change + buffer if self.nesterov else change

        lr = hyper["lr"]
        tangents = [-direction if name == "lr" else -lr * derivative(name) for name in learned]
        return -lr * direction, tangents


class SGD(Level):
    r"""Stochastic gradient descent with momentum, as `torch.optim.SGD`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w \\
        b &\leftarrow \mu b + (1 - \tau) g \quad (b \leftarrow g \text{ at the first step}) \\
        w &\leftarrow w - \eta b, \quad\text{with Nesterov } w \leftarrow w - \eta (g + \mu b)

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight² per loss. Default: 1e-2 (torch: 1e-3).
        momentum: μ in [0, 1). Default: 0.
        dampening: τ in [0, 1]. Default: 0.
        weight_decay: λ >= 0, an L2 penalty. Default: 0.
        nesterov: look one step of momentum ahead; needs momentum > 0 and no dampening.
        maximize: ascend instead of descend.
        foreach: torch's choice between its own implementations of this same update; recorded in the groups, as torch
            does, so that scripts and checkpoints move between the two, and of no effect.
        capturable: do a step with tensors alone, so that a CUDA graph can hold it: counts of updates stand with the parameters.
            Slower where none does. `torch.compile(optimizer.step)` sets it on a GPU. Default: False.
        fused: compile pull-back and update to one pass over memory each, in models of more than 524,288 weights, where
            parameters are large (on the CPU, from 131,072 weights on); needs a C++ compiler, on CUDA Triton, else
            warns once and runs as it does without. Default: None, no compiling.
        differentiable: only False; a tower needs no differentiable step, and `True` raises.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, momentum, dampening, weight_decay.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning",
        ICML 2013; torch's form of it, in which the learning rate multiplies the buffer. All state exists from
        construction on, so a momentum buffer saved before a parameter's first step is zeros: `torch.optim.SGD` takes
        it for an old one, and dampens that parameter's first gradient if dampening is set.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SGD([w], lr=0.02, momentum=0.9, optimizer=SGD())
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (w**2).sum().backward()
        ...     optimizer.step()
        >>> round(optimizer.hyperparameters()["L0/g0/lr"], 4)  # two useful steps, each worth a factor e^0.01
        0.0204
    """

    rule = SGDRule

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        switches = {"nesterov": nesterov, "maximize": maximize}
        hints = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Nesterov momentum needs a momentum and no dampening."""
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD got nesterov=True with momentum={group['momentum']}, dampening={group['dampening']}: Nesterov "
                "momentum needs momentum > 0 and dampening=0."
            )
