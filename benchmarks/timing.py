"""Times of several contestants in one process, taken in turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

__all__ = ["REPETITIONS", "Timing", "interleave", "synchroniser"]

REPETITIONS = 21
SECONDS = 0.02  # a repetition takes at least this long, if need be by many calls
WARM_UP = 5  # calls; the first of a tower differ from its later ones, and a fused one compiles in them


class Timing(NamedTuple):
    """Seconds for one call."""

    median: float
    lower: float  # quartile
    upper: float  # quartile

    @classmethod
    def of(cls, times: list[float]) -> Timing:
        """The summary of some repetitions."""
        if len(times) == 1:
            return cls(times[0], times[0], times[0])
        lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, lower, upper)


def synchroniser(device: str) -> Callable[[], object]:
    """What waits until the device has done its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def interleave(
    tasks: Mapping[str, Callable[[], object]],
    repetitions: int = REPETITIONS,
    seconds: float = SECONDS,
    synchronise: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = WARM_UP,
) -> dict[str, Timing]:
    """Time each task in rounds; in a round each has one repetition, in an order drawn anew.

    A repetition is as many calls as take about `seconds`, at least one; garbage is collected before its clock starts, so
    that nobody pays for another's, while what its own calls leave behind is collected at its own cost.

    Args:
        tasks: what to call, by name.
        repetitions: rounds, at least 1.
        seconds: the least time worth measuring; with 0 a repetition is one call, and nothing is called to find that out.
        synchronise: called at both ends of a repetition.
        clock: seconds.
        warm_up: calls of each task before anything is timed.
    """

    def timed(task: Callable[[], object], calls: int) -> float:
        synchronise()
        start = clock()
        for _ in range(calls):
            task()
        synchronise()
        return (clock() - start) / calls

    calls = {}
    for name, task in tasks.items():
        for _ in range(warm_up):
            task()
        fastest = min(timed(task, 1) for _ in range(3)) if seconds else 1.0
        calls[name] = max(1, math.ceil(seconds / max(fastest, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in tasks}
    order, draw = list(tasks), random.Random(0)
    gc.collect()
    gc.freeze()  # the contestants themselves: a collection need not walk through them
    try:
        for _ in range(repetitions):
            draw.shuffle(order)
            for name in order:
                gc.collect()
                times[name].append(timed(tasks[name], calls[name]))
    finally:
        gc.unfreeze()
    return {name: Timing.of(taken) for name, taken in times.items()}
