"""`Function`: arithmetic on a few numbers, recorded on 0-d tensors, evaluated for one row of hyperparameters or for many."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recording import Call
from .tape import CONSTANTS, COPIES, Array, Step, live, translate

__all__ = ["Function"]

#: Operators on Python's numbers: for one row they take a tenth of NumPy's time.
PYTHON: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "rsub": lambda a, b: b - a,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
    "reciprocal": lambda a: 1 / a,
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "log": math.log,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "logical_and": lambda a, b: bool(a and b),
    "where": lambda condition, yes, no: yes if condition else no,
}


class Function:
    """A function of numbers.

    Args:
        calls: arithmetic on 0-d tensors.
        inputs: its arguments by name, as recorded.
        outputs: its results, as recorded.
    """

    def __init__(self, calls: Sequence[Call], inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> None:
        self.inputs, self.outputs = dict(inputs), list(outputs)
        # a constant without arguments needs no call: its value is known
        needed = [call for call in live(calls, outputs) if call.tensors or call.name not in CONSTANTS]
        self._calls = [call for call in needed if not any(call.result is x for x in call.tensors)]
        computed = {id(x) for x in inputs.values()} | {id(call.result) for call in self._calls}
        self._constants = [_constant(x).item() for x in outputs if id(x) not in computed]
        self._program = self._in_python()

    def _in_python(self) -> tuple[list[Any], list[tuple[Callable[..., Any], list[int], int]], list[int]] | None:
        """(memory, steps, places of the results), or None if an operator is not in the table."""
        memory: list[Any] = [math.nan] * len(self.inputs)
        places = {id(x): i for i, x in enumerate(self.inputs.values())}
        steps = []

        def place(x: Any) -> int:
            if isinstance(x, Tensor) and id(x) in places:
                return places[id(x)]
            memory.append(_constant(x).item() if isinstance(x, Tensor) else x)
            return len(memory) - 1

        for call in self._calls:
            plain = not call.kwargs or call.kwargs == {"alpha": 1} or call.name in COPIES
            function = (lambda x: x) if call.name in COPIES else PYTHON.get(call.name)
            if function is None or not plain:
                return None
            arguments = [place(x) for x in (call.args[:1] if call.name in COPIES else call.args)]
            places[id(call.result)] = place(math.nan)
            steps.append((function, arguments, places[id(call.result)]))
        return memory, steps, [place(x) for x in self.outputs]

    def evaluator(self, columns: int) -> Callable[[Any], Any]:
        """A fast form on the CPU: of lists of numbers for one column, of arrays [inputs, columns] for several.

        To be called where NumPy is silent about inf and NaN, see `quiet`.
        """
        arrays = self._replayed(columns)
        if columns != 1:
            return arrays

        def of_arrays(given: Sequence[float]) -> list[float]:
            return arrays(np.array(given)[:, None])[:, 0].tolist()

        if self._program is None:
            return of_arrays
        memory, steps, results = self._program

        def of_numbers(given: Sequence[float]) -> list[float]:
            values = [*given, *memory[len(given) :]]
            try:
                for function, arguments, target in steps:
                    values[target] = function(*[values[i] for i in arguments])
            except (ArithmeticError, TypeError, ValueError):  # Python raises where NumPy and torch go on with inf and NaN
                return of_arrays(given)
            found = [values[i] for i in results]
            return of_arrays(given) if any(isinstance(x, complex) for x in found) else found

        return of_numbers

    def _replayed(self, columns: int) -> Callable[[Array], np.ndarray]:
        given = np.ones((len(self.inputs), columns))
        results = np.empty((len(self.outputs), columns))
        memory: dict[int, Any] = {id(x): row for x, row in zip(self.inputs.values(), given, strict=True)}
        steps: list[Step] = []

        def array(x: Tensor) -> Any:
            return memory[id(x)] if id(x) in memory else _constant(x).numpy()

        for call in self._calls:
            shape = np.broadcast_shapes(*(array(x).shape for x in call.tensors))
            memory[id(call.result)] = np.ones(shape, call.result.numpy().dtype)
            steps += translate(call, array, memory[id(call.result)])
        steps += [(np.copyto, (row, array(x))) for row, x in zip(results, self.outputs, strict=True)]

        def run(numbers: Array) -> np.ndarray:
            given[:] = numbers
            for function, arguments in steps:
                function(*arguments)
            return results

        return run

    def __call__(self, given: Tensor) -> Tensor:
        """On any device: [inputs, columns] -> [outputs, columns]."""
        memory: dict[int, Tensor] = {id(x): row for x, row in zip(self.inputs.values(), given.unbind(0), strict=True)}
        for call in self._calls:
            args = [memory.get(id(x), x) if isinstance(x, Tensor) else x for x in call.args]
            memory[id(call.result)] = call.function(*args, **call.kwargs)
        if not self.outputs:
            return given[:0]
        constants = iter(self._constants)
        rows = [memory[id(x)].to(given) if id(x) in memory else given.new_full((), next(constants)) for x in self.outputs]
        return torch.stack([row.expand(given.shape[1]) for row in rows])


def _constant(x: Tensor) -> Tensor:
    """A recorded number; forward mode makes zeros that have no memory."""
    return torch.zeros_like(x, memory_format=torch.contiguous_format) if x._is_zerotensor() else x
