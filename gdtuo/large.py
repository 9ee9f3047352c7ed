"""`LargeBucket`: parameters of an elementwise rule that are updated and pulled back in blocks, or compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blocks import BLOCK, blocks_of
from .fused import ROW, Compiled, compiled
from .kernel import Kernel
from .layout import Run, numel, unflatten
from .pieces import Piece, Prepared, cut
from .recipes import Recipe
from .segments import SegmentedBucket, Segments, here
from .tape import Array, on_host

__all__ = ["LargeBucket"]

#: Elsewhere than on the CPU fewer calls matter more than caches: a block is so many times as long there.
DEVICE_BLOCKS = 32


class LargeBucket(SegmentedBucket):
    """Parameters of an elementwise rule, worked on piece by piece.

    Args:
        fused: whether kernels are compiled where arrays are long enough.
        The others are those of `SegmentedBucket`.
    """

    def __init__(self, *args: Any, fused: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fused = fused
        self._block = BLOCK * (1 if self.device.type == "cpu" else DEVICE_BLOCKS)
        self._pieces: dict[tuple[int, int], list[Piece]] = {}
        columns = self.recipe.columns
        self._spread = dict(zip(columns, self.columns_of(columns), strict=True))  # what is an array, one number a weight

    @staticmethod
    def kinds(recipe: Recipe) -> tuple[str, ...]:
        if not recipe.own:
            return ("update",)
        return ("update", "learn", "pull", *(("trace",) if recipe.replayed and recipe.native else ()))

    # ---------------------------------------------------------------- how a run is cut

    def _pieces_of(self, run: Run, segments: Segments) -> list[Piece]:
        pieces = self._pieces.get((run.first, run.last))
        if pieces is None:
            if len(self._pieces) >= 64:  # gradients come and go in ever new patterns
                self._pieces.clear()
            pieces = self._pieces[run.first, run.last] = list(cut(self.params, self.offsets, run, segments.of, self._block))
        return pieces

    # ---------------------------------------------------------------- arrays

    def _prepare(self, kernel: Kernel, piece: Piece, whole: bool) -> Prepared:
        """`whole`: whether one row of hyperparameters governs the piece, as a compiled kernel wants it."""
        blocks, length = blocks_of(kernel), piece.length
        arrays: list[Tensor | None] = []
        for name in kernel.inputs:
            if name in ("weights", "gradient"):
                arrays.append(None if piece.direct or length > self._block else self._gathered(name, piece))
            else:
                arrays.append(None if name in self._spread else self.arrays[name][piece.start : piece.stop])
        # on the CPU half a block costs less in eager mode than the call of a compiled kernel
        enough = self._block // 2 if self.device.type == "cpu" else 2 * ROW
        filled = length // ROW * ROW if self._fused and whole and length >= enough else 0
        rows = [x if x is None else x[:filled].view(-1, ROW) for x in arrays]
        cuts = [
            (start, min(start + self._block, length)) for start in range(filled if Compiled.usable else 0, length, self._block)
        ]
        places = []
        for start, stop in cuts:
            block = [x if x is None else x[start:stop] for x in arrays]
            block = [x if x is None or x.dtype == dtype else None for x, dtype in zip(block, kernel.dtypes, strict=False)]
            places.append([*block, *blocks.memory(stop - start, self.device, self._workspace)])
        moving = [
            (i, name)
            for i, (name, x, dtype) in enumerate(zip(kernel.inputs, arrays, kernel.dtypes, strict=False))
            if x is None or x.dtype != dtype
        ]
        steady = {name for name, x in zip(kernel.inputs, arrays, strict=True) if x is not None}
        gathered = [name for name in kernel.inputs if name in steady and name in ("weights", "gradient")]
        return Prepared(blocks, gathered, moving, rows, filled if Compiled.usable else 0, cuts, places, [{} for _ in cuts])

    def _gathered(self, name: str, piece: Piece) -> Tensor:
        """The memory that small parameters, or one whose memory is not contiguous, are gathered into."""
        if name not in piece.flat:
            params, length, dtype = self.params[piece.first : piece.last], piece.length, self.recipe.dtype
            if length > self._block:  # not kept
                flat = torch.empty(length, dtype=dtype, device=self.device)
            else:
                flat = self._workspace.get(name, length, dtype, self.device)
            parts = flat.split([numel(p) for p in params])
            piece.flat[name] = flat
            piece.shaped[name] = [unflatten(part, p) for part, p in zip(parts, params, strict=True)]
        return piece.flat[name]

    def _current(self, name: str, piece: Piece) -> Tensor | None:
        """Weights, gradient or an array of the bucket as it is now, flat; None for hyperparameters."""
        if name in self._spread:
            return None
        if name not in ("weights", "gradient"):
            return self.arrays[name][piece.start : piece.stop]
        if self._stands(piece):
            tensor = self.params[piece.first] if name == "weights" else self.gradients(piece.first, piece.last)[0]
            return tensor.detach().reshape(-1)
        return piece.flat[name] if piece.length <= self._block and not piece.direct else self._gather(name, piece)

    def _stands(self, piece: Piece) -> bool:
        """Whether a piece is worked on where it stands; its owner may have changed its memory format."""
        return piece.direct and self.params[piece.first].is_contiguous()

    def _gather(self, name: str, piece: Piece) -> Tensor:
        flat, (first, last) = self._gathered(name, piece), (piece.first, piece.last)
        sources = self.params[first:last] if name == "weights" else self.gradients(first, last)
        torch._foreach_copy_(piece.shaped[name], sources)
        return flat

    def _scatter(self, piece: Piece) -> None:
        """Put gathered weights back."""
        torch._foreach_copy_(self.params[piece.first : piece.last], piece.shaped["weights"])
        if piece.length > self._block:
            piece.flat.clear()
            piece.shaped.clear()

    # ---------------------------------------------------------------- running a kernel

    def _run(self, kernel: Kernel, piece: Piece, factors: Any, lengths: Sequence[int], values: Array | None = None) -> Any:
        """Run a kernel over a piece.

        Returns:
            its dot products over stretches of the given lengths: [dots][stretches], on a device as a tensor.
        """
        if not piece.length:  # a rank may have none of a parameter
            nothing = torch.zeros(len(kernel.dots), len(lengths), dtype=torch.float64, device=self.device)
            return nothing.tolist() if on_host(self.device) else nothing
        prepared = piece.prepared.get(kernel)
        if prepared is None:
            whole = len(lengths) == len(piece.lengths) == 1 and values is None
            prepared = piece.prepared[kernel] = self._prepare(kernel, piece, whole)
        for name in prepared.gathered:
            self._gather(name, piece)
        numbers, tensors = self._factors.of(kernel, factors, piece.segments, piece.lengths)
        moving = [(i, self._current(name, piece), self._spread.get(name)) for i, name in prepared.moving]
        sums: Any = None
        if prepared.compiled:
            sums = self._run_compiled(kernel, prepared, moving, tensors)
            if sums is None:  # there is no compiler
                prepared = piece.prepared[kernel] = self._prepare(kernel, piece, False)
        for (start, stop), places, parts in zip(prepared.cuts, prepared.places, prepared.parts, strict=True):
            for i, array, column in moving:
                if array is None:
                    assert values is not None
                    row = self.places[piece.first].row
                    part = torch.as_tensor(values[row + start : row + stop, column], device=self.device)
                else:
                    part = array if stop - start == piece.length else array[start:stop]
                places[i] = part if part.dtype == kernel.dtypes[i] else part.to(kernel.dtypes[i])
            prepared.blocks.run(places, numbers, tensors)
            if kernel.dots:
                found = prepared.blocks.dots(places, lengths, parts)
                sums = found if sums is None else _added(sums, found)
            for i, _, _ in moving:
                places[i] = None  # a gradient that the user drops is to be freed
                parts.pop(i, None)
        return sums

    def _run_compiled(
        self, kernel: Kernel, prepared: Prepared, moving: Sequence[tuple[int, Tensor | None, Any]], factors: Sequence[Tensor]
    ) -> Any:
        """Run the compiled kernel over the rows of a piece; None if nothing was done."""
        rows: list[Any] = list(prepared.rows)
        for i, array, _ in moving:
            assert array is not None
            rows[i] = array[: prepared.compiled].view(-1, ROW)
        vector = torch.stack(list(factors)) if factors else torch.empty(0, device=self.device)
        result = compiled(kernel, self.device).run(rows, vector)
        if result is None:
            return None
        if not kernel.dots:
            return []
        sums = torch.stack(result).sum(1, keepdim=True, dtype=torch.float64)
        return sums.tolist() if on_host(self.device) else sums

    # ---------------------------------------------------------------- pull-back and update

    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        assert self.last is not None
        segments, kernel, recipe = self._segments_of(run), self._kernels["pull"], self.recipe
        given = self._given(kernel, run, segments, here(self.last[segments.leads], self.device))
        factors = self._evaluate(kernel.factors, segments, given)
        dots: Any = [0.0] * len(kernel.dots)
        if not isinstance(given, list):
            shape = (len(kernel.dots), len(segments.starts))
            dots = np.zeros(shape) if isinstance(given, np.ndarray) else given.new_zeros(shape)
        for piece in self._pieces_of(run, segments):
            part = self._run(kernel, piece, factors, piece.lengths)
            if isinstance(given, list):
                dots = [x + some[0] for x, some in zip(dots, part, strict=True)]
            else:
                dots[:, piece.segments] += part
            if products is not None:
                row, gradient = self.places[piece.first].row, self._current("gradient", piece)
                assert gradient is not None
                for name in recipe.own:
                    product = gradient * self.arrays[f"trace_{name}"][piece.start : piece.stop]
                    products[row : row + piece.length, self.learned.index(name)] = product.to(products)
        moved = self._moved(segments) if recipe.traced and recipe.moved else None
        self._add(table, kernel, segments, given, dots, moved)

    def _native(self, run: Run, segments: Segments, rows: Array, learn: bool) -> bool:
        # a compiled kernel remembers the gradient in the same pass
        if self._fused and Compiled.usable and learn and self.recipe.remembered:
            return False
        return super()._native(run, segments, rows, learn)

    def _update(self, run: Run, segments: Segments, rows: Array, values: Array, learn: bool, tick: int) -> None:
        if learn and self._update_by_native(run, segments, rows):
            return
        kernel = self._kernels["learn" if learn else "update"]
        given = self._given(kernel, run, segments, rows)
        factors = self._evaluate(kernel.factors, segments, given)
        moved: list[Any] = []
        for piece in self._pieces_of(run, segments):
            lengths = [numel(p) for p in self.params[piece.first : piece.last]] if kernel.dots else [piece.length]
            part = self._run(kernel, piece, factors, lengths, values if self._spread else None)
            if kernel.dots:
                moved.append(part[0])
            if piece.length and not self._stands(piece):
                self._scatter(piece)
        self._renew(kernel, run, segments, given)
        if moved:
            self._keep_moved(kernel, segments, given, moved)

    # ---------------------------------------------------------------- torch's own kernel, and the traces after it

    def _update_by_native(self, run: Run, segments: Segments, rows: Array) -> bool:
        """Let torch's own kernel do an update block by block, and bring traces up to date while a block is in the cache.

        Returns:
            whether it did; if not, nothing has changed.
        """
        kernel = self._kernels.get("trace")
        if kernel is None or not isinstance(rows, np.ndarray) or (self._fused and Compiled.usable):
            return False  # a compiled kernel does all in one pass
        hyper = self._given_to_native(run, segments, rows, self.gradients(run.first, run.last))
        pieces = self._pieces_of(run, segments)
        if hyper is None or any(piece.length > self._block and not piece.direct for piece in pieces):
            return False
        given = self._given(kernel, run, segments, rows)
        factors = self._evaluate(kernel.factors, segments, given)
        moved: list[Any] = []
        for piece in pieces:
            if kernel not in piece.prepared:
                piece.prepared[kernel] = self._prepare(kernel, piece, False)
            prepared, steps = piece.prepared[kernel], self._step_views[piece.first : piece.last]
            scalars = self._factors.of(kernel, factors, piece.segments, piece.lengths)
            sizes = [numel(p) for p in self.params[piece.first : piece.last]]
            sums = [[0.0] * len(sizes)]
            for (weights, gradients, states), places, parts in self._native_blocks(piece, prepared):
                if not self.recipe.rule.native(weights, gradients, states, hyper, steps):
                    return False
                prepared.blocks.run(places, *scalars)
                if kernel.dots:
                    sums = _added(sums, prepared.blocks.dots(places, sizes, parts))
            moved += sums
        if kernel.dots:
            self._keep_moved(kernel, segments, given, moved)
        return True

    def _native_blocks(self, piece: Piece, prepared: Prepared) -> Iterator[tuple[Any, list[Any], dict[int, Sequence[Array]]]]:
        """Of each block of a piece: weights, gradients and states for torch's kernel; places and parts for the traces'."""
        if not piece.direct:
            for name in prepared.gathered:
                self._gather(name, piece)
            first, last = piece.first, piece.last
            native = self.params[first:last], self.gradients(first, last), self._views_of(first, last)
            yield from ((native, places, parts) for places, parts in zip(prepared.places, prepared.parts, strict=True))
            return
        weights, gradient = (x.detach().view(-1) for x in (self.params[piece.first], *self.gradients(piece.first, piece.last)))
        for (start, stop), places, parts in zip(prepared.cuts, prepared.places, prepared.parts, strict=True):
            w, g = weights[start:stop], gradient[start:stop]
            states = {name: [array[piece.start + start : piece.start + stop]] for name, array in self.arrays.items()}
            for i, name in prepared.moving:
                places[i] = g if name == "gradient" else self._workspace.get(name, stop - start, w.dtype, self.device).copy_(w)
            try:
                yield ([w], [g], states), places, parts
            finally:
                for i, _ in prepared.moving:
                    places[i] = None  # a gradient that the user drops is to be freed
                    parts.pop(i, None)


def _added(a: Any, b: Any) -> Any:
    """The sum of dot products, [dots][stretches]."""
    if isinstance(a, Tensor):
        return a + b
    return [[x + y for x, y in zip(some, others, strict=True)] for some, others in zip(a, b, strict=True)]
