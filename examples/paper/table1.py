"""Table 1 of the towers paper: eighteen stacks on MNIST, and the plain optimizers once more with what the stacks have learned.

Each stack is trained by the published algorithm on this package's engine (`gdtuo.compat`) and by this package's own classes with
their defaults; with --referee also by the published package itself. All see the same initial weights and batches.

    python examples/paper/table1.py --data DIR --referee    # 40 minutes of one core; killed and called again, it goes on
    python examples/paper/table1.py --quick --referee       # scikit-learn's digits, a few epochs: seconds

After Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022, Table 1.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mnist
import stacks
from published import TABLE, Figure, Published

from gdtuo.lab import figures, options
from gdtuo.lab.journal import Row
from gdtuo.lab.sweep import sweep

RESULTS = ("error", "loss", *stacks.LEARNED)


# ---------------------------------------------------------------- the cells


class Size(NamedTuple):
    """How large the experiment is."""

    task: str
    epochs: Mapping[str, int]  # by the class of the lowest level, without what its name says of learning
    seeds: int


def plain(stack: str) -> str:
    """The class of the lowest level, without what its name says of learning."""
    return re.sub("Baydin|Alpha", "", stacks.levels(stack)[0][0])


FULL = Size("mnist", {"SGD": 30, "AdaGrad": 30, "Adam": 5, "RMSProp": 5}, 3)
QUICK = Size("digits", {"SGD": 2, "AdaGrad": 2, "Adam": 1, "RMSProp": 1}, 2)


def cells(size: Size, package: str, stack: str) -> list[dict[str, str | int]]:
    """The repetitions of a stack."""
    base: dict[str, str | int] = {"package": package, "stack": stack, "task": size.task, "epochs": size.epochs[plain(stack)]}
    return [{**base, "seed": seed} for seed in range(size.seeds)]


def own(stack: str) -> str:
    """The stack with this package's defaults: a learning rate at the weights as in the paper, no number above."""
    bottom, *above = stacks.levels(stack)
    return " / ".join([f"{bottom[0]}({bottom[1][0]:g})", *(name for name, _ in above)])


def rerun(stack: str, learned: Sequence[float]) -> str:
    """The plain optimizer with what a stack has learned."""
    return f"{plain(stack)}({', '.join(f'{value:.5g}' for value in learned)})"


def means(rows: Sequence[Row], names: int) -> tuple[float, ...]:
    """What has been learned, in the order of the optimizer's arguments, the mean over repetitions."""
    values = [[float(row[name]) for name in stacks.LEARNED if row[name] != ""] for row in rows]
    return tuple(map(statistics.mean, zip(*values, strict=True)))[:names]


class Line(NamedTuple):
    """A row of the table with what was measured here."""

    published: Published
    compat: Figure
    learned: tuple[float, ...]
    rerun: Figure | None  # with the values of `learned`
    rerun_published: Figure | None  # with the values that the paper prints
    own: Figure
    own_learned: tuple[float, ...]
    referee: Figure | None
    referee_learned: tuple[float, ...]


def measure(size: Size, run: Callable[[Sequence[Mapping[str, str | int]]], list[Row]], referee: bool) -> list[Line]:
    """Train every cell that is missing; the whole table."""
    todo = [cell for row in TABLE for cell in cells(size, "compat", row.stack)]
    todo += [cell for row in TABLE for cell in cells(size, "gdtuo", own(row.stack))]
    todo += [cell for row in TABLE if row.rerun for cell in cells(size, "compat", rerun(row.stack, row.learned))]
    rows = run(todo)
    found: dict[tuple[str, str], list[Row]] = {}

    def collect(rows: Sequence[Row]) -> None:
        for row in rows:
            found.setdefault((str(row["package"]), str(row["stack"])), []).append(row)

    collect(rows)
    learned = {row.title: means(found["compat", row.stack], len(row.learned)) for row in TABLE}
    collect(run([cell for row in TABLE if row.rerun for cell in cells(size, "compat", rerun(row.stack, learned[row.title]))]))
    if referee:
        collect(run([cell for row in TABLE for cell in cells(size, stacks.REFEREE, row.stack)]))

    def figure(package: str, stack: str) -> Figure:
        return Figure.of(found[package, stack])

    return [
        Line(
            row,
            figure("compat", row.stack),
            learned[row.title],
            figure("compat", rerun(row.stack, learned[row.title])) if row.rerun else None,
            figure("compat", rerun(row.stack, row.learned)) if row.rerun else None,
            figure("gdtuo", own(row.stack)),
            means(found["gdtuo", own(row.stack)], len(row.learned)),
            figure(stacks.REFEREE, row.stack) if referee else None,
            means(found[stacks.REFEREE, row.stack], len(row.learned)) if referee else (),
        )
        for row in TABLE
    ]


# ---------------------------------------------------------------- what comes out


def table(lines: Sequence[Line]) -> str:
    """As Markdown: the errors of all stacks; what the stacks have learned, and the plain optimizers with that."""
    errors = [["stack", "published", "here", "agrees", "the published package", "gdtuo's defaults", "learned by them"]]
    reruns = [["learned by", "published", "here", "by the published package", "rerun: published", "here, values as published"]]
    reruns[0] += ["agrees", "here, values of here"]
    for table in (errors, reruns):
        table.append(["---"] * len(table[0]))
    for line in lines:
        row = line.published
        here = [str(line.compat), _verdict(line.compat, row.error), str(line.referee or "")]
        errors.append([row.title, str(row.error), *here, str(line.own), _numbers(line.own_learned)])
        if row.rerun and line.rerun and line.rerun_published:
            learned = [_numbers(values) for values in (row.learned, line.learned, line.referee_learned)]
            again = [str(row.rerun), str(line.rerun_published), _verdict(line.rerun_published, row.rerun), str(line.rerun)]
            reruns.append([row.title, *learned, *again])
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in rows) for rows in (errors, reruns))


def _verdict(here: Figure, published: Figure) -> str:
    return "yes" if here.agrees(published) else "no"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def draw(lines: Sequence[Line], size: Size, path: Path) -> None:
    """A row for each stack: published error, ours, the referee's, our defaults'."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(figsize=(10, 8.4), layout="constrained")
    kinds: list[tuple[str, str, str, Callable[[Line], Figure | None]]] = [
        ("as published", figures.BLACK, "|", lambda line: line.published.error),
        ("the published algorithm here (gdtuo.compat)", figures.BLUE, "o", lambda line: line.compat),
        ("the published package on the same seeds", figures.SKY, "s", lambda line: line.referee),
        ("gdtuo's own classes and defaults", figures.ORANGE, "D", lambda line: line.own),
    ]
    for k, (label, color, marker, of) in enumerate(kinds):
        points = [(i - 0.27 + 0.18 * k, found) for i, line in enumerate(lines) if (found := of(line))]
        if points:
            heights, values = zip(*points, strict=True)
            means, spreads = [value.mean for value in values], [value.deviation for value in values]
            size_of = 11 if marker == "|" else 6
            style = {"color": color, "marker": marker, "markersize": size_of, "markeredgewidth": 2 if marker == "|" else 0}
            axes.errorbar(means, heights, xerr=spreads, linestyle="", elinewidth=1.5, label=label, **style)
    for i in range(0, len(lines), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="0.96", linewidth=0, zorder=0)
    axes.set_yticks(range(len(lines)), [line.published.title for line in lines])
    task = size.task.replace("mnist", "MNIST")
    axes.set(xscale="log", xlabel=f"test error on {task}, %: mean ± standard deviation of {size.seeds} seeds")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    ticks = [2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 50, 100]
    low, high = axes.get_xlim()
    axes.set_xticks(*zip(*((tick, str(tick)) for tick in ticks if low <= tick <= high), strict=True))
    axes.minorticks_off()
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, 1.1), ncols=2, fontsize=10)
    figure.suptitle("Table 1 of the towers paper, published and here", **figures.HEADLINE)
    figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data(parser)
    mnist.add_output(parser)
    mnist.add_processes(parser)
    parser.add_argument("--referee", action="store_true", help="train by the published package too")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    mnist.check(parser, arguments, size.task)
    train = functools.partial(mnist.classify, folder=arguments.data)
    path = arguments.out / "table1.csv"

    def run(cells: Sequence[Mapping[str, str | int]]) -> list[Row]:
        unique = list({tuple(cell.items()): cell for cell in cells}.values())  # two rows may have learned the same
        return sweep(train, unique, path, RESULTS, arguments.processes, "table 1")

    lines = measure(size, run, arguments.referee)
    picture = arguments.out / "paper-table1.png"
    draw(lines, size, picture)
    mnist.finish(table(lines), path, picture)


if __name__ == "__main__":
    main()
