"""One cell of an ablation, or several at once: trained, evaluated, and what was learned on the way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from statistics import median
from typing import NamedTuple

import torch

from ..level import Level
from ..text import tower
from .networks import networks
from .tasks import Task

__all__ = ["BOUNDS", "Outcome", "Start", "train"]

POINTS = 40  # of a trace, at most
BOUNDS = ("/min", "/max")  # of hyperparameters that each weight has
KEY = re.compile(r"L(\d+)/g(\d+)/(\w+)")


class Start(NamedTuple):
    """What tells apart cells that are trained together."""

    lr: float
    seed: int


class Outcome(NamedTuple):
    """What is left of a cell."""

    error: float  # what the task measures
    loss: float  # the mean over the last epoch
    diverged: bool  # loss, weights or error did not stay finite
    skipped: int  # hyper-updates
    trace: dict[int, dict[str, float]]  # "L0/lr", what is learned, ... after so many steps

    @property
    def learned_lr(self) -> float:
        """The weights' learning rate at the end; of several, their median."""
        last = self.trace[max(self.trace)]
        return median(value for name, value in last.items() if name.startswith("L0/lr") and not name.endswith(BOUNDS))


def train(task: Task, text: str, starts: Sequence[Start], epochs: int | None = None) -> list[Outcome]:
    """Train a network for each start by a tower; several at once share every operation.

    Args:
        task: what is trained.
        text: the tower, as `gdtuo.tower` takes it.
        starts: initial learning rates of the weights, and seeds of weights and batches.
        epochs: how many; by default the task's.
    """
    nets = networks(task, [start.seed for start in starts])
    optimizer = tower(text).bind([{"params": nets.weights(k), "lr": start.lr} for k, start in enumerate(starts)])
    generators = {start.seed: torch.Generator().manual_seed(start.seed) for start in starts}
    traces = _Traces(optimizer)
    step, traced, mean = 0, 0, torch.full((len(starts),), torch.nan)
    traces.record(step)
    for _ in range(epochs or task.epochs):
        total, count = torch.zeros(()), 0
        for batches in zip(*(task.epoch(generator) for generator in generators.values()), strict=True):
            losses = nets.backward(dict(zip(generators, batches, strict=True)))
            optimizer.step()
            total = total + losses.double()  # where the task keeps its tensors
            step, count = step + 1, count + 1
            if step % traces.every == 0:
                traces.record(step)
                traced = step
        mean = total / max(count, 1)
        if not mean.isfinite().any():
            break  # all have diverged: nothing comes back from that
    if traced < step:
        traces.record(step)
    with torch.no_grad():
        errors = [float(task.evaluate(nets.model(k))) for k in range(len(starts))]
    return [
        Outcome(
            error=errors[k],
            loss=mean[k].item(),
            diverged=not (isfinite(errors[k]) and mean[k].isfinite() and all(p.isfinite().all() for p in nets.weights(k))),
            skipped=int(optimizer.param_groups[k].get("skipped", 0)),
            trace=traces.of(k),
        )
        for k in range(len(starts))
    ]


class _Traces:
    """Hyperparameters over steps; when there are too many, every second is dropped, so that a run may be of any length."""

    def __init__(self, optimizer: Level) -> None:
        self.optimizer, self.every = optimizer, 1
        self.tables: dict[int, dict[str, float]] = {}

    def record(self, step: int) -> None:
        self.tables[step] = self.optimizer.hyperparameters()
        if len(self.tables) > POINTS:
            self.every *= 2
            self.tables = {at: table for at, table in self.tables.items() if at % self.every == 0 or at == step}

    def of(self, group: int) -> dict[int, dict[str, float]]:
        """One group's: its learning rates, and what has moved."""
        first, last = self.tables[0], self.tables[max(self.tables)]
        names = {}
        for key in last:
            match = KEY.match(key)
            assert match is not None
            level, g, name = match.groups()
            if int(g) == group and (name == "lr" or last[key] != first.get(key)):
                names[key] = f"L{level}/{key.split('/', 2)[2]}"
        return {step: {name: table[key] for key, name in names.items()} for step, table in self.tables.items()}
