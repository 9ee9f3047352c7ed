"""`Store`: every number that a tower carries above the weights, in one flat tensor, with named views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Shape", "Store"]


class Shape(NamedTuple):
    """A quantity of the tower: how many rows each parameter group has, and the shape of one row."""

    rows: Sequence[int]
    row: tuple[int, ...]
    lasting: bool = True  # or it is of the last update, and says nothing of the next if it is not finite


class Store:
    """Named tensors [all groups' rows, *row] laid out in one flat tensor.

    One tensor, so that freezing a group is one masked copy whatever the height of the tower; named views, so
    that a parameter group can carry its own rows (`view`) and checkpoints have flat keys.
    """

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = dict(shapes)
        widths = {name: torch.Size(shape.row).numel() for name, shape in shapes.items()}
        sizes = [sum(shape.rows) * widths[name] for name, shape in shapes.items()]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = self.flat.split(sizes)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._places = {name: (start, size) for name, start, size in zip(shapes, starts, sizes, strict=True)}
        # those come first
        self._first = sum(size for size, shape in zip(sizes, shapes.values(), strict=True) if not shape.lasting)
        self._divided = False
        self._parts: dict[str, Tensor] = {}
        self._views = {name: part.view(-1, *shape.row) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        counts = [count * widths[name] for name, shape in shapes.items() for count in shape.rows]
        groups = [group for shape in shapes.values() for group in range(len(shape.rows))]
        self.group_of = torch.tensor(groups, device=device).repeat_interleave(torch.tensor(counts, device=device))

    def __getitem__(self, name: str) -> Tensor:
        if not torch.compiler.is_compiling():
            return self._views[name]
        if name in self._parts:
            return self._parts[name]
        start, size = self._places[name]
        view = self.flat[start : start + size].view(-1, *self._shapes[name].row)
        if self._divided:
            self._parts[name] = view = view.clone()
        return view

    def divide(self) -> None:
        """While torch.compile traces: let the named tensors be tensors of their own, until `join`.

        A compiler makes of each write to a view a new `flat`, and of many such writes long code.
        """
        self._divided = torch.compiler.is_compiling()

    def join(self) -> None:
        """Write what `divide` divided into `flat`."""
        if self._divided:
            parts, end = [], 0
            for name, (start, size) in self._places.items():
                if name in self._parts:
                    parts += [self.flat[end:start], self._parts[name].flatten()]
                    end = start + size
            self.flat.copy_(torch.cat([*parts, self.flat[end:]]))
            self._divided, self._parts = False, {}

    def views(self, group: int) -> dict[str, Tensor]:
        """The rows of one group, by name."""
        result = {}
        for name, shape in self._shapes.items():
            start = sum(shape.rows[:group])
            result[name] = self._views[name][start : start + shape.rows[group]]
        return result

    def keep(self, snapshot: Tensor, kept: Tensor) -> None:
        """Put the groups where `kept` [G] is true back to a snapshot of `flat`, without a branch."""
        self.flat.copy_(torch.where(kept if len(kept) == 1 else kept[self.group_of], snapshot, self.flat))

    def finite(self, count: int) -> Tensor:
        """[G] whether every lasting number of a group is finite."""
        flat = self.flat[self._first :]
        lost = flat - flat  # 0, or NaN where a number is not finite
        if count == 1:
            return lost.sum(0, keepdim=True) == 0
        return lost.new_zeros(count).index_add_(0, self.group_of[self._first :], lost) == 0
