"""The kernels of a rule: its update, and the pull-back of its last update. Made once for all optimizers that share them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernel import EXAMPLE, Kernel, Outcome
from .pullback import derive
from .rules import Rule

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """All that the arithmetic of a bucket depends on.

    Args:
        rule: what an update is.
        present: the hyperparameters that the rule is given.
        own: those of them that are learned.
        dtype: of the weights.
        traced: whether tangents are kept, and accumulate, from update to update.
        closed_form: whether the rule's own closed form differentiates its updates.
        decay: what remains of a trace after one more update.
        spread: the hyperparameters that are arrays, one number for each weight: `own`, and those that are learned no more.
        moved: whether |Δ|² is needed, to tell tangents from rounding noise or to limit updates.
    """

    rule: Rule
    present: tuple[str, ...]
    own: tuple[str, ...]
    dtype: torch.dtype
    traced: bool
    closed_form: bool
    decay: float
    spread: tuple[str, ...]
    moved: bool

    @property
    def numbers(self) -> tuple[str, ...]:
        """The hyperparameters that the kernels take as numbers."""
        return tuple(name for name in self.present if name not in self.spread)

    @property
    def remembered(self) -> tuple[str, ...]:
        """Arrays that keep the last update's arguments."""
        return () if self.traced or not self.own else tuple(f"last_{name}" for name in sorted(self.replays))

    @property
    def replays(self) -> frozenset[str]:
        """Which of "gradient" and "weights" the tangents of an update are made from, besides the state after it."""
        return self.rule.remembers(self.own, self.present)

    @property
    def traces(self) -> tuple[str, ...]:
        """Arrays that keep tangents."""
        return tuple(f"trace_{name}" for name in self.own) if self.traced else ()

    @property
    def replayed(self) -> bool:
        """Whether traces can be brought up to date from what an update has left."""
        return self.traced and self.closed_form and not self.spread

    @property
    def native(self) -> bool:
        """Whether torch has a kernel for the updates, as far as the rule alone tells."""
        return type(self.rule).native is not Rule.native

    def _examples(self, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: torch.ones(EXAMPLE, dtype=dtype) for name in names}

    @property
    def uniform(self) -> tuple[str, ...]:
        """Names of the states that the kernels take as numbers."""
        return () if self.spread else tuple(sorted(self.rule.uniform))

    @functools.cached_property
    def state(self) -> tuple[str, ...]:
        """Names of the states that are arrays."""
        return tuple(self._initial())

    def _initial(self) -> dict[str, Tensor]:
        state = self.rule.init(torch.ones(EXAMPLE, dtype=self.dtype), self.present)
        return {name: array for name, array in state.items() if name not in self.uniform}

    @functools.cached_property
    def arrays(self) -> dict[str, Tensor]:
        """Arrays that an update that is to be learned from takes besides weights and gradient, by example."""
        state = self._initial()
        wide = torch.promote_types(self.dtype, torch.float32)
        return state | self._examples((*self.traces, *self.remembered), self.dtype) | self._examples(self.columns, wide)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is an array of one number for each weight: hyperparameters, and slopes of those that are learned."""
        return (*self.spread, *(f"slope {name}" for name in self.own)) if self.spread else ()

    def kernel(self, kind: str) -> Kernel:
        """One of the rule's kernels.

        "update": moves the weights and the state. "learn": so that the update can be pulled back. "pull": pulls it back,
        from the state and what is remembered. "compact" is "learn" that returns Δ instead of moving the weights, and keeps
        Δ and the tangents, if there are no traces, for a pull-back by dot products alone; "change" is it where nothing is
        learned. "trace" brings the traces up to date after an update that has moved weights and state already. The last two
        that concern traces need them to be `replayed`.
        """
        return _kernel(self, kind)

    # ---------------------------------------------------------------- what the kernels compute

    def _hyper(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: arrays[name] if name in self.spread else numbers[name] for name in self.present}

    def _state(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: arrays[name] for name in self.state} | {name: numbers[name] for name in self.uniform}

    def _outcome(self, after: dict[str, Tensor], **others: Any) -> Outcome:
        uniform = {name: after[name] for name in self.uniform}
        return Outcome({name: value for name, value in after.items() if name not in uniform}, numbers=uniform, **others)

    def _update(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        weights, state = arrays["weights"], self._state(arrays, numbers)
        hyper = self._hyper(arrays, numbers)
        delta, after = self.rule.update(weights, arrays["gradient"], state, hyper, numbers["step"])
        return self._outcome({"weights": weights + delta, **after})

    def _learn(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        if not self.traced:
            kept = {name: arrays[name.removeprefix("last_")] for name in self.remembered}
            outcome = self._update(arrays, numbers)
            return Outcome({**outcome.arrays, **kept}, numbers=outcome.numbers)
        weights, gradient, step = arrays["weights"], arrays["gradient"], numbers["step"]
        state, hyper = self._state(arrays, numbers), self._hyper(arrays, numbers)
        if self.closed_form:
            delta, after = self.rule.update(weights, gradient, state, hyper, step)
            moved, tangents = self.rule.replay(self.own, weights, gradient, after, hyper, step)
        else:
            delta, tangents, after = derive(self.rule, self.own, weights, gradient, state, hyper, step)
            moved = delta
        traces = self._traces(tangents, arrays, numbers)
        return self._outcome({"weights": weights + delta, **after, **traces}, moved=moved if self.moved else None)

    def _traces(self, tangents: Sequence[Tensor], arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The traces after an update with these tangents."""
        traces = {}
        for name, tangent in zip(self.own, tangents, strict=True):
            slope = (arrays if self.spread else numbers)[f"slope {name}"]
            traces[f"trace_{name}"] = tangent * slope
            if self.decay:
                traces[f"trace_{name}"] = traces[f"trace_{name}"] + self.decay * arrays[f"trace_{name}"]
        return traces

    def _trace(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        none = torch.empty(0)
        state, hyper = self._state(arrays, numbers), self._hyper(arrays, numbers)
        weights, gradient = arrays.get("weights", none), arrays.get("gradient", none)
        moved, tangents = self.rule.replay(self.own, weights, gradient, state, hyper, numbers["step"])
        return Outcome(self._traces(tangents, arrays, numbers), moved=moved if self.moved else None)

    def _change(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        state = self._state(arrays, numbers)
        weights = arrays.get("weights", torch.empty(0))
        delta, after = self.rule.update(weights, arrays["gradient"], state, self._hyper(arrays, numbers), numbers["step"])
        return self._outcome(after, change=delta)

    def _compact(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        outcome = self._change(arrays, numbers)
        kept = {name: arrays[name.removeprefix("last_")] for name in self.remembered}
        weights, gradient, step = arrays.get("weights", torch.empty(0)), arrays["gradient"], numbers["step"]
        hyper = self._hyper(arrays, numbers)
        delta, tangents = self.rule.replay(self.own, weights, gradient, {**outcome.arrays, **outcome.numbers}, hyper, step)
        if self.traced:
            after = {**outcome.arrays, **self._traces(tangents, arrays, numbers)}
            return Outcome(after, moved=delta if self.moved else None, change=delta, numbers=outcome.numbers)
        slopes = [numbers[f"slope {name}"] for name in self.own]
        scaled = list(zip(tangents, slopes, strict=True))
        moved = delta if self.moved else None
        return Outcome({**outcome.arrays, **kept}, "gradient", scaled, moved, outcome.change, outcome.numbers)

    def _pull(self, arrays: dict[str, Tensor], numbers: dict[str, Tensor]) -> Outcome:
        if self.traced:
            return Outcome({}, "gradient", [(arrays[name], 1.0) for name in self.traces])
        none = torch.empty(0)
        state, hyper = self._state(arrays, numbers), self._hyper(arrays, numbers)
        weights, gradient = arrays.get("last_weights", none), arrays.get("last_gradient", none)
        delta, tangents = self.rule.replay(self.own, weights, gradient, state, hyper, numbers["step"])
        slopes = [numbers[f"slope {name}"] for name in self.own]
        return Outcome({}, "gradient", list(zip(tangents, slopes, strict=True)), delta if self.moved else None)


@functools.lru_cache(1024)
def _kernel(recipe: Recipe, kind: str) -> Kernel:
    with torch.device("cpu"):  # whatever default a user has set
        return _recorded(recipe, kind)


def _recorded(recipe: Recipe, kind: str) -> Kernel:
    slopes = [f"slope {name}" for name in recipe.own]
    if kind == "pull":  # sums of 16-bit numbers are formed in 32 bits
        dtype = torch.promote_types(recipe.dtype, torch.float32)
        kept = recipe.traces if recipe.traced else (*recipe.state, *recipe.remembered)
        numbers = () if recipe.traced else (*recipe.numbers, *slopes, *recipe.uniform)
        return Kernel(recipe._pull, recipe._examples(("gradient", *kept), dtype), (*numbers, "step"))
    if kind == "trace":
        kept = (*sorted(recipe.replays), *recipe.state, *recipe.traces)
        return Kernel(recipe._trace, recipe._examples(kept, recipe.dtype), (*recipe.numbers, *slopes, *recipe.uniform, "step"))
    main = recipe._examples(("weights", "gradient"), recipe.dtype)
    if kind == "learn":
        numbers = (*recipe.numbers, *(slopes if recipe.traced and not recipe.spread else ()), *recipe.uniform)
        return Kernel(recipe._learn, main | recipe.arrays, (*numbers, "step"))
    if kind in ("compact", "change"):
        names = [*recipe.state, *((*recipe.remembered, *recipe.traces) if kind == "compact" else ())]
        reads = recipe.rule.reads_weights(recipe.present) or (kind == "compact" and "weights" in recipe.replays)
        first = ("gradient", *(("weights",) if reads else ()))
        numbers = (*recipe.numbers, *(slopes if kind == "compact" else ()), *recipe.uniform)
        function = recipe._compact if kind == "compact" else recipe._change
        return Kernel(function, recipe._examples((*first, *names), recipe.dtype), (*numbers, "step"))
    needed = [*recipe.state, *recipe.spread]
    numbers = (*recipe.numbers, *recipe.uniform, "step")
    return Kernel(recipe._update, main | {name: recipe.arrays[name] for name in needed}, numbers)
