"""A block of hyperparameters that is learned: the numbers as written, the shifts beside them, the effective values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .domains import Domain
from .rules import Number

__all__ = ["Learned", "written"]


class Learned:
    """H hyperparameters of one level in B blocks; every array here is [B, H].

    Args:
        domains: name -> domain of each learned hyperparameter, in the order of the columns.
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self.names = tuple(domains)
        self.domains = tuple(domains.values())
        # One evaluation per kind of domain: bounds enter as limits, so they do not tell formulas apart.
        kinds: dict[Any, list[int]] = {}
        for column, domain in enumerate(self.domains):
            fields = {f.name: getattr(domain, f.name) for f in dataclasses.fields(domain)}
            formula = (type(domain), *(fields[name] for name in fields if name not in ("minimum", "maximum")))
            kinds.setdefault(formula, []).append(column)
        self._kinds = [(self.domains[columns[0]], columns) for columns in kinds.values()]

    def allocate(self, rows: int, like: Tensor) -> None:
        """Memory for the numbers as written, which stays where it is."""
        self.written, self.low, self.high = (like.new_ones(rows, len(self.names)) for _ in range(3))
        columns = range(len(self.names))
        self._masks = [torch.tensor([i in places for i in columns], device=like.device) for _, places in self._kinds[1:]]

    def write(self, written: Tensor) -> None:
        """Take [B, H] numbers as the user or a scheduler left them."""
        if not hasattr(self, "written"):
            self.allocate(len(written), written)
        self.written.copy_(written)
        limits = [d.limits(written[:, i]) for i, d in enumerate(self.domains)]
        for mine, bound in zip((self.low, self.high), zip(*limits, strict=True), strict=True):
            mine.copy_(torch.stack(bound, dim=1))

    def pin(self, shift: Tensor, pinned: Tensor) -> None:
        """Let the shifts where `pinned` is true stay where they are, until the next `write`."""
        for bound in (self.low, self.high):
            bound.copy_(torch.where(pinned, shift, bound))

    def project(self, shift: Tensor) -> Tensor:
        """The nearest shift whose effective value lies within the bounds."""
        return torch.minimum(torch.maximum(shift, self.low), self.high)

    def effective(self, shift: Tensor) -> Tensor:
        """The values that the rule sees."""
        return self._evaluate("shifted", self.project(shift))

    def slope(self, shift: Tensor) -> Tensor:
        """d(effective value)/d(shift)."""
        return self._evaluate("slope", self.project(shift))

    def values(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Effective values and slopes at a shift that lies within the bounds."""
        return self._evaluate("shifted", shift), self._evaluate("slope", shift)

    def _evaluate(self, method: str, shift: Tensor) -> Tensor:
        result = getattr(self._kinds[0][0], method)(self.written, shift)
        for (domain, _), mask in zip(self._kinds[1:], self._masks, strict=True):  # cheaper than picking columns
            result = torch.where(mask, getattr(domain, method)(self.written, shift), result)
        return result


def written(numbers: Sequence[Sequence[Number]], like: Tensor) -> Tensor:
    """[G, A] numbers as they stand in the groups, tensors among them, without synchronising with a device."""
    tensors = any(isinstance(number, Tensor) for group in numbers for number in group)
    if not any(numbers) or not (tensors or torch.compiler.is_compiling()):
        return torch.tensor(numbers, dtype=like.dtype, device=like.device).reshape(len(numbers), -1)
    one = like.new_ones(())  # times which a number of any value gets into a graph
    return torch.stack(
        [
            torch.stack(
                [number.detach().to(like).reshape(()) if isinstance(number, Tensor) else one * number for number in group]
            )
            for group in numbers
        ]
    )
