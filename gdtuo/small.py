"""`SmallBucket`: parameters of an elementwise rule that fit into two blocks together.

They are gathered, updated with few calls, and what the update made of them is kept: the tangents of the last update stand
in memory of the bucket's own and its pull-back is dot products alone. That memory is no state: after
loading, tangents come from the state, to the same bits. Traces of many updates are state; they follow from what an update has
left, so that a kernel of torch may do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import BLOCK, Blocks, blocks_of
from .kernel import Kernel
from .layout import Run, numel, unflatten
from .recipes import Recipe
from .segments import SegmentedBucket, Segments, here
from .tape import Array

__all__ = ["SmallBucket"]

#: Weights in a bucket at most.
LARGEST = 2 * BLOCK


@dataclass
class Plan:
    """A run's memory for one kernel."""

    blocks: Blocks
    places: list[Tensor]  # the kernel's arrays and temporaries
    change: list[Tensor]  # views of what is added to the parameters, in their shapes
    disposable: bool  # whether nobody else looks at it
    sizes: list[int]  # of the parameters
    parts: dict[int, Sequence[Array]] = field(default_factory=dict)  # of the arrays in dot products, by segment


class SmallBucket(SegmentedBucket):
    """Parameters that are worked on at once."""

    @staticmethod
    def kinds(recipe: Recipe) -> tuple[str, ...]:
        if not recipe.own:
            return ("change",)
        return ("change", "compact", "pull", *(("trace",) if recipe.traced else ()))

    @staticmethod
    def fits(recipe: Recipe, params: Sequence[Tensor]) -> bool:
        """Whether parameters can stand in such a bucket."""
        wide = recipe.dtype.itemsize > 2  # sums of 16-bit tangents would be formed in 16 bits
        # tangents that are kept need the numbers that the update began with
        rebuilt = recipe.replayed if recipe.traced else not (recipe.uniform and recipe.own)
        return rebuilt and not recipe.spread and wide and sum(numel(p) for p in params) <= LARGEST

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plans: dict[tuple[int, int, str], Plan] = {}
        self._own: dict[Any, Tensor] = {}  # memory of the bucket's own
        self._shaped: dict[tuple[str, int, int], list[Tensor]] = {}
        self._gathered: tuple[int, int, int] | None = None
        self._tangents_of: dict[tuple[int, int], int] = {}  # run -> the update whose tangents stand in its memory

    def _memory_of(self, key: Any, run: Run, dtype: torch.dtype) -> Tensor:
        """The run's part of an array of the bucket's own."""
        if key not in self._own:
            self._own[key] = torch.empty(self.offsets[-1], dtype=dtype, device=self.device)
        return self._own[key][self.offsets[run.first] : self.offsets[run.last]]

    def _shapes(self, key: str, flat: Tensor, run: Run) -> list[Tensor]:
        """Views of a run's flat array in its parameters' shapes."""
        known = self._shaped.get((key, run.first, run.last))
        if known is None:
            parts = flat.split([numel(p) for p in run.params])
            known = [unflatten(part, p) for part, p in zip(parts, run.params, strict=True)]
            self._shaped[key, run.first, run.last] = known
        return known

    def _plan(self, run: Run, kind: str) -> Plan:
        plan = self._plans.get((run.first, run.last, kind))
        if plan is not None:
            return plan
        if len(self._plans) >= 64:  # gradients come and go in ever new patterns
            self._plans.clear()
            self._shaped.clear()
        kernel = self._kernels[kind]
        blocks = blocks_of(kernel, kept=True)
        kept = kind == "compact" and not self.recipe.traced  # for the pull-back
        start, stop = self.offsets[run.first], self.offsets[run.last]
        places = []
        for name, dtype in zip(kernel.inputs, kernel.dtypes, strict=False):
            if name in ("weights", "gradient"):
                places.append(self._memory_of(name, run, dtype))
            else:
                places.append(self.arrays[name][start:stop])
        for i, dtype in enumerate(blocks.temporaries):
            own = kept and i in blocks.kept
            places.append(
                self._memory_of((kind, i), run, dtype) if own else self._workspace.get(i, stop - start, dtype, self.device)
            )
        change = self._shapes(kind, places[blocks.change], run) if blocks.change is not None else []
        disposable = not kept and blocks.change is not None and blocks.change >= len(kernel.inputs)
        plan = self._plans[run.first, run.last, kind] = Plan(blocks, places, change, disposable, [numel(p) for p in run.params])
        return plan

    def _gather(self, name: str, run: Run) -> None:
        views = self._shaped.get((name, run.first, run.last))
        if views is None:
            views = self._shapes(name, self._memory_of(name, run, self.recipe.dtype), run)
        torch._foreach_copy_(views, run.params if name == "weights" else self.gradients(run.first, run.last))

    def _gather_gradient(self, run: Run) -> None:
        """Once a step: it stays from the pull-back to the update."""
        now = (run.first, run.last, self._workspace.epoch)
        if self._gathered != now:
            self._gather("gradient", run)
            self._gathered = now

    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        assert self.last is not None
        segments = self._segments_of(run)
        lengths = segments.lengths
        kept = self._tangents_of.get((run.first, run.last)) == run.pending
        kernel, plan = self._kernels["compact" if kept else "pull"], self._plan(run, "compact" if kept else "pull")
        given = self._given(kernel, run, segments, here(self.last[segments.leads], self.device))
        self._gather_gradient(run)
        if not kept and kernel.operations:
            factors = self._evaluate(kernel.factors, segments, given)
            plan.blocks.run(plan.places, *self._factors.of(kernel, factors, slice(0, len(lengths)), lengths))
        dots = plan.blocks.dots(plan.places, lengths, plan.parts)
        if isinstance(given, list):
            dots = [some[0] for some in dots]
        self._add(
            table, kernel, segments, given, dots, self._moved(segments) if self.recipe.traced and self.recipe.moved else None
        )

    def _update(self, run: Run, segments: Segments, rows: Array, values: Array, learn: bool, tick: int) -> None:
        traced, kind = learn and self.recipe.traced, "compact" if learn else "change"
        if "weights" in self._kernels[kind].inputs:
            self._gather("weights", run)
        native = traced and self._native(run, segments, rows, learn)
        if native:
            kind = "trace"
        lengths, kernel, plan = segments.lengths, self._kernels[kind], self._plan(run, kind)
        given = self._given(kernel, run, segments, rows)
        factors = self._evaluate(kernel.factors, segments, given)
        numbers, tensors = self._factors.of(kernel, factors, slice(0, len(lengths)), lengths)
        if "gradient" in kernel.inputs:
            self._gather_gradient(run)
        plan.blocks.run(plan.places, numbers, tensors)
        if traced and kernel.dots:
            (dots,) = plan.blocks.dots(plan.places, plan.sizes, plan.parts)
            self._keep_moved(kernel, segments, given, [dots])
        if not native:
            self._move(run, segments, kernel, plan, factors, numbers)
            self._renew(kernel, run, segments, given)
        if learn and not traced and kernel.lasting:
            self._tangents_of[run.first, run.last] = tick

    def _move(self, run: Run, segments: Segments, kernel: Kernel, plan: Plan, factors: Any, numbers: Sequence[Any]) -> None:
        """Add the change to the parameters."""
        assert kernel.change is not None
        assert plan.blocks.change is not None
        place = kernel.change[1]
        if isinstance(factors, np.ndarray) and kernel.change_alone:
            each = self._factors.rounded(factors[place])
            scales = [each[t] for t in segments.of]
            if plan.disposable:
                torch._foreach_mul_(plan.change, scales)
            torch._foreach_add_(run.params, plan.change if plan.disposable else torch._foreach_mul(plan.change, scales))
        elif not isinstance(numbers[place], Tensor):
            torch._foreach_add_(run.params, plan.change, alpha=numbers[place])
        else:
            array = plan.places[plan.blocks.change]
            scaled = self._workspace.get("change", array.numel(), array.dtype, self.device)
            torch.mul(array, numbers[place], out=scaled)
            parts = scaled.split([numel(p) for p in run.params])
            torch._foreach_add_(run.params, [unflatten(part, p) for part, p in zip(parts, run.params, strict=True)])

    def forget(self) -> None:
        super().forget()
        self._tangents_of.clear()
