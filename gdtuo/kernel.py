"""`Kernel`: what a rule does to long arrays, as a few operations over memory, and the numbers that they need.

A recorded update mixes arithmetic on hyperparameters, 1 - β1^t, with arithmetic on weights. `lowering` tells the two apart;
`blocks` and `fused` run what is to be done to the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .lowering import Lowering, references
from .numbers import Function
from .recording import Recorder, record
from .tape import live

__all__ = ["EXAMPLE", "Home", "Kernel", "Outcome"]

EXAMPLE = 7  # length of the arrays on which functions are recorded; hyperparameters are 0-d


class Home(NamedTuple):
    """Where a result goes: the input array that it replaces."""

    register: int
    array: int


@dataclass(frozen=True)
class Outcome:
    """What a recorded function returns.

    Attributes:
        arrays: input name -> what replaces it.
        gradient: the name of the input whose products with the tangents are wanted, None for none.
        tangents: (array, number): arrays z, up to a number, of which ⟨g, z⟩ and |z|² are wanted.
        moved: the array Δ of which |Δ|² is wanted, None for none.
        change: an array that is wanted up to a factor.
        numbers: name -> what replaces a state that is a number.
    """

    arrays: Mapping[str, Tensor]
    gradient: str | None = None
    tangents: Sequence[tuple[Tensor, Tensor | float]] = ()
    moved: Tensor | None = None
    change: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


class Kernel:
    """A function of long arrays and hyperparameters.

    Args:
        function: of arrays and 0-d hyperparameters, by name; elementwise in the arrays.
        arrays: example inputs, of length `EXAMPLE`.
        numbers: names of the hyperparameters, of the states that are numbers, and last "step", the count of updates.

    Attributes:
        inputs: names of the input arrays, registers 0, 1, ...
        operations: in order; every register is written once.
        homes: which registers replace which inputs at the end.
        dtypes: of every register.
        dots: pairs of registers whose dot products are wanted.
        factors: of the hyperparameters: the numbers that operations are scaled with.
        change: the register of the wanted array, and the place of its factor among the factors.
        change_alone: whether no operation takes that factor.
        lasting: whether what the tangents are made of stands apart from weights and gradient.
        uniform: of the hyperparameters: the states that are numbers, after the update.
        sums: of the hyperparameters and the dot products: [⟨g, z⟩ ..., |z|² ..., |g|², |Δ|²], 0 where not wanted.
        scale: of the hyperparameters: [|Δ|² over its dot product], 0 where it is not wanted.

    Raises:
        UnrecordableError: if the function branches on a value or makes arrays whose length cannot be told.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor], dict[str, Tensor]], Outcome],
        arrays: Mapping[str, Tensor],
        numbers: Sequence[str],
    ) -> None:
        self.inputs = tuple(arrays)
        given = {name: torch.ones((), dtype=torch.float64) for name in numbers}
        outcome, calls = record(lambda: function(dict(arrays), dict(given)))
        wanted = [
            *outcome.arrays.values(),
            *outcome.numbers.values(),
            *(z for z, _ in outcome.tangents),
            *(x for x in (outcome.moved, outcome.change) if x is not None),
        ]
        # lift_fresh, which torch.tensor() calls, returns its argument
        calls = [call for call in live(calls, wanted) if not any(call.result is x for x in call.tensors)]
        lowering = Lowering(calls, arrays, wanted)
        places = {name: i for i, name in enumerate(self.inputs)}
        homes = [Home(lowering.register(value), places[name]) for name, value in outcome.arrays.items()]
        self.homes = [home for home in homes if home.register != home.array]
        self.dots: list[tuple[int, int]] = []
        terms = [(lowering.direction(z), scale) for z, scale in outcome.tangents]
        moved = None if outcome.moved is None else lowering.direction(outcome.moved)
        if moved is not None and moved[0] in {home.array for home in self.homes}:  # overwritten before its square is taken
            moved = lowering.copy(moved[0]), moved[1]
        self.change = None if outcome.change is None else lowering.change(outcome.change)
        g = places.get(outcome.gradient or "", -1)
        bases = {register for (register, _), _ in terms} | ({moved[0]} if moved else set())
        self.lasting = not bases & {places.get("gradient", -1), places.get("weights", -1)}
        # factors are moved out of the dot products
        gz = [(self._dot(g, register), factor, scale) for (register, factor), scale in terms]
        zz = [(self._dot(register, register), factor, scale) for (register, factor), scale in terms]
        gg = None if g < 0 else self._dot(g, g)
        dd = None if moved is None else self._dot(moved[0], moved[0])
        dots = {f"dot {i}": torch.ones((), dtype=torch.float64) for i in range(len(self.dots))}
        products = list(dots.values())
        none = torch.zeros((), dtype=torch.float64)
        with Recorder() as recorder:
            sums = [products[i] * (factor * scale) for i, factor, scale in gz]
            sums += [products[i] * (factor * scale) ** 2 for i, factor, scale in zz]
            sums += [none if gg is None else products[gg]]
            scale = none if moved is None else moved[1] ** 2
            sums += [none if dd is None else products[dd] * scale]
        self.operations, self.dtypes = lowering.operations, lowering.dtypes
        taken = {ref.place for operation in self.operations for ref in references(operation.args) if ref.kind == "factor"}
        self.change_alone = self.change is not None and self.change[1] not in taken
        self.factors = Function(lowering.scalars, given, [lowering.source(x) for x in lowering.factors])
        self.uniform = Function(lowering.scalars, given, [lowering.source(x) for x in outcome.numbers.values()])
        calls = [*lowering.scalars, *recorder.calls]
        self.sums, self.scale = Function(calls, given | dots, sums), Function(calls, given, [scale])

    def _dot(self, a: int, b: int) -> int:
        pair = (min(a, b), max(a, b))
        if pair not in self.dots:
            self.dots.append(pair)
        return self.dots.index(pair)
