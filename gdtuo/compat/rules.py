"""The updates of the published package, to the letter: where eps stands, and what the second moments start at.

Nothing here is differentiated by hand; the core derives every hypergradient from `update`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Real
from ..level import Level
from ..rules import Hyper, Number, Rule, State, safe_sqrt
from .domains import HalfLogit, Square

__all__ = ["AdaGradLevel", "AdamLevel", "RMSPropLevel", "SGDLevel"]


@dataclass(frozen=True)
class _SGDRule(Rule):
    """b ← μ b + g;  w ← w - α b. Without a buffer where μ starts at 0."""

    hyperparameters = {"alpha": (0.01, Real()), "mu": (0.0, Real())}
    optional = frozenset(("mu",))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"buf": torch.zeros_like(weights)} if "mu" in hyper else {}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        if "mu" in hyper:
            gradient = hyper["mu"] * state["buf"] + gradient
            state = {"buf": gradient}
        return -hyper["alpha"] * gradient, state

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return False


@dataclass(frozen=True)
class _AdaGradRule(Rule):
    """G ← G + g² (from 0.1);  w ← w - α g / √(G + ε)."""

    eps: float = 1e-10

    hyperparameters = {"alpha": (0.01, Real())}

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"G": torch.full_like(weights, 0.1)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        total = state["G"] + gradient * gradient
        return -hyper["alpha"] * gradient / safe_sqrt(total + self.eps), {"G": total}

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return False


@dataclass(frozen=True)
class _RMSPropRule(Rule):
    """s ← γ s + (1-γ) g²;  w ← w - α g / √(s + ε)."""

    eps: float = 1e-8

    hyperparameters = {"alpha": (0.01, Square()), "gamma": (0.99, HalfLogit())}

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"s": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        square = hyper["gamma"] * state["s"] + (1 - hyper["gamma"]) * (gradient * gradient)
        return -hyper["alpha"] * gradient / safe_sqrt(square + self.eps), {"s": square}

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return False


@dataclass(frozen=True)
class _AdamRule(Rule):
    """m ← β1 m + (1-β1) g; v ← β2 v + (1-β2) g² (from ε); w ← w - α m̂ / (√v̂ + ε), m̂ and v̂ bias-corrected."""

    eps: float = 1e-8

    hyperparameters = {"alpha": (0.001, Real()), "beta1": (0.9, HalfLogit()), "beta2": (0.999, HalfLogit())}

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"m": torch.zeros_like(weights), "v": torch.full_like(weights, self.eps)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        first = beta1 * state["m"] + (1 - beta1) * gradient
        second = beta2 * state["v"] + (1 - beta2) * (gradient * gradient)
        mean, square = first / (1 - beta1**step), second / (1 - beta2**step)
        return -hyper["alpha"] * (mean / (safe_sqrt(square) + self.eps)), {"m": first, "v": second}

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return False


# Underscored, so that tower("adam") finds gdtuo's own level of that name and no other.


class _CompatSGD(Level):
    rule = _SGDRule


class _CompatAdaGrad(Level):
    rule = _AdaGradRule


class _CompatRMSProp(Level):
    rule = _RMSPropRule


class _CompatAdam(Level):
    rule = _AdamRule


SGDLevel, AdaGradLevel, RMSPropLevel, AdamLevel = _CompatSGD, _CompatAdaGrad, _CompatRMSProp, _CompatAdam
