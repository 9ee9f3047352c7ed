"""AdaGrad."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..domains import Positive
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State, safe_sqrt, silenced
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AdaGrad", "AdaGradRule"]


@dataclass(frozen=True)
class AdaGradRule(PenalizedRule):
    """G ← G + g²;  w ← w - η / (1 + (t-1) d) · g / (√G + ε)."""

    initial_accumulator_value: float = 0.0

    hyperparameters = {
        "lr": (1e-2, Positive()),
        "lr_decay": (0.0, Positive()),
        "weight_decay": (0.0, Positive()),
        "eps": (1e-10, Positive()),
    }
    optional = frozenset(("lr_decay", "weight_decay"))
    direct = frozenset(("lr", "lr_decay"))
    closed_form: ClassVar[bool] = True

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"sum": torch.full_like(weights, self.initial_accumulator_value)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        g = self.descent(weights, gradient, hyper)
        total = state["sum"] + g * g
        rate = hyper["lr"] / (1 + (step - 1) * hyper.get("lr_decay", 0.0))
        return -rate * silenced(g / (safe_sqrt(total) + hyper["eps"]), g, total), {"sum": total}

    def native(
        self, weights: list[Tensor], gradients: list[Tensor], state: Mapping[str, list[Tensor]], hyper: Hyper, steps: list[Tensor]
    ) -> bool:
        if not hyper["eps"] > 0 or weights[0].is_cuda:  # torch's 0 / 0 where a gradient has always been 0; no kernel there
            return False
        kernel: Callable[..., None] = torch._fused_adagrad_
        numbers = {"lr_decay": 0.0, "weight_decay": 0.0, **hyper}
        kernel(weights, gradients, state["sum"], steps, **numbers, maximize=self.maximize)
        return True

    def remembers(self, learned: Collection[str], hyper: Collection[str]) -> frozenset[str]:
        return frozenset(("gradient", "weights") if "weight_decay" in hyper else ("gradient",))

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        g = self.descent(weights, gradient, hyper)
        root = safe_sqrt(state["sum"])
        denominator = root + hyper["eps"]
        scaled = g / denominator
        decay = 1 + (step - 1) * hyper.get("lr_decay", 0.0)
        rate = hyper["lr"] / decay

        def derivative(name: str) -> Tensor:  # ∂Δ/∂name
            if name == "lr":
                return -scaled / decay
            if name == "lr_decay":
                return rate * (step - 1) / decay * scaled
            if name == "eps":
                return rate * scaled / denominator
            # weight decay: ∂g = w, ∂√G = g w / √G
            return -rate * (weights - scaled * (g * weights / root)) / denominator

        return -rate * scaled, [derivative(name) for name in learned]


class AdaGrad(Level):
    r"""AdaGrad, as `torch.optim.Adagrad`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w, \qquad G \leftarrow G + g^2 \\
        w &\leftarrow w - \frac{\eta}{1 + (t - 1) d} \frac{g}{\sqrt G + \epsilon}

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 1e-2.
        lr_decay: d >= 0, per step. Default: 0.
        weight_decay: λ >= 0, an L2 penalty. Default: 0.
        initial_accumulator_value: G before the first step, >= 0. Default: 0.
        eps: ε >= 0, in units of gradient. Default: 1e-10.
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

    Learnable: lr, lr_decay, weight_decay, eps.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
        JMLR 2011, figure 1 (diagonal form). Sparse gradients, which torch takes, are refused.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = AdaGrad([w], lr=0.1)
        >>> w.grad = torch.full((1,), 3.0)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000])
    """

    rule = AdaGradRule

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        switches = {"initial_accumulator_value": initial_accumulator_value, "maximize": maximize}
        hints = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """The accumulator is a sum of squares."""
        if not group["initial_accumulator_value"] >= 0:
            raise ValueError(
                f"AdaGrad got initial_accumulator_value={group['initial_accumulator_value']}: the accumulator is a sum of "
                "squares, so it starts at a number >= 0. The usual value is 0."
            )
