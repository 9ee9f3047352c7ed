"""What compiling costs: the first three iterations of a new process, and whether other models compile again.

`python -m benchmarks.compilation eager|fused` prints the seconds and, as "again", how many graphs were compiled after them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import NamedTuple

import torch

from . import children, models
from .optimizers import driver, tower_name

__all__ = ["Compilation", "measure"]

LEARN, HEIGHT = "lr+betas+eps", 3
FIRST = (784, 1024, 1024, 10)  # widths of a network large enough to be compiled
OTHERS = ((784, 2048, 512, 10), (600, 901, 1200), (500, 700, 703, 700, 10), (20, 30, 40))  # of those that come later


class Compilation(NamedTuple):
    """Seconds that fused steps take beyond eager ones, with an empty and with a full cache; graphs compiled later on."""

    cold: float
    warm: float
    again: int


def measure() -> Compilation:
    """Three child processes: eager, fused with an empty cache, fused with the cache of the second."""
    with tempfile.TemporaryDirectory() as cache:
        eager = children.call("benchmarks.compilation", "eager")["seconds"]
        cold = children.call("benchmarks.compilation", "fused", TORCHINDUCTOR_CACHE_DIR=cache)
        warm = children.call("benchmarks.compilation", "fused", TORCHINDUCTOR_CACHE_DIR=cache)
    return Compilation(cold["seconds"] - eager, warm["seconds"] - eager, max(cold["again"], warm["again"]))


def graphs() -> int:
    """How many graphs this process has compiled; to load the compiler is part of what is timed, so it is not imported here."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils.counters["stats"]["unique_graphs"] if utils else 0


def train(widths: tuple[int, ...], name: str) -> float:
    """Seconds of making an optimizer and three iterations with it."""
    model, inputs = models.mlp(*widths), torch.randn(256, widths[0])
    start = time.perf_counter()
    training = driver(name, model)
    for _ in range(3):
        training.zero_grad()
        training.backward(model(inputs).square().mean())
        training.step()
    return time.perf_counter() - start


def main(kind: str) -> None:
    """Train one network, then others."""
    name = tower_name(LEARN, HEIGHT, kind == "fused")
    seconds = train(FIRST, name)
    before = graphs()
    for widths in OTHERS:
        train(widths, name)
    print(json.dumps({"seconds": seconds, "again": graphs() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
