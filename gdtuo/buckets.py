"""`FlatBucket`: parameters of an elementwise rule, updated and pulled back as flat arrays."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .blocks import BLOCK, Blocks, Workspace
from .fused import ROW, Compiled
from .kernel import Kernel
from .layout import Bucket, Run, numel, unflatten
from .tape import Array

__all__ = ["FlatBucket"]

#: Parameters of at least so many weights are worked on where they stand; smaller ones are gathered first.
DIRECT = 16384


@functools.lru_cache(1024)
def _blocks(kernel: Kernel) -> Blocks:
    return Blocks(kernel)


@functools.lru_cache(1024)
def _compiled(kernel: Kernel) -> Compiled:
    return Compiled(kernel)


@dataclass
class Piece:
    """Parameters of a run that are worked on together: one large one where it stands, or small ones gathered."""

    first: int
    last: int
    start: int  # their place in the flat arrays
    stop: int
    segments: slice
    lengths: list[int]  # of its part in each segment
    direct: bool
    flat: dict[str, Tensor] = field(default_factory=dict)  # what small ones are gathered into
    shaped: dict[str, list[Tensor]] = field(default_factory=dict)  # its views in the parameters' shapes
    slices: dict[str, Tensor] = field(default_factory=dict)  # of the bucket's arrays
    blocks: dict[str, Sequence[Tensor]] = field(default_factory=dict)  # the same, cut into blocks


class Dots(NamedTuple):
    """Where the sums that belong to tangents stand among the dot products, and their factors, as indices."""

    gz: Any
    zz: Any
    factors: Any


@dataclass
class Layout:
    """How a run is worked on: its segments, T stretches that one row of hyperparameters governs, and its pieces."""

    pieces: list[Piece]
    rows: Any  # [T] rows of the table that it adds to
    leads: Any  # [T] each segment's first parameter among all parameters
    values: Any  # [T] each segment's row of hyperparameters
    indices: Any  # [parameters] among all parameters
    segment: Any  # [parameters] the segment that each belongs to
    starts: list[int]  # [T] each segment's first parameter in the run
    memory: dict[Kernel, Any] = field(default_factory=dict)


class FlatBucket(Bucket):
    """Parameters of an elementwise rule, in one flat array.

    Args:
        fused: whether kernels are compiled where arrays are long enough.
        workspace: temporary memory that buckets share.
        The others are those of `Bucket`.
    """

    def __init__(self, *args: Any, fused: bool, workspace: Workspace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fused, self._workspace = fused, workspace
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._own = self._index([self.learned.index(name) for name in self.recipe.own])
        self._numbers = {kernel: self._index(self._columns(kernel.factors.inputs)) for kernel in self._kernels()}
        self._dots = {
            kernel: Dots(
                self._index([dot for dot, _ in kernel.gz]),
                self._index([dot for dot, _ in kernel.zz]),
                self._index([factor for _, factor in kernel.gz]),
            )
            for kernel in self._kernels()
        }
        self._slopes = self._index([len(self.names) + self.learned.index(name) for name in self.recipe.own])
        spread = [f"{prefix}{name}" for name in self.recipe.own for prefix in ("", "slope ")] if self.recipe.spread else []
        self._spread = dict(zip(spread, self._columns(spread), strict=True))  # what is an array, one number a weight

    def _kernels(self) -> list[Kernel]:
        kinds = ("update", "learn", "pull") if self.recipe.own else ("update",)
        return [self.recipe.kernel(kind) for kind in kinds]

    def _columns(self, numbers: Iterable[str]) -> list[int]:
        """Where the numbers of a kernel, but for the count of updates, stand in a row of values and slopes."""
        slopes = {f"slope {name}": len(self.names) + i for i, name in enumerate(self.learned)}
        return [slopes[name] if name in slopes else self.names.index(name) for name in numbers if name != "step"]

    def _index(self, places: Sequence[int]) -> Any:
        """Places for indexing an `Array`: a slice where they follow each other, which costs least."""
        if places and list(places) == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[0] + len(places))
        index = torch.tensor(places, dtype=torch.int64, device=self.device)
        return index.numpy() if self.device.type == "cpu" else index

    def _initial(self) -> dict[str, Tensor]:
        weights = torch.cat([_flattened(p) for p in self.params])
        state = self.recipe.rule.init(weights, self.recipe.present)
        for name, array in state.items():
            if array.shape != weights.shape:
                raise ValueError(
                    f"{type(self.recipe.rule).__name__}.init returned {name!r} of shape {tuple(array.shape)} for weights of shape "
                    f"{tuple(weights.shape)}: the state of an elementwise rule has the weights' shape. Use "
                    "torch.zeros_like(weights), or declare elementwise = False."
                )
        return state

    def _views(self, i: int) -> dict[str, Tensor]:
        span = slice(self.offsets[i], self.offsets[i + 1])
        return {name: unflatten(array[span], self.params[i]) for name, array in self.arrays.items()}

    # ---------------------------------------------------------------- how a run is cut

    def _layout(self, run: Run) -> Layout:
        layout = self._layouts.get((run.first, run.last))
        if layout is None:
            if len(self._layouts) >= 64:  # gradients come and go in ever new patterns
                self._layouts.clear()
            layout = self._layouts[run.first, run.last] = self._cut_pieces(run)
        return layout

    def _cut_pieces(self, run: Run) -> Layout:
        places = self.places[run.first : run.last]
        rows = [place.group if self.per == "element" else place.row for place in places]
        starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
        segment = [sum(start <= i for start in starts) - 1 for i in range(len(rows))]
        return Layout(
            list(self._pieces(run, segment)),
            self._index([rows[i] for i in starts]),
            self._index([places[i].index for i in starts]),
            self._index([places[i].row for i in starts]),
            self._index([place.index for place in places]),
            self._index(segment) if len(starts) > 1 else slice(None),
            starts,
        )

    def _pieces(self, run: Run, segment: Sequence[int]) -> Iterable[Piece]:
        first = run.first
        while first < run.last:
            last = first + 1
            while not self._alone(first) and last < run.last and not self._alone(last) and self._joins(first, last, run, segment):
                last += 1
            inside = segment[first - run.first : last - run.first]
            sizes = [numel(p) for p in self.params[first:last]]
            lengths = [sum(n for n, s in zip(sizes, inside, strict=True) if s == t) for t in range(inside[0], inside[-1] + 1)]
            segments = slice(inside[0], inside[-1] + 1)
            yield Piece(first, last, self.offsets[first], self.offsets[last], segments, lengths, self._alone(first))
            first = last

    def _alone(self, i: int) -> bool:
        p = self.params[i]
        return p.numel() >= DIRECT and p.is_contiguous() and not p.is_complex()

    def _joins(self, first: int, last: int, run: Run, segment: Sequence[int]) -> bool:
        """Whether a parameter joins a piece: while it fits a block, and segments of a size are not mixed."""
        size = self.offsets[last] - self.offsets[first]
        mixes = segment[last - run.first] != segment[first - run.first]
        return self.offsets[last + 1] - self.offsets[first] <= BLOCK and not (mixes and size >= DIRECT)

    # ---------------------------------------------------------------- arrays

    def _array(self, name: str, piece: Piece) -> Tensor:
        """A flat array of a piece: weights and gradients as they are now."""
        if name not in ("weights", "gradient"):
            if name not in piece.slices:
                piece.slices[name] = self.arrays[name][piece.start : piece.stop]
            return piece.slices[name]
        params = self.params[piece.first : piece.last]
        if piece.direct and params[0].is_contiguous():
            tensor = params[0] if name == "weights" else params[0].grad
            assert tensor is not None
            return tensor.detach().reshape(-1)
        dtype = self.recipe.dtype
        if name not in piece.flat:
            length = piece.stop - piece.start
            large = length > BLOCK  # a large parameter whose memory is not contiguous
            flat = (
                torch.empty(length, dtype=dtype, device=self.device)
                if large
                else self._workspace.get(name, length, dtype, self.device)
            )
            piece.flat[name] = flat
            sizes = [numel(p) for p in params]
            piece.shaped[name] = [unflatten(part, p) for part, p in zip(flat.split(sizes), params, strict=True)]
        sources = params if name == "weights" else [p.grad for p in params]
        torch._foreach_copy_(piece.shaped[name], sources)
        return piece.flat[name]

    def _scatter(self, piece: Piece) -> None:
        """Put gathered weights back."""
        if "weights" in piece.flat:
            torch._foreach_copy_(self.params[piece.first : piece.last], piece.shaped["weights"])
            if piece.stop - piece.start > BLOCK:
                piece.flat.clear()
                piece.shaped.clear()

    # ---------------------------------------------------------------- numbers

    def _factors(self, kernel: Kernel, layout: Layout, rows: Array, step: int) -> Array:
        """[factors, T] from [T, A + H] values and slopes."""
        if not isinstance(rows, np.ndarray):
            counts = torch.full((1, len(rows)), float(step), dtype=rows.dtype, device=rows.device)
            return kernel.factors.evaluate(torch.cat((rows[:, self._numbers[kernel]].T, counts)))
        if kernel not in layout.memory:
            layout.memory[kernel] = kernel.factors.replay(len(rows))
        given, results, run = layout.memory[kernel]
        given[: len(given) - 1] = rows[:, self._numbers[kernel]].T
        given[-1] = step
        run()
        return results

    def _scalars(self, factors: Array, piece: Piece) -> list[Any]:
        """The factors of a piece: numbers, or arrays where its parameters differ."""
        if len(piece.lengths) > 1:
            dtype = torch.promote_types(self.recipe.dtype, torch.float32)
            lengths = torch.tensor(piece.lengths, device=self.device)
            part = torch.as_tensor(factors[:, piece.segments]).to(dtype)
            total = piece.stop - piece.start
            return list(part.repeat_interleave(lengths, dim=1, output_size=total).unbind(0))
        column = factors[:, piece.segments.start]
        return column.tolist() if isinstance(column, np.ndarray) else list(column.unbind(0))

    # ---------------------------------------------------------------- running a kernel

    def _run(
        self, kernel: Kernel, piece: Piece, factors: Array, lengths: Sequence[int], values: Array | None = None
    ) -> tuple[Array, list[Tensor]]:
        """Run a kernel over a piece: ([dots, stretches] of `lengths`, the input arrays of the piece)."""
        arrays = [Tensor() if name in self._spread else self._array(name, piece) for name in kernel.inputs]
        numpy = self.device.type == "cpu" and isinstance(factors, np.ndarray)
        shape = (len(kernel.dots), len(lengths))
        sums: Any = np.zeros(shape) if numpy else torch.zeros(shape, dtype=factors.dtype, device=self.device)
        done, total = 0, piece.stop - piece.start
        if self._fused and Compiled.usable and len(lengths) == 1 and len(piece.lengths) == 1 and values is None:
            done = total // ROW * ROW if total >= 2 * ROW else 0
            if done:
                result = self._run_compiled(kernel, arrays, factors[:, piece.segments.start], done)
                if result is None:
                    done = 0
                elif kernel.dots:
                    sums[:, 0] += result.numpy() if numpy else result
        if done == total:
            return sums, arrays
        blocks, scalars = _blocks(kernel), self._scalars(factors, piece)
        for start in range(done, total, BLOCK):
            stop = min(start + BLOCK, total)
            block = arrays if stop - start == total else [x[start:stop] for x in arrays]
            if values is not None:
                block = self._with_values(kernel, block, values, piece, start, stop)
            block = [x if x.dtype == dtype else x.to(dtype) for x, dtype in zip(block, kernel.dtypes, strict=False)]
            places = blocks.run(block, scalars, self._workspace)
            if not kernel.dots:
                continue
            if len(lengths) > 1:
                found = blocks.segment_dots(places, lengths)
                sums += (
                    np.array([[x.item() for x in row] for row in found]) if numpy else torch.stack(list(map(torch.stack, found)))
                )
            else:
                dots = blocks.dots(places)
                sums[:, 0] += [x.item() for x in dots] if numpy else torch.stack(dots)
        return sums, arrays

    def _run_compiled(self, kernel: Kernel, arrays: Sequence[Tensor], column: Array, length: int) -> Tensor | None:
        wide = torch.promote_types(self.recipe.dtype, torch.float32)
        vector = torch.as_tensor(column).to(wide)
        rows = [x[:length].view(-1, ROW) for x in arrays]
        result = _compiled(kernel).run(rows, vector)
        if result is None:
            return None
        return torch.stack(result).sum(1, dtype=torch.float64) if kernel.dots else vector

    def _with_values(
        self, kernel: Kernel, block: Sequence[Tensor], values: Array, piece: Piece, start: int, stop: int
    ) -> list[Tensor]:
        """A block with the hyperparameters that are learned per element as arrays."""
        row = self.places[piece.first].row + start
        rows = torch.as_tensor(values[row : row + stop - start])
        return [
            rows[:, self._spread[name]].to(dtype) if name in self._spread else x
            for name, x, dtype in zip(kernel.inputs, block, kernel.dtypes, strict=False)
        ]

    # ---------------------------------------------------------------- pull-back and update

    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        assert self.last is not None
        layout, kernel, recipe = self._layout(run), self.recipe.kernel("pull"), self.recipe
        last = _here(self.last[layout.leads], self.device)
        factors = self._factors(kernel, layout, last, run.step)
        sums = _zeros((len(kernel.dots), len(layout.starts)), like=last)
        for piece in layout.pieces:
            part, arrays = self._run(kernel, piece, factors, piece.lengths)
            sums[:, piece.segments] += part
            if products is not None:
                row = self.places[piece.first].row
                for j, name in enumerate(recipe.own):
                    product = arrays[0] * arrays[kernel.inputs.index(f"trace_{name}")]
                    products[row : row + piece.stop - piece.start, self.learned.index(recipe.own[j])] = product.to(products)
        dots = self._dots[kernel]
        scale = factors[dots.factors] if recipe.traced else factors[dots.factors] * last[:, self._slopes].T
        count, own = len(self.learned), self._own
        result = _zeros((len(layout.starts), 2 * count + 2), like=last)
        result[:, :count][:, own] = (scale * sums[dots.gz]).T
        result[:, count : 2 * count][:, own] = (scale * scale * sums[dots.zz]).T
        result[:, 2 * count] = sums[kernel.gg]
        if recipe.traced:
            result[:, 2 * count + 1] = self._by_segment(_here(self.last[layout.indices], self.device)[:, -1], layout)
        elif kernel.dd is not None:
            result[:, 2 * count + 1] = factors[kernel.dd[1]] ** 2 * sums[kernel.dd[0]]
        table[layout.rows] += result if isinstance(result, type(table)) else _like(result, table)

    @staticmethod
    def _by_segment(numbers: Array, layout: Layout) -> Array:
        """[parameters] -> [T]: sums over segments."""
        if len(layout.starts) == 1:
            return numbers.sum()
        if isinstance(numbers, np.ndarray):
            return np.add.reduceat(numbers, layout.starts)
        return numbers.new_zeros(len(layout.starts)).index_add_(0, layout.segment, numbers)

    def update(self, run: Run, values: Array, tick: int) -> None:
        layout, recipe = self._layout(run), self.recipe
        learn = bool(tick and recipe.own and self.last is not None)
        kernel = recipe.kernel("learn" if learn else "update")
        values = _here(values, self.device)
        rows = values[layout.values]
        factors = self._factors(kernel, layout, rows, run.step + 1)
        moved: list[Any] = []
        for piece in layout.pieces:
            lengths = [numel(p) for p in self.params[piece.first : piece.last]] if kernel.dots else [piece.stop - piece.start]
            part, _ = self._run(kernel, piece, factors, lengths, values if recipe.spread and recipe.own else None)
            if kernel.dots:
                moved.append(part[0])
            if not piece.direct or "weights" in piece.flat:
                self._scatter(piece)
        if learn:
            assert self.last is not None
            kept = rows[layout.segment] if len(layout.starts) > 1 else rows
            self.last[layout.indices, :-1] = kept if isinstance(kept, type(self.last)) else _like(kept, self.last)
            if moved:
                assert kernel.dd is not None
                scale = factors[kernel.dd[1]] ** 2
                squares = scale[layout.segment] * (np.concatenate(moved) if isinstance(factors, np.ndarray) else torch.cat(moved))
                self.last[layout.indices, -1] = squares if isinstance(squares, type(self.last)) else _like(squares, self.last)
        self._updated(run, tick)


def _flattened(tensor: Tensor) -> Tensor:
    """As a flat real array; a view where the layout allows it. Complex numbers count as pairs."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _here(array: Array, device: torch.device) -> Array:
    """Numbers where a device needs them: NumPy's on the CPU."""
    if device.type == "cpu":
        return array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return torch.as_tensor(array, device=device)


def _like(array: Array, other: Array) -> Array:
    return _here(array, torch.device("cpu") if isinstance(other, np.ndarray) else other.device)


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    return np.zeros(shape) if isinstance(like, np.ndarray) else like.new_zeros(shape)
