"""What Adam and its relatives share: running averages of the gradient and of its square."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..domains import Positive, UnitInterval
from ..rules import Hyper, State
from .penalized import PenalizedRule

__all__ = ["MomentsRule", "check_betas"]


@dataclass(frozen=True)
class MomentsRule(PenalizedRule):
    """m ← β1 m + (1-β1) g; v ← β2 v + (1-β2) g²."""

    hyperparameters = {
        "lr": (1e-3, Positive()),
        "beta1": (0.9, UnitInterval()),
        "beta2": (0.999, UnitInterval()),
        "eps": (1e-8, Positive()),
        "weight_decay": (0.0, Positive()),
    }
    optional = frozenset(("weight_decay",))

    @property
    def direct(self) -> frozenset[str]:
        return frozenset(("lr", "weight_decay") if self.decoupled else ("lr",))

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}

    def moments(self, gradient: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """The averages after an update."""
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        first = beta1 * state["exp_avg"] + (1 - beta1) * gradient
        return first, beta2 * state["exp_avg_sq"] + (1 - beta2) * (gradient * gradient)

    def remembers(self, learned: Collection[str], hyper: Collection[str]) -> frozenset[str]:
        needs = set()
        if {"beta1", "beta2"}.intersection(learned):
            needs.add("gradient")
        if "weight_decay" in hyper:
            if not self.decoupled and (needs or "weight_decay" in learned):
                needs.update(("gradient", "weights"))
            if self.decoupled:
                needs.add("weights")
        return frozenset(needs)


def check_betas(title: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError for a beta of 1, which would never take anything in."""
    for i, beta in enumerate(group["betas"]):
        if not beta < 1:
            raise ValueError(f"{title} got betas[{i}]={beta}: a beta is in [0, 1). Usual values are (0.9, 0.999).")
