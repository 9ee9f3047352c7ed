"""`Measuring`: which weights have never been measured, and how their lengths get to the ladder. See `trust`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .layout import Bucket, Run
from .segments import like
from .sharding import Ranks
from .tape import Array
from .trust import LENGTHS

__all__ = ["Measuring"]


class Measuring:
    """Rows of hyperparameters whose weights are measured before their first update.

    Args:
        lengths: the squares of the lengths of the gradients that each row's weights were measured with, 0 where they were not.
        shared: whether tables are added up over ranks.
    """

    def __init__(self, lengths: Iterable[float] = (), shared: bool = False) -> None:
        self._rows = {row for row, length in enumerate(lengths) if length == 0}
        self._shared = shared
        self._groups: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, runs: Iterable[tuple[Bucket, Run]], tables: Mapping[Ranks, Array], values: Any) -> None:
        """Add the lengths of weights that have never been measured to the tables.

        Args:
            values: as `Bucket.update` takes them.
        """
        if not self._rows:
            return
        done, rows = set[int](), sorted(self._rows)
        for table in tables.values():
            table[rows, -LENGTHS:] = 0.0  # what a gradient of 0 has left there
        for bucket, run in runs:
            for i in range(run.first, run.last) if bucket.recipe.own else ():
                place = bucket.places[i]
                if place.row in self._rows:
                    lengths = bucket.lengths(i, run.step + 1, values).nan_to_num(0.0, 0.0)
                    line = tables[bucket.ranks][place.row, -LENGTHS:]
                    line += like(lengths, line)
                    if self._shared or lengths[-1] > 0:  # else it says nothing of the next
                        done.add(place.row)
                    self._groups.add(place.group)
        self._rows -= done

    def take(self) -> set[int]:
        """The groups whose lengths the ladder has still to take up, which it now does."""
        groups, self._groups = self._groups, set()
        return groups
