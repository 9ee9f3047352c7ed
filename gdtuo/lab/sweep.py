"""One function for each cell of an experiment: in parallel, with a progress bar, every row kept, never run twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from .journal import Journal, Row, Value, alone
from .processes import in_processes

__all__ = ["cores", "sweep"]


def sweep(
    train: Callable[..., Mapping[str, Value]],
    cells: Sequence[Mapping[str, Value]],
    path: str | Path,
    results: Sequence[str],
    processes: int | None = None,
    title: str = "",
) -> list[Row]:
    """`train(**cell)` for every cell that the file at `path` does not have yet; a row for each as it ends.

    Interrupt it, kill it, call it again: it goes on with the cells that are missing.

    Args:
        train: what makes the results of a cell, a mapping with the keys `results`; in a module, for it is called in
            other processes. It should seed what it draws.
        cells: what tells them apart: mappings with the same keys, texts and numbers.
        path: a CSV file, of the cells' keys and `results`.
        results: the names of what `train` returns.
        processes: at a time; by default as many as there are cores.
        title: stands before the progress bar.

    Returns:
        the rows of the cells, in their order; other rows that the file has are left in it.

    Raises:
        ValueError: if two cells are equal, or the file is of another experiment.
        BlockingIOError: if another process is at work on the same file.

    Example:
        >>> import tempfile
        >>> def train(seed):
        ...     return {"error": seed / 2}
        >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> sweep(train, [{"seed": 0}, {"seed": 1}], path, ["error"], processes=1)
        [{'seed': 0, 'error': 0.0}, {'seed': 1, 'error': 0.5}]
    """
    keys = [tuple(cell.values()) for cell in cells]
    if len(set(keys)) < len(keys):
        raise ValueError("Two cells of this experiment are equal. Give each cell once.")

    def key(row: Mapping[str, Value]) -> tuple[Value, ...]:
        return tuple(row[name] for name in cells[0])

    with alone(Path(path)):
        journal = Journal(Path(path), [*(cells[0] if cells else ()), *results])
        done = {key(row) for row in journal.rows}
        missing = [dict(cell) for cell in cells if key(cell) not in done]
        with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", desc=title or None) as progress:
            for cell, found in in_processes(partial(_call, train), missing, processes or cores()):
                journal.append([{**cell, **found}])
                progress.update()
    rows = {key(row): row for row in journal.rows}
    return [rows[key] for key in keys]


def _call(train: Callable[..., Mapping[str, Value]], cell: Mapping[str, Value]) -> Mapping[str, Value]:
    return train(**cell)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
