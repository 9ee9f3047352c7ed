"""How far one update may move the weights: a limit for a learning rate that is learned.

Let d be the update at a learning rate of 1. The learning rate stays where the update is at most κ (`trust`) times as long as
the weights, as in You, Gitman & Ginsburg 2017 (LARS, there an equality for each layer):

    lr <= κ |w| / |d|

Before the first update d is computed, once, and again where the gradient was 0. Later it is taken from the last one,
|d| = |Δ| / lr; where the gradient stands in d as it is, as in SGD's, |d|² grows by what |g|² has grown since the step before.
|w| is measured before the first update, every weight counting for at least `TYPICAL`, and grows to |Z|, the way of the last
`horizon` updates, where that is longer. So later steps need nothing but sums that are there anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .rules import Hyper, Number, Rule, State

__all__ = ["LENGTHS", "Lengths", "measured"]

#: Weights that begin at 0 are to move as well: the root mean square that is added to theirs.
TYPICAL = 0.03

#: How many numbers there are.
LENGTHS = 3


class Lengths(NamedTuple):
    """Squares of lengths, [B] each of a block; additive over the parts of a block."""

    weights: Tensor
    direction: Tensor  # |d|²
    gradient: Tensor

    @classmethod
    def of_table(cls, table: Tensor) -> Lengths:
        """Of the columns of a [B, 3] table."""
        return cls(*table.unbind(1))

    def after(self, way: Tensor, moved: Tensor, rate: Tensor, gradient: Tensor) -> Lengths:
        """What is known of them after another update.

        Args:
            way: [B] |Z|².
            moved: [B] |Δ|² of the last update, 0 where there was none.
            rate: [B] its learning rate.
            gradient: [B] |g|² of the gradient that there is now, 0 where there is none.
        """
        known = (moved > 0) & (rate * rate > 0)
        return Lengths(
            torch.where(self.weights > 0, torch.maximum(self.weights, way), 0.0),
            torch.where(known, moved / torch.where(known, rate * rate, 1.0), self.direction),
            torch.where(gradient > 0, gradient, self.gradient),
        )

    def limit(self, trust: float, before: Tensor | None) -> Tensor:
        """[B] the largest learning rate, infinite where nothing is known.

        Args:
            trust: κ.
            before: [B] |g|² of the step before, of a rule in whose updates the gradient stands as it is.
        """
        direction = self.direction
        if before is not None:
            direction = direction + torch.where((before > 0) & (self.gradient > before), self.gradient - before, 0.0)
        known = (self.weights > 0) & (direction > 0)
        squared = self.weights / torch.where(known, direction, 1.0)
        return torch.where(known, trust * squared.sqrt(), torch.inf)


def measured(rule: Rule, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number, like: Tensor) -> Tensor:
    """[3] the squared `Lengths` before an update, of the dtype of `like`; nothing is changed."""
    delta, _ = rule.update(weights, gradient, state, {**hyper, "lr": torch.ones_like(hyper["lr"])}, step)
    squares = [x.detach().abs().to(like.dtype).square().sum() for x in (weights, delta, gradient)]
    squares[0] = squares[0] + TYPICAL**2 * weights.numel()
    return torch.stack(squares)
