"""`SegmentedBucket`: parameters of an elementwise rule in flat arrays, and the numbers that govern them.

One row of hyperparameters governs a *segment*: neighbouring parameters of a group, or one parameter if it has rows of its
own. Numbers of all segments are worked on together; where there is one and it is on the CPU, as plain numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import BLOCK, Workspace
from .factors import Factors
from .graphs import Graph, UncapturableError, capturable
from .kernel import Kernel
from .layout import Bucket, Run, flattened, unflatten
from .numbers import Function
from .recipes import Recipe
from .rules import Number
from .tape import Array, on_host
from .trust import LENGTHS, measured

__all__ = ["SegmentedBucket", "Segments", "here", "like"]


@dataclass
class Segments:
    """The T segments of a run; those without a type are indices into an `Array`."""

    rows: Any  # [T] rows of the table that each adds to
    leads: Any  # [T] each one's first parameter among all parameters
    values: Any  # [T] each one's row of hyperparameters
    indices: Any  # [parameters] among all parameters
    segment: Any  # [parameters] the segment that each belongs to
    heads: Any  # [T] each one's first parameter in the bucket
    starts: list[int]  # [T] the same in the run
    of: list[int]  # [parameters] the segment that each belongs to
    lengths: list[int]  # [T] how many weights each has
    of_each: Tensor  # the same on the device
    evaluators: dict[Function, Any] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether one row of hyperparameters governs all of the run."""
        return len(self.starts) == 1


class SegmentedBucket(Bucket):
    """Abstract: says what a run's segments are and which numbers its kernels take; a subclass says how kernels run.

    Args:
        workspace: temporary memory that buckets share.
        The others are those of `Bucket`.
    """

    def __init__(self, *args: Any, workspace: Workspace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._workspace = workspace
        self._tell_apart()
        self._segments: dict[tuple[int, int], Segments] = {}
        #: the numbers that each parameter group holds, in the order of `names`; on a device the effective ones stand there
        self.written: Sequence[Sequence[Number]] = ()
        self._listed: dict[tuple[int, int], dict[str, list[Tensor]]] = {}  # states as lists, by run
        self._kernels = {kind: self.recipe.kernel(kind) for kind in self.kinds(self.recipe)}
        kernels = self._kernels.values()
        self._columns = {id(kernel): self.columns_of(kernel.factors.inputs) for kernel in kernels}
        count, own = len(self.learned), [self.learned.index(name) for name in self.recipe.own]
        #: where ⟨g, z⟩, |z|², |g|² and |Δ|² stand in a row of the table
        self.targets = [*own, *(count + i for i in own), 2 * count, 2 * count + 1]
        self._target_index = self._index(self.targets)
        dtype = torch.promote_types(self.recipe.dtype, torch.float32)
        self._factors = Factors(kernels, dtype, self.device, workspace)

    @staticmethod
    @abstractmethod
    def kinds(recipe: Recipe) -> tuple[str, ...]:
        """Kinds of kernels that a subclass runs."""

    def columns_of(self, numbers: Iterable[str]) -> list[int]:
        """Where the numbers of a kernel, but for states and the count of updates, stand in a row of values and slopes."""
        slopes = {f"slope {name}": len(self.names) + i for i, name in enumerate(self.learned)}
        others = ("step", *self.recipe.uniform)
        return [slopes[name] if name in slopes else self.names.index(name) for name in numbers if name not in others]

    def _index(self, places: Sequence[int]) -> Any:
        """Places for indexing an `Array`: a slice where they follow each other, which costs least."""
        if places and list(places) == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[0] + len(places))
        index = torch.tensor(places, dtype=torch.int64, device=self.device)
        return index.numpy() if on_host(self.device) else index

    def _initial(self) -> dict[str, Tensor]:
        rule, uniform = self.recipe.rule, self.recipe.uniform
        weights = torch.cat([flattened(p) for p in self.params])
        state = self._check_state(weights, rule.init(weights, self.recipe.present))
        first = rule.init(weights.new_ones(1), self.recipe.present)
        #: [parameters, states that are numbers]
        self.uniform = torch.stack([first[name] for name in uniform], dim=1).repeat(len(self.params), 1) if uniform else None
        return {name: array for name, array in state.items() if name not in uniform}

    def _views(self, i: int) -> dict[str, Tensor]:
        span = slice(self.offsets[i], self.offsets[i + 1])
        views = {name: unflatten(array[span], self.params[i]) for name, array in self.arrays.items()}
        return views if self.uniform is None else views | dict(zip(self.recipe.uniform, self.uniform[i].unbind(), strict=True))

    # ---------------------------------------------------------------- segments

    def _segments_of(self, run: Run) -> Segments:
        segments = self._segments.get((run.first, run.last))
        if segments is None:
            if len(self._segments) >= 64:  # gradients come and go in ever new patterns
                self._segments.clear()
            segments = self._segments[run.first, run.last] = self._cut_segments(run)
        return segments

    def _cut_segments(self, run: Run) -> Segments:
        places = self.places[run.first : run.last]
        rows = [place.group if self.per == "element" else place.row for place in places]
        starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
        firsts = set(starts)
        of, t = [], -1
        for i in range(len(rows)):
            t += i in firsts
            of.append(t)
        return Segments(
            self._index([rows[i] for i in starts]),
            self._index([places[i].index for i in starts]),
            self._index([places[i].row for i in starts]),
            self._index([place.index for place in places]),
            self._index(of) if len(starts) > 1 else slice(None),
            self._index([run.first + i for i in starts]),
            starts,
            of,
            [self.offsets[run.first + b] - self.offsets[run.first + a] for a, b in pairwise([*starts, len(places)])],
            torch.tensor(of, device=self.device),
        )

    # ---------------------------------------------------------------- numbers

    def _given(self, kernel: Kernel, run: Run, segments: Segments, rows: Array) -> Any:
        """The numbers that a kernel takes, from [T, A + H] values and slopes: numbers, or [inputs, T]."""
        columns, step = self._columns[id(kernel)], float(run.step)
        states = self.uniform if len(kernel.factors.inputs) > len(columns) + 1 else None
        if not isinstance(rows, np.ndarray):
            parts = [rows[:, i].unsqueeze(0) for i in columns]
            parts += [] if states is None else [states[segments.heads].T.to(rows)]
            return torch.cat((*parts, torch.full((1, len(rows)), step, dtype=rows.dtype, device=rows.device)))
        if segments.single:
            row = rows[0].tolist()
            return [*[row[i] for i in columns], *([] if states is None else states[run.first].tolist()), step]
        given = np.full((len(kernel.factors.inputs), len(rows)), step)
        given[: len(columns)] = rows[:, columns].T
        if states is not None:
            given[len(columns) : -1] = states[segments.heads].double().numpy().T
        return given

    @staticmethod
    def _evaluate(function: Function, segments: Segments, given: Any) -> Any:
        """A function of numbers: a list if the run has one segment and is on the CPU, else [outputs, T]."""
        if isinstance(given, Tensor):
            if torch.compiler.is_compiling() or not capturable(given.device):
                return function(given)
            if function not in segments.evaluators:
                segments.evaluators[function] = _captured(function, given)
            return segments.evaluators[function](given)
        if function not in segments.evaluators:
            segments.evaluators[function] = function.evaluator(len(segments.starts))
        return segments.evaluators[function](given)

    def _add(self, table: Array, kernel: Kernel, segments: Segments, given: Any, dots: Any, moved: Array | None = None) -> None:
        """Add a run's sums to the table.

        Args:
            given: as `_given` returned it.
            dots: [dots][T] dot products, or numbers if `given` are numbers.
            moved: [T] |Δ|² if the kernel does not find it.
        """
        if isinstance(given, list):
            row = list(self._evaluate(kernel.sums, segments, [*given, *dots]))
            if moved is not None:
                row[-1] = moved[0]
            line = table[segments.rows][0]
            for target, number in zip(self.targets, row, strict=True):
                line[target] += number
            return
        join: Any = np.concatenate if isinstance(given, np.ndarray) else torch.cat
        found = self._evaluate(kernel.sums, segments, join((given, dots)))
        if moved is not None:
            found[-1] = moved
        shape = (len(segments.starts), table.shape[1])
        result = np.zeros(shape) if isinstance(found, np.ndarray) else found.new_zeros(shape)
        result[:, self._target_index] = found.T
        table[segments.rows] += like(result, table)

    # ---------------------------------------------------------------- |Δ|², where it is kept for each parameter

    def _moved(self, segments: Segments) -> Array:
        """[T] of the last update."""
        assert self.last is not None
        numbers = here(self.last[segments.indices, -1], self.device)
        if isinstance(numbers, np.ndarray):
            return (sum(numbers.tolist()),) if segments.single else np.add.reduceat(numbers, segments.starts)
        return numbers.new_zeros(len(segments.starts)).index_add_(0, segments.of_each, numbers)

    def _keep_moved(self, kernel: Kernel, segments: Segments, given: Any, dots: Sequence[Any]) -> None:
        """Keep it after an update.

        Args:
            kernel: what found it, and was given `given`.
            dots: parts of its dot product, which together have a number for each parameter.
        """
        assert self.last is not None
        scale = self._evaluate(kernel.scale, segments, given)[0]
        if isinstance(given, list):
            squares: Any = np.array([scale * x for some in dots for x in some])
        elif isinstance(given, np.ndarray):
            squares = np.concatenate(dots) * scale[segments.of]
        else:
            squares = torch.cat(list(dots)) * scale[segments.of_each]
        self.last[segments.indices, -1] = like(squares, self.last)

    # ---------------------------------------------------------------- states that are numbers

    def _tell_apart(self) -> None:
        """Note where neighbours that one row of hyperparameters governs have other states than each other."""
        states = [] if self.uniform is None else self.uniform.tolist()
        for i in range(1, len(states)):
            differ = self.places[i].row == self.places[i - 1].row and states[i] != states[i - 1]
            self.lineage[i] = self.lineage[i - 1] + differ

    def recut(self) -> None:
        super().recut()
        self._tell_apart()

    def _renew(self, kernel: Kernel, run: Run, segments: Segments, given: Any) -> None:
        """Bring them up to date after an update, whose kernel was given `given`."""
        if self.uniform is None:
            return
        found = self._evaluate(kernel.uniform, segments, given)
        after = torch.as_tensor(found, dtype=self.uniform.dtype, device=self.device)
        self.uniform[run.first : run.last] = after if after.dim() == 1 else after.T[segments.of_each]
        # others that have had as many updates, but not these, stay apart: told without a look at numbers of a device
        now = hash((self.lineage[run.first], self._workspace.epoch))
        self.lineage[run.first : run.last] = [now] * (run.last - run.first)

    # ---------------------------------------------------------------- updates

    def lengths(self, i: int, step: int, values: Array) -> Tensor:
        recipe, span = self.recipe, slice(self.offsets[i], self.offsets[i + 1])
        row = torch.as_tensor(values[self.places[i].row], device=self.device)
        hyper = {name: row[self.names.index(name)] for name in recipe.present}
        (gradient,) = self.gradients(i, i + 1)
        arrays = [flattened(self.params[i]), flattened(gradient), *(self.arrays[name][span] for name in recipe.state)]
        uniform = {} if self.uniform is None else dict(zip(recipe.uniform, self.uniform[i].unbind(), strict=True))
        total = row.new_zeros(LENGTHS)
        for weights, g, *states in zip(*(x.split(BLOCK) for x in arrays), strict=True):  # in memory of one block
            state = {**dict(zip(recipe.state, states, strict=True)), **uniform}
            total += measured(recipe.rule, weights, g, state, hyper, step, total)
        return total

    def update(self, run: Run, values: Array, tick: int) -> None:
        segments, recipe = self._segments_of(run), self.recipe
        learn = bool(tick and recipe.own and self.last is not None)
        values = here(values, self.device)
        rows = values[segments.values]
        self._count(run)
        if (learn and recipe.traced) or not self._native(run, segments, rows, learn):
            self._update(run, segments, rows, values, learn, tick)
        if learn:
            self._remember(segments, rows)
        self._updated(run, tick)

    @abstractmethod
    def _update(self, run: Run, segments: Segments, rows: Array, values: Array, learn: bool, tick: int) -> None:
        """Run the kernel of an update: its number `run.step`.

        Args:
            rows: the segments' rows of `values`.
            learn: whether it is to be pulled back, as number `tick`.
        """

    def _native(self, run: Run, segments: Segments, rows: Array, learn: bool) -> bool:
        """Let torch's own kernel do an update, if it has one; returns whether it did."""
        params, gradients = run.params, self.gradients(run.first, run.last)
        hyper = self._given_to_native(run, segments, rows, gradients)
        if hyper is None:
            return False
        arrays = self._views_of(run.first, run.last)
        if learn and "last_weights" in arrays:
            torch._foreach_copy_(arrays["last_weights"], params)
        done = self.recipe.rule.native(params, gradients, arrays, hyper, self._step_views[run.first : run.last])
        if done and learn and "last_gradient" in arrays:
            torch._foreach_copy_(arrays["last_gradient"], gradients)
        return done

    def _views_of(self, first: int, last: int) -> dict[str, list[Tensor]]:
        """The parts of all arrays that belong to parameters first to last."""
        if (first, last) not in self._listed:
            if len(self._listed) >= 64:
                self._listed.clear()
            views = [self._views(i) for i in range(first, last)]
            self._listed[first, last] = {name: [each[name] for each in views] for name in self.arrays}
        return self._listed[first, last]

    def _given_to_native(self, run: Run, segments: Segments, rows: Array, gradients: Sequence[Tensor]) -> dict[str, Any] | None:
        """The hyperparameters as torch's kernels take them: numbers; on a CUDA device the learning rate may be a tensor.

        None where no kernel of torch can do the update.
        """
        wide = self.recipe.dtype.itemsize > 2  # torch 2.13's fused SGD is wrong in bfloat16
        if not wide or not self.recipe.native or self.recipe.spread or not segments.single:
            return None
        if not all(map(_plain, run.params, gradients)):
            return None
        if isinstance(rows, np.ndarray):
            row = rows[0].tolist()
            return {name: row[self.names.index(name)] for name in self.recipe.present}
        if self.device.type != "cuda" or self.recipe.dtype != torch.float32 or not {"lr"}.issuperset(self.recipe.own):
            return None
        row = dict(zip(self.names, self.written[run.groups[0]], strict=True))
        hyper = {name: row[name] for name in self.recipe.present if name != "lr"}
        if any(isinstance(number, Tensor) for number in hyper.values()):
            return None
        return {**hyper, "lr": rows[0, self.names.index("lr")].float()} if "lr" in self.recipe.present else hyper

    def _remember(self, segments: Segments, rows: Array) -> None:
        """Keep the values and slopes that an update used."""
        assert self.last is not None
        self.last[segments.indices, :-1] = like(rows if segments.single else rows[segments.segment], self.last)


def _plain(p: Tensor, gradient: Tensor) -> bool:
    """Whether a kernel of torch takes a parameter and its gradient as they are."""
    alike = gradient.dtype is p.dtype and not gradient.is_neg() and not p.is_complex()
    return alike and p.is_contiguous() and gradient.is_contiguous()


def _captured(function: Function, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of numbers on a CUDA device by one launch."""
    memory = like.clone()
    try:
        graph = Graph(lambda: function(memory))
    except UncapturableError:  # a user's rule that reads a number
        return function

    def run(given: Tensor) -> Tensor:
        memory.copy_(given)
        return graph()

    return run


def here(array: Array, device: torch.device) -> Array:
    """Numbers where a device needs them: NumPy's on the CPU."""
    if on_host(device):
        return array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return torch.as_tensor(array, device=device)


def like(array: Array, other: Array) -> Array:
    """Numbers of the same kind and place as others."""
    if isinstance(other, np.ndarray):
        return array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return torch.as_tensor(array, device=other.device)
