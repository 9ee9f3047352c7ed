"""Kernels through torch.compile: one pass over memory for a pull-back, one for an update, on the CPU and on CUDA.

Arrays go in as [rows, ROW]: sums run along a row, whose length is known, in plain registers, and only one number a row is
stored, so that a kernel serves all lengths and loses no precision on long ones.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .emitted import compute, made
from .kernel import Home, Kernel

__all__ = ["ROW", "Compiled", "compiled"]

#: Weights in a row. What does not fill a row is done in eager mode, and so are arrays of less than two.
ROW = 4096

#: What becomes of an intermediate result is settled: it stays in a register. The compiler would rather store long ones.
INLINE = ("realize_reads_threshold", "realize_opcount_threshold", "realize_acc_reads_threshold")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.float()).sum(1) if a.dtype.itemsize <= 2 else (a * b).sum(1)


class Compiled:
    """A kernel as one compiled function, made when it first runs.

    Attributes:
        usable: whether there is a compiler, as far as is known.
    """

    usable = True

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # torch 2.13 compiles l.copy_(w); w.copy_(n) to l = w = n: what is kept of an input that is overwritten is copied first
        written = {home.array for home in kernel.homes}
        self._first = [home for home in kernel.homes if home.register in written and home.register < len(kernel.inputs)]
        self._function: Callable[..., Any] = torch.compile(_function(kernel, self._first), fullgraph=True, backend=self._compile)
        self._direct: tuple[Callable[..., Any], list[int | None]] | None = None
        self._proven = False

    def _compile(self, module: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        """torch's compiler, from whose result the checks of its caller are taken away: what they check always holds here."""
        from torch._inductor.compile_fx import compile_fx

        function: Any = compile_fx(module, examples, config_patches=_options())
        places = {f"l_{name}_": i for i, name in enumerate((*self.kernel.inputs, "factors"))}
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        rows = [isinstance(node.meta.get("example_value"), torch.SymInt) for node in inputs]
        if sum(rows) == 1 and all(is_rows or node.name in places for node, is_rows in zip(inputs, rows, strict=True)):
            order = [None if is_rows else places[node.name] for node, is_rows in zip(inputs, rows, strict=True)]
            self._direct = function, order
        return function

    def run(self, arrays: Sequence[Tensor], factors: Tensor) -> list[Tensor] | None:
        """Run on arrays [rows, ROW]; inputs that have a home are overwritten.

        Returns:
            the dot products of each row, or None if nothing was done since there is no compiler.
        """
        for home in self._first:
            arrays[home.array].copy_(arrays[home.register])
        if self._proven and self._direct is not None:
            function, order = self._direct
            given = (*arrays, factors)
            return function(*[arrays[0].shape[0] if place is None else given[place] for place in order])
        if self._proven:
            return self._function(*arrays, factors)
        for x in arrays:
            torch._dynamo.mark_dynamic(x, 0)  # the kernel is to serve all numbers of rows
        try:
            result = self._function(*arrays, factors)
        except Exception as error:  # whatever the toolchain raises, before the first of its kernels has run
            Compiled.usable = False
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            warnings.warn(
                f"fused=True runs in eager mode: torch.compile failed with {type(error).__name__}: {reason} On the CPU it needs "
                "a C++ compiler (Debian: apt-get install g++), on CUDA Triton. Install it, or drop fused=True.",
                stacklevel=2,
            )
            return None
        self._proven = True
        return result


def _options() -> dict[str, Any]:
    known = torch._inductor.list_options()
    return {name: 1 << 20 for name in INLINE if name in known}


def _function(kernel: Kernel, left_out: Sequence[Home]) -> Callable[..., Any]:
    """The kernel as a function of its inputs and a vector of factors: with code of its own, since the compiler keeps what
    it has made by the code that it was made from."""
    graph = torch.fx.Graph()
    arrays = [graph.placeholder(name) for name in kernel.inputs]
    vector = graph.placeholder("factors")
    factors = [graph.call_function(_element, (vector, i)) for i in range(len(kernel.factors.outputs))]
    registers = compute(graph, kernel, arrays, factors)
    dots = [graph.call_function(_dot, (registers[a], registers[b])) for a, b in kernel.dots]
    for home in (home for home in kernel.homes if home not in left_out):
        graph.call_method("copy_", (registers[home.array], registers[home.register]))
    graph.output(dots)
    return made(graph)


def _element(vector: Tensor, i: int) -> Tensor:
    return vector[i]


@functools.lru_cache(1024)
def compiled(kernel: Kernel, device: torch.device) -> Compiled:
    """A kernel's compiled form on a device, made once for all optimizers."""
    return Compiled(kernel)
