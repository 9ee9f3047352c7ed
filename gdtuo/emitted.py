"""Kernels and functions of numbers as Python functions of tensors, with code of their own for torch.compile to read."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .kernel import Kernel
from .lowering import Operation, Ref
from .numbers import Function, constant

__all__ = ["compute", "kernel_function", "made", "number_function"]

COUNTER = itertools.count()


def _scale(x: Tensor, s: Tensor) -> Tensor:
    return x * s


def _shift(x: Tensor, s: Tensor) -> Tensor:
    return x + s


def _axpy(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return x + y * s


def _lerp(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return x + (y - x) * s


def _addcmul(x: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x + a * b * s


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x + a / b * s


FORMS: dict[str, Callable[..., Tensor]] = {
    "scale": _scale,
    "shift": _shift,
    "axpy": _axpy,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "mul": torch.mul,
    "div": torch.div,
}


def compute(graph: Graph, kernel: Kernel, arrays: Sequence[Node], factors: Sequence[Node]) -> dict[int, Node]:
    """Append a kernel's operations to a graph; returns what holds each register."""
    registers: dict[int, Node] = dict(enumerate(arrays))

    def bound(x: Any) -> Any:
        if isinstance(x, Ref):
            if x.kind == "condition":
                return graph.call_function(torch.ne, (factors[x.place], 0))
            return registers[x.place] if x.kind == "array" else factors[x.place]
        return tuple(bound(y) for y in x) if isinstance(x, tuple) else x

    # a division costs as much as several products: what divides more than once is inverted once
    divisors = Counter(operation.args[1] for operation in kernel.operations if operation.name == "div")
    inverses: dict[Ref, Node] = {}

    def emit(operation: Operation) -> Node:
        if operation.name == "div" and divisors[operation.args[1]] > 1:
            divisor = operation.args[1]
            if divisor not in inverses:
                inverses[divisor] = graph.call_function(torch.reciprocal, (bound(divisor),))
            return graph.call_function(torch.mul, (bound(operation.args[0]), inverses[divisor]))
        function: Any = operation.function if operation.name == "torch" else FORMS[operation.name]
        return graph.call_function(function, bound(operation.args), {k: bound(x) for k, x in operation.kwargs.items()})

    for operation in kernel.operations:
        registers[operation.target] = emit(operation)
    return registers


def made(graph: Graph) -> Callable[..., Any]:
    """A graph as a Python function."""
    code = graph.python_code("self")
    names = dict(code.globals)
    # a file name of its own: what the compiler has learned of one kernel's sizes is not to be applied to another
    exec(compile(code.src.replace("def forward(self, ", "def forward("), f"<kernel {next(COUNTER)}>", "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function


@functools.lru_cache(1024)
def kernel_function(kernel: Kernel) -> Callable[..., tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]:
    """(*input arrays, *factors) -> (what replaces an input, for each home; the pairs whose dot products are wanted)."""
    graph = Graph()
    arrays = [graph.placeholder(f"array_{i}") for i in range(len(kernel.inputs))]
    factors = [graph.placeholder(f"factor_{i}") for i in range(len(kernel.factors.outputs))]
    registers = compute(graph, kernel, arrays, factors)
    graph.output(([registers[home.register] for home in kernel.homes], [(registers[a], registers[b]) for a, b in kernel.dots]))
    return made(graph)


@functools.lru_cache(1024)
def number_function(function: Function) -> Callable[..., list[Any]]:
    """(*inputs) -> outputs: a function of numbers on tensors of one shape and device; outputs without a call are floats."""
    graph = Graph()
    memory: dict[int, Node] = {id(x): graph.placeholder(f"number_{i}") for i, x in enumerate(function.inputs.values())}
    first = next(iter(memory.values()))

    def bound(x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) not in memory:  # made where the inputs are
                memory[id(x)] = graph.call_method("new_full", (first, (), constant(x).item()), {"dtype": x.dtype})
            return memory[id(x)]
        return [bound(y) for y in x] if isinstance(x, (list, tuple)) else x

    for call in function.calls:
        kwargs: Mapping[str, Any] = {k: bound(x) for k, x in call.kwargs.items() if k != "device"}
        memory[id(call.result)] = graph.call_function(call.function, tuple(bound(x) for x in call.args), dict(kwargs))
    graph.output([memory[id(x)] if id(x) in memory else constant(x).item() for x in function.outputs])
    return made(graph)
