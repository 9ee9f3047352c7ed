"""A bound tower: the arrays laid out for an optimizer's parameter groups, and what one step does with them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .blocks import Workspace
from .blueprint import Blueprint
from .collective import Collective
from .ladder import Ladder, Plan
from .large import LargeBucket
from .layout import Bucket, Place, Run, numel, same
from .learned import written
from .recipes import Recipe
from .recording import UnrecordableError
from .rules import Number
from .segments import SegmentedBucket, like
from .sharding import Ranks, is_distributed, ranks_of
from .small import SmallBucket
from .tape import Array, on_host, quiet
from .traced import Traced
from .trust import LENGTHS
from .whole import WholeBucket

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
        self._unmeasured: set[int] = set()
        self.traced = Traced(blueprints, groups)
        self._workspace = Workspace()
        self._buckets: list[Bucket] = []
        self._params: list[list[Tensor]] = []  # of each group, as they were laid out
        self._sizes: list[list[int]] = []  # of each, how many rows of hyperparameters it has
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
        sizes = [[self._rows_of(p) for p in group["params"]] for group in groups]
        self._blocks = [1 if self._bottom.options.per == "group" else sum(size) for size in sizes]
        self.ladder = self._build_ladder() if self._learned else None
        self._params, self._sizes = [list(group["params"]) for group in groups], sizes
        self._waiting: list[Tensor] = []  # frozen: given a place when they first have a gradient
        self._buckets = self._build_buckets(sizes)
        self._tables, self._collective = self._build_tables()
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
                    self._carry(g, name, old, view)
                group[name] = view
            if ladder.top is not None:
                prefix = self._top_prefix
                ladder.top.load(g, {key.removeprefix(prefix): group.pop(key) for key in list(group) if key.startswith(prefix)})
            ladder.skipped[g] = int(group.get("skipped", 0))
            group["skipped"] = ladder.skipped[g]
            self.steps[g] = int(group.get("steps", 0))
            group["steps"] = self.steps[g]
        self._last: Array = _numbers(ladder.store["L0/last"])
        self._marked = [group["L0/shift"] for group in self.groups]
        lengths = ladder.store["L0/lengths"][:, 0].tolist() if ladder.plans[0].limited else ()
        #: rows of hyperparameters whose weights have never been measured
        self._unmeasured = {row for row, length in enumerate(lengths) if length == 0}
        self._measured: set[int] = set()  # groups whose lengths the ladder has still to take up
        self._values: Array = _numbers(ladder.values)
        self._slope: Array = _numbers(ladder.store["L0/slope"])
        return ladder

    def _carry(self, g: int, name: str, old: Tensor, view: Tensor) -> None:
        """Take a group's rows of a number over; those of parameters that it no longer has are dropped."""
        now, known = self.groups[g]["params"], self._params[g] if g < len(self._params) else None
        if known is None or same(known, now):
            if len(old) == len(view):
                view.copy_(old)
            elif name == "L0/last":  # of the parameters that another rank had: updated together they all say the same
                view.copy_(old[-1:])
            return
        sizes = [1] * len(known) if name == "L0/last" else self._sizes[g]
        if sum(sizes) != len(old) or (self._bottom.options.per == "group" and name != "L0/last"):
            if len(old) == len(view):  # the group's own
                view.copy_(old)
            return
        parts, places = old.split(sizes), {id(p): i for i, p in enumerate(known)}
        here, start = {id(p) for p in now}, 0
        for i, p in enumerate(now):
            size = 1 if name == "L0/last" else self._rows_of(p)
            gone = i < len(known) and id(known[i]) not in here  # p stands in its place
            part = parts[places[id(p)]] if id(p) in places else parts[i] if gone else None
            if part is not None and len(part) == size:
                view[start : start + size].copy_(part)
            start += size

    def _rows_of(self, p: Tensor) -> int:
        """How many rows of hyperparameters a parameter has of its own."""
        return {"group": 0, "tensor": 1, "element": numel(p)}[self._bottom.options.per]

    def _device(self) -> torch.device:
        """Where the numbers of the tower live: with the weights."""
        for group in self.groups:
            for p in group["params"]:
                return p.device
        if self._bottom.options.sharded and torch.accelerator.is_available():  # other ranks have parameters, and send theirs
            return torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.device("cpu")

    def _build_buckets(self, sizes: Sequence[Sequence[int]]) -> list[Bucket]:
        alike: dict[Any, list[tuple[Tensor, Place]]] = {}
        index = row = 0
        for g, group in enumerate(self.groups):
            sharded = self._bottom.options.sharded
            recipe_of = {dtype: self._recipe(group, dtype) for dtype in {_real(p) for p in group["params"]}}
            fused = bool(group.get("fused"))
            for p, size in zip(group["params"], sizes[g], strict=True):
                if self._bottom.options.per == "element" and not numel(p):
                    pass  # no row of hyperparameters governs it, and no weight asks for one
                elif p.requires_grad or p.grad is not None or p in self._state:
                    recipe = recipe_of[_real(p)]
                    own = index if not _recordable(recipe) else None
                    ranks = ranks_of(p, sharded)
                    self._check_cut(p, ranks, recipe)
                    alike.setdefault((recipe, p.device, fused, own, ranks), []).append((p, Place(g, index, row)))
                else:
                    self._waiting.append(p)
                index, row = index + 1, row + size
            row += self._bottom.options.per == "group"
        buckets: list[Bucket] = []
        for (recipe, device, fused, own, ranks), members in alike.items():
            arguments = (
                recipe,
                ranks,
                self._bottom.schema.names,
                self._learned[0] if self._learned else (),
                self._bottom.options.per,
                [p for p, _ in members],
                [place for _, place in members],
                self._last if self.ladder else None,
                self._state,
                device if self.capturable else torch.device("cpu"),
            )
            if own is None and SmallBucket.fits(recipe, [p for p, _ in members]):
                buckets.append(SmallBucket(*arguments, workspace=self._workspace))
            elif own is None:
                buckets.append(LargeBucket(*arguments, fused=fused, workspace=self._workspace))
            else:
                buckets.append(WholeBucket(*arguments))
        return buckets

    def _check_cut(self, p: Tensor, ranks: Ranks, recipe: Recipe) -> None:
        """Raise ValueError if a parameter that is cut among ranks cannot be worked on in parts."""
        if not ranks:
            return
        title, per = self._bottom.schema.title, self._bottom.options.per
        if per == "element" and self._learned:
            raise ValueError(
                f"{title} got per='element' for parameters that are cut among ranks: each rank would have other hyperparameters. "
                "Use per='tensor', or train without sharding."
            )
        if is_distributed(p) and not recipe.rule.elementwise:
            raise ValueError(
                f"{title} got a parameter of shape {tuple(p.shape)} of which each rank has a part, and its rule looks at whole "
                "tensors. Use ZeroRedundancyOptimizer, which keeps tensors whole, or an elementwise optimizer, as gdtuo.AdamW."
            )
        if per == "tensor" and self._learned and not is_distributed(p):
            raise ValueError(
                f"{title} got per='tensor' with sharded=: from plain tensors it cannot tell whether ranks hold parts of the same "
                "tensors or different ones. Use per='group', or fully_shard, whose parameters say so themselves."
            )

    def _build_tables(self) -> tuple[dict[Ranks, Array], Collective | None]:
        """Where buckets add their sums, by how their parameters are cut, and what adds these up over ranks."""
        if self.ladder is None:
            return {}, None
        kinds = [bucket.ranks for bucket in self._buckets]
        if self._bottom.options.sharded:
            kinds += [ranks_of(torch.empty(0), self._bottom.options.sharded)]  # also where this rank has no parameters
        if not any(kinds):
            return {(): _numbers(self.ladder.table)}, None
        collective = Collective(kinds, self.ladder.table, len(self.groups))
        return {kind: _numbers(table) for kind, table in collective.tables.items()}, collective

    def _recipe(self, group: Mapping[str, Any], dtype: torch.dtype) -> Recipe:
        options, rule, present = self._bottom.options, self._bottom.rule(group), self._present(0, [group])
        try:
            hash(rule)
        except TypeError as error:
            raise TypeError(
                f"{type(rule).__name__} has a switch that cannot be hashed: {error}. Give a tuple, not a list."
            ) from error
        learned = self._learned[0] if self._learned else ()
        # a hyperparameter that this group does not have cannot be learned here; its column stays 0
        own = tuple(name for name in learned if name in present and self._bottom.learns(name, group))
        closed_form = self._bottom.closed_form(learned)
        spread = options.per == "element"
        # Tangents are kept where they accumulate, where no closed form can rebuild them from the state, and
        # where the values to rebuild them with would take as much memory.
        horizon, limited = self._bottom.horizon(learned), self._bottom.trust(learned) < torch.inf
        traced = bool(own) and (horizon > 1 or spread or not closed_form)
        noisy = options.hypergradient == "cosine" and not rule.direct.issuperset(own)
        moved = bool(own) and (noisy or limited)
        return Recipe(rule, present, own, dtype, traced, closed_form, 1.0 - 1.0 / horizon, spread, moved)

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
            self._values = _numbers(self.values)
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
        for group, known in zip(self.groups, self._params, strict=True):
            if not same(group["params"], known):
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
        if self._collective is not None:
            self._collective.clear()
        else:
            self._tables[()][:, : self.ladder.sums.shape[1]] = 0.0  # behind them stands what the ladder is to take up
        if self.ladder.products is not None:
            self.ladder.products.zero_()  # of parameters that have no gradient now
        active = [False] * len(self.groups)
        for bucket, run in runs:
            if run.pending:
                bucket.pull(run, self._tables[bucket.ranks], self.ladder.products)
                for g in run.groups:
                    active[g] = True
        if first:
            self._measure(runs)
            for g in self._measured:
                active[g] = True
            self._measured.clear()
        if first and not all(self._stepped):
            for _, run in runs:
                for g in run.groups:
                    active[g] = active[g] or not self._stepped[g]
        return active if self._collective is None else self._collective.add_up(active)

    def _measure(self, runs: Runs) -> None:
        """Add the lengths of weights that have never been measured to the tables."""
        if not self._unmeasured:
            return
        done, rows = set[int](), sorted(self._unmeasured)
        for table in self._tables.values():
            table[rows, -LENGTHS:] = 0.0  # what a gradient of 0 has left there
        for bucket, run in runs:
            for i in range(run.first, run.last) if bucket.recipe.own else ():
                place = bucket.places[i]
                if place.row in self._unmeasured:
                    lengths = bucket.lengths(i, run.step + 1, self._values).nan_to_num(0.0, 0.0)
                    line = self._tables[bucket.ranks][place.row, -LENGTHS:]
                    line += like(lengths, line)
                    if self._collective is not None or lengths[-1] > 0:  # else it says nothing of the next
                        done.add(place.row)
                    self._measured.add(place.group)
        self._unmeasured -= done

    def measure(self) -> None:
        """Let the ladder know the lengths of weights that have never been measured, for a step that is a tensor program."""
        if self.ladder is not None and self._unmeasured and self.learning and not self.traced.is_captured:
            with quiet():
                self.take(self.written())
                self._measure([(bucket, run) for bucket in self._buckets for run in bucket.runs()])

    def step(self, runs: Runs) -> None:
        """Learn, if this step is one that does, and move the weights."""
        if self.capturable:
            with quiet():
                self.traced.step(self)
            return
        self._steps += 1
        if self.learning:
            if self.due(int(self._steps[0])):
                self.learn(runs, first=True)
            else:
                self._consumed = self._marks(runs)
                if self._collective is None:  # else they travel with the sums of the first step that learns
                    self._measure(runs)
        self.update(runs)

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
        stale = self.traced.consumed() or (not self.capturable and self._marks(runs) == self._consumed)
        if not self.learning or (stale and self._collective is None):
            return shown
        with quiet():  # where ranks share parameters all of them take part, whatever each has
            active = self.traced.pull(self) if self.capturable else self.pull([] if stale else runs)
        gradient = self.ladder.gradient()
        fresh = self.ladder.reports(self.ladder.pull(gradient))
        mask = torch.as_tensor(active, device=gradient.device)
        rows = [mask[rows].unsqueeze(1) for rows in self.ladder.row_group]
        return [torch.where(rows[k], new, old) for k, (new, old) in enumerate(zip(fresh, shown, strict=True))]

    @staticmethod
    def _marks(runs: Runs) -> list[Any]:
        """Which gradients stand in the runs, without keeping them alive: each run's first, and its version."""
        gradients = [bucket.owners[run.first].grad for bucket, run in runs]
        return [(weakref.ref(gradient), gradient._version) for gradient in gradients if gradient is not None]


def _numbers(tensor: Tensor) -> Array:
    """The same memory as an array of numbers."""
    return tensor.numpy() if on_host(tensor.device) else tensor


def _real(p: Tensor) -> torch.dtype:
    return p.dtype.to_real()


@functools.lru_cache(1024)
def _recordable(recipe: Recipe) -> bool:
    """Whether a recipe has kernels; else its rule is called for each parameter."""
    if not recipe.rule.elementwise:
        return False
    try:
        for kind in ("update", "learn", "pull") if recipe.own else ("update",):
            recipe.kernel(kind)
    except UnrecordableError:
        return False
    return True
