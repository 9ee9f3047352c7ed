"""The test error against the initial learning rate, for towers of height 0 to 4: taller ones should care less.

The paper's Figure 3a names neither its task nor where the levels above start. Here the task is the paper's MNIST network for two
epochs, and there are four kinds of towers: the published algorithm with every level above at 0.01 (as in the paper's table 1),
or with all levels at the same value; and this package's defaults above SGD, and above Adam.

    python examples/paper/sensitivity.py --data DIR    # 15 minutes of one core; killed and called again, it goes on
    python examples/paper/sensitivity.py --quick       # scikit-learn's digits, three rates, heights 0 to 2: seconds

After Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022, Figure 3a.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mnist
import stacks

from gdtuo.lab import figures, options
from gdtuo.lab.journal import Row
from gdtuo.lab.sweep import sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = ("error", "loss", *stacks.LEARNED)
STARTS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
COLORS = (figures.BLACK, figures.ORANGE, figures.AMBER, figures.GREEN, figures.BLUE)  # by height
MARKERS = "osD^v"

#: Read off the paper's Figure 3a: error in percent at each of STARTS, by height.
PUBLISHED: dict[int, tuple[float, ...]] = {
    0: (90, 90, 78, 64, 41, 18, 13, 14, 60),
    1: (32, 27, 19.5, 15, 17.6, 22.7, 12.6, 13.7, 39),
    2: (16, 15, 14, 14, 14, 14, 15, 16, 21),
    3: (13.3, 12.8, 13.6, 12.4, 12.5, 12.6, 12.7, 14.6, 13.7),
}


class Kind(NamedTuple):
    """A kind of tower: by which package, from the lowest level's rate; `alike`: those above start at the same, not at theirs."""

    title: str
    package: str
    bottom: str
    above: str
    alike: bool = False

    def stack(self, lr: float, height: int) -> str:
        """The tower's text."""
        above = f"SGD({lr:g})" if self.alike else self.above
        return " / ".join([f"{self.bottom}({lr:g})", *[above] * height])


KINDS = (
    Kind("published algorithm: SGD, above it SGD(0.01)", "compat", "SGD", "SGD(0.01)"),
    Kind("published algorithm: SGD, all levels start alike", "compat", "SGD", "", alike=True),
    Kind("gdtuo's defaults: SGD / SGD / …", "gdtuo", "SGD", "SGD"),
    Kind("gdtuo's defaults: Adam / SGD / …", "gdtuo", "AdamBaydin", "SGD"),
)


class Size(NamedTuple):
    """How large the experiment is."""

    task: str
    epochs: int
    seeds: int
    heights: int
    starts: tuple[float, ...]


FULL = Size("mnist", 2, 3, 5, STARTS)
QUICK = Size("digits", 4, 1, 3, STARTS[::4])

Cell = dict[str, str | int]


def cells(size: Size) -> list[Cell]:
    """One for each tower and seed; without a level above, two kinds may have the same."""
    found: dict[tuple[str, str, int], Cell] = {}
    for seed, height, kind, lr in itertools.product(range(size.seeds), range(size.heights), KINDS, size.starts):
        package, stack = kind.package, kind.stack(lr, height)
        found[package, stack, seed] = {
            "package": package,
            "stack": stack,
            "task": size.task,
            "epochs": size.epochs,
            "seed": seed,
        }
    return list(found.values())


def errors(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[float]]:
    """Of each tower, over seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((str(row["package"]), str(row["stack"])), []).append(float(row["error"]))
    return found


def table(found: Mapping[tuple[str, str], list[float]], size: Size) -> str:
    """As Markdown: the mean error for each kind, height and start."""
    lines = [["tower", "height", *(f"{lr:g}" for lr in size.starts)]]
    lines.append(["---"] * len(lines[0]))
    for height, values in PUBLISHED.items():
        shown = [f"{values[STARTS.index(lr)]:g}" for lr in size.starts]
        lines.append(["as published (another task)", str(height), *shown])
    for kind, height in itertools.product(KINDS, range(size.heights)):
        means = [statistics.mean(found[kind.package, kind.stack(lr, height)]) for lr in size.starts]
        lines.append([kind.title, str(height), *(f"{value:.1f}" for value in means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Mapping[tuple[str, str], list[float]], size: Size, path: Path) -> None:
    """A panel for the published figure and for each kind, a line for each height; the band is the range over seeds."""
    plt = figures.pyplot()
    figure, grid = plt.subplots(2, 3, figsize=(14, 8.2), layout="constrained", sharex=True, sharey=True)
    published, *above, legend = [grid[0][0], grid[0][1], grid[0][2], grid[1][1], grid[1][2], grid[1][0]]
    for height, values in PUBLISHED.items():
        published.plot(STARTS, values, **_style(height), linestyle="--")
    for axes in grid[0]:
        axes.tick_params(labelbottom=True)
    published.set_title("the paper's figure (another task)")
    for axes, kind in zip(above, KINDS, strict=True):
        for height in range(size.heights):
            each = [found[kind.package, kind.stack(lr, height)] for lr in size.starts]
            axes.plot(size.starts, [statistics.mean(values) for values in each], **_style(height))
            low, high = zip(*((min(values), max(values)) for values in each), strict=True)
            axes.fill_between(size.starts, low, high, color=COLORS[height], alpha=0.15, linewidth=0)
        axes.set_title(kind.title)
    _axes(published, size)
    handles = [plt.Line2D([], [], **_style(h), label=_height(h)) for h in range(max(size.heights, len(PUBLISHED)))]
    legend.axis("off")
    title = f"height of the tower\n(line: mean, band: range of {size.seeds} seeds)"
    legend.legend(handles=handles, frameon=False, loc="center", title=title, fontsize=12, title_fontsize=12)
    for axes in (*grid[1], published):
        axes.set_xlabel("initial learning rate of the lowest level")
    for axes in (published, grid[1][1]):
        axes.set_ylabel("test error, %")
    grid[1][1].tick_params(labelleft=True)
    epochs = f"{size.epochs} epoch{'s' * (size.epochs > 1)}"
    figure.suptitle(
        f"What the initial learning rate matters at each height: {size.task.replace('mnist', 'MNIST')}, {epochs}",
        **figures.HEADLINE,
    )
    figures.save(figure, path)


def _style(height: int) -> dict[str, object]:
    return {"color": COLORS[height], "marker": MARKERS[height], "markersize": 5, "linewidth": 4 - 0.6 * height}  # equal ones show


def _height(height: int) -> str:
    return "0: no level above" if height == 0 else f"{height}"


def _axes(axes: Axes, size: Size) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(STARTS[::2], [f"1e{round(exponent):d}" if exponent else "1" for exponent in range(-8, 1, 2)])
    ticks = [3, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data(parser)
    mnist.add_output(parser)
    mnist.add_processes(parser)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    mnist.check(parser, arguments, size.task)
    path = arguments.out / "sensitivity.csv"
    train = functools.partial(mnist.classify, folder=arguments.data)
    found = errors(sweep(train, cells(size), path, RESULTS, arguments.processes, "sensitivity"))
    picture = arguments.out / "paper-sensitivity.png"
    draw(found, size, picture)
    mnist.finish(table(found, size), path, picture)


if __name__ == "__main__":
    main()
