"""`Factors`: the numbers of kernels as the operations on arrays take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import Workspace
from .kernel import Kernel
from .tape import Array

__all__ = ["Factors"]

#: Lists of lengths that are remembered: gradients come and go in ever new patterns.
MANY = 64


class Factors:
    """Hands each kernel its factors in memory that stays.

    Args:
        kernels: those that will ask.
        dtype: of their arithmetic.
        device: of their arrays.
        workspace: where factors stand in which weights differ.
    """

    def __init__(self, kernels: Iterable[Kernel], dtype: torch.dtype, device: torch.device, workspace: Workspace) -> None:
        self._dtype, self._device, self._workspace = dtype, device, workspace
        self._numpy = torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
        vectors = {id(kernel): torch.ones(len(kernel.factors.outputs), dtype=dtype, device="cpu") for kernel in kernels}
        self._memory = {key: vector.numpy() for key, vector in vectors.items()}
        self._elements = {key: list(vector.unbind(0)) for key, vector in vectors.items()}
        self._counts: dict[tuple[int, ...], Tensor] = {}
        self._parts: dict[tuple[int, ...], list[Array]] = {}

    def of(self, kernel: Kernel, found: Any, part: slice, lengths: Sequence[int]) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """The factors of some segments as numbers and as tensors.

        On a device both are tensors; a factor in which segments differ is an array in both.

        Args:
            found: a list of numbers, or [factors, T].
            part: of the T segments.
            lengths: how many weights each of these has.
        """
        if isinstance(found, (list, tuple)) or (len(lengths) == 1 and isinstance(found, np.ndarray)):
            memory = self._memory[id(kernel)]
            memory[:] = found if isinstance(found, (list, tuple)) else found[:, part.start]
            return memory.tolist(), self._elements[id(kernel)]
        chosen = torch.as_tensor(found[:, part], device=self._device).to(self._dtype)
        if len(lengths) == 1:
            tensors = list(chosen[:, 0].unbind(0))
            return tensors, tensors
        if isinstance(found, Tensor):
            tensors = list(chosen.repeat_interleave(self._counted(lengths), dim=1, output_size=sum(lengths)).unbind(0))
            return tensors, tensors
        # most are the same everywhere, and stay numbers; that of the change alone is applied later
        differ = (chosen != chosen[:, :1]).any(1).tolist()
        if kernel.change and kernel.change_alone:
            differ[kernel.change[1]] = False
        spread = [self._filled(i, row.tolist(), lengths) if differ[i] else None for i, row in enumerate(chosen)]
        first = chosen[:, 0]
        numbers = [n if row is None else row for n, row in zip(first.tolist(), spread, strict=True)]
        return numbers, [n if row is None else row for n, row in zip(first.unbind(0), spread, strict=True)]

    def rounded(self, numbers: np.ndarray) -> list[float]:
        """As the arithmetic sees them."""
        return numbers.astype(self._numpy).tolist()

    def _filled(self, i: int, numbers: Sequence[float], lengths: Sequence[int]) -> Tensor:
        """The i-th factor as an array with a number for each stretch."""
        flat = self._workspace.get(("factor", i), sum(lengths), self._dtype, self._device)
        key = (i, *lengths)
        parts = self._parts.get(key)
        if parts is None or parts[0].ctypes.data != flat.data_ptr():
            if len(self._parts) >= MANY:
                self._parts.clear()
            parts = self._parts[key] = [part.numpy() for part in flat.split(list(lengths))]
        for part, number in zip(parts, numbers, strict=True):
            part.fill(number)
        return flat

    def _counted(self, lengths: Sequence[int]) -> Tensor:
        """As a tensor on the device, sent there once."""
        key = tuple(lengths)
        if key not in self._counts:
            if len(self._counts) >= MANY:
                self._counts.clear()
            self._counts[key] = torch.tensor(lengths, device=self._device)
        return self._counts[key]
