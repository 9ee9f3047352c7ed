"""A run of momentum SGD on integers, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..rules import MomentumForm
from .dynamics import Dynamics, RunState
from .rationals import rational
from .remainders import Remainders, stacked_bytes
from .tree import shown

__all__ = ["FixedPointRun"]


class FixedPointRun:
    """buffer ← γ · buffer + injection;  w ← w + rate · buffer, on integers that stand for multiples of 2^-fraction.

    Raises:
        ValueError: if the optimizer's update has no such form, or a γ is 0.
    """

    def __init__(self, dynamics: Dynamics, fraction: int) -> None:
        self._dynamics, self._scale, self._limit = dynamics, 2.0**fraction, 2.0 ** (63 - fraction)
        self._count = len(dynamics.weights)
        forms = [self._form(i, w, torch.zeros_like(w), 0) for i, w in enumerate(dynamics.weights)]
        self._decay = forms[0].decay
        self._fractions = [self._fraction(i, form.decay) for i, form in enumerate(forms)]
        start = dynamics.start()
        self._w, self._v = self._split(start)
        for i in range(self._count):
            self._check(i, "weights", start[i], -1)
            self._check(i, "buffer", start[self._count + i], -1)
        self._remainders = [Remainders(v.shape, v.device) for v in self._v]

    # ---------------------------------------------------------------- there and back

    def advance(self, t: int) -> None:
        """Step t."""
        weights = self.weights()
        gradients = self._dynamics.gradient(weights, t)
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            form = self._form(i, weight, gradient, t)
            v = self._remainders[i].multiply(self._v[i], *self._fraction_at(i, t))
            self._v[i] = self._added(i, "buffer", v, form.injection, t)
            self._w[i] = self._added(i, "weights", self._w[i], form.rate * self._float(self._v[i]), t)

    def undo_weights(self, t: int) -> None:
        """The last half of step t backwards: afterwards `weights` are those before it."""
        for i, v in enumerate(self._v):
            rate = self._form(i, self._dynamics.weights[i], torch.zeros_like(self._dynamics.weights[i]), t).rate
            self._w[i] = self._w[i] - self._fixed(rate * self._float(v))

    def undo_buffers(self, gradients: Sequence[Tensor], t: int) -> None:
        """The first half of it backwards, given the gradient at those weights."""
        for i, (weight, gradient) in enumerate(zip(self.weights(), gradients, strict=True)):
            v = self._v[i] - self._fixed(self._form(i, weight, gradient, t).injection)
            self._v[i] = self._remainders[i].divide(v, *self._fraction_at(i, t))

    def check_return(self) -> None:
        """Raise unless everything is what it was before step 0."""
        w, v = self._split(self._dynamics.start())
        same = all(torch.equal(a, b) for a, b in zip((*w, *v), (*self._w, *self._v), strict=True))
        if not same or not all(remainders.empty for remainders in self._remainders):
            raise RuntimeError(
                "Reversible did not come back to where the run began: some step's gradient was not the same, to the bit, when "
                "it was evaluated again. Make `batches` a function of the step alone, draw random numbers from torch inside "
                "`loss` or `batches` (their seed is part of the run), use torch.use_deterministic_algorithms(True) on a GPU, or "
                "take gdtuo.Checkpointed(), which does not need this."
            )

    # ---------------------------------------------------------------- what it holds

    def weights(self) -> list[Tensor]:
        """The weights in the user's precision."""
        return [self._float(w).to(own.dtype) for w, own in zip(self._w, self._dynamics.weights, strict=True)]

    def state(self) -> RunState:
        """Weights and buffers in the user's precision."""
        buffers = [self._float(v).to(own.dtype) for v, own in zip(self._v, self._dynamics.weights, strict=True)]
        return [*self.weights(), *buffers]

    @property
    def information(self) -> float:
        """What the remainders hold, in bits a weight."""
        numbers = sum(v.numel() for v in self._v)
        return sum(r.information * v.numel() for r, v in zip(self._remainders, self._v, strict=True)) / max(numbers, 1)

    @property
    def nbytes(self) -> int:
        """The memory that it takes now."""
        return sum(2 * v.numel() * v.element_size() for v in self._v) + sum(r.nbytes for r in self._remainders)

    def bytes_after_all_steps(self) -> int:
        """The memory that it will take at the end of the run, computed from the fractions alone."""
        stacks = sum(stacked_bytes(self._all_fractions(i), v.shape) for i, v in enumerate(self._v))
        return stacks + sum(3 * v.numel() * v.element_size() for v in self._v)

    # ---------------------------------------------------------------- numbers

    def _split(self, state: RunState) -> tuple[list[Tensor], list[Tensor]]:
        fixed = [self._fixed(x) for x in state]
        return fixed[: self._count], fixed[self._count :]

    def _fixed(self, x: Tensor) -> Tensor:
        return (x.to(torch.float64) * self._scale).round().to(torch.int64)

    def _float(self, x: Tensor) -> Tensor:
        return x.to(torch.float64) / self._scale

    def _added(self, i: int, what: str, x: Tensor, increment: Tensor, t: int) -> Tensor:
        self._check(i, what, self._float(x) + increment, t)
        return x + self._fixed(increment)

    def _check(self, i: int, what: str, x: Tensor, t: int) -> None:
        largest = float(x.abs().max()) if x.numel() else 0.0
        if not largest < self._limit:  # NaN is not below it either
            where = "at the start" if t < 0 else f"in step {t + 1}"
            raise OverflowError(
                f"Reversible: the {what} of {shown(self._dynamics.weight_paths[i], 'params')} reached {largest:.4g} {where}; its "
                f"fixed-point numbers lie within ±{self._limit:.4g}. If the run diverges, lower its learning rate; if such "
                "numbers are right, use fewer fractional bits, as gdtuo.Reversible(fraction=44), or gdtuo.Checkpointed()."
            )

    # ---------------------------------------------------------------- the optimizer

    @torch.no_grad()
    def _form(self, i: int, weight: Tensor, gradient: Tensor, t: int) -> MomentumForm:
        rows = self._dynamics.numbers.rows(self._dynamics.leaves, t)
        form = self._dynamics.rule.momentum_form(weight, gradient, self._dynamics.numbers.of(i, rows), t + 1)
        if form is None:
            name = type(self._dynamics.training.optimizer).__name__
            raise ValueError(
                f"Reversible cannot undo {name} on {shown(self._dynamics.weight_paths[i], 'params')}: its update is no momentum. "
                "Use gdtuo.SGD(momentum=0.9) without nesterov, gdtuo.AveragingSGD(), or the method gdtuo.Checkpointed()."
            )
        return form

    def _fraction(self, i: int, name: str) -> tuple[Tensor, Tensor]:
        """n / d for all steps, lying like the leaf that holds γ."""
        numbers = self._dynamics.numbers
        leaf = numbers.governing(i, name)
        values = numbers.constant(name) if leaf is None else self._dynamics.leaves[leaf]
        n, d = rational(values.cpu() if values.ndim < 2 else values)  # a few numbers are better kept from the device
        if not bool((n > 0).all()):
            raise ValueError(
                f"Reversible got {name}={float(values.min())}: a buffer that is multiplied by it forgets what it was. Keep it "
                "above 2^-31, or use gdtuo.Checkpointed()."
            )
        return n, d

    def _fraction_at(self, i: int, t: int) -> tuple[Tensor, Tensor]:
        leaf = self._dynamics.numbers.governing(i, self._decay)
        n, d = self._fractions[i]
        return (n, d) if leaf is None else (self._dynamics.numbers.row(leaf, n, t), self._dynamics.numbers.row(leaf, d, t))

    def _all_fractions(self, i: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._fraction_at(i, t) for t in range(self._dynamics.steps))
