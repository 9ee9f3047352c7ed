"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..domains import Positive
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, Rule, State, safe_sqrt, silenced
from .moments import MomentsRule, check_betas

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adam", "AdamRule", "AdamW", "AdamWRule"]


@dataclass(frozen=True)
class AdamRule(MomentsRule):
    """m ← β1 m + (1-β1) g; v ← β2 v + (1-β2) g²; w ← w - η m̂ / (√v̂ + ε), m̂ = m / (1-β1^t), v̂ = v / (1-β2^t)."""

    amsgrad: bool = False

    closed_form: ClassVar[bool] = True
    divisors = frozenset(("beta1", "beta2"))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        largest = {"max_exp_avg_sq": torch.zeros_like(weights)} if self.amsgrad else {}
        return super().init(weights, hyper) | largest

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        first, second = self.moments(self.descent(weights, gradient, hyper), state, hyper)
        after = {"exp_avg": first, "exp_avg_sq": second}
        if self.amsgrad:
            second = after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], second)
        scale = (1 - beta2**step) ** 0.5  # m̂ / (√v̂ + ε) = scale / (1-β1^t) · m / (√v + scale ε)
        denominator = safe_sqrt(second) + scale * hyper["eps"]
        delta = (-hyper["lr"] * scale / (1 - beta1**step)) * silenced(first / denominator, first, second)
        return self.shrunk(weights, delta, hyper), after

    def native(
        self, weights: list[Tensor], gradients: list[Tensor], state: Mapping[str, list[Tensor]], hyper: Hyper, steps: list[Tensor]
    ) -> bool:
        if not hyper["eps"] > torch.finfo(torch.float32).tiny:  # torch's 0 / 0 where a gradient has always been 0
            return False
        kernel: Callable[..., None] = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        if weights[0].is_cuda:  # where the kernel reads the count of steps
            steps = [torch.full((), float(steps[0]), device=weights[0].device)] * len(steps)
        moments = state["exp_avg"], state["exp_avg_sq"], state.get("max_exp_avg_sq", [])
        numbers = {"weight_decay": 0.0, **hyper, "amsgrad": self.amsgrad, "maximize": self.maximize}
        kernel(weights, gradients, *moments, steps, **numbers)
        return True

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        lr, beta1, beta2 = hyper["lr"], hyper["beta1"], hyper["beta2"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        largest = state["max_exp_avg_sq"] if self.amsgrad else second
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        scale = bias2**0.5
        root = safe_sqrt(largest)
        denominator = root + scale * hyper["eps"]
        unit = first / denominator
        rate = lr * scale / bias1  # Δ = -rate · unit, but for a decoupled decay
        direction = self.shrunk(weights, -(scale / bias1) * unit, {**hyper, "lr": 1.0})  # Δ = lr · direction

        def through_root(square_change: Tensor) -> Tensor:
            # d(unit) for a change of v: √v moves by half of it over √v
            return -unit / denominator * (square_change / root) * 0.5

        def largest_change(change: Tensor) -> Tensor:  # amsgrad follows v only where v is the largest so far
            return torch.where(second == largest, change, 0.0) if self.amsgrad else change

        def derivative(name: str) -> Tensor:  # ∂Δ/∂name
            if name == "lr":
                return direction
            if name == "eps":
                return rate * scale * (unit / denominator)
            if name == "weight_decay" and self.decoupled:
                return -lr * weights
            g = self.descent(weights, gradient, hyper)
            if name == "weight_decay":  # ∂g = w
                square_change = largest_change(2 * (1 - beta2) * (g * weights))
                return -rate * ((1 - beta1) * (weights / denominator) + through_root(square_change))
            # the moments before the update are (m - (1 - β1) g) / β1 and its like, so ∂m/∂β1 = (m - g) / β1; the other
            # terms come from the bias corrections
            if name == "beta1":
                mean_change = first * (1 / beta1 + step * beta1 ** (step - 1) / bias1) - g / beta1
                return -rate * (mean_change / denominator)
            square_change = largest_change(second / beta2 - g * g / beta2) + largest * (step * beta2 ** (step - 1) / bias2)
            return -rate * through_root(square_change)

        return lr * direction, [derivative(name) for name in learned]


@dataclass(frozen=True)
class AdamWRule(AdamRule):
    """Adam with decoupled weight decay: w ← w - η λ w beside Adam's own update."""

    hyperparameters = {**AdamRule.hyperparameters, "weight_decay": (1e-2, Positive())}
    decoupled = True


class Adam(Level):
    r"""Adam, as `torch.optim.Adam`, and itself optimizable.

    .. math::
        g &\leftarrow \nabla L(w) + \lambda w \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 1e-3.
        betas: (β1, β2), each in [0, 1). Default: (0.9, 0.999).
        eps: ε >= 0, in units of gradient. Default: 1e-8.
        weight_decay: λ >= 0, an L2 penalty that enters the gradient. Default: 0.
        amsgrad: divide by the largest v so far (Reddi et al. 2018).
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

    Learnable: lr, beta1, beta2 (together "betas"), eps, weight_decay.

    Raises:
        ValueError: a number outside its range, before anything has changed.

    References:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. As in torch, ε is
        added after the bias correction of √v. A weight whose gradient has always been 0 stays put even with
        eps = 0 (torch: NaN).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = Adam(model.parameters(), lr=1e-3, optimizer=Adam(lr=0.01))
        >>> str(optimizer), optimizer.height
        ('adam / adam', 1)
    """

    rule: ClassVar[type[Rule]] = AdamRule
    aliases = {"betas": ("beta1", "beta2")}
    marks: ClassVar[Mapping[str, Any]] = {"decoupled_weight_decay": False}

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number | None = None,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        if weight_decay is None:
            weight_decay = self.rule.hyperparameters["weight_decay"][0]
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"amsgrad": amsgrad, "maximize": maximize}
        hints = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **numbers, **switches, **hints, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """A beta of 1 would never take anything in; torch marks in a group which weight decay is meant."""
        decoupled = cls.marks["decoupled_weight_decay"]
        if group.get("decoupled_weight_decay", decoupled) != decoupled:
            other = "Adam" if decoupled else "AdamW"
            raise ValueError(
                f"{cls.__name__} got a group with decoupled_weight_decay={not decoupled}: its weight decay is "
                f"{'decoupled' if decoupled else 'a part of the gradient'}. Use gdtuo.{other}."
            )
        check_betas(cls.__name__, group)


class AdamW(Adam):
    r"""Adam with decoupled weight decay, as `torch.optim.AdamW`, and itself optimizable.

    .. math::
        w \leftarrow w - \eta \lambda w - \eta \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    Arguments are those of `Adam`; only two differ in meaning or default.

    Args:
        weight_decay: λ >= 0; each step shrinks the weights by the factor 1 - η λ. Default: 1e-2.

    References:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2, with torch's
        coupling of the decay to the learning rate.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(1)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500])
    """

    rule: ClassVar[type[Rule]] = AdamWRule
    marks = {"decoupled_weight_decay": True}
