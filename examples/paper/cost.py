"""What a step of training costs with towers of height 0 to 10, over the same step with torch's Adam.

A perceptron, a small convolutional and a recurrent network; forward, backward and step. At each height, in one process and in
turns: torch's Adam; a tower of this package's classes; the published algorithm on its engine; the published package itself, and
the same without a level above. What is measured is the processor time of the one thread, which other processes disturb less than
the time on the clock.

    python examples/paper/cost.py            # 2 minutes of a core that should have nothing else to do
    python examples/paper/cost.py --quick    # two networks, two heights, few repetitions: seconds; its figures mean nothing

glibc hands large blocks of memory back to the system after some steps and not after others, which can double the time of a small
step; MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=33554432 before the command makes it keep them.

After Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022, Figure 3b.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mnist
import stacks
import torch
from torch import Tensor, nn

from gdtuo.lab import figures
from gdtuo.lab.journal import Row
from gdtuo.lab.recurrent import BATCH, LENGTH, Characters
from gdtuo.lab.sweep import sweep

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks stand beside the package
from benchmarks import timing

RATE = 1e-05  # so small that all contestants compute with the same numbers

#: The paper's figure: percent over no level above, by height; error bars of several points.
PUBLISHED = {"MLP": {1: 0.5, 3: 3.4}, "CNN": {1: 1.5, 3: 6.2}, "LSTM": {1: 2.0, 3: 5.0}}


# ---------------------------------------------------------------- networks


def convolutional() -> nn.Module:
    """Three convolutions on pictures of 28 × 28."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


VOCABULARY = 87  # characters of War and Peace
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "MLP": (lambda: mnist.classifier(784), lambda: (torch.rand(256, 784), torch.randint(10, (256,)))),
    "CNN": (convolutional, lambda: (torch.rand(64, 1, 28, 28), torch.randint(10, (64,)))),
    "LSTM": (
        lambda: Characters(VOCABULARY),
        lambda: (torch.randint(VOCABULARY, (BATCH, LENGTH)), torch.randint(VOCABULARY, (BATCH, LENGTH))),
    ),
}


# ---------------------------------------------------------------- contestants


class Contestant(NamedTuple):
    """Who takes a step; `above` is each level above Adam."""

    title: str
    above: str
    color: str
    marker: str


TORCH, ALONE = "torch", "published alone"  # torch's Adam; the published package's, without a level above
CONTESTANTS = {
    "gdtuo": Contestant("gdtuo, defaults: Adam / SGD / …", "SGD", figures.ORANGE, "D"),
    "compat": Contestant("the published algorithm by gdtuo.compat", f"SGD({RATE:g})", figures.BLUE, "o"),
    stacks.REFEREE: Contestant("the published package", f"SGD({RATE:g})", figures.SKY, "s"),
}


def task(package: str, network: str, height: int) -> Callable[[], object]:
    """One whole training step; each contestant has a network of its own, with the same weights and batch."""
    torch.manual_seed(0)
    make, draw = NETWORKS[network]
    model, (inputs, classes) = make(), draw()

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(inputs).flatten(0, -2), classes.flatten())

    if package == ALONE:
        package, height = stacks.REFEREE, 0
    if package != TORCH:
        stack = " / ".join([f"AdamBaydin({RATE:g})", *[CONTESTANTS[package].above] * height])
        return functools.partial(stacks.Trainer(package, stack, model).step, loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


class Size(NamedTuple):
    """How large the experiment is; the last three are arguments of `timing.interleave`."""

    networks: tuple[str, ...]
    heights: tuple[int, ...]
    repetitions: int
    seconds: float
    warm_up: int


FULL = Size(tuple(NETWORKS), (0, 1, 2, 3, 5, 10), 31, timing.SECONDS, timing.WARM_UP)
QUICK = Size(("MLP", "CNN"), (0, 1), 2, 0.0, 2)


def measure(network: str, height: int, size: Size) -> Mapping[str, float]:
    """Milliseconds of a step, in processor time of one thread: of each contestant the median and both quartiles."""
    tasks = {package: task(package, network, height) for package in (TORCH, ALONE, *CONTESTANTS)}
    times = timing.interleave(tasks, size.repetitions, size.seconds, clock=time.process_time, warm_up=size.warm_up)
    return {column(package, name): 1e3 * getattr(times[package], name) for package in tasks for name in timing.Timing._fields}


def column(package: str, name: str) -> str:
    """Of the CSV."""
    return f"{package} {name}"


# ---------------------------------------------------------------- what comes out


def ratio(row: Row, package: str, name: str = "median") -> float:
    """The time over the median of torch's."""
    return float(row[column(package, name)]) / float(row[column(TORCH, "median")])


def table(rows: Mapping[tuple[str, int], Row], size: Size) -> str:
    """As Markdown: times over torch's Adam; the published package's also over its own without a level above, and as published."""
    head = ["network", "height", "torch, ms", *(of.title for of in CONTESTANTS.values())]
    lines = [[*head, "the published package over itself at height 0", "as published"]]
    lines.append(["---"] * len(lines[0]))
    for network in size.networks:
        for height in size.heights:
            row = rows[network, height]
            times = [f"{ratio(row, package):.2f}" for package in CONTESTANTS]
            own = f"{ratio(row, stacks.REFEREE) / ratio(row, ALONE):.2f}"
            claimed = PUBLISHED[network].get(height)
            said = f"{1 + claimed / 100:.3f}" if claimed is not None else ""
            lines.append([network, str(height), f"{row[column(TORCH, 'median')]:.2f}", *times, own, said])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Mapping[tuple[str, int], Row], size: Size, path: Path) -> None:
    """A panel for each network, a line for each contestant; bars are quartiles."""
    plt = figures.pyplot()
    figure, grid = plt.subplots(1, len(size.networks), figsize=(13, 5.2), layout="constrained")
    for axes, network in zip(grid, size.networks, strict=True):
        each = [rows[network, height] for height in size.heights]
        for package, of in CONTESTANTS.items():
            medians, lower, upper = ([ratio(row, package, name) for row in each] for name in timing.Timing._fields)
            axes.plot(size.heights, medians, color=of.color, marker=of.marker, markersize=6, linewidth=2, label=of.title)
            axes.vlines(size.heights, lower, upper, color=of.color, linewidth=4, alpha=0.3)
        claimed = {height: 1 + percent / 100 for height, percent in PUBLISHED[network].items()}
        axes.plot(claimed.keys(), claimed.values(), "kx", markersize=9, markeredgewidth=2, label=CLAIM)
        axes.axhline(1, color=figures.GREY, linewidth=1, linestyle="--")
        axes.set_title(f"{network}: {each[0][column(TORCH, 'median')]:.1f} ms with torch.optim.Adam")
        axes.set_xlabel("height: levels above Adam")
        axes.set_xticks(size.heights)
        axes.set_ylim(bottom=min(0.8, axes.get_ylim()[0]))
    grid[0].set_ylabel("processor time of a training step\nover torch.optim.Adam")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2, fontsize=11)
    figure.suptitle("What a tower's height costs: forward, backward and step", **figures.HEADLINE)
    figures.save(figure, path)


CLAIM = "as published, over their own optimizer without a level above"


def run(size: Size, path: Path) -> dict[tuple[str, int], Row]:
    """Measure what the file does not have yet; one cell at a time, or they would disturb each other."""
    cells: Sequence[dict[str, str | int]] = [
        {"network": name, "height": height} for name in size.networks for height in size.heights
    ]
    columns = [column(package, name) for package in (TORCH, ALONE, *CONTESTANTS) for name in timing.Timing._fields]
    found = sweep(functools.partial(measure, size=size), cells, path, columns, 1, "cost")
    return {(str(row["network"]), int(row["height"])): row for row in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mnist.add_output(parser)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    path = arguments.out / "cost.csv"
    rows = run(size, path)
    picture = arguments.out / "paper-cost.png"
    draw(rows, size, picture)
    mnist.finish(table(rows, size), path, picture)


if __name__ == "__main__":
    main()
