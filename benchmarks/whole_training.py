"""What it costs to differentiate a whole training run, by method: memory against its length, and time over plain training.

Digits, a 64-64-10 network, SGD with momentum, batches of 32; three hyperparameters: lr, momentum, a scale of the outputs.
Memory is the peak of live tensors, measured beside the forecast of `gdtuo.plan`; the data are not counted. Time is that of
the processor, over that of the same steps in an ordinary loop with torch.optim.SGD, in one process of one thread, in turns.

    python -m benchmarks.whole_training              # a table, and a picture in runs/whole_training.png
    python -m benchmarks.whole_training --quick      # short runs, few repetitions
    python -m benchmarks.whole_training --width 2048 --batch 512 --steps 20   # where arithmetic, not overhead, takes the time
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import gdtuo
from gdtuo.hypergrad.dynamics import Dynamics
from gdtuo.hypergrad.live_bytes import LiveBytes
from gdtuo.hypergrad.plan import forecast, pull_once, workspace
from gdtuo.lab import data, figures

from . import picture, timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLAIN", "Problem", "Row", "draw", "forecast_lines", "measure", "methods", "table"]

STEPS = (10, 100, 1000)
LR, MOMENTUM, SCALE = 0.05, 0.9, 1.5
KEPT = 16  # states that the fixed budget holds
PLAIN = "plain training"
REPETITIONS, FEWER = 5, 3  # of short runs, of long ones
LONG = 300  # steps from which a run takes long enough to be timed alone


class Problem:
    """A network on digits, ready to be trained for any number of steps."""

    def __init__(self, width: int = 64, batch: int = 32) -> None:
        digits = data.digits()
        # No biases: of two tensors instead of four, a third of the operations, and the same memory.
        self.module = nn.Sequential(nn.Linear(64, width, bias=False), nn.Tanh(), nn.Linear(width, 10, bias=False))
        self._apply, self.params = gdtuo.make_functional(self.module)
        self._batches = [digits.train[rows] for rows in torch.randperm(len(digits.train)).split(batch, 0)]
        self._validation = digits.test[:batch]
        self.hyper = {
            "scale": torch.tensor(SCALE),
            "optimizer": {"lr": torch.tensor(LR), "momentum": torch.tensor(MOMENTUM)},
        }

    @property
    def state_bytes(self) -> int:
        """Of weights and momentum."""
        return 2 * sum(weight.numel() * weight.element_size() for weight in self.params.values())

    def training(self, steps: int) -> gdtuo.Training:
        """The run, described."""

        def loss(params: dict[str, Tensor], hyper: dict[str, Tensor], batch: data.Examples) -> Tensor:
            return F.cross_entropy(hyper["scale"] * self._apply(params, batch.inputs), batch.labels)

        return gdtuo.Training(loss, gdtuo.SGD(lr=LR, momentum=MOMENTUM), self._batches, steps)

    def differentiated(self, steps: int, method: gdtuo.hypergrad.Method) -> gdtuo.Result:
        """The run, differentiated."""

        def outer(params: dict[str, Tensor], hyper: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(self._apply(params, self._validation.inputs), self._validation.labels)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Implicit says that so short a run has no minimum
            return gdtuo.hypergradient(self.training(steps), outer, self.params, self.hyper, method)

    def trained(self, steps: int) -> nn.Module:
        """The same steps as anybody writes them."""
        module = copy.deepcopy(self.module)
        optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
        for _, batch in zip(range(steps), itertools.cycle(self._batches), strict=False):
            optimizer.zero_grad()
            F.cross_entropy(SCALE * module(batch.inputs), batch.labels).backward()
            optimizer.step()
        return module


def methods(state_bytes: int) -> dict[str, gdtuo.hypergrad.Method]:
    """What is compared, by the names in the picture."""
    return {
        "Reverse()": gdtuo.Reverse(),
        "Checkpointed()": gdtuo.Checkpointed(),
        "Checkpointed(arity=2)": gdtuo.Checkpointed(arity=2),
        f"Checkpointed(memory={KEPT} states)": gdtuo.Checkpointed(memory=KEPT * state_bytes),
        "Reversible()": gdtuo.Reversible(),
        "Forward(), 3 hyperparameters": gdtuo.Forward(),
        "Truncated(10)": gdtuo.Truncated(10),
        "Implicit()": gdtuo.Implicit(),
    }


# ---------------------------------------------------------------- measuring


Lines = dict[str, list[tuple[int, int]]]  # method -> (steps, bytes)


class Row(NamedTuple):
    """One method on a run of some length."""

    method: str
    steps: int
    measured: int  # bytes at the peak
    forecast: int | None  # the same, by gdtuo.plan
    seconds: float
    ratio: float  # over plain training


def peak(action: Callable[[], object]) -> int:
    """Bytes of the tensors that an action makes, at their most."""
    with LiveBytes() as live:
        action()
    return live.peak


def forecasts(problem: Problem, steps: int) -> dict[str, int]:
    """What `gdtuo.plan` says about memory."""
    dynamics = Dynamics(problem.training(steps), problem.params, problem.hyper)
    pull, graph = workspace(dynamics, pull_once)
    return {name: forecast(dynamics, method, pull, graph).memory for name, method in methods(problem.state_bytes).items()}


def forecast_lines(problem: Problem, lengths: Sequence[int], points: int = 16) -> Lines:
    """Forecasts from the shortest run to the longest."""
    low, high = lengths[0], lengths[-1]
    steps = sorted({*lengths, *(round(low * (high / low) ** (i / points)) for i in range(points + 1))})
    lines: Lines = {name: [] for name in methods(problem.state_bytes)}
    for length in steps:
        for name, memory in forecasts(problem, length).items():
            lines[name].append((length, memory))
    return lines


def measure(problem: Problem, steps: int, repetitions: int) -> list[Row]:
    """Plain training and all methods, on runs of one length."""
    tasks: dict[str, Callable[[], object]] = {PLAIN: lambda: problem.trained(steps)}
    for name, method in methods(problem.state_bytes).items():
        tasks[name] = lambda method=method: problem.differentiated(steps, method)  # type: ignore[misc]
    memory = {name: peak(task) for name, task in tasks.items()}  # which also warms up
    # One call of a long run is a measurement; a short one is repeated for as long as it takes.
    seconds = 0.0 if steps >= LONG or repetitions == 1 else timing.SECONDS
    times = timing.interleave(tasks, repetitions, seconds, clock=time.process_time, warm_up=0)
    expected, plain = forecasts(problem, steps), times[PLAIN].median
    return [Row(name, steps, memory[name], expected.get(name), times[name].median, times[name].median / plain) for name in tasks]


# ---------------------------------------------------------------- what comes out


def table(rows: Sequence[Row]) -> str:
    """All figures, as text."""
    width = max(len(row.method) for row in rows)
    lines = [f"{'steps':>5}  {'':{width}}  {'memory, KB':>10}  {'forecast':>8}  {'time / plain':>12}"]
    for row in rows:
        expected = "" if row.forecast is None else f"{row.forecast / 1e3:.0f}"
        lines.append(f"{row.steps:5}  {row.method:{width}}  {row.measured / 1e3:10.0f}  {expected:>8}  {row.ratio:12.1f}")
    return "\n".join(lines)


COLORS = (figures.BLACK, figures.BLUE, figures.SKY, figures.GREEN, figures.ORANGE, figures.AMBER, figures.PURPLE, figures.GREY)
MARKERS = "osD^vXP*"
INEXACT = ("Truncated", "Implicit")
TICKS = {10**k: f"{10.0**k / 1e3:g} KB" if k < 6 else f"{10.0**k / 1e6:g} MB" for k in range(3, 12)}


def draw(rows: Sequence[Row], lines: Lines, path: Path) -> None:
    """Save a picture: memory against steps left; right the longest run's memory against its time."""
    longest = max(row.steps for row in rows)
    figure, (left, right) = figures.pyplot().subplots(
        1, 2, figsize=(12, 5.4), layout="constrained", sharey=True, width_ratios=(1, 0.8)
    )
    colors = dict(zip(lines, COLORS, strict=True)) | {PLAIN: "0.4"}
    markers = dict(zip(lines, MARKERS, strict=True)) | {PLAIN: "o"}
    for name, color in colors.items():
        mine = [row for row in rows if row.method == name]
        dash = (0, (1, 1.5)) if name == PLAIN else (0, (4, 2)) if name.startswith(INEXACT) else "-"
        face = {"color": color, "markerfacecolor": "white" if name == PLAIN else color}
        line = lines.get(name) or [(row.steps, row.measured) for row in mine]
        left.plot(*zip(*line, strict=True), color=color, linestyle=dash, linewidth=1.6, zorder=2)
        left.plot([row.steps for row in mine], [row.measured for row in mine], markers[name], markersize=7, **face)
        right.plot(mine[-1].ratio, mine[-1].measured, markers[name], markersize=11, **face)
    left.set(xscale="log", yscale="log", xlabel="steps of the run, T", ylabel="peak memory")
    left.set_title("Points are measured, lines forecast by gdtuo.plan")
    right.set(xscale="log", xlabel="time / time of plain training")
    right.set_title(f"{longest:,} steps: memory against time")
    ticks(left, right, rows)
    bottom, top = left.get_ylim()
    # Names stand between the panels, each behind its marker, moved apart where lines end close together.
    ends = {row.method: float(row.measured) for row in rows if row.steps == longest}
    for name, y in picture.spread(ends, (top / bottom) ** 0.048).items():
        face = {"color": colors[name], "markerfacecolor": "white" if name == PLAIN else colors[name]}
        left.plot(1.04, y, markers[name], markersize=7, clip_on=False, transform=left.get_yaxis_transform(), **face)
        label = f"{name}, inexact" if name.startswith(INEXACT) else name
        place = {"xy": (1.065, y), "xycoords": ("axes fraction", "data")}
        left.annotate(label, **place, va="center", color=colors[name], fontsize=10)
    figure.suptitle("Memory and time of a whole training run, differentiated", **figures.HEADLINE)
    figures.save(figure, path)


def ticks(left: Axes, right: Axes, rows: Sequence[Row]) -> None:
    """Numbers that are read, not powers of ten."""
    steps = sorted({row.steps for row in rows})
    left.set_xticks(steps, [f"{step:,}" for step in steps])
    low, high = min(row.measured for row in rows) / 1.6, max(row.measured for row in rows) * 1.6
    left.set_ylim(low, high)
    left.set_yticks([size for size in TICKS if low <= size <= high], [TICKS[size] for size in TICKS if low <= size <= high])
    most = 1.3 * max(row.ratio for row in rows)
    ratios = [ratio for ratio in (1, 2, 3, 5, 10, 20, 50) if ratio <= most]
    right.set_xlim(0.8, most)
    right.set_xticks(ratios, [str(ratio) for ratio in ratios])
    left.minorticks_off()
    right.minorticks_off()


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.whole_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="see whether it works: the figures are no good")
    parser.add_argument(
        "--steps", type=int, nargs="+", metavar="T", help=f"lengths of runs (default: {' '.join(map(str, STEPS))})"
    )
    parser.add_argument("--width", type=int, default=64, help="of the hidden layer (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch (default: 32)")
    parser.add_argument("--repetitions", type=int, help=f"of each time (default: {REPETITIONS}, from {LONG} steps on {FEWER})")
    parser.add_argument("--out", type=Path, default=Path("runs/whole_training.png"), help="default: runs/whole_training.png")
    arguments = parser.parse_args()
    lengths = sorted(set(arguments.steps or ((2, 10) if arguments.quick else STEPS)))
    for name, least in (("width", arguments.width), ("batch", arguments.batch), ("steps", lengths[0])):
        if least < 1:
            parser.error(f"--{name} is {least}: give at least 1")
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"--repetitions is {arguments.repetitions}: give at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        problem = Problem(arguments.width, arguments.batch)
    except ImportError as error:
        parser.error(str(error))
    rows: list[Row] = []
    progress = tqdm(lengths, unit="length")
    for steps in progress:
        progress.set_description(f"{steps} steps")
        default = 1 if arguments.quick else FEWER if steps >= LONG else REPETITIONS
        rows += measure(problem, steps, arguments.repetitions or default)
    print(f"\n{table(rows)}")
    draw(rows, forecast_lines(problem, lengths), arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
