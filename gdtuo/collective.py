"""`Collective`: sums that ranks found of their own parts of the parameters, added up over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .sharding import Ranks

__all__ = ["Collective"]


class Collective:
    """One small message a step for each group of ranks, whatever was found and whether anything was.

    Args:
        kinds: over which groups of ranks parameters are cut, one entry for each way that occurs.
        table: what the sums add up to.
        groups: how many parameter groups there are.
    """

    def __init__(self, kinds: Iterable[Ranks], table: Tensor, groups: int) -> None:
        kinds = list(dict.fromkeys(kinds))
        self._table, self._groups = table, groups
        #: [kinds, table and one flag for each parameter group]
        self._sent = table.new_zeros(len(kinds), table.numel() + groups)
        self._members = [
            (ranks, [i for i, kind in enumerate(kinds) if ranks in kind])
            for ranks in dict.fromkeys(ranks for kind in kinds for ranks in kind)
        ]
        #: a table for each kind, to be filled by what is cut in that way
        self.tables = {kind: part[: table.numel()].view_as(table) for kind, part in zip(kinds, self._sent, strict=True)}

    def clear(self) -> None:
        """Begin a step."""
        self._sent.zero_()

    def add_up(self, active: Sequence[bool]) -> Tensor:
        """Fill the table with the sums over all ranks.

        Args:
            active: [G] which parameter groups have something to learn from on this rank.

        Returns:
            [G] which have on any rank.
        """
        size = self._table.numel()
        self._sent[0, size:] = torch.tensor(active, dtype=self._sent.dtype, device="cpu")
        for ranks, rows in self._members:
            if len(rows) == len(self._sent):
                torch.distributed.all_reduce(self._sent, group=ranks)
            else:
                part = self._sent[rows]
                torch.distributed.all_reduce(part, group=ranks)
                self._sent[rows] = part
        total = self._sent.sum(0)
        self._table.copy_(total[:size].view_as(self._table))
        return total[size:] > 0
