"""A CSV file that grows by whole rows, and that a process killed at any moment leaves readable."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

__all__ = ["Journal", "Row", "Value", "read", "replace"]

Value: TypeAlias = str | int | float
Row: TypeAlias = dict[str, Value]

INTEGER = re.compile(r"[+-]?\d+")


class Journal:
    """Rows with the same columns, appended to a CSV file and safe on the disk when `append` returns.

    Rows that are appended together are written at once. What a killed process has left of a last line is cut off when the
    file is opened again. Numbers come back to the bit.

    Args:
        path: the file; it and its folder are made when they are not there.
        columns: their names.

    Raises:
        ValueError: if the file has other columns.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> Journal(path, ["seed", "error"]).append([{"seed": 0, "error": 0.1 + 0.2}])
        >>> Journal(path, ["seed", "error"]).rows
        [{'seed': 0, 'error': 0.30000000000000004}]
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        if not whole:
            self._write([self.columns])
        found, self.rows = _parsed(whole.decode()) if whole else (self.columns, [])
        if found != self.columns:
            raise ValueError(
                f"{path} has the columns {', '.join(found)}, not {', '.join(self.columns)}: it is of another experiment. "
                f"Name another file or folder."
            )

    def append(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Write rows at once; they are on the disk when this returns."""
        new = [{name: row[name] for name in self.columns} for row in rows]
        self._write([list(row.values()) for row in new])
        self.rows += new

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop the rows that are not wanted, from the file too."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) < len(self.rows):
            replace(self.path, _text([self.columns, *(list(row.values()) for row in kept)]))
            self.rows = kept

    def _write(self, lines: Iterable[Sequence[Value]]) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(_text(lines).encode())
            os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> list[Row]:
    """The whole rows of a CSV file.

    Raises:
        FileNotFoundError: if there is none.
    """
    content = path.read_bytes()
    return _parsed(content[: content.rfind(b"\n") + 1].decode())[1]


def _parsed(text: str) -> tuple[tuple[str, ...], list[Row]]:
    names, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    return tuple(names), [dict(zip(names, map(_value, line), strict=True)) for line in lines]


def _value(text: str) -> Value:
    if INTEGER.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _text(lines: Iterable[Sequence[Value]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
