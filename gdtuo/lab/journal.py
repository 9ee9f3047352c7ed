"""A CSV file that grows by whole rows, and that a process killed at any moment leaves readable."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal", "Row", "Value", "alone", "read", "replace"]

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
        ValueError: if the file has other columns, or a line that does not have as many values; it is left as it was.
        OSError: from `append`, if the disk is full; the file has the rows that it had.

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
        whole, header = _whole(content), _text([self.columns])
        if not whole and not header.encode().startswith(content):
            raise ValueError(
                f"{path} is of something else: it does not start with {header.strip()}. Name another file or folder."
            )
        found, self.rows = _parsed(path, whole) if whole else (self.columns, [])
        if found != self.columns:
            raise ValueError(
                f"{path} has the columns {', '.join(found)}, not {', '.join(self.columns)}: it is of another experiment. "
                f"Name another file or folder."
            )
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        if not whole:
            self._write([self.columns])

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
        data = _text(lines).encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]  # a disk that gets full takes a part
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)
                raise OSError(f"{self.path} cannot be written to: {error.strerror}. Make room; its rows are kept.") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other process that asks for it writes to a file meanwhile; one that is killed asks no longer.

    Args:
        path: the file; it and its folder are made when they are not there.

    Raises:
        BlockingIOError: if another process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(f"Another process is writing {path}. Wait until it ends, or name another.") from error
            except OSError:
                pass  # a file system without locks
        yield


def replace(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> list[Row]:
    """The whole rows of a CSV file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a line does not have as many values as the first.
    """
    return _parsed(path, _whole(path.read_bytes()))[1]


def _whole(content: bytes) -> bytes:
    """Without what a killed process has left of a last line."""
    return content[: content.rfind(b"\n") + 1]


def _parsed(path: Path, content: bytes) -> tuple[tuple[str, ...], list[Row]]:
    """Columns and rows; the lines that are empty, as editors leave them, do not count."""
    reader = csv.reader(io.StringIO(content.decode()))
    names, rows = tuple(next(reader, ())), []
    for line in reader:
        if len(line) not in (0, len(names)):
            raise ValueError(
                f"{path} has {len(line)} values in line {reader.line_num}, not {len(names)}. Delete it: its cell is run again."
            )
        if line:
            rows.append(dict(zip(names, map(_value, line), strict=True)))
    return names, rows


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
