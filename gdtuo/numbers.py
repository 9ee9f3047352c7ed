"""`Function`: arithmetic on a few numbers, recorded on 0-d tensors, evaluated for one row of hyperparameters or for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recording import Call
from .straight import CannotTranslateError, StraightLine
from .tape import CONSTANTS, Step, live, translate

__all__ = ["Function", "constant"]


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
        self.calls = [call for call in needed if not any(call.result is x for x in call.tensors)]
        computed = {id(x) for x in inputs.values()} | {id(call.result) for call in self.calls}
        self._constants = [constant(x).item() for x in outputs if id(x) not in computed]
        self._program = self._in_python()

    def _in_python(self) -> Callable[..., tuple[Any, ...]] | None:
        """A function of a list of numbers; None if an operator has no counterpart."""
        code, names = StraightLine(), [f"x{i}" for i in range(len(self.inputs))]
        for x, name in zip(self.inputs.values(), names, strict=True):
            code.define(x, [name])
        try:
            for call in self.calls:
                code.add(call)
        except CannotTranslateError:
            return None
        return code.function([names], [[code.elements(x)[0] for x in self.outputs]])

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
        program = self._program

        def of_numbers(given: Sequence[float]) -> Sequence[float]:
            try:
                (found,) = program(given)
            except (ArithmeticError, ValueError):  # Python raises where NumPy and torch go on with inf and NaN
                return of_arrays(given)
            return found

        return of_numbers

    def _replayed(self, columns: int) -> Callable[[Any], np.ndarray]:
        given = np.ones((len(self.inputs), columns))
        results = np.empty((len(self.outputs), columns))
        memory: dict[int, Any] = {id(x): row for x, row in zip(self.inputs.values(), given, strict=True)}
        steps: list[Step] = []

        def array(x: Tensor) -> Any:
            return memory[id(x)] if id(x) in memory else constant(x).numpy()

        for call in self.calls:
            shape = np.broadcast_shapes(*(array(x).shape for x in call.tensors))
            memory[id(call.result)] = np.ones(shape, call.result.numpy().dtype)
            steps += translate(call, array, memory[id(call.result)])
        steps += [(np.copyto, (row, array(x))) for row, x in zip(results, self.outputs, strict=True)]

        def run(numbers: Any) -> np.ndarray:
            given[:] = numbers
            for function, arguments in steps:
                function(*arguments)
            return results

        return run

    def __call__(self, given: Tensor) -> Tensor:
        """On any device: [inputs, columns] -> [outputs, columns]."""
        memory: dict[int, Tensor] = {id(x): row for x, row in zip(self.inputs.values(), given.unbind(0), strict=True)}
        for call in self.calls:
            args = [memory.get(id(x), x) if isinstance(x, Tensor) else x for x in call.args]
            memory[id(call.result)] = call.function(*args, **call.kwargs)
        if not self.outputs:
            return given[:0]
        constants = iter(self._constants)
        rows = [memory[id(x)].to(given) if id(x) in memory else given.new_full((), next(constants)) for x in self.outputs]
        return torch.stack([row.expand(given.shape[1]) for row in rows])


def constant(x: Tensor) -> Tensor:
    """A recorded number; forward mode makes zeros that have no memory, and NumPy knows no bfloat16."""
    x = torch.zeros_like(x, memory_format=torch.contiguous_format) if x._is_zerotensor() else x
    return x.float() if x.dtype == torch.bfloat16 else x
