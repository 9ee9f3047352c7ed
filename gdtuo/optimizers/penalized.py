"""What torch's optimizers share: `maximize`, and an L2 penalty that enters the gradient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from ..rules import Hyper, Rule

__all__ = ["PenalizedRule"]


@dataclass(frozen=True)
class PenalizedRule(Rule):
    """A rule whose gradient is ±∇L + λ w, with λ the hyperparameter "weight_decay"."""

    maximize: bool = False

    def reads_weights(self, hyper: Collection[str]) -> bool:
        return "weight_decay" in hyper

    def descent(self, weights: Tensor, gradient: Tensor, hyper: Hyper) -> Tensor:
        """The gradient to descend."""
        gradient = -gradient if self.maximize else gradient
        return gradient + hyper["weight_decay"] * weights if "weight_decay" in hyper else gradient
