"""How far the last value of a learned rate, which Table 1 of the towers paper prints, stands for the values before it.

Of some stacks the learning rate after each step of the last epoch, and the plain optimizer once more with its median instead of
its last value.

    python examples/paper/last_values.py --data DIR    # 5 minutes of one core; killed and called again, it goes on
    python examples/paper/last_values.py --quick       # scikit-learn's digits: seconds
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import stacks
from table1 import FULL, QUICK, TABLE, Figure, Published, Size, cells, plain

from gdtuo.lab.journal import Row
from gdtuo.lab.sweep import sweep

TITLES = ("SGD / Adam(0.1)", "SGD / RMSProp(0.1)", "Adam[lr] / SGD(1e-5)", "Adam / Adam", "Adam[lr] / Adam")
RESULTS = ("error", "lowest", "tenth", "median", "ninetieth", "highest", "last")


def train(folder: str | None = None, **cell: str | int) -> Mapping[str, float]:
    """The test error, and of the learning rate in the last epoch its range, deciles, median and last value."""
    rates: list[float] = []

    def watch(trainer: stacks.Trainer) -> None:
        rates.append(float(trainer.learned()["lr"]))

    error = stacks.classify(**cell, folder=folder, watch=watch)["error"]  # type: ignore[arg-type]  # a cell has its arguments
    deciles = statistics.quantiles(rates, n=10, method="inclusive")
    found = (float(error), min(rates), deciles[0], statistics.median(rates), deciles[-1], max(rates), rates[-1])
    return dict(zip(RESULTS, found, strict=True))


def median(rows: Sequence[Row]) -> float:
    """Over seeds, to three digits."""
    return float(f"{statistics.median(float(row['median']) for row in rows):.3g}")


def table(size: Size, found: Mapping[str, list[Row]], reruns: Mapping[str, list[Row]]) -> str:
    """As Markdown: a line for each stack."""
    lines = [["stack", "printed", "last, by seed", "middle 80 % of the last epoch", "median", "rerun with the median"]]
    lines.append(["---"] * len(lines[0]))
    for row in chosen():
        rows = found[row.title]
        last = ", ".join(f"{one['last']:.3g}" for one in rows)
        low, high = min(float(one["tenth"]) for one in rows), max(float(one["ninetieth"]) for one in rows)
        again = str(Figure.of(reruns[row.title]))
        lines.append([row.title, f"{row.learned[0]:g}", last, f"{low:.3g} to {high:.3g}", f"{median(rows):g}", again])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chosen() -> list[Published]:
    """The rows of the paper's table."""
    return [row for row in TABLE if row.title in TITLES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stacks.add_data(parser)
    stacks.add_output(parser)
    stacks.add_processes(parser)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    stacks.check(parser, arguments, size.task)
    path: Path = arguments.out / "last_values.csv"
    call = functools.partial(train, folder=arguments.data)

    def run(wanted: Mapping[str, str]) -> dict[str, list[Row]]:
        """The repetitions of each stack, by the row's title."""
        todo = {tuple(cell.items()): cell for stack in wanted.values() for cell in cells(size, "compat", stack)}
        rows = sweep(call, list(todo.values()), path, RESULTS, arguments.processes, "last values")
        return {title: [row for row in rows if row["stack"] == stack] for title, stack in wanted.items()}

    found = run({row.title: row.stack for row in chosen()})
    reruns = run({row.title: f"{plain(row.stack)}({median(found[row.title]):g})" for row in chosen()})
    text = table(size, found, reruns)
    print(text)
    path.with_suffix(".md").write_text(text + "\n")
    print(f"\nCells: {path}")


if __name__ == "__main__":
    main()
