"""Kernels in eager mode: operation by operation over a block that fits the cache, into memory that is kept.

Fresh temporaries cost more than arithmetic: the system clears every page of them. So temporaries live in a `Workspace`
of a few blocks, whatever the size of the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .kernel import Kernel
from .lowering import Operation, Ref
from .tape import Array, on_host

__all__ = ["BLOCK", "Blocks", "Workspace", "blocks_of"]

#: Weights in a block.
BLOCK = 262144

#: NumPy's dot products of so many numbers take half the time of torch's, or less; those of more go to all cores in torch.
SHORT = 131072

Scalar: TypeAlias = Any  # a number (CPU), or a tensor that broadcasts against the block


class Workspace:
    """Temporary blocks, by dtype and number, that all kernels of an optimizer share."""

    def __init__(self) -> None:
        self._memory: dict[Any, Tensor] = {}
        #: counts the times that gradients may have changed
        self.epoch = 0

    def get(self, key: Any, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An array of `length` numbers with whatever is in it; the same memory for the same key, dtype and device."""
        memory = self._memory.get((key, dtype, device))
        if memory is None or memory.numel() < length:
            memory = self._memory[key, dtype, device] = torch.empty(length, dtype=dtype, device=device)
        return memory[:length]


# ---------------------------------------------------------------- operations
# Each takes (out, arrays, scalar). torch takes numbers alone as alpha= and value=, and elsewhere makes a tensor of a number
# each time: it is faster to be given one. Where hyperparameters are on a device or differ, all scalars are tensors.

#: Operations whose scalar is a number on the CPU.
NUMERIC = ("axpy", "lerp", "addcmul", "addcdiv")


def _scale(out: Tensor, x: Tensor, s: Scalar) -> None:
    torch.mul(x, s, out=out)


def _shift(out: Tensor, x: Tensor, s: Scalar) -> None:
    torch.add(x, s, out=out)


def _axpy(out: Tensor, x: Tensor, y: Tensor, s: Scalar) -> None:
    if isinstance(s, Tensor):
        torch.addcmul(x, y, s, out=out)
    else:
        torch.add(x, y, alpha=s, out=out)


def _lerp(out: Tensor, x: Tensor, y: Tensor, s: Scalar) -> None:
    if isinstance(s, Tensor) and s.dtype != x.dtype:
        out.copy_(x + (y - x) * s)
    else:
        torch.lerp(x, y, s, out=out)


def _addcmul(out: Tensor, x: Tensor, a: Tensor, b: Tensor, s: Scalar) -> None:
    if isinstance(s, Tensor):
        torch.addcmul(x, a * b, s, out=out)
    else:
        torch.addcmul(x, a, b, value=s, out=out)


def _addcdiv(out: Tensor, x: Tensor, a: Tensor, b: Tensor, s: Scalar) -> None:
    if isinstance(s, Tensor):
        torch.addcmul(x, a / b, s, out=out)
    else:
        torch.addcdiv(x, a, b, value=s, out=out)


def _mul(out: Tensor, a: Tensor, b: Tensor) -> None:
    torch.mul(a, b, out=out)


def _div(out: Tensor, a: Tensor, b: Tensor) -> None:
    torch.div(a, b, out=out)


FORMS: dict[str, Callable[..., None]] = {
    "scale": _scale,
    "shift": _shift,
    "axpy": _axpy,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "mul": _mul,
    "div": _div,
}


#: torch's own functions reach these overloads in less time than torch.ops.
FAST: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in (
        "abs",
        "clamp_max",
        "clamp_min",
        "cos",
        "exp",
        "log",
        "maximum",
        "minimum",
        "rsqrt",
        "sign",
        "sin",
        "sqrt",
        "tanh",
    )
}


@functools.cache
def _out_variant(function: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """What an operator is called by to write into memory that it is given; None if it cannot."""
    packet = function.overloadpacket
    own = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in packet.overloads():
        other = getattr(packet, name)
        arguments = other._schema.arguments
        if [a.name for a in arguments if a.is_out] == ["out"] and [
            (a.name, str(a.type)) for a in arguments if not a.is_out
        ] == own:
            return FAST.get(function._schema.name.removeprefix("aten::"), other)
    return None


def _general(operation: Operation, dtype: torch.dtype) -> tuple[Callable[..., None], tuple[int, ...] | None]:
    """An operator of torch as a form; if it takes more than arrays, as one of all places and factors (None)."""
    assert operation.function is not None
    function, variant, count = operation.function, _out_variant(operation.function), len(operation.reads)
    if (
        variant is not None
        and not operation.kwargs
        and all(isinstance(x, Ref) == (i < count) for i, x in enumerate(operation.args))
    ):
        constants = operation.args[count:]
        if not any(isinstance(x, tuple) for x in constants):
            return lambda out, *arrays: variant(*arrays, *constants, out=out), tuple(operation.reads)

    def bound(x: Any, places: Sequence[Tensor], factors: Sequence[Scalar]) -> Any:
        if isinstance(x, Ref):
            if x.kind == "array":
                return places[x.place]
            if x.kind == "condition":
                return factors[x.place] != 0
            return factors[x.place].to(dtype) if dtype.is_floating_point else factors[x.place]
        return [bound(y, places, factors) for y in x] if isinstance(x, tuple) else x

    def run(out: Tensor, places: Sequence[Tensor], factors: Sequence[Scalar]) -> None:
        args = [bound(x, places, factors) for x in operation.args]
        kwargs = {key: bound(x, places, factors) for key, x in operation.kwargs.items()}
        if variant is None:
            out.copy_(function(*args, **kwargs))
        else:
            variant(*args, **kwargs, out=out)

    return run, None


class Blocks:
    """A kernel with its memory planned: which register stands in which array, and which temporary is free again.

    Args:
        kernel: what to do.
        kept: whether what its dot products and its change need stays as it is after it has run.
    """

    def __init__(self, kernel: Kernel, kept: bool = False) -> None:
        self.kernel = kernel
        count = len(kernel.inputs)
        last = {register: i for i, operation in enumerate(kernel.operations) for register in operation.reads}
        end = len(kernel.operations)
        wanted = {register for pair in kernel.dots for register in pair} | ({kernel.change[0]} if kernel.change else set())
        last |= dict.fromkeys(wanted, end)
        made = {operation.target: i for i, operation in enumerate(kernel.operations)}
        in_place: dict[int, int] = {}  # register -> the input array that it overwrites
        self._before: list[tuple[int, int]] = []  # (to, from): inputs that are kept before they are overwritten
        self._after: list[tuple[int, int]] = []
        for register, array in kernel.homes:
            if register < count:
                self._before.append((array, register))
            elif register not in in_place and last.get(array, -1) <= made[register]:
                in_place[register] = array
            else:
                self._after.append((array, register))
                last[register] = end
        self.temporaries: list[torch.dtype] = []
        #: temporaries that must stay as they are until the next run
        self.kept: set[int] = set()
        self._place = list(range(count)) + [-1] * (len(kernel.dtypes) - count)
        free: list[int] = []
        for i, operation in enumerate(kernel.operations):
            target = operation.target
            # what is read here for the last time may be overwritten by the result: the operations are elementwise
            free += {self._place[r] for r in operation.reads if last[r] == i and r >= count and r not in in_place}
            if target in in_place:
                self._place[target] = in_place[target]
            else:
                alone = kept and target in wanted
                fitting = [slot for slot in free if not alone and self.temporaries[slot - count] == kernel.dtypes[target]]
                if fitting:
                    free.remove(fitting[0])
                    self._place[target] = fitting[0]
                else:
                    self._place[target] = count + len(self.temporaries)
                    self.temporaries.append(kernel.dtypes[target])
                    if alone:
                        self.kept.add(len(self.temporaries) - 1)
        self._steps = [self._planned(operation) for operation in kernel.operations]
        self._dots = [(self._place[a], self._place[b]) for a, b in kernel.dots]
        self._factors = {place for pair in self._dots for place in pair}
        #: where the change stands
        self.change = self._place[kernel.change[0]] if kernel.change else None

    def _planned(self, operation: Operation) -> tuple[Callable[..., None], tuple[int, ...] | None, Any, int]:
        """(form, places of its arrays, its scalar, place of its result); places are None for an operator of torch."""
        place = self._place[operation.target]
        if operation.name == "torch":
            args, kwargs = self._placed(operation.args), {k: self._placed(x) for k, x in operation.kwargs.items()}
            placed = operation._replace(args=args, kwargs=kwargs)
            return (*_general(placed, self.kernel.dtypes[operation.target]), None, place)
        arrays = tuple(self._place[r] for r in operation.reads)
        scalar: Any = None
        if len(operation.args) > len(arrays):  # (whether as a number, its place among the factors), or (None, a constant)
            last = operation.args[-1]
            scalar = (operation.name in NUMERIC, last.place) if isinstance(last, Ref) else (None, last)
        return FORMS[operation.name], arrays, scalar, place

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return value._replace(place=self._place[value.place]) if value.kind == "array" else value
        return tuple(self._placed(x) for x in value) if isinstance(value, tuple) else value

    def memory(self, length: int, device: torch.device, workspace: Workspace) -> list[Tensor]:
        """The temporaries of a block: what follows its input arrays among the places."""
        return [workspace.get(i, length, dtype, device) for i, dtype in enumerate(self.temporaries)]

    def run(self, places: Sequence[Tensor], numbers: Sequence[Scalar], tensors: Sequence[Tensor]) -> None:
        """Run on one block.

        Args:
            places: its input arrays, of which those that have a home are overwritten, and its temporaries.
            numbers, tensors: the factors, as numbers if on the CPU, and as tensors.
        """
        for to, source in self._before:
            places[to].copy_(places[source])
        for form, inputs, scalar, target in self._steps:
            if inputs is None:
                form(places[target], places, tensors)
            elif scalar is None:
                form(places[target], *[places[i] for i in inputs])
            else:
                values, place = scalar
                s = place if values is None else (numbers if values else tensors)[place]
                form(places[target], *[places[i] for i in inputs], s)
        for to, source in self._after:
            places[to].copy_(places[self._place[source]])

    def dots(self, places: Sequence[Tensor], lengths: Sequence[int], parts: dict[int, Sequence[Array]] | None = None) -> Any:
        """The dot products of a block that has run, over stretches of the given lengths.

        Args:
            parts: place -> its stretches, kept between calls on the same places.

        Returns:
            [dots][stretches]: numbers on the CPU, elsewhere a tensor.
        """
        host = on_host(places[0].device)
        parts = {} if parts is None else parts
        for place in self._factors - parts.keys():
            parts[place] = _parts(places[place], lengths, host)
        if host:
            found: Any = [[float(x.dot(y)) for x, y in zip(parts[i], parts[j], strict=True)] for i, j in self._dots]
        else:
            rows = [torch.stack([torch.dot(x, y) for x, y in zip(parts[i], parts[j], strict=True)]) for i, j in self._dots]
            found = torch.stack(rows).double()
        for place in [place for place in self._factors if places[place].dtype.itemsize <= 2]:
            del parts[place]  # copies
        return found


def _parts(array: Tensor, lengths: Sequence[int], host: bool) -> Sequence[Array]:
    """Its stretches; numbers of 16 bits would be summed in 16 bits."""
    wide = array if array.dtype.itemsize > 2 else array.float()
    parts = (wide,) if len(lengths) == 1 else wide.split(lengths)
    return [x.numpy() if host and type(x) is Tensor and x.numel() <= SHORT else x for x in parts]


@functools.lru_cache(1024)
def blocks_of(kernel: Kernel, kept: bool = False) -> Blocks:
    """A kernel's plan, made once."""
    return Blocks(kernel, kept)
