"""`Bucket`: parameters that are updated together, and what the pull-back keeps of their last update.

The parameters of one group that share device and dtype stand in one flat array, and so do their states; the
optimizer's `state[p]` holds views of torch's names and shapes. A step works on *runs*: stretches of neighbouring
parameters that have a gradient and the same history. As a rule that is one run, the whole bucket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from .pullback import Sums, derive, segment_sum
from .rules import Number, Rule

__all__ = ["Bucket", "Run"]


def flatten(tensor: Tensor) -> Tensor:
    """As a flat real array; a view where the layout allows it. Complex numbers count as pairs."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def unflatten(array: Tensor, like: Tensor) -> Tensor:
    """A view of a flat array with the shape of `like`."""
    if like.is_complex():
        return torch.view_as_complex(array.view(*like.shape, 2))
    return array.view(like.shape)


def numel(tensor: Tensor) -> int:
    """Length of `flatten(tensor)`."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


@dataclass
class Run:
    """Neighbouring parameters of a bucket with a gradient and one history."""

    bucket: Bucket
    first: int  # parameters bucket.params[first:last]
    last: int
    step: int  # updates that they have had
    pending: bool  # whether the last of them is still to be pulled back
    span: slice = field(init=False)  # their place in the flat arrays
    gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.span = slice(self.bucket.offsets[self.first], self.bucket.offsets[self.last])
        self.gradient = self.bucket.gather([p.grad for p in self.params if p.grad is not None])

    @property
    def params(self) -> list[Tensor]:
        """The parameters themselves."""
        return self.bucket.params[self.first : self.last]

    @property
    def lengths(self) -> Tensor | None:
        """How the run is cut into parameters; None if it is one."""
        if self.last - self.first == 1:
            return None
        sizes = [numel(p) for p in self.params]
        return torch.tensor(sizes, device=self.gradient.device)


class Bucket:
    """Parameters of one group, one device and one dtype, updated as one flat array if the rule is elementwise.

    Args:
        rule: what an update is.
        names: all hyperparameters of the rule; `present`, those of them that this group has.
        learned: those that the level above learns, () if nothing stands above.
        horizon: over how many updates tangents are accumulated.
        per: granularity of what is learned.
        closed_form: whether the rule's closed form differentiates its updates.
        params: the parameters; one alone if the rule is not elementwise.
        places: their indices in the group.
        rows: their first rows among the blocks of learned hyperparameters.
        last: [parameters of the group, A + H + 1] of each one's last update: the A values that it used, H
            slopes with respect to the shifts, |Δ|². Written here, kept by the tower.
        states: the optimizer's state; entries that are there already are taken over.
    """

    def __init__(
        self,
        rule: Rule,
        names: Sequence[str],
        present: Sequence[str],
        learned: tuple[str, ...],
        horizon: int,
        per: str,
        closed_form: bool,
        params: list[Tensor],
        places: list[int],
        rows: list[int],
        last: Tensor | None,
        states: Mapping[Tensor, dict[str, Any]],
    ) -> None:
        self.rule, self.names, self.present, self.learned, self.per = rule, tuple(names), tuple(present), learned, per
        # a hyperparameter that this group does not have cannot be learned here; its column stays 0
        self.own = tuple(name for name in learned if name in self.present)
        self.params, self.rows, self.last = params, rows, last
        self.places = torch.tensor(places, device=last.device if last is not None else None)
        self.decay = 1.0 - 1.0 / horizon
        self.offsets = [0, *accumulate(numel(p) for p in params)]
        # where neighbours here are no neighbours among the blocks, a run ends
        starts = {"group": [0] * len(params), "tensor": range(len(params)), "element": self.offsets}[per]
        self.gaps = [row - start for row, start in zip(rows, starts, strict=False)]
        self.reads_weights = rule.reads_weights(self.present)
        # Tangents are kept where they accumulate, where no closed form can rebuild them from the state, and
        # where the values to rebuild them with would take as much memory.
        self.traced = bool(self.own) and (horizon > 1 or per == "element" or not closed_form)
        self.closed_form = closed_form
        self.states = [states[p] for p in params]
        self._allocate()

    def _allocate(self) -> None:
        weights = self.gather(self.params)
        self.arrays = self.rule.init(weights, self.present)
        self.state_names = list(self.arrays)
        for name, array in self.arrays.items():
            if array.shape != weights.shape and self.rule.elementwise:
                raise ValueError(
                    f"{type(self.rule).__name__}.init returned {name!r} of shape {tuple(array.shape)} for weights of shape "
                    f"{tuple(weights.shape)}: the state of an elementwise rule has the weights' shape. Use "
                    "torch.zeros_like(weights), or declare elementwise = False."
                )
        if self.traced:
            self.arrays |= {f"trace_{name}": torch.zeros_like(weights) for name in self.own}
        elif self.own:
            self.arrays |= {f"last_{name}": torch.zeros_like(weights) for name in self.rule.remembers(self.own, self.present)}
        self.steps = torch.zeros(len(self.params), dtype=torch.float32)
        for i in range(len(self.params)):
            self._adopt(i)

    def _adopt(self, i: int) -> None:
        """Take over what a parameter's state holds, and put views of the bucket's arrays in its place."""
        p, state, span = self.params[i], self.states[i], slice(self.offsets[i], self.offsets[i + 1])
        # torch's SGD keeps no count: a momentum buffer says that there has been a first step
        self.steps[i] = float(state.get("step", isinstance(state.get("momentum_buffer"), Tensor)))
        state["step"] = self.steps[i]
        for name in [name for name in state if name.startswith(("trace_", "last_")) and name not in self.arrays]:
            del state[name]
        for name, array in self.arrays.items():
            view = unflatten(array[span], p) if self.rule.elementwise else array
            if isinstance(state.get(name), Tensor):
                view.copy_(state[name])
            state[name] = view
        if self.own:
            state.setdefault("pending", 0)

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parameter-shaped tensors as one new array in this bucket's layout."""
        if not self.rule.elementwise:
            return tensors[0].detach().clone()
        return torch.cat([flatten(t) for t in tensors])

    def runs(self) -> list[Run]:
        """The parameters that have a gradient, in runs of one history.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        for p in self.params:
            if p.grad is not None and p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"A parameter of shape {tuple(p.shape)} has a sparse gradient. Use sparse=False in the embedding, or "
                    "torch.optim.SparseAdam for that parameter."
                )
        # `pending` is the tick of the update that waits to be pulled back, 0 if none does: parameters that were
        # last updated together share a tick, and with it the hyperparameters of that update
        histories = zip(self.params, self.steps.tolist(), self.states, self.gaps, strict=True)
        keys = [(p.grad is not None, step, state.get("pending", 0), gap) for p, step, state, gap in histories]
        runs, first = [], 0
        for (present, step, pending, _), same in groupby(keys):
            last = first + len(list(same))
            if present:
                runs.append(Run(self, first, last, int(step), bool(pending)))
            first = last
        return runs

    def _part(self, name: str, run: Run) -> Tensor:
        array = self.arrays.get(name)
        if array is None:
            return torch.empty(0)
        return array[run.span] if self.rule.elementwise else array

    def _state(self, run: Run) -> dict[str, Tensor]:
        return {name: self._part(name, run) for name in self.state_names}

    def blocks(self, run: Run) -> slice:
        """The rows of learned hyperparameters that govern a run."""
        start = self.rows[run.first]
        if self.per == "group":
            return slice(start, start + 1)
        return slice(start, start + (run.last - run.first if self.per == "tensor" else run.span.stop - run.span.start))

    def _spread(self, rows: Tensor, run: Run) -> tuple[Tensor, ...]:
        """[blocks of the run, m] -> m values as the rule takes them: one number each, or one a weight."""
        rows = rows.to(run.gradient.device)
        if self.per == "element":
            return rows.unbind(1)
        lengths = run.lengths
        if len(rows) == 1 or lengths is None:
            return rows[0].unbind(0)
        return rows.repeat_interleave(lengths, dim=0).unbind(1)

    def pull(self, run: Run, wide: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The last update of a run pulled back.

        Returns:
            (table of `Sums`, one row a block, with z = ∂Δ/∂(shift); [n, H] products g·z if learned per element).
        """
        last = self.last[self.places[run.first : run.last]] if self.last is not None else torch.empty(0)
        lengths = run.lengths if self.per == "tensor" else None
        if self.traced:
            tangents = {name: self._part(f"trace_{name}", run).to(wide) for name in self.own}
            moved = last[:, -1:] if self.per == "tensor" else last[:, -1:].sum(0, keepdim=True)
        else:
            rows = last if self.per == "tensor" else last[:1]
            used = dict(
                zip(
                    (*self.names, *(f"slope {name}" for name in self.learned)),
                    self._spread(rows[:, :-1], run),
                    strict=True,
                )
            )
            hyper = {name: used[name] for name in self.present}
            weights, gradient = self._part("last_weights", run), self._part("last_gradient", run)
            delta, derivatives = self.rule.replay(self.own, weights, gradient, self._state(run), hyper, run.step)
            tangents = {name: (z * used[f"slope {name}"]).to(wide) for name, z in zip(self.own, derivatives, strict=True)}
            moved = segment_sum(delta.to(wide).reshape(-1).square(), lengths).unsqueeze(1)
        gradient = run.gradient.to(wide).reshape(-1)
        zero = torch.zeros((), dtype=wide, device=gradient.device).expand_as(gradient)
        flat = [tangents[name].reshape(-1) if name in tangents else zero for name in self.learned]
        table = torch.cat((Sums.table(gradient, flat, lengths), moved.to(gradient.device)), dim=1)
        return table, gradient.unsqueeze(1) * torch.stack(flat, dim=1) if self.per == "element" else None

    def update(self, run: Run, numbers: Mapping[str, Number], table: Tensor | None, tick: int) -> None:
        """Move a run's parameters by one update and remember what its pull-back will need.

        Args:
            numbers: values of the hyperparameters that are present.
            table: [B, A + H] values and slopes of the learned blocks, which override `numbers`; None if
                nothing is learned now.
            tick: number of this update, the same for all parameters that are updated together; 0 if it is
                not to be pulled back.
        """
        weights = self.gather(run.params) if self.reads_weights else run.gradient.new_empty(0)
        state, step, hyper = self._state(run), run.step + 1, dict(numbers)
        arguments = (weights, run.gradient, state, hyper, step)
        slopes: tuple[Tensor, ...] = ()
        if table is not None and self.own:
            rows = table[self.blocks(run)]
            values = self._spread(rows, run)
            hyper |= {name: values[self.names.index(name)] for name in self.own}
            slopes = values[len(self.names) :]
        if self.traced and tick and self.last is not None:
            if self.closed_form:
                delta, after = self.rule.update(*arguments)
                _, tangents = self.rule.replay(self.own, weights, run.gradient, after, hyper, step)
            else:
                delta, tangents, after = derive(self.rule, self.own, *arguments)
            for name, tangent in zip(self.own, tangents, strict=True):
                slope = slopes[self.learned.index(name)]
                self._part(f"trace_{name}", run).mul_(self.decay).add_(tangent * slope)
            squares = delta.to(self.last.dtype).reshape(-1).square()
            self.last[self.places[run.first : run.last], -1] = segment_sum(squares, run.lengths)
        else:
            delta, after = self.rule.update(*arguments)
            if tick and self.own and self.last is not None:
                self.last[self.places[run.first : run.last], :-1] = rows
                for name, value in (("last_weights", weights), ("last_gradient", run.gradient)):
                    if name in self.arrays:
                        self._part(name, run).copy_(value)
        for name, value in state.items():
            value.copy_(after[name])
        self.steps[run.first : run.last] += 1
        self._set_pending(run, tick)
        self._add(run, delta)

    def _add(self, run: Run, delta: Tensor) -> None:
        if not self.rule.elementwise:
            run.params[0].add_(delta)
            return
        parts = delta.split([numel(p) for p in run.params])
        changes = [unflatten(part, p) for part, p in zip(parts, run.params, strict=True)]
        torch._foreach_add_(run.params, changes)

    def _set_pending(self, run: Run, tick: int) -> None:
        if self.own:
            for state in self.states[run.first : run.last]:
                state["pending"] = tick

    def pulled(self, run: Run) -> None:
        """Note that the last update of a run has been pulled back."""
        self._set_pending(run, 0)

    def forget(self) -> None:
        """Drop what was kept of earlier updates."""
        for name in self.arrays.keys() - set(self.state_names):
            self.arrays[name].zero_()
        for state in self.states:
            state["pending"] = 0
