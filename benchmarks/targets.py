"""The promised figures: what each is now, its limit, and whether it is met. Exit code 1 if one is missed.

Everything is measured on the CPU in this process, contestants in turns; only compiling needs processes of its own.

    python -m benchmarks.targets
    python -m benchmarks.targets --only 27M    # lines that contain this
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import compilation, timing, trials
from .optimizers import BASELINES, PUBLISHED, tower_name

__all__ = ["TARGETS", "Compiling", "Ratio", "Target", "check"]


class Ratio(NamedTuple):
    """The time of one contestant over that of another."""

    model: str
    mode: str
    above: str
    below: str


class Compiling(NamedTuple):
    """A figure of `compilation.Compilation`."""

    figure: str


class Target(NamedTuple):
    """A promise: at most `limit`, or at least."""

    title: str
    figure: Ratio | Compiling
    limit: float
    unit: str = ""
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a measured value keeps the promise."""
        return value >= self.limit if self.at_least else value <= self.limit

    def line(self, value: float) -> str:
        """Its line of the table."""
        relation = "≥" if self.at_least else "≤"
        verdict = "met" if self.met(value) else "missed"
        return f"{self.title:<{WIDTH}}  {value:6.2f}{self.unit:<2}  {relation} {self.limit:g}{self.unit:<2}  {verdict}"


ADAM, FUSED_ADAM = BASELINES
ALL = "lr+betas+eps"


def step(learn: str, fused: bool, limit: float) -> Target:
    """A bare step of 27 million weights over torch's fused Adam."""
    name = tower_name(learn, 1, fused)
    return Target(f"bare step, 27M: {name} / {FUSED_ADAM}", Ratio("mlp-27M", "step", name, FUSED_ADAM), limit)


def iteration(size: str, above: str, below: str, limit: float, at_least: bool = False) -> Target:
    """A whole iteration of a perceptron."""
    return Target(f"iteration, {size}: {above} / {below}", Ratio(f"mlp-{size}", "iteration", above, below), limit, "", at_least)


def many(above: str, limit: float) -> Target:
    """A bare step of many tensors over that with one learning rate."""
    below = tower_name("lr", 1)
    return Target(f"bare step, ResNet-20: {above} / {below}", Ratio("resnet20", "step", above, below), limit)


TARGETS = (
    step(ALL, True, 2.3),
    step("lr", True, 1.8),
    step(ALL, False, 8),
    step("lr", False, 4.5),
    iteration("0.1M", tower_name("lr", 1), ADAM, 1.0),
    iteration("0.1M", tower_name("lr", 3), ADAM, 1.0),
    iteration("0.1M", tower_name(ALL, 1), ADAM, 1.25),
    iteration("0.1M", tower_name(ALL, 3), ADAM, 1.3),
    iteration("0.1M", tower_name("lr", 11), tower_name("lr", 1), 1.25),
    iteration("27M", tower_name(ALL, 3, True), FUSED_ADAM, 1.15),
    Target("compiling, empty cache: first three fused iterations - eager", Compiling("cold"), 20, " s"),
    Target("compiling, full cache: first three fused iterations - eager", Compiling("warm"), 5, " s"),
    Target("compiling: graphs compiled again, for four other models", Compiling("again"), 0),
    iteration("0.1M", PUBLISHED, tower_name(ALL, 1), 1.8, at_least=True),
    iteration("27M", PUBLISHED, tower_name(ALL, 1, True), 1.8, at_least=True),
    many("gdtuo eager, lr, height 1, per tensor", 2.0),
    many("gdtuo eager, lr, height 1, a group for each tensor", 2.0),
)

WIDTH = max(len(target.title) for target in TARGETS)


def check(
    targets: Sequence[Target],
    compare: Callable[[str, str, tuple[str, ...]], dict[str, timing.Timing]],
    compiling: Callable[[], compilation.Compilation],
) -> bool:
    """Measure the targets, print a line for each, return whether all are met.

    What has the same model and mode is measured together; nothing is measured twice.
    """
    ratios = [target.figure for target in targets if isinstance(target.figure, Ratio)]

    @functools.cache
    def timings(model: str, mode: str) -> dict[str, timing.Timing]:
        pairs = [(ratio.below, ratio.above) for ratio in ratios if (ratio.model, ratio.mode) == (model, mode)]
        return compare(model, mode, tuple(dict.fromkeys(name for pair in pairs for name in pair)))

    compiled = functools.cache(compiling)
    all_met = True
    for target in targets:
        figure = target.figure
        if isinstance(figure, Ratio):
            times = timings(figure.model, figure.mode)
            value = times[figure.above].median / times[figure.below].median
        else:
            value = getattr(compiled(), figure.figure)
        print(target.line(value), flush=True)
        all_met &= target.met(value)
    return all_met


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="just the lines that contain this")
    parser.add_argument("--repetitions", type=int, default=timing.REPETITIONS, help=f"default: {timing.REPETITIONS}")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error(f"--repetitions is {arguments.repetitions}: give at least 1")
    chosen = [target for target in TARGETS if arguments.only in target.title]
    if not chosen:
        parser.error(f"no line contains {arguments.only!r}. The lines:\n" + "\n".join(target.title for target in TARGETS))
    met = check(
        chosen,
        lambda model, mode, names: trials.compare(model, mode, names, repetitions=arguments.repetitions),
        compilation.measure,
    )
    sys.exit(not met)


if __name__ == "__main__":
    main()
