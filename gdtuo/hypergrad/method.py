"""`Method`: a way of differentiating a run, and what comes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from torch import Tensor

from .curvature import LINEARIZATIONS, Products
from .dynamics import Cost, Dynamics
from .outer import Outer, Slopes

__all__ = ["Derivative", "Meter", "Method", "Progress"]

Progress: TypeAlias = Callable[[int, int], Any]


@dataclass
class Derivative:
    """What a method finds of one run."""

    slopes: Slopes  # of the outer losses at the end
    final: list[Tensor]  # the trained weights
    by_leaves: list[list[Tensor]]  # [loss][leaf] dE/dλ, the direct term included
    by_weights: list[list[Tensor]] | None  # [loss][weight] with respect to the initial weights
    notes: list[str] = field(default_factory=list)  # what makes it inexact, to warn of


class Meter:
    """Tells a callback how many of a known number of inner gradients have been evaluated."""

    def __init__(self, progress: Progress | None, dynamics: Dynamics, before: int, total: int) -> None:
        self._progress, self._dynamics, self._before, self._total = progress, dynamics, before, total

    def tick(self) -> None:
        """To be called after each step."""
        if self._progress is not None:
            self._progress(self._before + self._dynamics.cost.gradients, self._total)


@dataclass(frozen=True, repr=False)
class Method(ABC):
    """A way of differentiating a whole run, with its options.

    A subclass supplies `differentiate` and `forecast`, which counts what the former does.
    """

    def __repr__(self) -> str:
        """As a user would write it: what stands at its default is left out."""
        given = [f.name for f in fields(self) if not usual(getattr(self, f.name), f.default)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    @property
    def products(self) -> Products:
        """How second derivatives of the inner loss are taken."""
        return "reverse-over-reverse"

    @abstractmethod
    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        """Run the training and differentiate it."""

    @abstractmethod
    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        """What `differentiate` will cost, counted without running anything.

        Raises:
            ValueError: if the method cannot differentiate such a run.
        """


def usual(value: object, default: object) -> bool:
    """Whether an option stands at its default; arrays are none."""
    return value is default or (isinstance(value, (bool, int, float, str)) and value == default)


def check_method(method: object) -> None:
    """Raise unless it is one."""
    if not isinstance(method, Method):
        raise TypeError(f"method is {method!r}. Give an instance of a method, as gdtuo.Reverse().")


def check_products(products: str) -> None:
    """Raise unless there is such a mode."""
    if products not in LINEARIZATIONS:
        raise ValueError(f"got products={products!r}. It is one of {', '.join(map(repr, LINEARIZATIONS))}.")
