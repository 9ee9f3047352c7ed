"""Where parameters and their states stand: flat arrays, cut into runs of one history.

Parameters that share rule, device and dtype stand in one flat array, and so do their states; the optimizer's `state[p]`
holds views of torch's names and shapes. A step works on *runs*: stretches of neighbouring parameters that have a gradient
and were always updated together. As a rule that is one run, the whole bucket.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from .recipes import Recipe
from .saved import check_state
from .sharding import Ranks, as_part_of, is_distributed, local, local_gradient
from .tape import Array

__all__ = ["Bucket", "Place", "Run", "apart", "flattened", "numel", "same", "unflatten"]


def remembered(name: str) -> bool:
    """Whether an entry of a state is kept of the last update for its pull-back, rather than a part of the rule's state."""
    return name.startswith(("trace_", "last_"))


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(a) == len(b) and all(map(is_, a, b))


def unflatten(array: Tensor, like: Tensor) -> Tensor:
    """A view of a flat array with the shape of `like`. Complex numbers count as pairs."""
    if like.is_complex():
        return torch.view_as_complex(array.view(*like.shape, 2))
    return array.view(like.shape)


def apart(value: Tensor) -> Tensor:
    """The same numbers, to be copied into other memory before what they stand in is overwritten.

    torch 2.13 compiles l.copy_(w); w.copy_(n) to l = w = n: while it traces, l is to be the result of an operation.
    """
    return torch.where(value == value, value, value) if torch.compiler.is_compiling() else value


def flattened(tensor: Tensor) -> Tensor:
    """As a flat real array; a view where the layout allows it. Complex numbers count as pairs."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def numel(tensor: Tensor) -> int:
    """Length of a tensor as a flat real array."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs.

    Attributes:
        group: its parameter group.
        index: its number among all parameters.
        row: the first of the rows of hyperparameters that govern it.
    """

    group: int
    index: int
    row: int


@dataclass
class Run:
    """Neighbouring parameters of a bucket with a gradient and one history."""

    first: int  # parameters first to last of its bucket
    last: int
    step: int  # updates that they have had
    pending: int  # the number of the update that waits to be pulled back; 0 if none does
    params: list[Tensor]  # this rank's parts of them
    groups: list[int]  # the parameter group of each


class Bucket(ABC):
    """Parameters that are updated by one recipe: their states, their histories.

    Args:
        recipe: what an update is, and what is remembered of it.
        ranks: groups of ranks among which the parameters are cut.
        names: all hyperparameters of the rule, the columns of `values`.
        learned: those that the level above learns at all, the columns of what is pulled back.
        per: granularity of what is learned.
        owners, places: the optimizer's parameters and where they belong.
        last: [all parameters, A + H + 1] of each one's last update: the A values that it used, H slopes with respect to
            the shifts, |Δ|². Written here, kept by the tower. None if nothing stands above.
        states: the optimizer's state; entries that are there already are taken over.
        counters: where the counts of updates stand: on the CPU, or with the parameters for the sake of CUDA graphs.

    Attributes:
        histories: where each stretch of neighbouring parameters of one history begins; None if nobody has looked yet.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        names: Sequence[str],
        learned: Sequence[str],
        per: str,
        owners: list[Tensor],
        places: Sequence[Place],
        last: Array | None,
        states: Mapping[Tensor, dict[str, Any]],
        counters: torch.device,
    ) -> None:
        self.ranks = ranks
        self.recipe, self.names, self.learned, self.per = recipe, tuple(names), tuple(learned), per
        self.owners, self.places, self.last = owners, list(places), last
        self.distributed = any(is_distributed(p) for p in owners)
        self.params = [local(p) for p in owners] if self.distributed else owners
        self.groups = [place.group for place in places]
        self.offsets = [0, *accumulate(numel(p) for p in self.params)]
        self._states = states
        self.device = owners[0].device
        self._allocate(counters)
        self._present: list[bool] = []
        self._runs: list[Run] | None = None
        self.histories: tuple[int, ...] | None = None

    @abstractmethod
    def _views(self, i: int) -> dict[str, Tensor]:
        """What belongs to a parameter of each array, in its shape."""

    @abstractmethod
    def _initial(self) -> dict[str, Tensor]:
        """The arrays of the rule's state, before the first update."""

    def _allocate(self, counters: torch.device) -> None:
        self.arrays = self._initial()
        self.state_names = list(self.arrays)
        for name in (*self.recipe.traces, *self.recipe.remembered):
            self.arrays[name] = torch.zeros(self._shape, dtype=self.recipe.dtype, device=self.device)
        self.steps = torch.zeros(len(self.params), dtype=torch.float32, device=counters)
        self._counts: Array = self.steps.numpy() if counters.type == "cpu" else self.steps  # the same memory
        self._step_views = list(self.steps.unbind(0))
        #: the number of the update of each parameter that waits to be pulled back; 0 if none does
        self.pending = torch.zeros(len(self.params), dtype=torch.int64, device=counters)
        self._pending: Array = self.pending.numpy() if counters.type == "cpu" else self.pending
        #: each parameter's state, and the tensors in it, as they were put there
        self._dicts: list[dict[str, Any]] = []
        self._kept: list[Tensor] = []
        names = ("step", *self._views(0))
        self._tensors_of = itemgetter(*names) if len(names) > 1 else lambda state: (state["step"],)
        #: numbers that differ where histories of as many updates do, where that matters
        self.lineage = [0] * len(self.params)
        for i in range(len(self.params)):
            self._adopt(i)

    @property
    def _shape(self) -> torch.Size:
        return torch.Size((self.offsets[-1],))

    def _check_state(self, weights: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raise ValueError if the state of an elementwise rule is not as large as the weights."""
        for name, array in state.items():
            if self.recipe.rule.elementwise and array.shape != weights.shape:
                raise ValueError(
                    f"{type(self.recipe.rule).__name__}.init returned {name!r} of shape {tuple(array.shape)} for weights of "
                    f"shape {tuple(weights.shape)}: the state of an elementwise rule has their shape. Use "
                    "torch.zeros_like(weights), or declare elementwise = False."
                )
        return dict(state)

    def _adopt(self, i: int) -> None:
        """Take over what a parameter's state holds, and put views of the bucket's arrays in its place."""
        state = self._states[self.owners[i]]
        # torch's SGD keeps no count: a momentum buffer says that there has been a first step
        self.steps[i] = float(state.get("step", isinstance(state.get("momentum_buffer"), Tensor)))
        views = self._views(i)
        fits = all(local(state[name]).shape == view.shape for name, view in views.items() if name in state and remembered(name))
        self._pending[i] = state.get("pending", 0) if self.recipe.own and fits else 0
        for name in [name for name in state if remembered(name) and (name not in views or not fits)]:
            del state[name]  # of other weights
        entries = self._entries(i)
        check_state(self.owners[i], state, entries, self.recipe.rule.uniform)
        for name, view in views.items():
            if isinstance(state.get(name), Tensor):
                view.copy_(local(state[name]))
        state.update(entries)
        self._dicts.append(state)
        self._kept += [value for value in entries.values() if isinstance(value, Tensor)]

    def _entries(self, i: int) -> dict[str, Any]:
        """What the state of a parameter holds."""
        owner = self.owners[i]
        entries: dict[str, Any] = {"step": self._step_views[i]}
        shape = self.params[i].shape
        entries |= {name: as_part_of(owner, v) if v.shape == shape else v for name, v in self._views(i).items()}
        return entries | ({"pending": int(self._pending[i])} if self.recipe.own else {})

    def write_state(self) -> None:
        """Bring the plain numbers in the optimizer's state up to date."""
        if self.recipe.own:
            for state, pending in zip(self._dicts, self._pending.tolist(), strict=True):
                state["pending"] = pending

    @property
    def replaced(self) -> bool:
        """Whether somebody has put states or entries of their own in the place of ours, or parameters elsewhere."""
        if not all(map(is_, map(self._states.get, self.owners), self._dicts)) or self._elsewhere(self.owners[0]):
            return True
        try:
            return not all(map(is_, chain.from_iterable(map(self._tensors_of, self._dicts)), self._kept))
        except KeyError:
            return True

    def _elsewhere(self, p: Tensor) -> bool:
        """Whether a model has been moved, or has another dtype, since its optimizer was made."""
        return p.device != self.device or p.dtype.to_real() != self.recipe.dtype

    # ---------------------------------------------------------------- histories

    def runs(self) -> list[Run]:
        """The parameters that have a gradient, in runs of one history.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        present = self.present()
        if self.distributed:
            self._locate()
        if self._runs is None or present != self._present:
            self._present, self._runs = present, self._cut(present)
        return self._runs

    def present(self) -> list[bool]:
        """Which parameters have a gradient.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        gradients = [p.grad for p in self.owners]
        for p, gradient in zip(self.owners, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise RuntimeError(
                    f"A parameter of shape {tuple(p.shape)} has a sparse gradient. Use sparse=False in the embedding, or "
                    "torch.optim.SparseAdam for that parameter."
                )
        return [gradient is not None for gradient in gradients]

    def _locate(self) -> None:
        """Look up this rank's parts anew: who shards a model may move them."""
        parts = [local(p) for p in self.owners]
        if any(a.data_ptr() != b.data_ptr() for a, b in zip(parts, self.params, strict=True)):
            self.params[:], self._runs = parts, None

    def gradients(self, first: int, last: int) -> list[Tensor]:
        """This rank's parts of the gradients of parameters first to last, all of which have one."""
        if self.distributed:
            return [local_gradient(p) for p in self.owners[first:last]]
        return [p.grad for p in self.owners[first:last] if p.grad is not None]

    def _cut(self, present: Sequence[bool]) -> list[Run]:
        # parameters that were last updated together share a tick, and with it the hyperparameters of that update
        keys = zip(present, self._counts.tolist(), self._pending.tolist(), self._strides(), self.lineage, strict=True)
        runs, starts, first = [], [], 0
        for (here, step, tick, *_), together in groupby(keys):
            last = first + len(list(together))
            if here:
                part = slice(first, last)
                runs.append(Run(first, last, int(step), tick, self.params[part], self.groups[part]))
            starts.append(first)
            first = last
        self.histories = tuple(starts)
        return runs

    def recut(self) -> None:
        """Cut runs anew: counts have changed behind their back."""
        self._runs = None

    def stretches(self, present: Sequence[bool]) -> tuple[int, ...]:
        """Cut `histories` where parameters with a gradient meet those without: so they hold before a step and ever after."""
        if self.histories is None:
            self._cut(present)
        known = set(self.histories or ())
        self.histories = tuple(i for i, here in enumerate(present) if i in known or here != present[i - 1])
        return self.histories

    def _strides(self) -> list[int]:
        """Numbers that differ where neighbours here are no neighbours among the rows that are learned per element."""
        if self.per != "element":
            return [0] * len(self.params)
        return [place.row - offset for place, offset in zip(self.places, self.offsets, strict=False)]

    def _count(self, run: Run) -> None:
        """Note that a run is being updated."""
        self._counts[run.first : run.last] += 1
        run.step += 1

    def _updated(self, run: Run, tick: int) -> None:
        """Note that a run has been updated, to be pulled back if `tick` is not 0."""
        self._set_pending(run, tick)
        if self._runs is not None and len(self._runs) > 1:
            self._runs = None  # runs may have grown together

    def _set_pending(self, run: Run, tick: int) -> None:
        if self.recipe.own:
            run.pending = tick
            self._pending[run.first : run.last] = tick
            for state in self._dicts[run.first : run.last]:
                state["pending"] = tick

    def pulled(self, run: Run) -> None:
        """Note that the last update of a run has been pulled back."""
        self._set_pending(run, 0)

    def forget(self) -> None:
        """Drop what was kept of earlier updates."""
        for name in self.arrays.keys() - set(self.state_names):
            self.arrays[name].zero_()
        self._pending[:] = 0
        self.write_state()
        self._runs = None

    # ---------------------------------------------------------------- arithmetic

    @abstractmethod
    def lengths(self, i: int, step: int, values: Array) -> Tensor:
        """[3] `trust.Lengths` of a parameter before an update.

        Args:
            i: the parameter's number here.
            step: the update's number.
            values: as `update` takes them.
        """

    @abstractmethod
    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        """Add the last update of a run, pulled back, to a table of `Sums`: one row for each row of hyperparameters.

        If hyperparameters are learned per element, the table has a row for each group, and the products g z of each
        weight go to `products`.
        """

    @abstractmethod
    def update(self, run: Run, values: Array, tick: int) -> None:
        """Move a run's parameters by one update and remember what its pull-back will need.

        Args:
            values: [B, A + H] values of all hyperparameters and slopes of the learned ones, for every row.
            tick: number of this update, the same for all parameters that are updated together; 0 if it is not to be
                pulled back.
        """
