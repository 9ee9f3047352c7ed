"""Axes on which equal steps of learning look equal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AVERAGES", "LEAST", "plain_ticks", "scale"]

AVERAGES = ("momentum", "alpha", "beta1", "beta2", "beta3")
MARGIN = 1.3  # beyond the numbers, a factor
ZERO = 3  # below the least positive number, a factor: where 0 stands
LEAST = 1e-300  # what is less, or more than its inverse, is drawn beyond the end of an axis
TICKS = 12  # decades, at most, that have a tick
NARROW = 1.5  # positive numbers whose largest is less than so many times the smallest stand on a linear axis
NEAR_ONE = [
    [1 - scale * 10.0**-k for k in range(1, 11) for scale in scales]
    for scales in ((5, 2, 1), (9, 8, 7, 6, 5, 4, 3, 2, 1.8, 1.6, 1.4, 1.2, 1))
]


def scale(axes: Axes, values: Iterable[float], average: bool = False) -> None:
    """An axis on which equal steps of learning look equal: factors, or of what averages, factors of its distance from 1."""
    numbers = [value for value in values if math.isfinite(value)]
    positive = [value for value in numbers if value > 0]
    if not positive or min(numbers) < 0:
        return
    low, high = min(positive), max(positive)
    if average and low >= 0.5 and high < 1:
        if 1 - low > NARROW * (1 - high):
            axes.set_yscale("function", functions=(_distance, _undone))
            coarse, fine = ([tick for tick in ticks if low <= tick <= high] for ticks in NEAR_ONE)
            ticks = coarse if len(coarse) > 2 else fine
            axes.set_yticks(ticks, [f"{tick:.10g}" for tick in ticks])
    elif high > NARROW * low:
        axes.set_yscale("log", nonpositive="mask")


def plain_ticks(axes: Axes, values: Iterable[float]) -> float:
    """Write 1, 2, 5, 10, ... rather than powers on a logarithmic axis, and end it where the values end.

    Returns:
        where a value of 0 stands there: below the others, at a tick of its own. Minus infinity if there is none.
    """
    numbers = [value for value in values if math.isfinite(value)]
    if axes.get_yscale() != "log":
        return -math.inf
    lowest, highest = min(value for value in numbers if value > 0), max(numbers)
    zero = lowest / ZERO if 0 in numbers else -math.inf
    low, high = max(lowest, LEAST) / MARGIN, min(highest, 1 / LEAST) * MARGIN
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps, every = (1, 2, 5) if len(decades) < 6 else (1,), math.ceil(len(decades) / TICKS)
    ticks = [step * 10.0**k for k in decades if k % every == 0 for step in steps if low <= step * 10.0**k <= high]
    names = [f"{tick:g}" for tick in ticks]
    if zero > 0:
        ticks, names, low = [zero, *ticks], ["0", *names], zero / MARGIN
    axes.set_yticks(ticks, names)
    axes.minorticks_off()
    axes.set_ylim(low, high)
    return zero


def _distance(value: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(1 - np.asarray(value), 1e-12))


def _undone(distance: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-np.asarray(distance))
