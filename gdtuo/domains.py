"""Where a hyperparameter may live: the maps between its value and a learned shift.

A tower never overwrites the number that a user or a scheduler wrote. It learns a *shift*, starting at 0, in a
raw coordinate of the hyperparameter's domain:

    effective = forward(raw(value) + shift)

Each domain spells that composition out so that a shift of 0 returns the value to the bit and a value of 0 of a
`Positive` or `UnitInterval` hyperparameter stays exactly 0, whatever the shift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Domain", "Positive", "Real", "UnitInterval"]


@dataclass(frozen=True)
class Domain(ABC):
    """The values that a hyperparameter may take and the coordinate in which it is learned.

    A subclass supplies `raw`, `shifted` and `slope` as elementwise functions of float tensors, and the text
    that error messages use. Instances are immutable and compare by value.

    Args:
        minimum: smallest effective value that learning may reach; the shift is projected, so the bound is
            attained exactly up to rounding.
        maximum: largest effective value that learning may reach.

    Raises:
        ValueError: if `minimum` is not below `maximum` or either lies outside the domain.
    """

    minimum: float = -math.inf
    maximum: float = math.inf

    def __post_init__(self) -> None:
        # written so that a NaN bound fails as well
        if not self.minimum < self.maximum:
            raise ValueError(
                f"{type(self).__name__} got minimum={self.minimum}, maximum={self.maximum}: the minimum must be below "
                "the maximum. Swap them or drop one."
            )
        for name in ("minimum", "maximum"):
            bound = getattr(self, name)
            if math.isfinite(bound) and not self.allows(bound):
                raise ValueError(
                    f"{type(self).__name__} got {name}={bound}, outside of the domain itself: a bound is {self.text}."
                )

    @property
    @abstractmethod
    def text(self) -> str:
        """The range in words, for error messages: "a number >= 0"."""

    @abstractmethod
    def allows(self, value: float) -> bool:
        """Whether a user may write `value` (bounds limit learning, not writing)."""

    @abstractmethod
    def raw(self, value: Tensor) -> Tensor:
        """The coordinate of `value`; infinite where no shift can move it."""

    @abstractmethod
    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        """forward(raw(value) + shift): the effective value."""

    @abstractmethod
    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        """The derivative of `shifted` with respect to the shift."""

    def learnable(self, value: float) -> bool:
        """Whether a shift can move `value` and it stands within the bounds."""
        inside = self.minimum <= value <= self.maximum
        return (
            inside
            and self.allows(value)
            and math.isfinite(float(self.raw(torch.tensor(value, dtype=torch.float64, device="cpu"))))
        )

    def limits(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest shift that keep the effective value within the bounds."""
        raw = self.raw(value)
        fixed = ~raw.isfinite()  # no shift moves such a value, so none is out of bounds
        low, high = (self.raw(torch.full_like(value, bound)) for bound in (self.minimum, self.maximum))
        return torch.where(fixed, -math.inf, low - raw), torch.where(fixed, math.inf, high - raw)


@dataclass(frozen=True)
class Positive(Domain):
    """Numbers above 0, learned as a factor: effective = value · exp(shift). Learning rates, penalties, eps.

    Args:
        minimum: lower bound on the effective value. Default: 0.
        maximum: upper bound on the effective value. Default: none.

    Example:
        >>> import torch
        >>> Positive().shifted(torch.tensor(0.1), torch.tensor(0.0))
        tensor(0.1000)
        >>> Positive(maximum=0.2).limits(torch.tensor(0.1))[1].exp()
        tensor(2.)
    """

    minimum: float = 0.0

    @property
    def text(self) -> str:
        return "a number >= 0"

    def allows(self, value: float) -> bool:
        return 0.0 <= value < math.inf

    def raw(self, value: Tensor) -> Tensor:
        return value.log()

    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        return torch.where(value == 0, value, value * shift.exp())  # 0 · inf is no number

    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        return self.shifted(value, shift)


@dataclass(frozen=True)
class UnitInterval(Domain):
    """Numbers in (0, 1), learned in the logit: effective = sigmoid(logit(value) + shift). Momenta, betas.

    Args:
        minimum: lower bound on the effective value. Default: 0.
        maximum: upper bound on the effective value. Default: 1 - 2^-30; at 1 itself an average never forgets
            and Adam's bias correction divides by 0.

    Example:
        >>> import torch
        >>> UnitInterval().shifted(torch.tensor(0.9), torch.tensor(0.0))
        tensor(0.9000)
    """

    minimum: float = 0.0
    maximum: float = 1.0 - 2.0**-30

    @property
    def text(self) -> str:
        return "a number in [0, 1]"

    def allows(self, value: float) -> bool:
        return 0.0 <= value <= 1.0

    def raw(self, value: Tensor) -> Tensor:
        return value.logit()

    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        return torch.where(value == 0, value, value / (value + (1.0 - value) * (-shift).exp()))  # 0 / 0 is no number

    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        effective = self.shifted(value, shift)
        return effective * (1.0 - effective)


@dataclass(frozen=True)
class Real(Domain):
    """All numbers, learned as they are: effective = value + shift. The published algorithm's domain for SGD.

    Args:
        minimum: lower bound on the effective value. Default: none.
        maximum: upper bound on the effective value. Default: none.

    Example:
        >>> import torch
        >>> Real().shifted(torch.tensor(0.1), torch.tensor(0.05))
        tensor(0.1500)
    """

    @property
    def text(self) -> str:
        return "a finite number"

    def allows(self, value: float) -> bool:
        return math.isfinite(value)

    def raw(self, value: Tensor) -> Tensor:
        return value

    def shifted(self, value: Tensor, shift: Tensor) -> Tensor:
        return value + shift

    def slope(self, value: Tensor, shift: Tensor) -> Tensor:
        return torch.ones_like(shift)
