"""A script that runs one experiment: its command line, its sizes, and where its results go."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from . import data, options

__all__ = ["Experiment", "Sizes", "experiment", "write_rows"]

Size = TypeVar("Size", bound="tuple[Any, ...]")


@dataclass(frozen=True)
class Sizes(Generic[Size]):
    """How large an experiment is, as named tuples of one kind: on scikit-learn's digits, on MNIST, as published."""

    digits: Size
    mnist: Size
    paper: Size | None = None
    published: str = ""  # what --paper runs, for the help: what the published sizes are, and where `paper` differs


@dataclass(frozen=True)
class Experiment(Generic[Size]):
    """What a command line asks for."""

    task: data.Data
    name: str  # of the task
    size: Size
    out: Path  # of the picture
    csv: Path | None

    def finish(self, rows: Sequence[Any]) -> None:
        """Write the rows, named tuples of one kind, if a file for them was named, and say where everything is."""
        print(f"\nThe picture: {self.out}")
        if self.csv is not None:
            write_rows(self.csv, rows)
            print(f"The numbers: {self.csv}")


def experiment(script: str, text: str | None, sizes: Sizes[Size], **counts: str) -> Experiment[Size]:
    """Read the command line of an experiment, and what it is made on; exits with a line that says what is wrong.

    Args:
        script: its `__file__`, after which the picture is called.
        text: its docstring.
        sizes: of the experiment.
        counts: entries of `sizes` that a flag can change, each with its meaning.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.set_defaults(task=None)
    if sizes.paper is not None:
        published = f"the published sizes, on MNIST unless --task says else: {sizes.published}"
        parser.add_argument("--paper", action="store_true", help=published)
    for name, meaning in counts.items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default: {_defaults(sizes, name)})")
    picture = f"{Path(script).stem}.png"
    parser.add_argument("--out", type=Path, default=Path(picture), help=f"where the picture goes (default: {picture})")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where the numbers behind the picture go (default: nowhere)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, *counts)

    paper = sizes.paper if getattr(arguments, "paper", False) else None
    arguments.task = arguments.task or ("digits" if paper is None else "mnist")
    usual = sizes.digits if arguments.task == "digits" else sizes.mnist
    size = usual if paper is None else paper
    chosen = {name: getattr(arguments, name) for name in counts if getattr(arguments, name) is not None}
    task = options.load_task(parser, arguments)
    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    return Experiment(task, arguments.task, size._replace(**chosen), arguments.out, arguments.csv)  # type: ignore[attr-defined]


def _defaults(sizes: Sizes[Any], name: str) -> str:
    digits, mnist = (getattr(size, name) for size in (sizes.digits, sizes.mnist))
    usual = f"{digits}" if digits == mnist else f"{digits} on digits, {mnist} on others"
    return usual if sizes.paper is None else f"{usual}, {getattr(sizes.paper, name)} with --paper"


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Named tuples of one kind as a CSV file, floats to six digits; its folder is made.

    Example:
        >>> import tempfile
        >>> from typing import NamedTuple
        >>> class Row(NamedTuple):
        ...     step: int
        ...     loss: float
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_rows(Path(folder) / "runs" / "a.csv", [Row(1, 2 / 3), Row(2, 0.5)])
        ...     print((Path(folder) / "runs" / "a.csv").read_text())
        step,loss
        1,0.666667
        2,0.5
        <BLANKLINE>
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
