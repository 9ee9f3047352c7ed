"""The levels above the first: scalars, stacked over all parameter groups, a pure function of what came before.

Level k >= 1 moves the shifts of level k - 1, an array [C, P]: C rows (blocks of level k - 1, sorted by parameter
group) by P hyperparameters. Its own hyperparameters have shifts [B, H]: one row for each group, or, learned per
element, one for each of the C · P entries. G parameter groups in all; level k + 1 has one group for each group of
level k, so a group's numbers never meet another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .domains import Domain
from .graphs import Graph, UncapturableError, capturable
from .learned import Learned, written
from .pullback import Sums, derive, elementwise_hypergradient, hypergradient, noise
from .recording import UnrecordableError
from .rules import Number, Rule
from .store import Shape, Store
from .tape import Tape, on_host
from .torch_top import TorchFactory, TorchTop
from .trust import LENGTHS, Lengths

__all__ = ["Ladder", "Plan"]

#: A step on so many rows of numbers or fewer is replayed by NumPy.
MANY = 4096


@dataclass(frozen=True)
class Plan:
    """What a level is, without its numbers."""

    rule: Rule
    present: tuple[str, ...]  # hyperparameters that the rule is given
    domains: Mapping[str, Domain]  # of those that the level above learns, in the order of its columns
    per: str
    kind: str  # "cosine" or "exact"
    closed_form: bool  # or derivatives come from the rule's `update`
    horizon: int
    trust: float  # how far an update may move the weights, inf for no limit

    @property
    def limited(self) -> bool:
        """Whether there is a limit to the learning rate."""
        return self.trust < torch.inf

    @property
    def decay(self) -> float:
        """What remains of the trace of earlier updates after one more."""
        return 1.0 - 1.0 / self.horizon


class Ladder:
    """All levels above the weights.

    Args:
        plans: the level of the weights, then the levels above it.
        factory: builds the torch optimizer that stands on top, if one does.
        blocks: how many blocks (rows of learned hyperparameters) each group of the weights' level has.
        params: how many parameters each group has.
        dtype, device: of every number here.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        factory: TorchFactory | None,
        blocks: Sequence[int],
        params: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.plans = list(plans)
        self.groups, self.device = len(blocks), device
        self.learned = [Learned(plan.domains) for plan in plans]
        if factory is None:
            self.learned.pop()  # nothing stands above the last plan
        self.blocks = [list(blocks)]  # rows per group of each level's hyperparameters
        self.state_names: list[list[str]] = [[]]
        shapes: dict[str, Shape] = {}
        for k, plan in enumerate(plans):
            if k:
                below = len(self.learned[k - 1].names)
                rows = self.blocks[-1]
                self.blocks.append([n * below for n in rows] if plan.per == "element" else [1] * self.groups)
                self.state_names.append(list(plan.rule.init(torch.zeros(1, below, dtype=dtype, device=device), plan.present)))
                shapes |= {f"L{k}/state/{name}": Shape(rows, (below,)) for name in self.state_names[k]}
                shapes[f"L{k}/step"] = Shape([1] * self.groups, (1,))
            else:
                shapes["L0/last"] = Shape(params, (len(plan.present) + len(self.learned[0].names) + 1,), lasting=False)
            if k < len(self.learned):
                here = len(self.learned[k].names)
                for name in ("shift", "slope", "hypergradient"):
                    shapes[f"L{k}/{name}"] = Shape(self.blocks[k], (here,))
                if plan.limited:
                    shapes["L0/lengths"] = Shape(self.blocks[0], (LENGTHS,))
                if k:
                    shapes[f"L{k}/trace"] = Shape(rows, (below, here))
                    shapes[f"L{k}/sums"] = Shape([1] * self.groups, (here + 1,))  # |z|², |Δ|²
        self.store = Store(shapes, dtype, device)
        names = [learned.names for learned in self.learned]
        self._noise = [
            noise(plan.rule, n, torch.finfo(dtype).eps, like=self.store.flat) for plan, n in zip(plans, names, strict=False)
        ]
        index = torch.arange(self.groups, device=device)
        self.row_group = [index.repeat_interleave(torch.tensor(rows, device=device)) for rows in self.blocks]
        self._last = len(self.learned) - 1
        self.top = TorchTop(factory, self.store[f"L{self._last}/shift"].split(self.blocks[self._last])) if factory else None
        for k, plan in enumerate(plans[1:], start=1):  # a state may start elsewhere than at 0
            for name, value in plan.rule.init(self.store[f"L{k - 1}/shift"], plan.present).items():
                self.store[f"L{k}/state/{name}"].copy_(value)

        self._allocate()

    def _allocate(self) -> None:
        """Memory that stays where it is: what goes in, what comes out, and nothing that must be saved."""
        zeros = self.store.flat.new_zeros
        first, here = self.plans[0], len(self.learned[0].names)
        rows = sum(self.blocks[0])
        elementwise = first.per == "element"
        #: [G or B, 2 H + 2]: `Sums` of the weights' blocks (of their groups, if learned per element); behind them, where
        #: updates are limited, the `Lengths` of those that are measured now
        self.table = zeros(self.groups if elementwise else rows, 2 * here + 2 + LENGTHS * first.limited)
        #: its parts
        self.sums, self.lengths = self.table[:, : 2 * here + 2], self.table[:, 2 * here + 2 :]
        #: [B, H]: products of gradient and tangent, if learned per element
        self.products = zeros(rows, here) if elementwise else None
        #: [B, H]: which hyperparameters of the weights' level stay where they are
        self.pinned = torch.zeros(rows, here, dtype=torch.bool, device=self.device)
        self.active = torch.zeros(self.groups, dtype=torch.bool, device=self.device)
        #: [B, A + H]: values of all hyperparameters of the weights' level, and slopes of the learned ones
        self.values = zeros(rows, len(first.present) + here)
        #: [G]: how often a group was frozen
        self.skipped = torch.zeros(self.groups, dtype=torch.int64, device=self.device)
        self._numbers = [zeros(self.groups, len(plan.present)) for plan in self.plans]
        for k, learned in enumerate(self.learned):
            learned.allocate(sum(self.blocks[k]), self.store.flat)
        places = [[plan.present.index(name) for name in plan.domains] for plan in self.plans]
        self._chosen = [torch.tensor(columns, dtype=torch.int64, device=self.device) for columns in places]
        names = first.present
        self._places = [names.index(name) for name in first.domains]
        #: where the learning rate stands among what is learned of the weights' level
        self._lr = self.learned[0].names.index("lr") if first.limited else 0
        self._is_lr = torch.tensor([name == "lr" for name in first.domains], device=self.device)
        weights = torch.tensor(self.blocks[0], dtype=self.store.flat.dtype, device=self.device)
        self._weights = weights[self.row_group[0]].unsqueeze(1)
        self._active: list[bool] | None = None
        # a step of many numbers would keep all its intermediate results
        few = max(sum(rows) for rows in self.blocks) <= MANY and self.top is None
        self._replays = few and (on_host(self.device) or self.device.type == "cuda")
        self._tapes: dict[Callable[[Ladder], None], Callable[[], None]] = {}
        #: [B, 1] or [rows of group, 1]: how many rows the group of each row has, of levels that are learned per element
        self._counts = [torch.bincount(rows, minlength=self.groups).unsqueeze(1)[rows] for rows in self.row_group]

    def _play(self, function: Callable[[Ladder], None]) -> None:
        """Run a method, replayed where that is faster. torch.compile traces the method itself."""
        if not self._replays or torch.compiler.is_compiling() or not (on_host(self.device) or capturable(self.device)):
            function(self)
            return
        tape = self._tapes.get(function)
        if tape is None:
            make = Tape if on_host(self.device) else Graph
            try:
                with torch.device("cpu"):  # as where it was built
                    tape = self._tapes[function] = make(lambda: function(self), state=[self.store.flat, self.skipped, self.table])
            except (UnrecordableError, UncapturableError):  # a user's rule that branches on a number
                self._replays = False
                function(self)
                return
        tape()

    def set_pinned(self, pinned: Sequence[Sequence[bool]]) -> None:
        """Take [group][hyperparameters learned] which of the weights' level a group leaves where they are."""
        rows = torch.tensor(pinned, dtype=torch.bool, device=self.device).reshape(self.groups, -1)
        self.pinned.copy_(rows[self.row_group[0]])

    def write(self, numbers: Sequence[Sequence[Sequence[Number]]]) -> None:
        """Take the written values of every level: [level][group][hyperparameters present]."""
        for mine, theirs in zip(self._numbers, numbers, strict=True):
            mine.copy_(written(theirs, like=mine))
        self._play(Ladder._written)

    def _written(self) -> None:
        for k, values in enumerate(self._numbers):
            if k < len(self.learned):
                self.learned[k].write(values[:, self._chosen[k]][self.row_group[k]])
        self.learned[0].pin(self.store["L0/shift"], self.pinned)
        self.values[:, : len(self.plans[0].present)].copy_(self._numbers[0][self.row_group[0]])
        self._evaluate(self.learned[0].project(self.store["L0/shift"]))

    def _evaluate(self, shift: Tensor) -> None:
        """Bring `values` up to date."""
        learned, count = self.learned[0], len(self.plans[0].present)
        effective, slope = learned.values(shift)
        if torch.compiler.is_compiling():  # one write, not one for each column
            columns = dict(enumerate(self._numbers[0][self.row_group[0]].unbind(1)))
            columns |= zip(self._places, effective.unbind(1), strict=True)
            self.values.copy_(torch.cat((torch.stack(list(columns.values()), dim=1), slope), dim=1))
            return
        for place, column in zip(self._places, effective.unbind(1), strict=True):
            self.values[:, place].copy_(column)
        self.values[:, count:].copy_(slope)

    def set_noise(self, eps: float) -> None:
        """Take the rounding error of the weights' dtype."""
        self._noise[0].copy_(noise(self.plans[0].rule, self.learned[0].names, eps, like=self.store.flat))

    def effective(self, k: int) -> Tensor:
        """[B, H] values of level k's learned hyperparameters."""
        return self.learned[k].effective(self.store[f"L{k}/shift"])

    def gradient(self) -> Tensor:
        """[B, H] of the first level's shifts, from `table` and `products`."""
        plan, count = self.plans[0], len(self.learned[0].names)
        sums = Sums.of_table(self.sums, count)
        if self.products is None:
            return hypergradient(plan.kind, sums, self._noise[0])
        spread = Sums(*(column[self.row_group[0]] for column in sums))
        return elementwise_hypergradient(plan.kind, self.products, spread, self._weights, self._noise[0])

    def pull(self, gradient: Tensor) -> list[Tensor]:
        """The gradients of every level's shifts, bottom up, from that of the first level's [B, H]."""
        gradients = [gradient]
        for k in range(1, len(self.learned)):
            gradients.append(self._pull(k, gradients[-1]))
        return gradients

    def _pull(self, k: int, gradient: Tensor) -> Tensor:
        """The last update of level k pulled back: [C, P] -> [B, H]."""
        plan, trace, sums = self.plans[k], self.store[f"L{k}/trace"], self.store[f"L{k}/sums"]
        products = gradient.unsqueeze(-1) * trace  # [C, P, H]
        zz, dd = sums[:, :-1], sums[:, -1:]
        gg = self._by_group(k - 1, (gradient * gradient).sum(1, keepdim=True))
        if plan.per == "element":
            rows = self.row_group[k]
            block = Sums(zz[rows], zz[rows], gg[rows], dd[rows])
            return elementwise_hypergradient(plan.kind, products.flatten(0, 1), block, self._counts[k], self._noise[k])
        return hypergradient(plan.kind, Sums(self._by_group(k - 1, products.sum(1)), zz, gg, dd), self._noise[k])

    def _by_group(self, k: int, rows: Tensor) -> Tensor:
        """Sums over the rows of each group of level k's blocks: [B, ...] -> [G, ...]."""
        if len(rows) == self.groups and max(self.blocks[k], default=0) <= 1:
            return rows
        return rows.new_zeros(self.groups, *rows.shape[1:]).index_add_(0, self.row_group[k], rows)

    def reports(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """What users see: cosines as they are, exact ones with respect to the effective value."""
        reports = []
        for k, gradient in enumerate(gradients):
            slope = self.store[f"L{k}/slope"]
            flat = slope == 0  # the value is 0 there and stays 0
            reports.append(
                torch.where(flat, 0.0, gradient / torch.where(flat, 1.0, slope)) if self.plans[k].kind == "exact" else gradient
            )
        return reports

    def step(self, active: Sequence[bool] | Tensor) -> None:
        """Every level above the weights steps once, top down, with what `table` and `products` hold.

        A group whose numbers do not stay finite keeps what it had; `skipped` counts it.

        Args:
            active: which groups take part.
        """
        self._set_active(active)
        self._play(Ladder._stepped)

    def limit(self) -> None:
        """Lower learning rates to their limits, with what `lengths` hold or have held."""
        self._set_active([True] * self.groups)
        self._play(Ladder._only_limited)

    def _set_active(self, active: Sequence[bool] | Tensor) -> None:
        if isinstance(active, Tensor):  # known on the device alone
            self._active = None
            self.active.copy_(active)
        elif active != self._active:
            self._active = list(active)
            self.active.copy_(torch.tensor(self._active, device="cpu"))

    def _only_limited(self) -> None:
        self._move(0, self._limited(self.store["L0/shift"]))
        self._evaluate(self.learned[0].project(self.store["L0/shift"]))

    def _stepped(self) -> None:
        store, snapshot = self.store, self.store.flat.clone()
        store.divide()
        gradients = self.pull(self.gradient())
        for k, report in enumerate(self.reports(gradients)):
            store[f"L{k}/hypergradient"].copy_(report)
        undo: list[tuple[int, Tensor, Tensor]] = []
        if self.top is not None:
            sizes = self.blocks[self._last]
            undo = self.top.step(
                store[f"L{self._last}/shift"].split(sizes), gradients[-1].split(sizes), self._active or [True] * self.groups
            )
            self._move(self._last, self.top.shifts())
        for k in range(len(self.plans) - 1, 0, -1):
            self._move(k - 1, self._update(k, gradients[k - 1]))
        if self.plans[0].limited:
            self._move(0, self._limited(store["L0/shift"]))
        store.join()
        finite = store.finite(self.groups)
        kept = ~(finite & self.active)
        store.keep(snapshot, kept)
        if self.top is not None:
            self.top.keep(undo, kept)
        self.skipped.add_(~finite & self.active)
        self._evaluate(self.learned[0].project(store["L0/shift"]))

    def measured(self) -> Tensor:
        """[G] which groups have weights that were measured for this step."""
        rows = self.lengths.sum(1, keepdim=True)
        return self._by_group(0, rows)[:, 0] > 0

    def _limited(self, shift: Tensor) -> Tensor:
        """The shifts of the weights' level with no learning rate above its limit."""
        plan, learned, store = self.plans[0], self.learned[0], self.store
        sums, old, new = Sums.of_table(self.sums, len(learned.names)), store["L0/lengths"], self.lengths
        before = Lengths.of_table(torch.where(new[:, :1] > 0, new, old))
        now = before.after(sums.zz[:, self._lr], sums.dd[:, 0], store["L0/slope"][:, self._lr], sums.gg[:, 0])
        now = now._replace(direction=torch.maximum(now.direction, new[:, 1]))  # 0 unless it was measured for this very step
        limit = now.limit(plan.trust, before.gradient if plan.rule.proportional else None)
        old.copy_(torch.stack(now, dim=1))
        limit = (limit / learned.written[:, self._lr]).log().unsqueeze(1)
        self.lengths.copy_(torch.where(self.active[self.row_group[0]].unsqueeze(1), 0.0, new))
        return torch.where(self._is_lr & ~self.pinned & (limit < shift), limit, shift)

    def _move(self, k: int, shifts: Tensor) -> None:
        self.store[f"L{k}/shift"].copy_(self.learned[k].project(shifts))

    def _update(self, k: int, gradient: Tensor) -> Tensor:
        """One update of level k: its new state and trace are stored, the new shifts of level k - 1 returned."""
        plan, store = self.plans[k], self.store
        shift = store[f"L{k - 1}/shift"]
        state = {name: store[f"L{k}/state/{name}"] for name in self.state_names[k]}
        step = store[f"L{k}/step"].add_(1)
        step = self._spread(k - 1, step)
        numbers = self._numbers[k].unsqueeze(-1).unbind(1)
        hyper: dict[str, Number] = {name: self._spread(k - 1, number) for name, number in zip(plan.present, numbers, strict=True)}
        if k == len(self.learned):
            delta, after = plan.rule.update(shift, gradient, state, hyper, step)
        else:
            learned = self.learned[k]
            effective, slope = learned.values(learned.project(store[f"L{k}/shift"]))
            hyper |= zip(learned.names, self._columns(k, effective).unbind(-1), strict=True)
            if plan.closed_form:
                delta, after = plan.rule.update(shift, gradient, state, hyper, step)
                _, tangents = plan.rule.replay(learned.names, shift, gradient, after, hyper, step)
            else:
                delta, tangents, after = derive(plan.rule, learned.names, shift, gradient, state, hyper, step)
            store[f"L{k}/slope"].copy_(slope)
            trace = torch.stack(tangents, dim=-1) * self._columns(k, slope)
            if plan.decay:
                trace = trace + plan.decay * store[f"L{k}/trace"]
            store[f"L{k}/trace"].copy_(trace)
            sums = torch.cat(((trace * trace).sum(1), (delta * delta).sum(1, keepdim=True)), dim=1)
            store[f"L{k}/sums"].copy_(self._by_group(k - 1, sums))
        for name, value in state.items():
            value.copy_(after[name])
        return shift + delta

    def _spread(self, k: int, groups: Tensor) -> Tensor:
        """[G, 1] -> [rows of level k, 1]."""
        return (
            groups if max(self.blocks[k], default=0) <= 1 and len(self.row_group[k]) == self.groups else groups[self.row_group[k]]
        )

    def _columns(self, k: int, values: Tensor) -> Tensor:
        """[B, H] of level k -> [C, P, H] or [C, 1, H], to broadcast against what it moves."""
        if self.plans[k].per == "element":
            return values.view(len(self.row_group[k - 1]), -1, values.shape[1])
        return self._spread(k - 1, values).unsqueeze(1)
