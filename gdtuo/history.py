"""`History`: what was learned, over time; recorded, drawn, saved and loaded."""

from __future__ import annotations

import operator
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import tables
from .level import Level
from .observing import snapshot, unwrap
from .rules import Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

__all__ = ["History", "Series"]

#: Names that a column of the user's may not have.
TAKEN = re.compile(r"step$|skipped$|(written/)?L\d+/")


class Series(NamedTuple):
    """One number over time: steps, rising, and its value at each."""

    steps: array[int]
    values: array[float]


class History(Mapping[str, Series]):
    """Records every effective hyperparameter of an optimizer while it trains.

    A mapping from names to `Series`. The names are those of `gdtuo.hyperparameters`, as "L0/g0/lr"; "written/L0/g0/lr" and
    its like, the user's or a scheduler's number beside what is learned; "skipped", how many hyper-updates were not finite;
    and columns of your own.

    Args:
        optimizer: a level with parameters, a torch optimizer, or a wrapper of one; None for a history that is only read.
        every: of how many steps one is kept: 1, 1 + every, 1 + 2 every, ... Default: 1.

    Raises:
        TypeError: if there is no optimizer in `optimizer`, or `every` is no whole number.
        ValueError: if `every` is below 1.
        RuntimeError: for a template.

    A record costs about as much as `optimizer.hyperparameters()`, one device synchronisation included; a step that is not
    kept costs nothing. A history is a step hook, too: after `optimizer.register_step_post_hook(history)`, on the optimizer
    itself rather than a wrapper, it records by itself.

    Example:
        >>> import torch, gdtuo
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = gdtuo.SGD([w], lr=0.05, optimizer=gdtuo.SGD())
        >>> history = gdtuo.History(optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = (w**2).sum()
        ...     loss.backward()
        ...     optimizer.step()
        ...     history.record(loss=loss)
        >>> steps, rates = history["L0/g0/lr"]
        >>> list(steps), [round(rate, 4) for rate in rates]
        ([1, 2, 3], [0.05, 0.0505, 0.051])
        >>> [round(loss, 2) for loss in history["loss"].values]
        [1.0, 0.81, 0.65]
    """

    def __init__(self, optimizer: Any = None, every: int = 1) -> None:
        every = _whole("every", every, "Give a whole number of steps, 1 to keep all of them.")
        if every < 1:
            raise ValueError(f"History got every={every}: it counts steps. Use 1 to keep all of them.")
        if optimizer is not None:
            inner = unwrap(optimizer)
            if isinstance(inner, Level):
                inner._bound()
        self.optimizer, self.every = optimizer, every
        self.steps = array("q")  # that were kept
        self._columns: dict[str, Series] = {}
        self._step = 0

    def __getitem__(self, name: str) -> Series:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} columns, {len(self.steps)} steps)"

    # ---------------------------------------------------------------- recording

    def record(self, step: int | None = None, **columns: Number) -> None:
        """Keep the numbers as they are now.

        Call it after `optimizer.step()` and before `scheduler.step()`: then they are those that the update used.

        Args:
            step: how many updates there have been. Default: one more than at the last call.
            columns: numbers of your own, as loss=loss; floats or tensors of one element.

        Raises:
            RuntimeError: if the history has no optimizer.
            TypeError: for a step that is no whole number, or a column that is no number.
            ValueError: for a step that does not rise, a column whose name is taken, or a tensor of several elements.
                All before anything has changed.
        """
        if self.optimizer is None:
            raise RuntimeError("This History has no optimizer to record. Make one with gdtuo.History(optimizer).")
        remedy = "The first argument counts updates; give numbers of your own by name, as record(loss=loss)."
        now = self._step + 1 if step is None else _whole("step", step, remedy)
        if self.steps and now <= self._step:
            raise ValueError(
                f"History got step={now} after step {self._step}: steps rise. Start a new History, or leave step out."
            )
        for name, value in columns.items():
            _check_column(name, value)
        if not self.steps or now - self.steps[-1] >= self.every:
            self._append(now, snapshot(self.optimizer, columns))
        self._step = now

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """As a step post hook."""
        self.record()

    def _append(self, step: int, row: Mapping[str, float]) -> None:
        self.steps.append(step)
        for name, value in row.items():
            series = self._columns.setdefault(name, Series(array("q"), array("d")))
            series.steps.append(step)
            series.values.append(value)

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write a .csv or .json file from which `load` reads the same numbers to the bit; its folder is made.

        CSV: a line for each step, a column for each name, the step first; empty where there is no number. JSON: the same
        column by column, null where there is no number, and "nan", "inf", "-inf", which JSON has no numbers for.

        Raises:
            ValueError: for another ending.
        """
        path = tables.checked(path)
        cells = [dict(zip(*series, strict=True)) for series in self.values()]
        columns = {name: [found.get(step) for step in self.steps] for name, found in zip(self, cells, strict=True)}
        tables.write(path, self.steps, columns)

    @classmethod
    def load(cls, path: str | Path, optimizer: Any = None, every: int = 1) -> Self:
        """A history from a file; given an optimizer it goes on where that ended.

        Raises:
            ValueError: if the file is no history, or its name does not end in .csv or .json.

        Example:
            >>> import pathlib, tempfile, torch
            >>> history = History(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
            >>> history.record()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     history.save(pathlib.Path(folder) / "history.csv")
            ...     History.load(pathlib.Path(folder) / "history.csv") == history
            True
        """
        history = cls(optimizer, every)
        steps, columns = tables.read(tables.checked(path))
        for i, step in enumerate(steps):
            cells = {name: column[i] for name, column in columns.items()}
            history._append(step, {name: value for name, value in cells.items() if value is not None})
        history._step = steps[-1] if steps else 0
        return history

    # ---------------------------------------------------------------- pictures

    def plot(self, path: str | Path | None = None, title: str | None = None) -> Figure:
        """Draw every level over time, and save the picture if a path is given.

        A panel for each hyperparameter that is learned or moves, effective values as lines, what a user or a scheduler wrote
        dashed; and one for each column of your own. A group has one colour in all panels; equal lines take turns in dashes.
        Learned per tensor, or of more than 20 groups, many lines are drawn thin, with their median.

        Args:
            path: where the picture goes; its ending says which kind.
            title: above all panels. Default: the optimizer, as "adam / sgd / sgd"; of several towers each, with its groups.

        Returns:
            a matplotlib Figure.

        Raises:
            ImportError: without matplotlib.
            ValueError: if nothing has been recorded.
        """
        from .lab.plots import plot_history  # the only part that needs matplotlib

        return plot_history(self, path, title)


def _whole(what: str, number: Any, remedy: str) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise TypeError(f"History got {what}={number!r}. {remedy}") from error


def _check_column(name: str, value: Any) -> None:
    if TAKEN.match(name):
        raise ValueError(f"History got a column {name!r}, a name of its own. Choose another, as loss={value!r}.")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"History got {name} of shape {tuple(value.shape)}. Give one number, as {name}={name}.mean().")
    if not _is_number(value):
        raise TypeError(
            f"History got {name}={value!r}. Give a float or a tensor of one real number; where there is none, leave {name} out."
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_complex()  # not float(value), which would wait for the device
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)
