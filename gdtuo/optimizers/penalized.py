"""What torch's optimizers share: `maximize`, and a penalty on large weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from ..rules import Hyper, Rule

__all__ = ["PenalizedRule"]


@dataclass(frozen=True)
class PenalizedRule(Rule):
    """A rule whose gradient is ±∇L + λ w, or, decoupled, that shrinks the weights by η λ w beside its update.

    λ is the hyperparameter "weight_decay".
    """

    maximize: bool = False

    @property
    def decoupled(self) -> bool:
        """Whether the penalty stays out of the gradient."""
        return False

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return "weight_decay" in hyper

    def descent(self, weights: Tensor, gradient: Tensor, hyper: Hyper) -> Tensor:
        """The gradient to descend."""
        gradient = -gradient if self.maximize else gradient
        return gradient + hyper["weight_decay"] * weights if "weight_decay" in hyper and not self.decoupled else gradient

    def shrunk(self, weights: Tensor, delta: Tensor, hyper: Hyper) -> Tensor:
        """An update with the decoupled penalty."""
        return delta - hyper["lr"] * hyper["weight_decay"] * weights if "weight_decay" in hyper and self.decoupled else delta
