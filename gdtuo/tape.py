"""Arithmetic on few numbers, recorded once and replayed by NumPy without allocating anything.

A tower of any height is some hundred operations on a handful of numbers. What they cost is not arithmetic but the way to
it: a small NumPy operation into an existing array takes a quarter of the time of a torch operation. Replays happen on the
CPU alone; on other devices, and while torch.compile traces a step, the recorded function itself runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from .recording import Call, record, tensors_in
from .straight import CannotTranslateError, StraightLine

__all__ = ["Array", "Tape", "live", "numbers_of", "on_host", "quiet", "translate"]

T = TypeVar("T")
Array: TypeAlias = Any  # np.ndarray on the CPU, torch.Tensor elsewhere: indexing and operators are the same
Step: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]

#: Set to have numbers as tensors on the CPU too, as they are on other devices: for tests of that path.
TENSORS = False


def on_host(device: torch.device) -> bool:
    """Whether numbers for a device are NumPy's and Python's: they are where to read one is no synchronisation."""
    return device.type == "cpu" and not TENSORS


def numbers_of(tensor: Tensor) -> Array:
    """The same memory as an array of numbers."""
    return tensor.numpy() if on_host(tensor.device) else tensor


#: Inside it NumPy goes on with inf and NaN without a word, as torch does. Entered once a step: it costs as much as an operation.
quiet = functools.partial(np.errstate, all="ignore")

UNARY = {
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.absolute,
    "reciprocal": np.reciprocal,
    "bitwise_not": np.logical_not,
    "logical_not": np.logical_not,
    "isfinite": np.isfinite,
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "pow": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "bitwise_and": np.logical_and,
    "bitwise_or": np.logical_or,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}
COPIES = ("copy_", "clone", "_to_copy", "lift_fresh_copy", "expand")
CONSTANTS = ("scalar_tensor", "full", "zeros", "ones", "zeros_like", "ones_like", "full_like", "_efficientzerotensor")


def translate(call: Call, array: Callable[[Tensor], np.ndarray], out: np.ndarray) -> list[Step]:
    """The steps that repeat a call, its result written into `out`; `array` finds the memory of an argument.

    An operator that is not in the tables above runs in torch, on the same memory.
    """
    like = next((x.dtype for x in call.tensors), None)
    # a number would be made an array at each replay, and take twice the time
    arguments = [array(x) if isinstance(x, Tensor) else _as_array(x, like) for x in call.args]
    name = call.name.removesuffix("_") if call.name not in COPIES else call.name
    boolean = out.dtype == np.bool_
    plain = not call.kwargs or (set(call.kwargs) == {"alpha"} and call.kwargs["alpha"] == 1)
    if name in ("bitwise_and", "bitwise_or", "bitwise_not") and not boolean:
        plain = False
    if plain and name in UNARY and len(arguments) == 1:
        return [(UNARY[name], (arguments[0], out))]
    if plain and name in BINARY and len(arguments) == 2:
        if BINARY[name] in (np.maximum, np.minimum):  # their third position is deprecated
            return [(functools.partial(BINARY[name], out=out), tuple(arguments))]
        return [(BINARY[name], (*arguments, out))]
    if plain and name == "rsub" and len(arguments) == 2:
        return [(np.subtract, (arguments[1], arguments[0], out))]
    if call.name in COPIES:
        return [(np.copyto, (out, arguments[1 if call.name == "copy_" else 0], "unsafe"))]
    if name == "where" and len(arguments) == 3:
        condition, yes, no = arguments
        return [(np.copyto, (out, no)), (np.copyto, (out, yes, "same_kind", condition))]
    if name == "sum" and plain and isinstance(call.args[-1], (list, bool)):
        keep = len(call.args) > 2 and bool(call.args[2])
        return [(np.add.reduce, (arguments[0], tuple(call.args[1]), None, out, keep))]
    return [_in_torch(call, array, out)]


def _as_array(x: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(x, (int, float)) and not isinstance(x, bool) and dtype is not None and dtype.is_floating_point:
        return torch.tensor(x, dtype=dtype, device="cpu").numpy()
    return x


def _in_torch(call: Call, array: Callable[[Tensor], np.ndarray], out: np.ndarray) -> Step:
    def bound(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.from_numpy(array(x))
        return type(x)(bound(y) for y in x) if isinstance(x, (list, tuple)) else x

    args, target = bound(call.args), torch.from_numpy(out)
    kwargs = {key: bound(value) for key, value in call.kwargs.items()}

    def run() -> None:
        result = call.function(*args, **kwargs)
        if result.data_ptr() != target.data_ptr():
            target.copy_(result)

    return run, ()


def live(calls: Sequence[Call], results: Iterable[Tensor]) -> list[Call]:
    """The calls on which `results`, or memory that existed before the first call, depend."""
    made = {key for call in calls for key in _storages(call.result)} - {key for call in calls for key in _storages(call.args)}
    made |= {key for call in calls if not _is_view(call) and not call.name.endswith("_") for key in _storages(call.result)}
    needed = {_storage(t) for t in results}
    kept = []
    for call in reversed(calls):
        written = _storages(call.result)
        if any(key in needed or key not in made for key in written):
            kept.append(call)
            needed.update(_storage(t) for t in call.tensors)
    return kept[::-1]


def _identified(value: Any) -> Any:
    """Arguments with tensors by identity."""
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    return [_identified(x) for x in value] if isinstance(value, (list, tuple)) else value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _storages(value: Any) -> set[int]:
    return {_storage(t) for t in tensors_in((value,))}


def _is_view(call: Call) -> bool:
    return not call.name.endswith("_") and bool(_storages(call.result) & {_storage(t) for t in call.tensors})


class Tape(Generic[T]):
    """A function without arguments, recorded on the CPU tensors that it reads and writes, to be replayed on them.

    Args:
        function: reads and writes tensors whose memory stays where it is, and returns others.
        state: what recording must leave as it was, since the function changes it.

    Raises:
        UnrecordableError: if the function branches on a value; `state` is as it was.
    """

    def __init__(self, function: Callable[[], T], state: Sequence[Tensor] = ()) -> None:
        before = [x.clone() for x in state]
        try:
            self.result, calls = record(function)
        finally:
            for x, value in zip(state, before, strict=True):
                x.copy_(value)
        calls = live(calls, tensors_in((self.result,)))
        changed = {_storage(call.tensors[0]) for call in calls if call.name.endswith("_")}
        self._kept: list[Any] = []  # results: their memory is what the steps work on
        self._steps: list[Step] = []
        self._known: dict[Any, Any] = {}  # a computation -> its result
        self._same: dict[int, Tensor] = {}  # a result that is not computed again -> the one that is used for it
        for call in calls:
            self._add(call, changed)
        self.result = self._replaced(self.result)
        self._written: list[np.ndarray] = []
        self._straight = None if self.result is not None else self._in_python(calls)

    def _in_python(self, calls: Sequence[Call]) -> Callable[[], tuple[Any, ...]] | None:
        """The same on Python's numbers: returns what the memory in `_written` is to hold; None if that cannot be had."""
        made = {key for call in calls if not _is_view(call) and not call.name.endswith("_") for key in _storages(call.result)}
        outer = {_storage(t): t for call in calls for t in call.tensors if _storage(t) not in made}
        changed = {_storage(call.tensors[0]) for call in calls if call.name.endswith("_")}
        whole = {key: torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()) for key, t in outer.items()}
        integer = [key for key, t in whole.items() if not t.is_floating_point() and t.dtype != torch.bool and key not in changed]
        code = StraightLine()
        names = {}
        for k, (key, t) in enumerate((key, t) for key, t in whole.items() if key not in integer):  # indices are constants
            names[key] = [f"m{k}_{i}" for i in range(t.numel())]
            code.define(t, names[key])
        try:
            for call in calls:
                code.add(call)
        except CannotTranslateError:
            return None
        written = [whole[key] for key in names if key in changed]
        function = code.function(list(names.values()), [code.elements(t) for t in written])
        self._written = [t.numpy() for t in written]
        memory = [whole[key].numpy() for key in names]
        return lambda: function(*[x.tolist() for x in memory])

    def _add(self, call: Call, changed: set[int]) -> None:
        view, args = _is_view(call), self._replaced(call.args)
        if not any(_storage(t) in changed for t in tensors_in((args, call.result))):
            # nothing that it reads or makes is ever written to: the same call has the same result
            key = (call.function, repr(_identified(args)), repr(sorted(call.kwargs.items())))
            if key in self._known:
                self._same |= zip(map(id, tensors_in((call.result,))), tensors_in((self._known[key],)), strict=True)
                return
            if view:  # perhaps of another array than it was recorded on
                result = call.function(*args, **call.kwargs)
                self._same |= zip(map(id, tensors_in((call.result,))), tensors_in((result,)), strict=True)
                self._kept.append(call)
                call = call._replace(result=result)
            self._known[key] = call.result
        call = call._replace(args=args)
        self._kept.append(call)
        constant = call.name in CONSTANTS and not _storages(call.result) & changed
        if not constant and not view:
            self._steps += self._translated(call)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._same.get(id(value), value)
        return type(value)(self._replaced(x) for x in value) if isinstance(value, (list, tuple)) else value

    @staticmethod
    def _translated(call: Call) -> list[Step]:
        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().numpy()

        if call.name in ("cat", "stack"):
            dim, sources, result = (call.args[1] if len(call.args) > 1 else 0), call.args[0], call.result
            parts = result.split([x.shape[dim] for x in sources], dim) if call.name == "cat" else result.unbind(dim)
            return [(np.copyto, (array(part), array(x))) for part, x in zip(parts, sources, strict=True)]
        if call.name == "sum" and call.result.numel() == call.args[0].numel() and call.result.dtype == call.args[0].dtype:
            return [(np.copyto, (array(call.result), array(call.args[0]).reshape(call.result.shape)))]  # of one number each
        return translate(call, array, array(call.result))

    def __call__(self) -> T:
        if self._straight is not None:
            try:
                found = [np.array(x, y.dtype) for x, y in zip(self._straight(), self._written, strict=True)]
            except (ArithmeticError, TypeError, ValueError):
                pass  # Python raises where NumPy goes on with inf and NaN
            else:
                for memory, numbers in zip(self._written, found, strict=True):
                    memory[:] = numbers
                return self.result
        for function, arguments in self._steps:
            function(*arguments)
        return self.result
