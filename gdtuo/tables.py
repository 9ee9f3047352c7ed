"""Columns of numbers over steps, in .csv and .json files, to the bit."""

from __future__ import annotations

import csv
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["checked", "read", "write"]

Column: TypeAlias = Sequence[float | None]  # None where there is no number


def checked(path: str | Path) -> Path:
    """A path whose ending is known.

    Raises:
        ValueError: for another ending.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"A history cannot stand in {path.name!r}. Give a name that ends in .csv or .json.")
    return path


def write(path: Path, steps: Sequence[int], columns: Mapping[str, Column]) -> None:
    """Write a table; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        if path.suffix == ".json":
            plain = {name: [_plain(value) for value in column] for name, column in columns.items()}
            json.dump({"step": list(steps), **plain}, file, allow_nan=False)
        else:
            csv.writer(file).writerow(["step", *columns])
            csv.writer(file).writerows(zip(steps, *columns.values(), strict=True))


def read(path: Path) -> tuple[list[int], dict[str, list[float | None]]]:
    """The steps and the columns of a table.

    Raises:
        ValueError: if the file is no table: says what is wrong with it.
    """
    try:
        with path.open(newline="") as file:
            found = _from_json(file.read()) if path.suffix == ".json" else _from_csv(file)
        names = [name for name, _ in found]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two columns are called {min(doubled)!r}")
        columns = dict(found)
        if "step" not in columns:
            raise ValueError("no column is called 'step'")
        steps = [int(step) if isinstance(step, str) else operator.index(step) for step in columns.pop("step")]
        for one, two in pairwise(steps):
            if two <= one:
                raise ValueError(f"step {two} comes after step {one}, and steps rise")
        for name, column in columns.items():
            if len(column) != len(steps):
                raise ValueError(f"{name!r} has {len(column)} places, and 'step' has {len(steps)}")
        return steps, {name: [None if cell in ("", None) else float(cell) for cell in cells] for name, cells in columns.items()}
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} holds no history ({error}). Save one with History.save.") from error


def _from_csv(file: Iterable[str]) -> list[tuple[str, Sequence[Any]]]:
    names, *rows = [row for row in csv.reader(file) if row] or [[]]
    for i, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"line {i} of numbers has {len(row)} places, and there are {len(names)} names")
    return list(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))


def _from_json(text: str) -> list[tuple[str, Sequence[Any]]]:
    found = json.loads(text, object_pairs_hook=tuple)  # a dict would keep the last of two columns with one name
    if not isinstance(found, tuple):
        raise TypeError("it is no object with a list for each column")
    for name, column in found:
        if not isinstance(column, list):
            raise TypeError(f"{name!r} is no list of numbers")
    return list(found)


def _plain(value: float | None) -> float | str | None:
    """What JSON has no number for, as text."""
    return value if value is None or abs(value) < float("inf") else repr(value)
