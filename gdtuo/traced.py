"""`Traced`: a step of an engine as a plain tensor program, for torch.compile to read and for CUDA graphs to hold.

What the eager engine does with NumPy, recorded kernels and Python's integers, done with tensors alone: counts of updates,
which update waits to be pulled back and which groups take part are tensors, and no branch looks at one. All memory is the
engine's own, so eager and compiled steps may follow each other.

What a program depends on besides numbers is a `Plan`: which parameters have a gradient, and which of them have always been
updated together. It is made in plain Python while a step is traced; the compiler guards what it was made from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .graphs import capturable
from .layout import Bucket, numel
from .recording import tensors_in
from .segments import SegmentedBucket
from .sharding import ranks_of
from .stretch import Piece, Single, Stretch
from .whole import WholeBucket

if TYPE_CHECKING:
    from .blueprint import Blueprint
    from .engine import Engine

__all__ = ["Traced"]

#: Parameters of at least so many weights are worked on where they stand, at most so many of them; the others are gathered: a
#: compiler takes its time for each array.
ALONE, AT_MOST = 262144, 8

NAMES = itertools.count()

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Share:
    """What concerns one bucket."""

    def __init__(self, bucket: Bucket, present: Sequence[bool]) -> None:
        self.bucket, self.present = bucket, tuple(present)
        self.histories = bucket.stretches(present)
        #: [parameters of the bucket] which have a gradient
        self.mask = torch.tensor(self.present, device=bucket.steps.device)

    def pieces(self, alone: set[int]) -> list[Piece]:
        """Those that have a gradient, in pieces of one history; the parameters `alone` are pieces of their own."""
        if isinstance(self.bucket, WholeBucket):
            return [Single(self.bucket)] if self.present[0] else []
        assert isinstance(self.bucket, SegmentedBucket)
        cuts = sorted({*self.histories, *alone, *(i + 1 for i in alone), len(self.present)})
        return [Stretch(self.bucket, a, b) for a, b in itertools.pairwise(cuts) if self.present[a]]


class Plan:
    """What a program is made from, with all tensors of indices that it needs.

    A compiler takes what stands at one place in one optimizer and is another number in the next for something that varies.
    Plans have names that are new; so all numbers and tensors are reached through them.
    """

    def __init__(
        self,
        engine: Engine,
        buckets: Sequence[Bucket],
        present: Sequence[Sequence[bool]],
        device: torch.device,
        switches: list[Any],
    ) -> None:
        self.ladder, self.steps, self.clock, self.switches = engine.ladder, engine.steps, engine.clock, switches
        self.shares = [Share(bucket, here) for bucket, here in zip(buckets, present, strict=True)]
        sizes = [(numel(p), b, i) for b, bucket in enumerate(buckets) for i, p in enumerate(bucket.params)]
        large = [(b, i) for size, b, i in sorted(sizes)[-AT_MOST:] if size >= ALONE]
        self.pieces = [p for b, share in enumerate(self.shares) for p in share.pieces({i for c, i in large if c == b})]
        self.learned = [piece for piece in self.pieces if piece.bucket.recipe.own]

        def index(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=device)

        groups = len(engine.groups)
        #: [rows] of the table that are added to
        self.rows = index([row for piece in self.learned for row in piece.rows])
        #: [parameters that are learned from] their numbers among all, and their rows of hyperparameters
        self.indices = index([i for piece in self.learned for i in piece.indices])
        self.values = index([i for piece in self.learned for i in piece.values])
        #: [parameters] the group of each; [G] the groups of which one has a gradient
        self.group_of = index([g for share in self.shares for g in share.bucket.groups])
        here = {g for share in self.shares for g, p in zip(share.bucket.groups, share.present, strict=True) if p}
        self.present = torch.tensor([g in here for g in range(groups)], dtype=torch.bool, device=device)
        #: what tells the gradients that were last pulled back, and when
        self.digest = torch.full((1 + len(self.pieces),), -1, dtype=torch.int64, device=device)


def mark_static(*holders: Any) -> None:
    """Tell torch.compile that the tensors among attributes stay where they are: CUDA graphs then take no copies of them."""
    for value in (value for holder in holders for value in vars(holder).values()):
        for x in tensors_in(list(value.values()) if isinstance(value, dict) else value):
            if x.device.type != "cpu":
                torch._dynamo.mark_static_address(x)


class Plans:
    """Plans as attributes of ever new names: a compiler that watches one does not see that another is made."""


class Traced:
    """The tensor program of an engine, which is handed to it, so that the two are no cycle.

    Args:
        blueprints: the engine's levels, bottom up.
        groups: its parameter groups.
    """

    def __init__(self, blueprints: Sequence[Blueprint], groups: Sequence[dict[str, Any]]) -> None:
        self._blueprints, self._groups = blueprints, groups
        self.build([], [], torch.device("cpu"))

    def build(self, buckets: list[Bucket], waiting: list[Tensor], device: torch.device) -> None:
        """Begin anew with another layout.

        Args:
            buckets: the engine's.
            waiting: parameters that have no place yet.
            device: where the tower lives.
        """
        self._buckets, self._waiting, self._device = buckets, waiting, device
        self.plans, self._names = Plans(), dict[Any, str]()

    # ---------------------------------------------------------------- whether there is a program

    def _elsewhere(self) -> str:
        """What keeps steps from being tensor programs, whatever the gradients."""
        params, sharded = [p for group in self._groups for p in group["params"]], self._blueprints[0].options.sharded
        if self._blueprints[-1].factory is not None:
            return "a torch optimizer on top reads numbers; use a level of gdtuo, as optimizer=gdtuo.Adam()"
        if sharded or any(ranks_of(p, sharded) for p in params):
            return "ranks have parts of parameters; compile the model, and leave the step as it is"
        if len({p.device for p in params}) > 1:
            return "parameters stand on several devices; make an optimizer for each"
        return ""

    def obstacle(self) -> str:
        """Why the next step is no program that torch.compile could trace; empty if it is one."""
        if any(p.grad is not None and p.grad.layout != torch.strided for group in self._groups for p in group["params"]):
            return "there is a sparse gradient; use sparse=False in the embedding"
        return self._elsewhere()

    def asked(self) -> bool:
        """Whether steps are to be tensor programs outside of torch.compile too."""
        return any(group.get("capturable") for group in self._groups) and not self._elsewhere()

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph is being captured."""
        return self._device.type == "cuda" and not capturable(self._device)

    # ---------------------------------------------------------------- plans

    def _plan(self, engine: Engine) -> Plan:
        name = engine.plan_name()  # which may lay out everything anew
        plan: Plan = getattr(self.plans, name)
        if torch.compiler.is_compiling():
            self._watch(engine, plan)
        return plan

    def plan_name(self, engine: Engine) -> str:
        """As `Engine.plan_name`."""
        if not engine.capturable and self._device.type in ("cuda", "xpu"):  # here only a compiler asks
            for group in self._groups:  # else counts on the CPU would keep it from CUDA graphs
                group["capturable"] = True
        engine.renew()
        engine.measure()
        key = self._key()
        if len(self._names) >= 64:  # gradients come and go in ever new patterns
            self.plans, self._names = Plans(), {}
        if key not in self._names:
            if self.is_captured:
                raise RuntimeError(
                    "The first step of its kind is being captured in a CUDA graph. Take one outside of the graph first, with the "
                    "same gradients present."
                )
            plan = Plan(engine, self._buckets, key[0], self._device, self._switches(engine))
            mark_static(plan, *plan.shares, *self._buckets, *plan.pieces)
            if plan.ladder is not None:
                mark_static(plan.ladder, plan.ladder.store, *plan.ladder.learned)
            self._names[key] = f"plan_{next(NAMES)}"
            setattr(self.plans, self._names[key], plan)
        return self._names[key]

    def _key(self) -> Any:
        present = tuple(tuple(bucket.present()) for bucket in self._buckets)
        return present, tuple(bucket.stretches(here) for bucket, here in zip(self._buckets, present, strict=True))

    def _watch(self, engine: Engine, plan: Plan) -> None:
        """Look at all that a plan was made from: when any of it changes, the compiler traces a step again."""
        # the ladder first, before it is seen at the engine
        changed = plan.ladder is not None and plan.ladder.groups != len(plan.present)
        changed = changed or any(p.grad is not None for p in self._waiting)
        changed = changed or self._switches(engine) != plan.switches
        for share in plan.shares:
            changed = changed or share.bucket.histories != share.histories
            for p, here in zip(share.bucket.owners, share.present, strict=True):
                changed = changed or (p.grad is not None) != here
        assert not changed

    def _switches(self, engine: Engine) -> list[Any]:
        """What the layout depends on, besides parameters and their gradients: switches, and the numbers that drop out at 0."""
        found: list[Any] = []
        for group in self._groups:
            found += [
                *self._blueprints[0].switches(group).values(),
                *[group.get(name) for name in ("fused", "capturable", "learn")],
            ]
        for blueprint, level in zip(self._blueprints, engine.written(), strict=True):
            for numbers in level:
                for name, number in zip(blueprint.schema.names, numbers, strict=True):
                    if name in blueprint.schema.rule.optional and not isinstance(number, Tensor) and number == 0:
                        found.append(name)
                found.append(blueprint.height)
        return found

    # ---------------------------------------------------------------- a step

    def step(self, engine: Engine) -> None:
        """As `Engine.step`."""
        plan = self._plan(engine)
        values, gradients = self._read(engine), [piece.gradient() for piece in plan.pieces]
        plan.steps.add_(1)
        learn = engine.learning
        if learn:
            self._learn(engine, plan, gradients, first=True)
        self._update(engine, plan, gradients, values, learn)

    def hyperstep(self, engine: Engine) -> None:
        """Learn from the gradients in `p.grad` alone."""
        plan = self._plan(engine)
        self._read(engine)
        self._learn(engine, plan, [piece.gradient() for piece in plan.pieces], first=False)
        plan.clock.add_(1)
        for share in plan.shares:
            share.bucket.pending.copy_(torch.where(share.mask, 0, share.bucket.pending))

    def _read(self, engine: Engine) -> Tensor:
        """[B, A + H] values and slopes, after taking over what users and schedulers have written into the groups."""
        if torch.compiler.is_compiling():
            return engine.take(engine.written())
        engine.read()
        return engine.values

    def _pull(self, plan: Plan, gradients: Sequence[Tensor]) -> Tensor:
        ladder = plan.ladder
        assert ladder is not None
        table = torch.zeros_like(ladder.sums)
        if ladder.products is not None:
            ladder.products.zero_()
        last = ladder.store["L0/last"]
        found = [
            piece.pull(gradient, last, ladder.products).to(table)
            for piece, gradient in zip(plan.pieces, gradients, strict=True)
            if piece.bucket.recipe.own
        ]
        ladder.sums.copy_(table.index_add(0, plan.rows, torch.cat(found)) if found else table)
        return self._groups_where(plan, [torch.where(share.mask, share.bucket.pending > 0, False) for share in plan.shares])

    @staticmethod
    def _groups_where(plan: Plan, truths: Sequence[Tensor]) -> Tensor:
        """[G] whether anything is true of a parameter of a group, from truths [parameters] of each bucket."""
        counts = plan.group_of.new_zeros(len(plan.present))
        if truths:
            counts = counts.index_add(0, plan.group_of, torch.cat([x.to(counts) for x in truths]))
        return counts > 0

    def _learn(self, engine: Engine, plan: Plan, gradients: Sequence[Tensor], first: bool) -> None:
        """As `Engine.learn`."""
        assert plan.ladder is not None
        active = self._pull(plan, gradients)
        if first:
            stepped = self._groups_where(plan, [share.bucket.steps > 0 for share in plan.shares])
            due = engine.due(plan.steps[0].to(stepped.device))
            active = active | (~stepped & plan.present)
            active = (active | plan.ladder.measured() if plan.ladder.plans[0].limited else active) & due
        plan.digest.copy_(_digest(gradients, plan.clock + 1))
        plan.ladder.step(active)

    def _update(self, engine: Engine, plan: Plan, gradients: Sequence[Tensor], values: Tensor, learn: bool) -> None:
        """As `Engine.update`."""
        ladder = plan.ladder
        plan.clock.add_(1)
        if ladder is not None:
            ladder.store.divide()
            slope = ladder.store["L0/slope"]
            slope.copy_(values[:, values.shape[1] - slope.shape[1] :])
        moved = [piece.update(gradient, values, learn) for piece, gradient in zip(plan.pieces, gradients, strict=True)]
        if ladder is not None and learn and plan.learned:
            last = ladder.store["L0/last"]
            before = last[plan.indices, -1].split([len(piece.indices) for piece in plan.learned])
            found = [square for piece, square in zip(plan.pieces, moved, strict=True) if piece.bucket.recipe.own]
            squares = [old if new is None else new for old, new in zip(before, found, strict=True)]
            last.index_copy_(0, plan.indices, torch.cat((values[plan.values], torch.cat(squares).unsqueeze(1)), dim=1))
        if ladder is not None:
            ladder.store.join()
        for share in plan.shares:
            bucket = share.bucket
            bucket.steps.add_(share.mask)
            if bucket.recipe.own:
                tick = plan.clock.to(bucket.pending.device) if learn else 0
                bucket.pending.copy_(torch.where(share.mask, tick, bucket.pending))

    # ---------------------------------------------------------------- what users see

    def consumed(self) -> bool:
        """Whether nothing has happened since this program learned from the gradients that stand in `p.grad`."""
        name = self._names.get(self._key()) if self._names else None
        plan: Plan | None = getattr(self.plans, name) if name else None
        if plan is None:
            return False
        digest = _digest([piece.gradient() for piece in plan.pieces], plan.clock)
        return bool((plan.digest == digest).all())

    def pull(self, engine: Engine) -> Tensor:
        """Pull the last updates back, into the ladder's table; [G] which groups had any."""
        plan = self._plan(engine)
        return self._pull(plan, [piece.gradient() for piece in plan.pieces])


def _digest(gradients: Sequence[Tensor], clock: Tensor) -> Tensor:
    """[1 + pieces] a time, and numbers that tell gradients apart: the sums of their bits, which no order of summing changes."""
    sums = [gradient.view(BITS[gradient.itemsize]).sum() for gradient in gradients]
    return torch.stack([clock[0].to(sums[0].device), *sums]) if sums else clock
