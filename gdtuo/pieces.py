"""`Piece`: parameters of a run that are worked on together, and how a run is cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .blocks import Blocks
from .kernel import Kernel
from .layout import Run, numel
from .tape import Array

__all__ = ["Piece", "Prepared", "cut"]

#: On the CPU parameters of at least so many weights are worked on where they stand; smaller ones are gathered first.
DIRECT = 16384


class Prepared(NamedTuple):
    """A kernel over a piece, with all that stays from step to step."""

    blocks: Blocks
    gathered: list[str]  # input arrays that are gathered at each step
    moving: list[tuple[int, str]]  # input arrays that are other memory at each step
    rows: list[Tensor | None]  # the input arrays as far as a compiled kernel takes them, [rows, ROW]
    compiled: int  # how many weights that are
    cuts: list[tuple[int, int]]  # the blocks
    places: list[list[Any]]  # each block's arrays and temporaries
    parts: list[dict[int, Sequence[Array]]]  # of those in dot products, by segment


@dataclass
class Piece:
    """One large parameter where it stands, or small ones gathered."""

    first: int
    last: int
    start: int  # their place in the flat arrays
    stop: int
    segments: slice
    lengths: list[int]  # of its part in each segment
    direct: bool
    flat: dict[str, Tensor] = field(default_factory=dict)  # what small ones are gathered into
    shaped: dict[str, list[Tensor]] = field(default_factory=dict)  # its views in the parameters' shapes
    prepared: dict[Kernel, Prepared] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """How many weights it has."""
        return self.stop - self.start


def cut(params: Sequence[Tensor], offsets: Sequence[int], run: Run, segment: Sequence[int], block: int) -> Iterator[Piece]:
    """The pieces of a run.

    Args:
        params, offsets: the bucket's, and where each begins.
        segment: of each of the run's parameters.
        block: how many weights a block has.
    """
    first = run.first
    while first < run.last:
        last, size = first + 1, numel(params[first])
        direct = _alone(params[first], block)
        while not direct and last < run.last and not _alone(params[last], block):
            mixes = segment[last - run.first] != segment[first - run.first]
            longer = size + numel(params[last])
            if longer > block or (mixes and size >= DIRECT):  # segments of a size are not mixed
                break
            last, size = last + 1, longer
        inside = segment[first - run.first : last - run.first]
        sizes = [numel(p) for p in params[first:last]]
        lengths = [sum(n for n, s in zip(sizes, inside, strict=True) if s == t) for t in range(inside[0], inside[-1] + 1)]
        yield Piece(first, last, offsets[first], offsets[last], slice(inside[0], inside[-1] + 1), lengths, direct)
        first = last


def _alone(p: Tensor, block: int) -> bool:
    """Whether a parameter is worked on where it stands; elsewhere than on the CPU gathering costs less than a call."""
    least = DIRECT if p.device.type == "cpu" else block
    return p.numel() >= least and p.is_contiguous() and not p.is_complex()
