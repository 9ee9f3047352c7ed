"""`Lowering`: recorded calls turned into operations over memory, and the arithmetic on numbers that they need.

Factors are moved out of the arrays: a product with a number becomes the factor of an axpy, an addcmul, an addcdiv or of a
whole dot product, which cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .recording import Call, Recorder, UnrecordableError

__all__ = ["Lowering", "Operation", "Ref", "references"]

ALIASES = ("alias", "detach", "expand", "clone", "lift_fresh", "lift_fresh_copy", "view", "_to_copy", "to")

Number: TypeAlias = float | Tensor  # a constant, or a recorded 0-d tensor


class Ref(NamedTuple):
    """An argument of an operation: an array, by its register, or a factor, by its place among the factors."""

    kind: str  # "array", "factor", or "condition": a factor that is true or false
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
        return [ref.place for ref in references(self.args) if ref.kind == "array"]


class Term(NamedTuple):
    """An array that is not computed yet: factor · register, · (a b) or · (a / b)."""

    factor: Number
    kind: str  # "array", "mul", "div"
    a: int
    b: int = -1


class Lowering:
    """Turns recorded calls into operations; keeps apart what concerns arrays and what concerns numbers."""

    def __init__(self, calls: Sequence[Call], arrays: Mapping[str, Tensor], wanted: Sequence[Tensor]) -> None:
        self.operations: list[Operation] = []
        self.dtypes = [x.dtype for x in arrays.values()]
        self.scalars: list[Call] = []
        self.factors: list[Tensor] = []
        self._terms: dict[int, Term] = {id(x): Term(1.0, "array", i) for i, x in enumerate(arrays.values())}
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
            term = Term(1.0, "array", self._general(call))
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

    def _simplified(self, call: Call, args: list[Any]) -> Term | None:
        arrays = [isinstance(x, Tensor) and self._is_array(x) for x in args]
        promoted = any(t.dtype != call.result.dtype for t, is_array in zip(args, arrays, strict=True) if is_array)
        if promoted or not call.result.dtype.is_floating_point:
            return None
        if call.name in ("mul", "div") and all(arrays):
            a, b = (self._terms[id(x)] for x in args)
            factor = _times(a.factor, b.factor) if call.name == "mul" else _over(a.factor, b.factor)
            term = Term(factor, call.name, self._base(a), self._base(b))
            return term if self._uses[id(call.result)] == 1 else Term(factor, "array", self._compute(term))
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
            square = Term(_times(term.factor, term.factor), "mul", base, base)
            return square if self._uses[id(call.result)] == 1 else square._replace(kind="array", a=self._compute(square), b=-1)
        if call.name in ("add", "sub"):
            sign = call.kwargs.get("alpha", 1) * (1 if call.name == "add" else -1)
            return self._sum(args, arrays, sign)
        return None

    def _settled(self, term: Term, source: Tensor) -> Term:
        """A pending product that is used elsewhere too is computed once, not once for each use."""
        if term.kind != "array" and self._uses[id(source)] > 1:
            return Term(term.factor, "array", self._base(term))
        return term

    def _sum(self, args: Sequence[Any], arrays: Sequence[bool], sign: float) -> Term | None:
        if not all(arrays):
            x, s = (args[0], args[1]) if arrays[0] else (args[1], args[0])
            if not arrays[0] and sign != 1:
                return None
            register = self._materialize(self._terms[id(x)])
            return Term(
                1.0, "array", self._emit("shift", (_array(register), self._factor(_times(s, sign))), self.dtypes[register])
            )
        x, y = (self._terms[id(a)] for a in args)
        y = y._replace(factor=_times(y.factor, sign))
        if y.kind == "array" and _is_one(y.factor) and (x.kind != "array" or not _is_one(x.factor)):
            x, y = y, x
        if x.kind == y.kind == "array" and self._is_complement(y.factor, x.factor):
            between = (_array(x.a), _array(y.a), self._factor(y.factor))
            return Term(1.0, "array", self._emit("lerp", between, self.dtypes[x.a]))
        register = self._materialize(x)
        if y.kind == "array":
            name, operands = "axpy", [_array(register), _array(y.a)]
        else:
            name, operands = f"addc{y.kind}", [_array(register), _array(y.a), _array(y.b)]
        return Term(1.0, "array", self._emit(name, (*operands, self._factor(y.factor)), self.dtypes[register]))

    def _is_complement(self, a: Number, b: Number) -> bool:
        """Whether a = 1 - b."""
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return False
        return self._complements.get(id(self.source(a)), 0) == id(self.source(b))

    def _general(self, call: Call) -> int:
        def bound(x: Any) -> Any:
            if isinstance(x, Tensor):
                source = self.source(x)
                if self._is_array(source):
                    return _array(self._materialize(self._terms[id(source)]))
                return self._factor(source)._replace(kind="condition" if x.dtype == torch.bool else "factor")
            return tuple(bound(y) for y in x) if isinstance(x, (list, tuple)) else x

        kwargs = {key: bound(value) for key, value in call.kwargs.items()}
        return self._emit("torch", tuple(bound(x) for x in call.args), call.result.dtype, call.function, kwargs)

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

    def copy(self, register: int) -> int:
        """A register of its own that holds the same."""
        return self._emit("scale", (_array(register), 1.0), self.dtypes[register])

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

    def _compute(self, term: Term) -> int:
        dtype = torch.promote_types(self.dtypes[term.a], self.dtypes[term.b])
        return self._emit(term.kind, (_array(term.a), _array(term.b)), dtype)

    def _base(self, term: Term) -> int:
        """The register of a term without its factor."""
        return term.a if term.kind == "array" else self._compute(term)

    def _materialize(self, term: Term) -> int:
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


def references(value: Any) -> list[Ref]:
    """The `Ref`s in nested arguments."""
    if isinstance(value, Ref):
        return [value]
    return [ref for item in value for ref in references(item)] if isinstance(value, tuple) else []


def _is_one(factor: Number) -> bool:
    return not isinstance(factor, Tensor) and factor == 1.0


def _times(a: Any, b: Any) -> Any:
    return b if _is_one(a) else a if _is_one(b) else a * b


def _over(a: Any, b: Any) -> Any:
    return a if _is_one(b) else a / b
