"""A run of momentum SGD on integers, forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rules import MomentumForm
from .dynamics import REPEATABLE, Dynamics, RunState
from .rationals import rational
from .remainders import Remainders, growth, stacked_bytes
from .tree import shown

__all__ = ["FixedPointRun"]


class FixedPointRun:
    """buffer ← γ · buffer + injection;  w ← w + rate · buffer, on integers that stand for multiples of 2^-fraction.

    Raises:
        ValueError: if the optimizer's update has no such form, or a γ is 0.
    """

    def __init__(self, dynamics: Dynamics, fraction: int) -> None:
        self.dynamics, self._scale, self._limit = dynamics, 2.0**fraction, 2.0 ** (63 - fraction)
        self._count = len(dynamics.weights)
        forms = [self._form(i, w, torch.zeros_like(w), 0) for i, w in enumerate(dynamics.weights)]
        self._decay = forms[0].decay
        self._fractions = [self._fraction(i, form.decay) for i, form in enumerate(forms)]
        start = dynamics.start()
        self.fixed_weights, self.fixed_buffers = self._split(start)
        for i in range(self._count):
            self._check(i, "weights", start[i], -1)
            self._check(i, "buffer", start[self._count + i], -1)
        self._remainders = [Remainders(v.shape, v.device) for v in self.fixed_buffers]

    # ---------------------------------------------------------------- there and back

    def advance(self, t: int) -> None:
        """Step t."""
        weights = self.weights()
        # As on the way back: without the graph of a graph torch takes other kernels for some functions.
        gradients = self.dynamics.linearize(weights, t).value
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            form = self._form(i, weight, gradient, t)
            v = self._remainders[i].multiply(self.fixed_buffers[i], *self._fraction_at(i, t))
            self.fixed_buffers[i] = self._added(i, "buffer", v, form.injection, t)
            self.fixed_weights[i] = self._added(
                i, "weights", self.fixed_weights[i], form.rate * self._float(self.fixed_buffers[i]), t
            )

    def undo_weights(self, t: int) -> None:
        """The last half of step t backwards: afterwards `weights` are those before it."""
        for i, v in enumerate(self.fixed_buffers):
            rate = self._form(i, self.dynamics.weights[i], torch.zeros_like(self.dynamics.weights[i]), t).rate
            self.fixed_weights[i] = self.fixed_weights[i] - self._fixed(rate * self._float(v))

    def undo_buffers(self, gradients: Sequence[Tensor], t: int) -> None:
        """The first half of it backwards, given the gradient at those weights."""
        for i, (weight, gradient) in enumerate(zip(self.weights(), gradients, strict=True)):
            v = self.fixed_buffers[i] - self._fixed(self._form(i, weight, gradient, t).injection)
            self.fixed_buffers[i] = self._remainders[i].divide(v, *self._fraction_at(i, t))

    def check_return(self) -> None:
        """Raise unless everything is what it was before step 0."""
        w, v = self._split(self.dynamics.start())
        same = all(torch.equal(a, b) for a, b in zip((*w, *v), (*self.fixed_weights, *self.fixed_buffers), strict=True))
        if not same or not all(remainders.empty for remainders in self._remainders):
            raise RuntimeError(
                "Reversible did not come back to where the run began: some step's gradient was not the same, to the bit, when "
                f"it was evaluated again. {REPEATABLE} gdtuo.Checkpointed() does not need the same bits."
            )

    # ---------------------------------------------------------------- what it holds

    def weights(self) -> list[Tensor]:
        """The weights in the user's precision."""
        return [self._float(w).to(own.dtype) for w, own in zip(self.fixed_weights, self.dynamics.weights, strict=True)]

    def state(self) -> RunState:
        """Weights and buffers in the user's precision."""
        buffers = [self._float(v).to(own.dtype) for v, own in zip(self.fixed_buffers, self.dynamics.weights, strict=True)]
        return [*self.weights(), *buffers]

    @property
    def information(self) -> float:
        """What the remainders hold, in bits a weight."""
        numbers = sum(v.numel() for v in self.fixed_buffers)
        return sum(r.information * v.numel() for r, v in zip(self._remainders, self.fixed_buffers, strict=True)) / max(numbers, 1)

    @property
    def nbytes(self) -> int:
        """The memory that it takes now."""
        return sum(2 * v.numel() * v.element_size() for v in self.fixed_buffers) + sum(r.nbytes for r in self._remainders)

    def bytes_after_all_steps(self) -> int:
        """The memory that it will take at the end of the run, computed from the fractions alone."""
        stacks = sum(stacked_bytes(self._growth(i), v.shape) for i, v in enumerate(self.fixed_buffers))
        return stacks + sum(3 * v.numel() * v.element_size() for v in self.fixed_buffers)

    # ---------------------------------------------------------------- numbers

    def _split(self, state: RunState) -> tuple[list[Tensor], list[Tensor]]:
        fixed = [self._fixed(x) for x in state]
        return fixed[: self._count], fixed[self._count :]

    def _fixed(self, x: Tensor) -> Tensor:
        return (x.to(torch.float64) * self._scale).round().to(torch.int64)

    def _float(self, x: Tensor) -> Tensor:
        return x.to(torch.float64) / self._scale

    def _added(self, i: int, what: str, x: Tensor, increment: Tensor, t: int) -> Tensor:
        self._check(i, what, increment, t)  # which must be a number of this kind itself
        self._check(i, what, self._float(x) + increment, t)
        return x + self._fixed(increment)

    def _check(self, i: int, what: str, x: Tensor, t: int) -> None:
        largest = float(x.abs().max()) if x.numel() else 0.0
        if not largest < self._limit:  # NaN is not below it either
            where = "at the start" if t < 0 else f"in step {t + 1}"
            raise OverflowError(
                f"Reversible: the {what} of {shown(self.dynamics.weight_paths[i], 'params')} reached {largest:.4g} {where}; its "
                f"fixed-point numbers lie within ±{self._limit:.4g}. If the run diverges, lower its learning rate; if such "
                "numbers are right, use fewer fractional bits, as gdtuo.Reversible(fraction=44), or gdtuo.Checkpointed()."
            )

    # ---------------------------------------------------------------- the optimizer

    @torch.no_grad()
    def _form(self, i: int, weight: Tensor, gradient: Tensor, t: int) -> MomentumForm:
        rows = self.dynamics.numbers.rows(self.dynamics.leaves, t)
        form = self.dynamics.rule.momentum_form(weight, gradient, self.dynamics.numbers.of(i, rows), t + 1)
        if form is None:
            name = type(self.dynamics.training.optimizer).__name__
            raise ValueError(
                f"Reversible cannot undo {name} on {shown(self.dynamics.weight_paths[i], 'params')}: its update is no momentum. "
                "Use gdtuo.SGD(momentum=0.9) without nesterov, gdtuo.AveragingSGD(), or the method gdtuo.Checkpointed()."
            )
        return form

    def _fraction(self, i: int, name: str) -> tuple[Tensor, Tensor]:
        """n / d for all steps, lying like the leaf that holds γ."""
        numbers = self.dynamics.numbers
        leaf = numbers.governing(i, name)
        values = numbers.constant(name) if leaf is None else self.dynamics.leaves[leaf]
        n, d = rational(values.cpu() if values.ndim < 2 else values)  # a few numbers are better kept from the device
        if not bool((n > 0).all()):
            raise ValueError(
                f"Reversible got {name}={float(values.min())}: a buffer that is multiplied by it forgets what it was. Keep it "
                "above 2^-31, or use gdtuo.Checkpointed()."
            )
        return n, d

    def give_exact_momenta(self) -> None:
        """The hyperparameters of the run become the fractions that it uses, so that its derivative is that of this run."""
        dynamics = self.dynamics
        dynamics.leaves = list(dynamics.leaves)
        for i, (n, d) in enumerate(self._fractions):
            leaf = dynamics.numbers.governing(i, self._decay)
            if leaf is not None:
                exact = n.to(torch.float64) / d.to(torch.float64)
                dynamics.leaves[leaf] = exact.to(dynamics.leaves[leaf])

    def _fraction_at(self, i: int, t: int) -> tuple[Tensor, Tensor]:
        leaf = self.dynamics.numbers.governing(i, self._decay)
        n, d = self._fractions[i]
        if leaf is None:
            return n, d
        n, d = self.dynamics.numbers.row(leaf, n, t), self.dynamics.numbers.row(leaf, d, t)
        device = self.fixed_buffers[i].device
        return (n.to(device), d.to(device)) if n.ndim else (n, d)

    def _growth(self, i: int) -> Tensor:
        """What all steps add to the bits of the remainders."""
        leaf, each = self.dynamics.numbers.governing(i, self._decay), growth(*self._fractions[i])
        if leaf is not None and self.dynamics.numbers.scheduled(leaf):
            return each.sum(dim=0)
        return self.dynamics.steps * (each if leaf is None else self.dynamics.numbers.row(leaf, each, 0))
