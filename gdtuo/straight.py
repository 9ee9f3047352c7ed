"""`StraightLine`: recorded arithmetic on a few numbers as the source of a Python function on plain numbers.

After a backward pass the caches hold the model's numbers, and every NumPy call takes several times as long as when called
in a row. Python's own arithmetic touches less: each element of each array becomes a local variable, and copies, views and
joins, most of what a tower does, become nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recording import Call

__all__ = ["CannotTranslateError", "StraightLine"]


class CannotTranslateError(Exception):
    """A call has no counterpart in plain Python, or there are too many."""


UNARY = {
    "neg": "-{0}",
    "exp": "exp({0})",
    "log": "log({0})",
    "sqrt": "sqrt({0})",
    "abs": "abs({0})",
    "reciprocal": "1 / {0}",
    "logical_not": "not {0}",
    "bitwise_not": "not {0}",
}
BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "power({0}, {1})",
    # NaN where either is
    "minimum": "{1} if {1} < {0} or {1} != {1} else {0}",
    "maximum": "{1} if {1} > {0} or {1} != {1} else {0}",
    "clamp_min": "{1} if {1} > {0} else {0}",
    "clamp_max": "{1} if {1} < {0} else {0}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "logical_and": "{0} and {1}",
    "logical_or": "{0} or {1}",
    "bitwise_and": "{0} and {1}",
    "bitwise_or": "{0} or {1}",
}
COPIES = ("clone", "_to_copy", "copy_", "alias", "detach", "lift_fresh_copy")


# NumPy's: Python's own differ from them in the last digit, and the same step may be replayed by either


def _exp(x: float) -> float:
    return float(np.exp(x))


def _log(x: float) -> float:
    return float(np.log(x))


def _power(x: float, y: float) -> float:
    return float(np.power(x, y))


def _power_of_arrays(x: float, y: float) -> float:
    """NumPy has other ways for squares, roots and inverses where one exponent serves a whole array."""
    return _power(x, y) if y not in (2.0, 0.5, -1.0) else float(np.power([x], [y])[0])


NAMES = {
    "exp": _exp,
    "log": _log,
    "power": _power,
    "power_of_arrays": _power_of_arrays,
    "sqrt": math.sqrt,
    "inf": math.inf,
    "nan": math.nan,
}
#: More operations than that take NumPy less time.
LIMIT = 1500


class StraightLine:
    """Source code in the making. Where Python raises, torch and NumPy would go on with inf or NaN: callers fall back."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._memory: dict[int, list[str]] = {}  # storage -> the expression that each of its elements is

    def define(self, tensor: Tensor, names: Sequence[str]) -> None:
        """Say what the elements of a tensor are."""
        memory = self._memory.setdefault(_storage(tensor), ["nan"] * _size(tensor))
        for i, name in zip(_places(tensor), names, strict=True):
            memory[i] = name

    def elements(self, tensor: Tensor, shape: torch.Size | None = None) -> list[str]:
        """What the elements of a tensor, broadcast to a shape, are; its numbers if nothing has defined it."""
        if _storage(tensor) not in self._memory:
            plain = torch.zeros_like(tensor, memory_format=torch.contiguous_format) if tensor._is_zerotensor() else tensor
            return [repr(x) for x in plain.expand(tensor.shape if shape is None else shape).flatten().tolist()]
        memory = self._memory[_storage(tensor)]
        return [memory[i] for i in _places(tensor, shape)]

    def add(self, call: Call) -> None:
        """Append a call.

        Raises:
            CannotTranslateError: if it has no counterpart.
        """
        result, shape = call.result, call.result.shape if isinstance(call.result, Tensor) else None
        if shape is None or (any(_storage(x) == _storage(result) for x in call.tensors) and not call.name.endswith("_")):
            return  # views: they are read from the memory that they view
        name = call.name.removesuffix("_") if call.name not in COPIES else call.name
        plain = not call.kwargs or call.kwargs == {"alpha": 1} or name in COPIES or "dtype" in call.kwargs
        if name in COPIES:
            if result.dtype not in (call.tensors[-1].dtype, torch.float64):  # rounding would be lost
                raise CannotTranslateError(call.name)
            found = self.elements(call.args[1 if name == "copy_" else 0], shape)
        elif name in ("cat", "stack"):
            self._join(call)
            return
        elif name in ("zeros_like", "zeros", "new_zeros", "_efficientzerotensor"):
            found = ["0.0"] * result.numel()
        elif name in ("ones_like", "ones"):
            found = ["1.0"] * result.numel()
        elif name in ("scalar_tensor", "full_like"):
            found = [repr(float(call.args[-1]))] * result.numel()
        elif name == "index_add" and plain:
            self._scatter(call)
            return
        elif name == "index" and plain:
            found = self._chosen(call)
        elif not plain:
            raise CannotTranslateError(call.name)
        elif name == "sum" and isinstance(call.args[1], (list, tuple)):
            found = self._sums(call)
        elif name == "where":
            condition, yes, no = (self._argument(x, shape) for x in call.args)
            found = self._emit("{1} if {0} else {2}", condition, yes, no)
        elif name in UNARY:
            found = self._emit(UNARY[name], self._argument(call.args[0], shape))
        elif name == "pow" and isinstance(call.args[1], Tensor):
            found = self._emit("power_of_arrays({0}, {1})", *(self._argument(x, shape) for x in call.args))
        elif name in BINARY:
            found = self._emit(BINARY[name], *(self._argument(x, shape) for x in call.args[:2]))
        else:
            raise CannotTranslateError(call.name)
        self.define(result, found)

    def _chosen(self, call: Call) -> list[str]:
        source, indices = call.args
        if any(x is not None and _storage(x) in self._memory for x in indices):
            raise CannotTranslateError(call.name)
        places = torch.arange(source.numel()).view(source.shape)
        names = self.elements(source)
        return [names[i] for i in places[tuple(slice(None) if x is None else x for x in indices)].flatten().tolist()]

    def _argument(self, x: Any, shape: torch.Size) -> list[str]:
        return self.elements(x, shape) if isinstance(x, Tensor) else [repr(x)] * shape.numel()

    def _emit(self, template: str, *arguments: Sequence[str]) -> list[str]:
        found, known = [], {}
        for operands in zip(*arguments, strict=True):
            if operands not in known:
                known[operands] = f"v{len(self._lines)}"
                self._lines.append(f"{known[operands]} = {template.format(*operands)}")
                if len(self._lines) > LIMIT:
                    raise CannotTranslateError("too many")
            found.append(known[operands])
        return found

    def _sums(self, call: Call) -> list[str]:
        source, axes = call.args[0], call.args[1]
        names = self.elements(source)
        places = torch.arange(source.numel()).view(source.shape).movedim(axes, tuple(range(-len(axes), 0)))
        rows = places.reshape(call.result.numel(), -1).tolist()
        return [
            self._emit(" + ".join(f"{{{i}}}" for i in range(len(row))), *([names[i]] for i in row))[0]
            if len(row) > 1
            else names[row[0]]
            for row in rows
        ]

    def _join(self, call: Call) -> None:
        dim = call.args[1] if len(call.args) > 1 else 0
        sources = call.args[0]
        parts = call.result.split([x.shape[dim] for x in sources], dim) if call.name == "cat" else call.result.unbind(dim)
        for part, x in zip(parts, sources, strict=True):
            self.define(part, self.elements(x, part.shape))

    def _scatter(self, call: Call) -> None:
        target, dim, index, source = call.args
        if dim != 0 or _storage(index) in self._memory:
            raise CannotTranslateError(call.name)
        if not call.name.endswith("_"):
            self.define(call.result, self.elements(target))
        for i, row in zip(index.tolist(), source.unbind(0), strict=True):
            into = call.result[i]
            self.define(into, self._emit("{0} + {1}", self.elements(into), self.elements(row)))

    def function(self, arguments: Sequence[Sequence[str]], results: Sequence[Sequence[str]]) -> Callable[..., tuple[Any, ...]]:
        """The function of lists of numbers, whose elements have the given names, that returns tuples of numbers."""
        given = [f"a{k}" for k in range(len(arguments))]
        unpacked = [f"{', '.join(names)}, = {a}" for a, names in zip(given, arguments, strict=True) if names]
        returned = "".join(f"({''.join(f'{name}, ' for name in names)}), " for names in results)
        lines = [*unpacked, *self._lines, f"return ({returned})"]
        namespace = dict(NAMES)
        exec(f"def straight({', '.join(given)}):\n" + "".join(f"    {line}\n" for line in lines), namespace)
        return namespace["straight"]  # type: ignore[return-value]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    return max(tensor.untyped_storage().nbytes() // tensor.itemsize, tensor.numel())


def _places(tensor: Tensor, shape: torch.Size | None = None) -> list[int]:
    """Where the elements of a tensor, broadcast to a shape, stand in its storage."""
    places = torch.arange(_size(tensor)).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return places.expand(tensor.shape if shape is None else shape).flatten().tolist()
