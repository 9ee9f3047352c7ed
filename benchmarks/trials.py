"""A contestant at work on a model, and the comparison of several."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

from . import models, timing
from .optimizers import driver

__all__ = ["MODES", "Task", "compare"]

Task = Callable[[], None]


def iteration(model: str, optimizer: str, device: str) -> Task:
    """A whole training iteration: gradients are reset, forward, backward, step."""
    network, loss = models.load(model, device)
    training = driver(optimizer, network)

    def iterate() -> None:
        training.zero_grad()
        training.backward(loss())
        training.step()

    return iterate


def step(model: str, optimizer: str, device: str) -> Task:
    """A bare step, each time with the same gradients."""
    network, loss = models.load(model, device)
    training = driver(optimizer, network)
    training.backward(loss())
    return training.step


MODES: dict[str, Callable[[str, str, str], Task]] = {"step": step, "iteration": iteration}


def compare(
    model: str,
    mode: str,
    optimizers: Sequence[str],
    device: str = "cpu",
    repetitions: int = timing.REPETITIONS,
    seconds: float = timing.SECONDS,
) -> dict[str, timing.Timing]:
    """All of them on copies of one model, alive together in this process and timed in turns."""
    tasks = {name: MODES[mode](model, name, device) for name in optimizers}
    try:
        return timing.interleave(tasks, repetitions, seconds, timing.synchroniser(device))
    finally:
        tasks.clear()
        gc.collect()
