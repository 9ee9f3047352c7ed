"""Cells of an ablation trained together with torch.func.vmap, against one after the other: time of a cell's step.

One thread, Adam / SGD / SGD, starts at several rates and seeds, in turns, medians.

    python -m benchmarks.together                      # digits, and MNIST where GDTUO_DATA names it
    python -m benchmarks.together --data DIR --quick
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch

import gdtuo
from gdtuo.lab import data
from gdtuo.lab.networks import networks
from gdtuo.lab.tasks import Named

from .timing import REPETITIONS, interleave

__all__ = ["measure"]

COUNTS = (1, 3, 10, 30, 100)  # cells that share a step
SEEDS = 3


def measure(source: Named, counts: tuple[int, ...], repetitions: int) -> dict[int, float]:
    """Seconds of a cell's step, by how many cells share it."""
    timings = interleave({str(count): _step(source, count) for count in counts}, repetitions)
    return {count: timings[str(count)].median / count for count in counts}


def _step(source: Named, count: int) -> Callable[[], None]:
    task = source.load()
    seeds = [k % SEEDS for k in range(count)]
    nets = networks(task, seeds)
    groups = [{"params": nets.weights(k), "lr": 10.0 ** -(1 + k % 8)} for k in range(count)]
    optimizer = gdtuo.tower("adam/sgd/sgd").bind(groups)
    batches = {seed: next(iter(task.epoch(torch.Generator().manual_seed(seed)))) for seed in range(SEEDS)}

    def step() -> None:
        nets.backward(batches)
        optimizer.step()

    return step


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", default=os.environ.get(data.FOLDER_VARIABLE), help="folder of mnist/")
    parser.add_argument("--quick", action="store_true", help="few repetitions, at most 10 cells")
    chosen = parser.parse_args(arguments)
    counts, repetitions = (COUNTS[:3], 3) if chosen.quick else (COUNTS, REPETITIONS)
    torch.set_num_threads(1)
    print(f"{'us a step of a cell, times as fast':<36}" + "".join(f"{f'{n} cells':>16}" for n in counts))
    for name in ("digits", "mnist") if chosen.data else ("digits",):
        found = measure(Named(name, chosen.data), counts, repetitions)
        places = "".join(f"{1e6 * seconds:10.0f} {found[1] / seconds:5.2f}" for seconds in found.values())
        print(f"{name:<36}{places}")


if __name__ == "__main__":
    main()
