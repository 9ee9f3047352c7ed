"""How far the last value of a learned rate, which Table 1 of the towers paper prints, stands for the values before it.

Of some stacks the learning rate after each step of the last epoch, and the plain optimizer once more with its median instead of
its last value. And variants of the one stack whose printed value is not found although its rate does not oscillate.

    python examples/paper/last_values.py --data DIR    # 5 minutes of one core; killed and called again, it goes on
    python examples/paper/last_values.py --quick       # scikit-learn's digits: seconds
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mnist
import stacks
from published import TABLE, Figure
from table1 import FULL, QUICK, cells, plain

from gdtuo.lab import options
from gdtuo.lab.journal import Row
from gdtuo.lab.sweep import sweep

TITLES = ("SGD / Adam(0.1)", "SGD / RMSProp(0.1)", "Adam[lr] / SGD(1e-5)", "Adam / Adam", "Adam[lr] / Adam")
VARIED = "Adam[lr] / SGD(1e-5)"
VARIANTS = {
    "the same, beta2 0.99": "AdamBaydin(0.001, 0.9, 0.99) / SGD(1e-05)",
    "the same, SGD(3e-6)": "AdamBaydin(0.001) / SGD(3e-06)",
    "the same, SGD(1e-6)": "AdamBaydin(0.001) / SGD(1e-06)",
}
RESULTS = ("error", "lowest", "tenth", "median", "ninetieth", "highest", "last")


def train(folder: str | None = None, **cell: str | int) -> Mapping[str, float]:
    """The test error, and of the learning rate in the last epoch its range, deciles, median and last value."""
    rates: list[float] = []

    def watch(trainer: stacks.Trainer) -> None:
        rates.append(float(trainer.learned()["lr"]))

    error = mnist.classify(**cell, folder=folder, watch=watch)["error"]  # type: ignore[arg-type]  # a cell has its arguments
    deciles = statistics.quantiles(rates, n=10, method="inclusive")
    found = (float(error), min(rates), deciles[0], statistics.median(rates), deciles[-1], max(rates), rates[-1])
    return dict(zip(RESULTS, found, strict=True))


def median(rows: Sequence[Row]) -> float:
    """Over seeds, to three digits."""
    return float(f"{statistics.median(float(row['median']) for row in rows):.3g}")


class Line(NamedTuple):
    """A stack and the rate that the paper prints for it."""

    title: str
    stack: str
    printed: float


def chosen() -> list[Line]:
    """The stacks, variants behind what they vary."""
    lines = {row.title: Line(row.title, row.stack, row.learned[0]) for row in TABLE if row.title in TITLES}
    varied = lines[VARIED]
    variants = [Line(title, stack, varied.printed) for title, stack in VARIANTS.items()]
    return [line for title in TITLES for line in (lines[title], *(variants if title == VARIED else []))]


def table(found: Mapping[str, list[Row]], reruns: Mapping[str, list[Row]]) -> str:
    """As Markdown: a line for each stack."""
    lines = [["stack", "error", "printed", "last, by seed", "middle 80 % of the last epoch", "median", "rerun with the median"]]
    lines.append(["---"] * len(lines[0]))
    for line in chosen():
        rows = found[line.title]
        last = ", ".join(f"{row['last']:.3g}" for row in rows)
        low, high = min(float(row["tenth"]) for row in rows), max(float(row["ninetieth"]) for row in rows)
        errors = str(Figure.of(rows)), str(Figure.of(reruns[line.title]))
        lines.append(
            [line.title, errors[0], f"{line.printed:g}", last, f"{low:.3g} to {high:.3g}", f"{median(rows):g}", errors[1]]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data(parser)
    mnist.add_output(parser)
    mnist.add_processes(parser)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    mnist.check(parser, arguments, size.task)
    path: Path = arguments.out / "last_values.csv"
    call = functools.partial(train, folder=arguments.data)

    def run(wanted: Mapping[str, str]) -> dict[str, list[Row]]:
        """The repetitions of each stack, by the row's title."""
        todo = {tuple(cell.items()): cell for stack in wanted.values() for cell in cells(size, "compat", stack)}
        rows = sweep(call, list(todo.values()), path, RESULTS, arguments.processes, "last values")
        return {title: [row for row in rows if row["stack"] == stack] for title, stack in wanted.items()}

    found = run({line.title: line.stack for line in chosen()})
    reruns = run({line.title: f"{plain(line.stack)}({median(found[line.title]):g})" for line in chosen()})
    text = table(found, reruns)
    print(text)
    path.with_suffix(".md").write_text(text + "\n")
    print(f"\nCells: {path}")


if __name__ == "__main__":
    main()
