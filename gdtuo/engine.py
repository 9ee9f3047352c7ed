"""A bound tower: the arrays laid out for an optimizer's parameter groups, and what one step does with them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .assembly import Assembly, Known, carry, rows_of, tables_of
from .blocks import Workspace
from .blueprint import Blueprint
from .collective import Collective
from .ladder import Ladder, Plan
from .layout import Bucket, Run, same
from .learned import written
from .measuring import Measuring
from .rules import Number
from .segments import SegmentedBucket
from .sharding import Ranks
from .tape import Array, numbers_of, quiet
from .traced import Traced
from .trust import Lengths

__all__ = ["Engine"]

Runs: TypeAlias = list[tuple[Bucket, Run]]  # what has a gradient, in its bucket


class Engine:
    """The weights' level at work, with the ladder above it.

    Everything that must survive stands in `groups` and `state`, where a build finds it again: adding a group,
    loading, unpickling and a change of structure are all the same build.

    Args:
        blueprints: the levels, bottom up.
        learned: names of what is learned at each level that has one above it.
        groups: those of the optimizer's `param_groups` that the tower learns.
        state: the optimizer's own.
    """

    def __init__(
        self,
        blueprints: Sequence[Blueprint],
        learned: Sequence[tuple[str, ...]],
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
    ) -> None:
        self._blueprints, self._learned, self.groups, self._state = blueprints, learned, groups, state
        self._bottom = blueprints[0]
        self._consumed: list[Any] = []  # which gradients the last step used
        self.ladder: Ladder | None = None
        self._measuring = Measuring()
        self.traced = Traced(blueprints, groups)
        self._workspace = Workspace()
        self._buckets: list[Bucket] = []
        self._known: list[Known] = []  # each group, as it was laid out
        self._marked: list[Tensor] = []  # an entry of each group by which one sees that it is still ours
        keys = [key for blueprint in blueprints for key in blueprint.numbers()]
        keys += [name for name in (*self._bottom.switches(), "fused", "capturable", "learn") if name in groups[0]]
        self._look = itemgetter(*keys, keys[0])  # of all that users may write in a group
        self.build()

    # ---------------------------------------------------------------- layout

    def build(self) -> None:
        """Lay out all arrays; entries of groups and state that fit are taken over."""
        with torch.device("cpu"):  # what names no device is the host's, whatever default a user has set
            self._build()

    def _build(self) -> None:
        self.write_state()
        self._top_shown = False
        self._seen: list[Any] = []
        self._structure = self._read_structure()
        groups = self.groups
        if any(p.device.type == "meta" for group in groups for p in group["params"]):
            raise ValueError(
                f"{self._bottom.schema.title} got parameters on the meta device, which have no numbers. Make them real first, as "
                "with model.to_empty(device='cpu'), and then the optimizer."
            )
        if self.ladder is not None and self.ladder.top is not None:
            for g in range(len(self.ladder.top.leaves)):  # what stands there already is ours, or was put there to be loaded
                groups[g].update({**self.top_state(g), **groups[g]})
        #: whether steps are tensor programs outside of torch.compile too
        self.capturable = self.traced.asked()
        counters = self._device() if self.capturable else torch.device("cpu")
        #: [G] how many steps there have been
        self.steps = torch.zeros(len(groups), dtype=torch.int64, device=counters)
        self._steps: Array = self.steps.numpy() if counters.type == "cpu" else self.steps  # the same memory
        per = self._bottom.options.per
        known = [Known(list(group["params"]), [rows_of(per, p) for p in group["params"]]) for group in groups]
        self._blocks = [1 if per == "group" else sum(each.rows) for each in known]
        self.ladder = self._build_ladder() if self._learned else None
        self._known = known
        assembly = Assembly(
            self._bottom,
            self._learned[0] if self._learned else (),
            functools.partial(self._present, 0),
            groups,
            self._last if self.ladder else None,
            self._state,
            None if self.capturable else torch.device("cpu"),
            self._workspace,
        )
        self._waiting: list[Tensor]  # frozen: given a place when they first have a gradient
        self._buckets, self._waiting = assembly.buckets()
        self._tables: dict[Ranks, Array] = {}
        self._collective: Collective | None = None
        if self.ladder is not None:
            table, sharded = self.ladder.table, self._bottom.options.sharded
            self._tables, self._collective = tables_of(self._buckets, table, len(groups), sharded)
            lengths = Lengths.of_table(self.ladder.store["L0/lengths"]).gradient.tolist() if self.ladder.plans[0].limited else ()
            self._measuring = Measuring(lengths, self._collective is not None)
        # the number of the current update; parameters that were updated together share it
        self._tick = max((int(bucket.pending.max()) for bucket in self._buckets), default=0)
        #: [1] the same, as whoever steps writes it: this engine, or its tensor program
        self.clock = torch.full((1,), self._tick, device=counters)
        self._clock: Array = self.clock.numpy() if counters.type == "cpu" else self.clock
        self._stepped = self._which_stepped()
        self.traced.build(self._buckets, self._waiting, self._device())
        if self.ladder is not None:
            eps = max((torch.finfo(bucket.recipe.dtype).eps for bucket in self._buckets), default=0.0)
            self.ladder.set_noise(eps)
            self.ladder.set_pinned([[not self._bottom.learns(name, group) for name in self._learned[0]] for group in groups])

    def _which_stepped(self) -> list[bool]:
        """Which groups have ever been updated."""
        stepped = [False] * len(self.groups)
        for bucket in self._buckets:
            for g, step in zip(bucket.groups, bucket.steps.tolist(), strict=True):
                stepped[g] = stepped[g] or step > 0
        return stepped

    def _build_ladder(self) -> Ladder:
        device = self._device()
        dtype = torch.float32 if device.type == "mps" else torch.float64
        plans = []
        for k, blueprint in enumerate(self._blueprints):
            learned = self._learned[k] if k < len(self._learned) else ()
            present = self._present(k, self.groups) if k else blueprint.schema.names
            domains = {name: blueprint.domain(name) for name in learned}
            options = blueprint.options
            closed = blueprint.closed_form(learned)
            numbers = blueprint.horizon(learned), blueprint.trust(learned)
            plans.append(Plan(blueprint.rule(), present, domains, options.per, options.hypergradient, closed, *numbers))
        sizes = [len(group["params"]) for group in self.groups]
        ladder = Ladder(plans, self._blueprints[-1].factory, self._blocks, sizes, dtype, device)
        for g, group in enumerate(self.groups):
            for name, view in ladder.store.views(g).items():
                old = group.get(name)
                if isinstance(old, Tensor) and old.shape[1:] == view.shape[1:] and len(old):
                    known = self._known[g] if g < len(self._known) else None
                    carry(old, view, name, self._bottom.options.per, known, group["params"])
                group[name] = view
            if ladder.top is not None:
                prefix = self._top_prefix
                ladder.top.load(g, {key.removeprefix(prefix): group.pop(key) for key in list(group) if key.startswith(prefix)})
            ladder.skipped[g] = int(group.get("skipped", 0))
            group["skipped"] = ladder.skipped[g]
            self.steps[g] = int(group.get("steps", 0))
            group["steps"] = self.steps[g]
        self._last: Array = numbers_of(ladder.store["L0/last"])
        self._marked = [group["L0/shift"] for group in self.groups]
        self._values: Array = numbers_of(ladder.values)
        self._slope: Array = numbers_of(ladder.store["L0/slope"])
        return ladder

    def _device(self) -> torch.device:
        """Where the numbers of the tower live: with the weights."""
        for group in self.groups:
            for p in group["params"]:
                return p.device
        if self._bottom.options.sharded and torch.accelerator.is_available():  # other ranks have parameters, and send theirs
            return torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.device("cpu")

    def _present(self, k: int, groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The hyperparameters that a rule is given: all but the optional ones that stand at 0 and stay there."""
        blueprint = self._blueprints[k]
        learned = self._learned[k] if k < len(self._learned) else ()
        columns = zip(*(blueprint.read(group) for group in groups), strict=True)
        return tuple(
            name
            for name, numbers in zip(blueprint.schema.names, columns, strict=True)
            if name not in blueprint.schema.rule.optional
            or any(isinstance(number, Tensor) or number != 0 for number in numbers)
            or (name in learned and blueprint.domain(name).learnable(0.0))
        )

    def _read_structure(self) -> list[Any]:
        """What the layout depends on, besides the parameters."""
        bottom = [
            (
                self._present(0, [group]),
                self._bottom.switches(group),
                bool(group.get("fused")),
                bool(group.get("capturable")),
                self._chosen(group),
            )
            for group in self.groups
        ]
        return [bottom, *(self._present(k, self.groups) for k in range(1, len(self._blueprints)))]

    def _chosen(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """What a group has learned, if the tower can learn it.

        Raises:
            ValueError: if the tower has no place for a name.
        """
        if not self._learned:
            return ()
        chosen = self._bottom.chosen(group) or ()
        late = [name for name in chosen if name not in self._learned[0]]
        if late:
            raise ValueError(
                f"{self._bottom.schema.title}: a group asks to learn {', '.join(late)}, which was not learned when the optimizer "
                f"was made. Name it there: learn={(*self._learned[0], *late)}."
            )
        return chosen

    @property
    def _top_prefix(self) -> str:
        return f"L{len(self._blueprints)}/state/"

    def top_state(self, g: int) -> dict[str, Tensor]:
        """The state of a torch optimizer on top, under the keys that a group saves it with."""
        top = self.ladder.top if self.ladder else None
        return {self._top_prefix + name: value for name, value in top.state(g).items()} if top else {}

    def write_state(self) -> None:
        """Bring what groups and state hold beside tensors up to date."""
        for bucket in self._buckets:
            bucket.write_state()

    # ---------------------------------------------------------------- reading what users wrote

    def read(self) -> None:
        """Take over what users and schedulers have written into the groups."""
        if not self.capturable and self._clock[0] != self._tick:
            self._catch_up()
        seen = [self._look(group) for group in self.groups]
        changed = self._changed()
        if not changed and seen == self._seen:
            return
        if changed or self._read_structure() != self._structure:
            self.build()
        numbers = self.written()
        tensors = any(isinstance(number, Tensor) for level in numbers for group in level for number in group)
        for bucket in self._buckets:
            if isinstance(bucket, SegmentedBucket):
                bucket.written = numbers[0]
        with quiet():
            self.values = self.take(numbers)
        if self.ladder is None:
            self._values = numbers_of(self.values)
        self._seen = [] if tensors else seen  # a tensor may be changed in place: read again

    def _catch_up(self) -> None:
        """The tensor program has stepped: what is kept in Python is of the past."""
        self._tick = int(self._clock[0])
        self._stepped = self._which_stepped()
        for bucket in self._buckets:
            bucket.recut()

    def renew(self) -> None:
        """Lay everything out anew if a parameter or the structure of a group asks for it."""
        if self._changed() or self._read_structure() != self._structure:
            self.build()

    def plan_name(self) -> str:
        """The name of the tensor program for what stands in groups and gradients. A compiler runs this once, while it traces."""
        return self.traced.plan_name(self)

    plan_name._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what torch.compiler.assume_constant_result sets

    def _changed(self) -> bool:
        """Whether something has no place yet, or is no longer in it."""
        return (bool(self._waiting) and any(p.grad is not None for p in self._waiting)) or self._replaced()

    def written(self) -> list[list[list[Number]]]:
        """The numbers in the groups: [level][group][hyperparameter]."""
        return [[blueprint.read(group) for group in self.groups] for blueprint in self._blueprints]

    def take(self, numbers: Sequence[Sequence[Sequence[Number]]]) -> Tensor:
        """Take numbers over; returns [B, A + H] values and slopes of the weights' level."""
        self._seen = []
        if self.ladder is None:
            return self._plain_values(numbers[0])
        columns = []
        for plan, blueprint, level in zip(self.ladder.plans, self._blueprints, numbers, strict=True):
            indices = [blueprint.schema.names.index(name) for name in plan.present]
            columns.append([[group[i] for i in indices] for group in level])
        self.ladder.write(columns)
        return self.ladder.values

    def _replaced(self) -> bool:
        """Whether somebody has put numbers or a state of their own in the place of ours: they are taken over."""
        for group, view in zip(self.groups, self._marked, strict=False):  # none is marked where nothing is learned
            if group.get("L0/shift") is not view:
                return True
        for group, known in zip(self.groups, self._known, strict=True):
            if not same(group["params"], known.params):
                return True
        return any(bucket.replaced for bucket in self._buckets)

    def _plain_values(self, numbers: Sequence[Sequence[Number]]) -> Tensor:
        """[G, A] values where nothing is learned."""
        device = self._device()
        like = torch.empty(0, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        rows = written(numbers, like)
        if all(count == 1 for count in self._blocks):
            return rows
        return rows.repeat_interleave(torch.tensor(self._blocks, device=device), dim=0, output_size=sum(self._blocks))

    def runs(self) -> Runs:
        """What has a gradient now, after reading what users wrote."""
        self._workspace.epoch += 1
        if not self.capturable and self.traced.is_captured:
            raise RuntimeError(
                f"A step of {self._bottom.schema.title} is being captured in a CUDA graph, which cannot count. Make the "
                "optimizer with capturable=True."
            )
        self.read()
        if self.capturable:
            for bucket in self._buckets:
                bucket.present()  # which raises where a step could not be done
            return []
        return [(bucket, run) for bucket in self._buckets for run in bucket.runs()]

    # ---------------------------------------------------------------- learning

    @property
    def learning(self) -> bool:
        """Whether the groups say that hyperparameters are learned."""
        return self.ladder is not None and all(group["learning"] for group in self.groups)

    def forget(self) -> None:
        """Drop what was kept of earlier updates for their pull-back."""
        for bucket in self._buckets:
            bucket.forget()

    def pull(self, runs: Runs, first: bool = False) -> Sequence[bool] | Tensor:
        """Pull the last updates of all runs that wait for it back, into the ladder's table.

        Returns:
            which groups take part: those that had any, and, if `first`, those that have never been updated.
        """
        assert self.ladder is not None
        self._clear()
        active = [False] * len(self.groups)
        for bucket, run in runs:
            if run.pending:
                bucket.pull(run, self._tables[bucket.ranks], self.ladder.products)
                for g in run.groups:
                    active[g] = True
        if first:
            self._measure(runs)
            for g in self._measuring.take():
                active[g] = True
        if first and not all(self._stepped):
            for _, run in runs:
                for g in run.groups:
                    active[g] = active[g] or not self._stepped[g]
        return active if self._collective is None else self._collective.add_up(active)

    def _clear(self) -> None:
        """Nothing has been pulled back."""
        assert self.ladder is not None
        if self._collective is not None:
            self._collective.clear()
        else:
            self._tables[()][:, : self.ladder.sums.shape[1]] = 0.0  # behind them stands what the ladder is to take up
        if self.ladder.products is not None:
            self.ladder.products.zero_()  # of parameters that have no gradient now

    def _measure(self, runs: Runs) -> None:
        self._measuring.add(runs, self._tables, self._values)

    def measure(self) -> None:
        """As a step does that is a tensor program: before its first update, which may be in it."""
        if self._measuring and self.ladder is not None and not self.traced.is_captured:
            with quiet():
                self.take(self.written())
                for bucket in self._buckets:
                    bucket.recut()  # programs count behind its back
                runs = [(bucket, run) for bucket in self._buckets for run in bucket.runs()]
                if self.learning and self.due(int(self.steps[0]) + 1):
                    self._measure(runs)
                    self._measuring.take()  # the program looks for them itself
                else:
                    self._measure_alone(runs)

    def step(self, runs: Runs) -> None:
        """Learn, if this step is one that does, and move the weights."""
        if self.capturable:
            with quiet():
                self.traced.step(self)
            return
        self._steps += 1
        if self.learning and self.due(int(self._steps[0])):
            self.learn(runs, first=True)
        else:
            if self.learning:
                self._consumed = self._marks(runs)
            if (self._limited or self._measuring) and self._collective is None:  # else lengths travel with later sums
                with quiet():
                    self._measure_alone(runs)
        self.update(runs)

    @property
    def _limited(self) -> bool:
        """Whether somebody has set a limit."""
        return self._bottom.options.trust is not None and self.ladder is not None and self.ladder.plans[0].limited

    def _measure_alone(self, runs: Runs) -> None:
        """Measure in a step that learns nothing, and keep to a limit that somebody has set."""
        assert self.ladder is not None
        if not (self.learning or self._limited):
            return
        self._measure(runs)
        if self._limited:
            self._measuring.take()
            self._clear()
            self.ladder.limit()

    def due(self, step: Any) -> Any:
        """Whether the step of this number learns; a truth value, or a tensor of one."""
        return self._bottom.options.due(step)

    def learn(self, runs: Runs, first: bool) -> None:
        """Pull back, and let the levels above step.

        Args:
            first: whether a group that has never been updated lets them step with zero gradients, as the
                published algorithm does (it matters to the step count of an Adam above).
        """
        assert self.ladder is not None
        if self.capturable:
            with quiet():
                self.traced.hyperstep(self)
            return
        with quiet():
            self._learn(runs, first)
        self._consumed = self._marks(runs)

    def _learn(self, runs: Runs, first: bool) -> None:
        assert self.ladder is not None
        active = self.pull(runs, first)
        if isinstance(active, Tensor) or any(active):
            self.ladder.step(active)
            self._show_top()
        for bucket, run in runs:
            if run.pending:
                bucket.pulled(run)

    def _show_top(self) -> None:
        """Put the state of a torch optimizer on top, which it makes at its first step, into the groups: tools save these."""
        if self.ladder is not None and self.ladder.top is not None and not self._top_shown:
            for g, group in enumerate(self.groups):
                group.update(self.top_state(g))
                self._top_shown = self._top_shown or bool(self.top_state(g))

    def update(self, runs: Runs) -> None:
        """Move the weights by one update with the effective hyperparameters."""
        self._tick += 1
        self._clock[0] = self._tick
        tick = self._tick if self.learning else 0
        if self.ladder is not None:
            self._slope[:] = self._values[:, self._values.shape[1] - self._slope.shape[1] :]
        with quiet():
            for bucket, run in runs:
                bucket.update(run, self._values, tick)
        if not all(self._stepped):
            for _, run in runs:
                for g in run.groups:
                    self._stepped[g] = True

    # ---------------------------------------------------------------- what users see

    @property
    def skipped(self) -> int:
        """How many hyper-updates were not finite."""
        return int(self.ladder.skipped.sum()) if self.ladder is not None else 0

    def hypergradients(self) -> list[Tensor]:
        """[B, H] of each learned level: of the gradients that stand in `p.grad`, or what the last step used."""
        if self.ladder is None:
            return []
        runs = self.runs()
        shown = [self.ladder.store[f"L{k}/hypergradient"] for k in range(len(self.ladder.learned))]
        stale = self.traced.consumed() or (not self.capturable and self._are_consumed(runs))
        if not self.learning or (stale and self._collective is None):
            return shown
        with quiet():  # where ranks share parameters all of them take part, whatever each has
            active = self.traced.pull(self) if self.capturable else self.pull([] if stale else runs)
        gradient = self.ladder.gradient()
        fresh = self.ladder.reports(self.ladder.pull(gradient))
        mask = torch.as_tensor(active, device=gradient.device)
        rows = [mask[rows].unsqueeze(1) for rows in self.ladder.row_group]
        return [torch.where(rows[k], new, old) for k, (new, old) in enumerate(zip(fresh, shown, strict=True))]

    def _are_consumed(self, runs: Runs) -> bool:
        """Whether the last step used these gradients."""
        pairs = list(zip(self._marks(runs), self._consumed, strict=False))
        same = all(a() is b() and a() is not None and version == known for (a, version), (b, known) in pairs)
        return same and len(pairs) == len(runs) == len(self._consumed)

    @staticmethod
    def _marks(runs: Runs) -> list[Any]:
        """Which gradients stand in the runs, without keeping them alive: each run's first, and its version."""
        gradients = [bucket.owners[run.first].grad for bucket, run in runs]
        return [(weakref.ref(gradient), gradient._version) for gradient in gradients if gradient is not None]
