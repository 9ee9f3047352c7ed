"""`Kernel`: what a rule does to long arrays, as a few operations over memory, and the numbers that they need.

A recorded update mixes arithmetic on hyperparameters, 1 - β1^t, with arithmetic on weights. Here the two are told apart,
and factors are moved out of the arrays: a product with a number becomes the factor of an axpy, an addcmul, an addcdiv or
of a whole dot product, which cost nothing. `blocks` and `fused` run what remains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .numbers import Function
from .recording import Call, Recorder, UnrecordableError, record
from .tape import live

__all__ = ["EXAMPLE", "Home", "Kernel", "Operation", "Outcome", "Ref"]

EXAMPLE = 7  # length of the arrays on which functions are recorded; hyperparameters are 0-d
ALIASES = ("alias", "detach", "expand", "clone", "lift_fresh", "lift_fresh_copy", "view", "_to_copy", "to")

Number: TypeAlias = float | Tensor  # a constant, or a recorded 0-d tensor


class Ref(NamedTuple):
    """An argument of an operation: an array, by its register, or a factor, by its place among the factors."""

    kind: str  # "array" or "factor"
    place: int


class Operation(NamedTuple):
    """One pass over memory: a name from the tables of `blocks`, or an operator of torch."""

    name: str  # scale, shift, axpy, lerp, addcmul, addcdiv, mul, div; else "torch"
    args: tuple[Any, ...]  # `Ref`s and constants
    target: int
    function: torch._ops.OpOverload | None = None
    kwargs: Mapping[str, Any] = {}

    @property
    def reads(self) -> list[int]:
        """The registers among its arguments."""
        return [ref.place for ref in _refs(self.args) if ref.kind == "array"]


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
    """

    arrays: Mapping[str, Tensor]
    gradient: str | None = None
    tangents: Sequence[tuple[Tensor, Tensor | float]] = ()
    moved: Tensor | None = None
    change: Tensor | None = None


class _Term(NamedTuple):
    """An array that is not computed yet: factor · register, · (a b) or · (a / b)."""

    factor: Number
    kind: str  # "array", "mul", "div"
    a: int
    b: int = -1


class Kernel:
    """A function of long arrays and hyperparameters.

    Args:
        function: of arrays and 0-d hyperparameters, by name; elementwise in the arrays.
        arrays: example inputs, of length `EXAMPLE`.
        numbers: names of the hyperparameters, and last "step", the count of updates.

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
        sums: of the hyperparameters and the dot products: [⟨g, z⟩ ..., |z|² ..., |g|², |Δ|²], 0 where not wanted.

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
            *(z for z, _ in outcome.tangents),
            *(x for x in (outcome.moved, outcome.change) if x is not None),
        ]
        # lift_fresh, which torch.tensor() calls, returns its argument
        calls = [call for call in live(calls, wanted) if not any(call.result is x for x in call.tensors)]
        lowering = _Lowering(calls, arrays, wanted)
        places = {name: i for i, name in enumerate(self.inputs)}
        homes = [Home(lowering.register(value), places[name]) for name, value in outcome.arrays.items()]
        self.homes = [home for home in homes if home.register != home.array]
        self.dots: list[tuple[int, int]] = []
        terms = [(lowering.direction(z), scale) for z, scale in outcome.tangents]
        moved: tuple[int, Tensor] | None = None
        if outcome.moved is not None and outcome.gradient is None:  # its square is taken as it stands
            moved = lowering.register(outcome.moved), torch.ones((), dtype=torch.float64)
        elif outcome.moved is not None:
            moved = lowering.direction(outcome.moved)
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
            sums += [none if dd is None or moved is None else products[dd] * moved[1] ** 2]
        self.operations, self.dtypes = lowering.operations, lowering.dtypes
        taken = {ref.place for operation in self.operations for ref in _refs(operation.args) if ref.kind == "factor"}
        self.change_alone = self.change is not None and self.change[1] not in taken
        self.factors = Function(lowering.scalars, given, [lowering.source(x) for x in lowering.factors])
        self.sums = Function([*lowering.scalars, *recorder.calls], given | dots, sums)

    def _dot(self, a: int, b: int) -> int:
        pair = (min(a, b), max(a, b))
        if pair not in self.dots:
            self.dots.append(pair)
        return self.dots.index(pair)


class _Lowering:
    """Turns recorded calls into operations; keeps apart what concerns arrays and what concerns numbers."""

    def __init__(self, calls: Sequence[Call], arrays: Mapping[str, Tensor], wanted: Sequence[Tensor]) -> None:
        self.operations: list[Operation] = []
        self.dtypes = [x.dtype for x in arrays.values()]
        self.scalars: list[Call] = []
        self.factors: list[Tensor] = []
        self._terms: dict[int, _Term] = {id(x): _Term(1.0, "array", i) for i, x in enumerate(arrays.values())}
        self._same: dict[int, Tensor] = {}  # a view of the whole -> what it views
        self._known: dict[Any, int] = {}  # what has been computed -> its register
        self._complements: dict[int, int] = {}  # 1 - s -> s
        self._numbers: dict[Any, Tensor] = {}  # a call on numbers -> its result
        self._duplicates: list[Call] = []  # their results must not die either
        self._keep = (calls, arrays)  # identities of tensors are keys: none may die
        self._length = {x.numel() for x in arrays.values()}.pop()
        for call in calls:
            self._alias(call)
        self._uses = Counter(id(self.source(x)) for call in calls if id(call.result) not in self._same for x in call.tensors)
        self._uses.update(id(self.source(x)) for x in wanted)
        for call in calls:
            if id(call.result) not in self._same:
                self._lower(call)

    # ---------------------------------------------------------------- values

    def source(self, x: Tensor) -> Tensor:
        """What stands for a tensor: itself, or what it is a view or a duplicate of."""
        while id(x) in self._same:
            x = self._same[id(x)]
        return x

    def _alias(self, call: Call) -> None:
        if call.name not in ALIASES or not isinstance(call.result, Tensor):
            return
        x = call.tensors[0]
        number = not self._is_array(self.source(x))  # spread over an array or in another dtype it is as good a number
        if number or (call.result.dtype == x.dtype and call.result.shape == x.shape):
            self._same[id(call.result)] = x

    def _is_array(self, x: Tensor) -> bool:
        if x.dim() == 1 and x.numel() == self._length:
            return True
        if x.numel() != 1:
            raise UnrecordableError
        return False

    def _lower(self, call: Call) -> None:
        if not isinstance(call.result, Tensor):
            raise UnrecordableError
        args = [self.source(x) if isinstance(x, Tensor) else x for x in call.args]
        tensors = [self.source(x) for x in call.tensors]
        if not any(self._is_array(x) for x in tensors):
            if self._is_array(call.result):  # made out of nothing: its length is not known when it runs
                raise UnrecordableError
            self._number(call._replace(args=tuple(args)))
            return
        with Recorder() as recorder:  # arithmetic on factors joins that of the hyperparameters
            term = self._simplified(call, args) if not call.kwargs or set(call.kwargs) == {"alpha"} else None
        for number in recorder.calls:
            self._number(number._replace(args=tuple(self.source(x) if isinstance(x, Tensor) else x for x in number.args)))
        if term is None:
            term = _Term(1.0, "array", self._general(call, args))
        self._terms[id(call.result)] = term

    def _number(self, call: Call) -> None:
        """A call on numbers alone, made once however often it was recorded."""
        key = (call.function, tuple(id(x) if isinstance(x, Tensor) else repr(x) for x in call.args), repr(call.kwargs))
        known = self._numbers.setdefault(key, call.result)
        if known is not call.result:
            self._same[id(call.result)] = known
            self._duplicates.append(call)
            return
        self.scalars.append(call)
        if call.name == "rsub" and call.args[1:] == (1,):
            self._complements[id(call.result)] = id(call.args[0])

    def _simplified(self, call: Call, args: list[Any]) -> _Term | None:
        arrays = [isinstance(x, Tensor) and self._is_array(x) for x in args]
        promoted = any(t.dtype != call.result.dtype for t, is_array in zip(args, arrays, strict=True) if is_array)
        if promoted or not call.result.dtype.is_floating_point:
            return None
        if call.name in ("mul", "div") and all(arrays):
            a, b = (self._terms[id(x)] for x in args)
            factor = _times(a.factor, b.factor) if call.name == "mul" else _over(a.factor, b.factor)
            term = _Term(factor, call.name, self._base(a), self._base(b))
            return term if self._uses[id(call.result)] == 1 else _Term(factor, "array", self._compute(term))
        if call.name == "mul":
            x, s = (args[0], args[1]) if arrays[0] else (args[1], args[0])
            term = self._terms[id(x)]
            return self._settled(term._replace(factor=_times(term.factor, s)), x)
        if call.name == "div" and arrays[0]:
            term = self._terms[id(args[0])]
            return self._settled(term._replace(factor=_over(term.factor, args[1])), args[0])
        if call.name == "neg":
            term = self._terms[id(args[0])]
            return self._settled(term._replace(factor=_times(term.factor, -1.0)), args[0])
        if call.name == "pow" and not isinstance(args[1], Tensor) and args[1] == 2:
            term = self._terms[id(args[0])]
            base = self._base(term)
            square = _Term(_times(term.factor, term.factor), "mul", base, base)
            return square if self._uses[id(call.result)] == 1 else square._replace(kind="array", a=self._compute(square), b=-1)
        if call.name in ("add", "sub"):
            sign = call.kwargs.get("alpha", 1) * (1 if call.name == "add" else -1)
            return self._sum(args, arrays, sign)
        return None

    def _settled(self, term: _Term, source: Tensor) -> _Term:
        """A pending product that is used elsewhere too is computed once, not once for each use."""
        if term.kind != "array" and self._uses[id(source)] > 1:
            return _Term(term.factor, "array", self._base(term))
        return term

    def _sum(self, args: Sequence[Any], arrays: Sequence[bool], sign: float) -> _Term | None:
        if not all(arrays):
            x, s = (args[0], args[1]) if arrays[0] else (args[1], args[0])
            if not arrays[0] and sign != 1:
                return None
            register = self._materialize(self._terms[id(x)])
            return _Term(
                1.0, "array", self._emit("shift", (_array(register), self._factor(_times(s, sign))), self.dtypes[register])
            )
        x, y = (self._terms[id(a)] for a in args)
        y = y._replace(factor=_times(y.factor, sign))
        if y.kind == "array" and _is_one(y.factor) and (x.kind != "array" or not _is_one(x.factor)):
            x, y = y, x
        if x.kind == y.kind == "array" and self._is_complement(y.factor, x.factor):
            between = (_array(x.a), _array(y.a), self._factor(y.factor))
            return _Term(1.0, "array", self._emit("lerp", between, self.dtypes[x.a]))
        register = self._materialize(x)
        if y.kind == "array":
            name, operands = "axpy", [_array(register), _array(y.a)]
        else:
            name, operands = f"addc{y.kind}", [_array(register), _array(y.a), _array(y.b)]
        return _Term(1.0, "array", self._emit(name, (*operands, self._factor(y.factor)), self.dtypes[register]))

    def _is_complement(self, a: Number, b: Number) -> bool:
        """Whether a = 1 - b."""
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return False
        return self._complements.get(id(self.source(a)), 0) == id(self.source(b))

    def _general(self, call: Call, args: Sequence[Any]) -> int:
        def bound(x: Any) -> Any:
            if isinstance(x, Tensor):
                x = self.source(x)
                return _array(self._materialize(self._terms[id(x)])) if self._is_array(x) else self._factor(x)
            return tuple(bound(y) for y in x) if isinstance(x, (list, tuple)) else x

        kwargs = {key: bound(value) for key, value in call.kwargs.items()}
        return self._emit("torch", tuple(bound(x) for x in args), call.result.dtype, call.function, kwargs)

    # ---------------------------------------------------------------- emission

    def register(self, value: Tensor) -> int:
        """The register that holds a result."""
        return self._materialize(self._terms[id(self.source(value))])

    def direction(self, value: Tensor) -> tuple[int, Tensor]:
        """The register that holds a result up to a factor, and that factor."""
        source = self.source(value)
        if not self._is_array(source):
            raise UnrecordableError
        term = self._terms[id(source)]
        factor = term.factor
        number = self.source(factor) if isinstance(factor, Tensor) else torch.tensor(factor, dtype=torch.float64)
        return self._base(term), number

    def change(self, value: Tensor) -> tuple[int, int]:
        """The register that holds a result up to a factor, and the place of that factor."""
        register, factor = self.direction(value)
        return register, self._factor(factor).place

    def _emit(
        self,
        name: str,
        args: tuple[Any, ...],
        dtype: torch.dtype,
        function: torch._ops.OpOverload | None = None,
        kwargs: Mapping[str, Any] = {},
    ) -> int:
        key = (name, function, repr(args), repr(kwargs))
        if key not in self._known:
            self._known[key] = len(self.dtypes)
            self.operations.append(Operation(name, args, len(self.dtypes), function, kwargs))
            self.dtypes.append(dtype)
        return self._known[key]

    def _compute(self, term: _Term) -> int:
        dtype = torch.promote_types(self.dtypes[term.a], self.dtypes[term.b])
        return self._emit(term.kind, (_array(term.a), _array(term.b)), dtype)

    def _base(self, term: _Term) -> int:
        """The register of a term without its factor."""
        return term.a if term.kind == "array" else self._compute(term)

    def _materialize(self, term: _Term) -> int:
        base = self._base(term)
        return base if _is_one(term.factor) else self._emit("scale", (_array(base), self._factor(term.factor)), self.dtypes[base])

    def _factor(self, number: Number) -> Any:
        if not isinstance(number, Tensor):
            return number
        number = self.source(number)
        for place, known in enumerate(self.factors):
            if known is number:
                return Ref("factor", place)
        self.factors.append(number)
        return Ref("factor", len(self.factors) - 1)


def _array(register: int) -> Ref:
    return Ref("array", register)


def _refs(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    return [ref for item in value for ref in _refs(item)] if isinstance(value, tuple) else []


def _is_one(factor: Number) -> bool:
    return not isinstance(factor, Tensor) and factor == 1.0


def _times(a: Any, b: Any) -> Any:
    return b if _is_one(a) else a if _is_one(b) else a * b


def _over(a: Any, b: Any) -> Any:
    return a if _is_one(b) else a / b
