"""What a function of tensors does, as a list of calls: the straight-line program behind the fast paths.

A rule, and a step of the levels above it, never branches on a value. One run on example tensors is therefore the
whole program, and can be replayed: by NumPy on a few numbers (`tape`), in cache-sized blocks or compiled on weights
(`kernel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Call", "Recorder", "UnrecordableError", "record", "tensors_in"]

T = TypeVar("T")


class UnrecordableError(Exception):
    """A function looked at a value, and so has no straight-line program."""


class Call(NamedTuple):
    """One call of a torch operator on tensors that really existed."""

    function: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def name(self) -> str:
        """As "add": without namespace and overload."""
        return self.function._schema.name.removeprefix("aten::")

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return list(tensors_in((self.args, tuple(self.kwargs.values()))))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class Recorder(TorchDispatchMode):
    """Lists the operators that run inside it, below autograd: forward-mode derivatives appear spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # .item(), `if x > 0`
            raise UnrecordableError
        result = func(*args, **kwargs)
        self.calls.append(Call(func, args, kwargs, result))
        return result


@torch.no_grad()
def record(function: Callable[[], T]) -> tuple[T, list[Call]]:
    """Run a function and list what it did.

    Raises:
        UnrecordableError: if it turns a tensor into a number, as a branch on a value does.
    """
    with Recorder() as recorder:
        result = function()
    return result, recorder.calls
