"""`Graph`: arithmetic on few numbers on a CUDA device, captured once and replayed by one launch.

What it costs there is launching: some hundred operations on a handful of numbers, a few microseconds each whatever they do. It
is to a GPU what `Tape` is to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Graph", "UncapturableError", "capturable"]

T = TypeVar("T")


def capturable(device: torch.device) -> bool:
    """Whether functions may be captured now; inside a capture of the user's own they are part of that one."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


class UncapturableError(Exception):
    """A function does what a graph cannot hold."""


class Graph(Generic[T]):
    """A function whose tensors stay where they are.

    Args:
        function: reads no number, and allocates nothing that it needs again.
        state: what it changes. It runs a few times before it is captured; afterwards this holds what it held.

    Raises:
        UncapturableError: if the function cannot be captured, as one that reads a number.
    """

    def __init__(self, function: Callable[[], T], state: Sequence[Tensor] = ()) -> None:
        before = [x.clone() for x in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up outside of the capture
            function()
        torch.cuda.current_stream().wait_stream(stream)
        for x, old in zip(state, before, strict=True):
            x.copy_(old)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # other threads load data meanwhile
                self._result = function()
        except RuntimeError as error:
            raise UncapturableError(str(error)) from error

    def __call__(self) -> T:
        """The function's result, in memory that the next call overwrites."""
        self._graph.replay()
        return self._result
