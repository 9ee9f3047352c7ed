"""How much memory a computation takes: the tensors that are alive at a time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..recording import tensors_in

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it, as long as they live.

    Attributes:
        now: bytes at the moment.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, tuple(kwargs.values())))}
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._see(tensor, before)
        return result

    def _see(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in before:  # an argument's memory, seen or from outside
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
