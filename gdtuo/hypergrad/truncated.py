"""Reverse mode through the last steps of the run."""

from __future__ import annotations

from dataclasses import dataclass

from .dynamics import Dynamics
from .reverse import every_step
from .sweep import Scheme, Sweep

__all__ = ["Truncated"]


@dataclass(frozen=True, repr=False)
class Truncated(Sweep):
    """Reverse mode through the last k steps alone; what earlier ones did counts as given.

    Not exact: on a contraction the error falls geometrically in k. Memory k + O(1) states, time T + k gradients and k
    products. `result.params` is None unless k covers the run, and hyperparameters that act on earlier steps alone
    (schedules, initial states) get 0 there.

    Args:
        k: how many steps, >= 1; at T and above it is `Reverse`.
        products: as in `Reverse`.

    Raises:
        ValueError: if k is no positive integer.

    References:
        Shaban, Cheng, Hatch, Boots, "Truncated Back-propagation for Bilevel Optimization", AISTATS 2019.

    Example:
        >>> import gdtuo
        >>> gdtuo.Truncated(10).k
        10
    """

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"Truncated got k={self.k!r}: it counts the last steps. Give an integer >= 1.")

    def scheme(self, dynamics: Dynamics, losses: int) -> Scheme:
        return Scheme(max(dynamics.steps - self.k, 0), 0, every_step)
