"""The coordinates in which the published package learns: bounded numbers as (tanh(raw) + 1) / 2, RMSProp's rate as raw²."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Domain, UnitInterval

__all__ = ["HalfLogit", "Square"]


@dataclass(frozen=True)
class HalfLogit(Domain):
    """Numbers in (0, 1): effective = (tanh(raw) + 1) / 2 = sigmoid(2 raw). Betas and gammas.

    `UnitInterval` with twice the slope, and up to the last number below 1 (1 itself is NaN in the published package).

    Args:
        minimum: lower bound on the effective value. Default: 0.
        maximum: upper bound on the effective value. Default: the largest float below 1.

    Example:
        >>> HalfLogit().shifted(torch.tensor(0.9), torch.tensor(0.0))
        tensor(0.9000)
    """

    minimum: float = 0.0
    maximum: float = math.nextafter(1.0, 0.0)

    @property
    def text(self) -> str:
        return "a number in [0, 1)"

    def allows(self, value: float) -> bool:
        return 0.0 <= value < 1.0

    def raw(self, value: Tensor) -> Tensor:
        return value.logit() / 2

    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        return UnitInterval().shifted(value, 2 * shift)

    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        return 2 * UnitInterval().slope(value, 2 * shift)


@dataclass(frozen=True)
class Square(Domain):
    """Numbers >= 0: effective = raw². The raw number may pass through 0, and the value then grows again.

    Example:
        >>> value = torch.tensor(0.25)
        >>> Square().shifted(value, torch.tensor([0.0, -0.5, -1.0]))
        tensor([0.2500, 0.0000, 0.2500])
    """

    @property
    def text(self) -> str:
        return "a number >= 0"

    def allows(self, value: float) -> bool:
        return 0.0 <= value < math.inf

    def raw(self, value: Tensor) -> Tensor:
        return value.sign() * value.abs().sqrt()  # odd, so that a bound of -∞ is none

    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        return torch.where(shift == 0, value, (self.raw(value) + shift).square())

    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        return 2 * (self.raw(value) + shift)
