"""A bound tower: the arrays laid out for an optimizer's parameter groups, and what one step does with them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .blueprint import Blueprint
from .buckets import Bucket, Run, numel
from .hyperparameters import written
from .ladder import Ladder, Plan
from .pullback import Sums, elementwise_hypergradient, hypergradient, noise
from .rules import Number

__all__ = ["Engine"]


class Engine:
    """The weights' level at work, with the ladder above it.

    Everything that must survive stands in `groups` and `state`, where a build finds it again: adding a group,
    loading, unpickling and a change of structure are all the same build.

    Args:
        blueprints: the levels, bottom up.
        learned: names of what is learned at each level that has one above it.
        groups, state: the optimizer's own `param_groups` and `state`.
    """

    def __init__(
        self,
        blueprints: Sequence[Blueprint],
        learned: Sequence[tuple[str, ...]],
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
    ) -> None:
        self._blueprints, self._learned, self._groups, self._state = blueprints, learned, groups, state
        self._bottom = blueprints[0]
        self._consumed: list[Any] = []  # which gradients the last step used
        self.ladder: Ladder | None = None
        self.build()

    # ---------------------------------------------------------------- layout

    def build(self) -> None:
        """Lay out all arrays; entries of groups and state that fit are taken over."""
        self._written: list[Any] = []
        self._structure = self._read_structure()
        per, groups = self._bottom.options.per, self._groups
        if self.ladder is not None and self.ladder.top is not None:
            for g in range(len(self.ladder.top.leaves)):
                groups[g].update(self.top_state(g))
        sizes = [[{"group": 0, "tensor": 1, "element": numel(p)}[per] for p in group["params"]] for group in groups]
        self._blocks = [1 if per == "group" else sum(size) for size in sizes]
        self.ladder = self._build_ladder() if self._learned else None
        self._waiting: list[Tensor] = []  # frozen: given a place when they first have a gradient
        self._buckets = [self._build_buckets(g, sizes[g]) for g in range(len(groups))]
        # the number of the current update; parameters that were updated together share it
        self._tick = max((state.get("pending", 0) for bucket in self._all_buckets() for state in bucket.states), default=0)
        if self.ladder is not None:
            eps = max((torch.finfo(bucket.params[0].dtype).eps for bucket in self._all_buckets()), default=0.0)
            self._noise = noise(self._bottom.rule(), self._learned[0], eps, like=self.ladder.store.flat)

    def _build_ladder(self) -> Ladder:
        device = next((p.device for group in self._groups for p in group["params"]), torch.device("cpu"))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        plans = []
        for k, blueprint in enumerate(self._blueprints):
            learned = self._learned[k] if k < len(self._learned) else ()
            present = self._present(k, self._groups) if k else blueprint.schema.names
            domains = {name: blueprint.domain(name) for name in learned}
            options = blueprint.options
            closed = blueprint.closed_form(learned)
            plans.append(Plan(blueprint.rule(), present, domains, options.per, options.hypergradient, closed, options.horizon))
        sizes = [len(group["params"]) for group in self._groups]
        ladder = Ladder(plans, self._blueprints[-1].factory, self._blocks, sizes, dtype, device)
        for g, group in enumerate(self._groups):
            for name, view in ladder.store.views(g).items():
                old = group.get(name)
                if isinstance(old, Tensor) and old.shape == view.shape:
                    view.copy_(old)
                group[name] = view
            if ladder.top is not None:
                prefix = self._top_prefix
                ladder.top.load(g, {key.removeprefix(prefix): group.pop(key) for key in list(group) if key.startswith(prefix)})
        self._skipped = torch.tensor([int(group.get("skipped", 0)) for group in self._groups], device=device)
        for g, group in enumerate(self._groups):
            group["skipped"] = self._skipped[g]
        names = self._bottom.schema.names
        self._columns = torch.tensor([names.index(name) for name in self._learned[0]], device=device)
        return ladder

    def _build_buckets(self, g: int, sizes: Sequence[int]) -> list[Bucket]:
        group, options = self._groups[g], self._bottom.options
        rule = self._bottom.rule(group)
        row, rows = sum(self._blocks[:g]), []
        alike: dict[Any, list[int]] = {}
        for i, p in enumerate(group["params"]):
            rows.append(row)
            row += sizes[i]
            if p.requires_grad or p.grad is not None or p in self._state:
                alike.setdefault((p.device, p.dtype) if rule.elementwise else i, []).append(i)
            else:
                self._waiting.append(p)
        return [
            Bucket(
                rule,
                self._bottom.schema.names,
                self._present(0, [group]),
                self._learned[0] if self._learned else (),
                options.horizon,
                options.per,
                self._bottom.closed_form(self._learned[0] if self._learned else ()),
                [group["params"][i] for i in places],
                places,
                [rows[i] for i in places],
                self.ladder.store.views(g)["L0/last"] if self.ladder else None,
                self._state,
            )
            for places in alike.values()
        ]

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
        bottom = [(self._present(0, [group]), self._bottom.switches(group)) for group in self._groups]
        return [bottom, *(self._present(k, self._groups) for k in range(1, len(self._blueprints)))]

    def _all_buckets(self) -> Iterator[Bucket]:
        return (bucket for buckets in self._buckets for bucket in buckets)

    @property
    def _top_prefix(self) -> str:
        return f"L{len(self._blueprints)}/state/"

    def top_state(self, g: int) -> dict[str, Tensor]:
        """The state of a torch optimizer on top, under the keys that a group saves it with."""
        top = self.ladder.top if self.ladder else None
        return {self._top_prefix + name: value for name, value in top.state(g).items()} if top else {}

    # ---------------------------------------------------------------- reading what users wrote

    def read(self) -> None:
        """Take over what users and schedulers have written into the groups."""
        numbers = [[blueprint.read(group) for group in self._groups] for blueprint in self._blueprints]
        now = [numbers, [self._bottom.switches(group) for group in self._groups]]
        tensors = any(isinstance(number, Tensor) for level in numbers for group in level for number in group)
        thawed = any(p.grad is not None for p in self._waiting)
        if not tensors and not thawed and now == self._written:
            return
        if thawed or self._read_structure() != self._structure:
            self.build()
        self._written = [] if tensors else now  # a tensor may be changed in place: read again
        names = self._bottom.schema.names
        self._numbers: list[dict[str, Number]] = []
        for g, group in enumerate(self._groups):
            given = dict(zip(names, numbers[0][g], strict=True))
            self._numbers.append({name: given[name] for name in self._present(0, [group])})
        if self.ladder is not None:
            columns = []
            for plan, blueprint, level in zip(self.ladder.plans, self._blueprints, numbers, strict=True):
                indices = [blueprint.schema.names.index(name) for name in plan.present]
                columns.append(written([[group[i] for i in indices] for group in level], like=self.ladder.store.flat))
            self.ladder.write(columns)
            self._base = columns[0][self.ladder.row_group[0]]  # [B, A]

    def runs(self) -> list[list[Run]]:
        """What has a gradient now, by group, after reading what users wrote."""
        self.read()
        return [[run for bucket in buckets for run in bucket.runs()] for buckets in self._buckets]

    # ---------------------------------------------------------------- learning

    @property
    def learning(self) -> bool:
        """Whether the groups say that hyperparameters are learned."""
        return self.ladder is not None and all(group["learning"] for group in self._groups)

    def forget(self) -> None:
        """Drop what was kept of earlier updates for their pull-back."""
        for bucket in self._all_buckets():
            bucket.forget()

    def pull(self, runs: Sequence[Sequence[Run]]) -> tuple[Tensor, list[bool]]:
        """The last updates of all runs that wait for it, pulled back: [B, H], and which groups had any."""
        assert self.ladder is not None
        shift, options = self.ladder.store["L0/shift"], self._bottom.options
        elementwise = options.per == "element"
        rows, count = self.ladder.row_group[0], shift.shape[1]
        table = shift.new_zeros(len(self._groups) if elementwise else len(shift), 2 * count + 2)
        products = torch.zeros_like(shift)  # of gradient and tangent, used if learned per element
        active = [False] * len(self._groups)
        for g, run in self._pending(runs):
            part, elements = run.bucket.pull(run, shift.dtype)
            blocks = run.bucket.blocks(run)
            table[slice(g, g + 1) if elementwise else blocks] += part.to(table.device)
            if elements is not None:
                products[blocks] = elements.to(table.device)
            active[g] = True
        sums = Sums.of_table(table, count)
        if not elementwise:
            return hypergradient(options.hypergradient, sums, self._noise), active
        weights = shift.new_tensor(self._blocks)[rows].unsqueeze(1)
        spread = Sums(*(column[rows] for column in sums))
        return elementwise_hypergradient(options.hypergradient, products, spread, weights, self._noise), active

    @staticmethod
    def _pending(runs: Sequence[Sequence[Run]]) -> list[tuple[int, Run]]:
        return [(g, run) for g, some in enumerate(runs) for run in some if run.pending]

    def learn(self, runs: Sequence[Sequence[Run]], first: bool) -> None:
        """Pull back, and let the levels above step.

        Args:
            first: whether a group that has never been updated lets them step with zero gradients, as the
                published algorithm does (it matters to the step count of an Adam above).
        """
        assert self.ladder is not None
        gradient, active = self.pull(runs)
        if first:
            active = [a or (bool(some) and self._fresh(g)) for g, (a, some) in enumerate(zip(active, runs, strict=True))]
        if any(active):
            self._skipped += self.ladder.step(gradient, active)
        for _, run in self._pending(runs):
            run.bucket.pulled(run)
        self._consumed = self._marks(runs)

    def _fresh(self, g: int) -> bool:
        return not any(any(bucket.steps.tolist()) for bucket in self._buckets[g])

    def update(self, runs: Sequence[Sequence[Run]]) -> None:
        """Move the weights by one update with the effective hyperparameters."""
        table = self._table() if self.ladder is not None else None
        self._tick += 1
        tick = self._tick if self.learning else 0
        for g, some in enumerate(runs):
            for run in some:
                run.bucket.update(run, self._numbers[g], table, tick)

    def _table(self) -> Tensor:
        """[B, A + H] values of all hyperparameters and slopes of the learned ones, for every block of weights."""
        assert self.ladder is not None
        learned, store = self.ladder.learned[0], self.ladder.store
        slope = store["L0/slope"].copy_(learned.slope(store["L0/shift"]))
        return torch.cat((self._base.index_copy(1, self._columns, self.ladder.effective(0)), slope), dim=1)

    # ---------------------------------------------------------------- what users see

    @property
    def skipped(self) -> int:
        """How many hyper-updates were not finite."""
        return int(self._skipped.sum()) if self.ladder is not None else 0

    def hypergradients(self) -> list[Tensor]:
        """[B, H] of each learned level: of the gradients that stand in `p.grad`, or what the last step used."""
        if self.ladder is None:
            return []
        shown = [self.ladder.store[f"L{k}/hypergradient"] for k in range(len(self.ladder.learned))]
        runs = self.runs()
        if not self.learning or self._marks(runs) == self._consumed:
            return shown
        gradient, active = self.pull(runs)
        fresh = self.ladder.reports(self.ladder.pull(gradient))
        mask = torch.tensor(active, device=gradient.device)
        rows = [mask[rows].unsqueeze(1) for rows in self.ladder.row_group]
        return [torch.where(rows[k], new, old) for k, (new, old) in enumerate(zip(fresh, shown, strict=True))]

    @staticmethod
    def _marks(runs: Sequence[Sequence[Run]]) -> list[Any]:
        """Which gradients stand in the runs, without keeping them alive: each run's first, and its version."""
        gradients = [run.params[0].grad for some in runs for run in some]
        return [(weakref.ref(gradient), gradient._version) for gradient in gradients if gradient is not None]
