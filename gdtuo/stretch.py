"""`Piece`: parameters of one history, updated and pulled back by calls that a compiler can read and a CUDA graph can hold.

No number is read: counts of updates are tensors, and what waits for no pull-back adds zeros. A `Stretch` of an elementwise
bucket is one flat array, worked on by the kernels of its recipe; a `Single` parameter is handed to its rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from .emitted import kernel_function, number_function
from .layout import Bucket, apart, flattened, numel, unflatten
from .segments import SegmentedBucket
from .whole import WholeBucket

__all__ = ["Piece", "Single", "Stretch"]

#: So many joined numbers, on the CPU and elsewhere, are stored by torch's compiler, and not computed where they are used.
STORED, STORED_ELSEWHERE = 2, 9


class Piece(ABC):
    """Parameters first to last of a bucket, all of which have a gradient.

    Attributes:
        indices: their numbers among all parameters.
        values: the row of hyperparameters that governs each; those that are learned per element have rows of their own.
        rows: the rows of the table that they add to.
    """

    bucket: Bucket
    rows: Sequence[int]

    def __init__(self, bucket: Bucket, first: int, last: int) -> None:
        self.bucket, self.first, self.last = bucket, first, last
        self.indices = [place.index for place in bucket.places[first:last]]
        self.values = [place.row for place in bucket.places[first:last]]

    def _step(self) -> Tensor:
        """[] how many updates they have had."""
        return self.bucket.steps[self.first].to(self.bucket.device, torch.promote_types(self.bucket.recipe.dtype, torch.float32))

    def _waits(self) -> Tensor:
        """[] whether the last one waits to be pulled back."""
        return (self.bucket.pending[self.first] > 0).to(self.bucket.device)

    def gradient(self) -> Tensor:
        """Their gradients, as one flat array."""
        return joined(self.bucket.gradients(self.first, self.last))

    @abstractmethod
    def pull(self, gradient: Tensor, last: Tensor, products: Tensor | None) -> Tensor:
        """[rows, 2 H + 2] the last update, pulled back; zeros if none waits.

        Args:
            gradient: what `gradient` returned.
            last: [all parameters, A + H + 1] what is kept of each one's last update.
            products: [B, H] where each weight's products g z go, if learned per element.
        """

    @abstractmethod
    def update(self, gradient: Tensor, values: Tensor, learn: bool) -> Tensor | None:
        """Move the parameters by one update; returns [parameters] |Δ|², None where it is not kept.

        Args:
            gradient: what `gradient` returned.
            values: [B, A + H] values of all hyperparameters and slopes of the learned ones.
            learn: whether it is to be pulled back.
        """


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one flat real array; a view if there is one."""
    parts = [flattened(x) for x in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Stretch(Piece):
    """Parameters of an elementwise rule."""

    bucket: SegmentedBucket

    def __init__(self, bucket: SegmentedBucket, first: int, last: int) -> None:
        super().__init__(bucket, first, last)
        places, per_element = bucket.places[first:last], bucket.per == "element"
        governed = [place.group if per_element else place.row for place in places]
        starts = [i for i, row in enumerate(governed) if i == 0 or row != governed[i - 1]]
        self.rows = [governed[i] for i in starts]
        self._sizes = [numel(p) for p in bucket.params[first:last]]
        segment = [t - 1 for t in accumulate(int(i in starts) for i in range(len(places)))]
        self.values = [self.values[starts[t]] for t in segment]
        self._lengths = [sum(self._sizes[a:b]) for a, b in pairwise([*starts, len(places)])]
        start, stop = bucket.offsets[first], bucket.offsets[last]
        whole = stop - start == bucket.offsets[-1]
        self._arrays = {name: array if whole else array[start:stop] for name, array in bucket.arrays.items()}
        self._own_rows = slice(places[0].row, places[0].row + stop - start)  # if learned per element

        def index(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=bucket.device)

        self._leads, self._governing = index([self.indices[i] for i in starts]), index([self.values[i] for i in starts])
        self._indices, self._segment, self._heads = index(self.indices), index(segment), index([first + i for i in starts])
        self._of_each = self._segment.repeat_interleave(index(self._sizes)) if len(starts) > 1 else None
        recipe = bucket.recipe
        self._wide = torch.promote_types(recipe.dtype, torch.float32)
        kinds = ("update", "learn", "pull") if recipe.own else ("update",)
        self._kernels = {kind: recipe.kernel(kind) for kind in kinds}
        self._functions = {
            kind: (number_function(kernel.factors), kernel_function(kernel), number_function(kernel.sums))
            for kind, kernel in self._kernels.items()
        }
        self._uniform = {kind: number_function(kernel.uniform) for kind, kernel in self._kernels.items()}
        self._scales = {kind: number_function(kernel.scale) for kind, kernel in self._kernels.items()}
        self._columns = {kind: bucket.columns_of(kernel.factors.inputs) for kind, kernel in self._kernels.items()}
        self._spread = dict(zip(recipe.columns, bucket.columns_of(recipe.columns), strict=True))

    def _given(self, kind: str, rows: Tensor, step: Tensor) -> list[Tensor]:
        """[segments] each: the numbers that a kernel takes, from rows of values and slopes, and states that are numbers."""
        columns = self._columns[kind]
        states = self.bucket.uniform if len(self._kernels[kind].factors.inputs) > len(columns) + 1 else None
        found = [] if states is None else states[self._heads].to(rows).unbind(1)
        return [*(rows[:, i] for i in columns), *found, step.to(rows).expand(len(self.rows))]

    def _run(self, kind: str, given: Sequence[Tensor], arrays: dict[str, Tensor]) -> Any:
        kernel, (factors, function, _) = self._kernels[kind], self._functions[kind]
        inputs = [arrays[name].to(dtype) for name, dtype in zip(kernel.inputs, kernel.dtypes, strict=False)]
        return function(*inputs, *self._spread_out(factors(*given), given[0]))

    def _spread_out(self, factors: Sequence[Any], like: Tensor) -> list[Tensor]:
        """Numbers for each segment, to broadcast against the weights."""
        if not factors:
            return []
        # a compiler computes few numbers anew for each weight; many, joined, it stores
        filled = self._filled(factors, like)
        filled += filled[:1] * ((STORED if like.device.type == "cpu" else STORED_ELSEWHERE) - len(filled))
        table = torch.stack(filled, dim=1).to(self._wide)
        return list((table[0] if self._of_each is None else table[self._of_each]).unbind(-1)[: len(factors)])

    def _filled(self, numbers: Sequence[Any], like: Tensor) -> list[Tensor]:
        """[segments] each."""
        count = len(self.rows)
        return [x.to(like).expand(count) if isinstance(x, Tensor) else like.new_full((count,), x) for x in numbers]

    def _dots(self, a: Tensor, b: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """[stretches] ⟨a, b⟩ over stretches of the given lengths; 16-bit numbers are multiplied in 32 bits."""
        product = a.to(self._wide) * b.to(self._wide)
        return torch.stack([part.sum(dtype=dtype) for part in product.split(lengths)])

    def pull(self, gradient: Tensor, last: Tensor, products: Tensor | None) -> Tensor:
        bucket, recipe, waits = self.bucket, self.bucket.recipe, self._waits()
        given = self._given("pull", last[self._leads], self._step())
        _, pairs = self._run("pull", given, {**self._arrays, "gradient": gradient})
        dots = [self._dots(a, b, self._lengths, last.dtype) for a, b in pairs]
        found = self._functions["pull"][2](*given, *dots)
        if recipe.traced and recipe.moved:
            found[-1] = last.new_zeros(len(self.rows)).index_add(0, self._segment, last[self._indices, -1])
        columns: list[Any] = [0.0] * (2 * len(bucket.learned) + 2)
        for target, numbers in zip(bucket.targets, found, strict=True):
            columns[target] = numbers
        if products is not None:
            for name in recipe.own:
                product = gradient * self._arrays[f"trace_{name}"]
                products[self._own_rows, bucket.learned.index(name)] = torch.where(waits, product, 0.0).to(products)
        return torch.where(waits, torch.stack(self._filled(columns, last), dim=1), 0.0)

    def update(self, gradient: Tensor, values: Tensor, learn: bool) -> Tensor | None:
        kind = "learn" if learn and self.bucket.recipe.own else "update"
        params, kernel = self.bucket.params[self.first : self.last], self._kernels[kind]
        arrays = {**self._arrays, "weights": joined(params), "gradient": gradient}
        arrays |= {name: values[self._own_rows, column] for name, column in self._spread.items()}
        given = self._given(kind, values[self._governing], self._step() + 1)
        results, pairs = self._run(kind, given, arrays)
        if self.bucket.uniform is not None:
            after = torch.stack(self._filled(self._uniform[kind](*given), given[0]), dim=1)
            self.bucket.uniform[self.first : self.last].copy_(after[self._segment])
        moved = None
        for a, b in pairs:
            (scale,) = self._filled(self._scales[kind](*given), given[0])
            moved = self._dots(a, b, self._sizes, values.dtype) * scale[self._segment]
        # inputs that are kept go first, while they are what they were
        for home, value in sorted(zip(kernel.homes, results, strict=True), key=lambda pair: pair[0].register):
            name = kernel.inputs[home.array]
            if name == "weights":
                parts = value.split(self._sizes)
                torch._foreach_copy_(params, [unflatten(part, p) for part, p in zip(parts, params, strict=True)])
            else:
                self._arrays[name].copy_(apart(value) if home.register < len(kernel.inputs) else value)
        return moved


class Single(Piece):
    """One parameter, by calls of its rule."""

    bucket: WholeBucket

    def __init__(self, bucket: WholeBucket) -> None:
        super().__init__(bucket, 0, 1)
        place = bucket.places[0]
        self.rows = [place.group if bucket.per == "element" else place.row]

    def pull(self, gradient: Tensor, last: Tensor, products: Tensor | None) -> Tensor:
        waits = self._waits()
        index = self.indices[0]
        row, found = self.bucket.pulled_back(last[index : index + 1], self._step())
        if products is not None:
            for j, product in found.items():
                products[self.bucket.rows, j] = torch.where(waits, product.flatten(), 0.0).to(products)
        return torch.where(waits, row.to(last), 0.0).unsqueeze(0)

    def update(self, gradient: Tensor, values: Tensor, learn: bool) -> Tensor | None:
        return (
            self.bucket.advance(values[self.bucket.rows], self._step() + 1, learn and bool(self.bucket.recipe.own))
            .to(values)
            .reshape(1)
        )
