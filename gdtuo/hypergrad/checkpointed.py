"""Reverse mode with some states kept and the others computed again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .dynamics import Dynamics
from .reverse import every_step
from .sweep import Part, Scheme, Split, Sweep

__all__ = ["Checkpointed", "binomial"]


@dataclass(frozen=True, repr=False)
class Checkpointed(Sweep):
    """`Reverse` in less memory: exact, bit for bit the same, with steps computed again from states that were kept.

    | given | what is kept | states | gradients |
    |---|---|---|---|
    | nothing | ⌈√T⌉ segments' beginnings, and the segment at work | 2 √T | 3 T |
    | segments=n | n segments' beginnings, and the segment at work | n + T/n | 3 T |
    | arity=k | k parts' beginnings on each level of a k-ary tree | (k - 1) log_k T | T + T (k-1)/k log_k T |
    | memory=b | as many states as fit into b bytes, where it costs least | b / bytes of a state | fewest for that many |

    Args:
        segments: n >= 1; at most one of the three may be given.
        arity: k >= 2.
        memory: bytes for states and adjoints. What one step of the loss itself needs comes on top: see `gdtuo.plan`.
        products: as in `Reverse`.

    Raises:
        ValueError: if a number is out of range, several of the three are given, or the memory holds less than the
            three states that are at work.

    References:
        Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016 (√T and k-ary); Griewank,
        Walther, "Algorithm 799: revolve", ACM TOMS 2000 (binomial).

    Example:
        >>> import gdtuo
        >>> gdtuo.Checkpointed(memory=2**30)
        Checkpointed(memory=1073741824)
    """

    segments: int | None = None
    arity: int | None = field(default=None, kw_only=True)
    memory: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: value for name in ("segments", "arity", "memory") if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            raise ValueError(f"Checkpointed got {' and '.join(given)}, which exclude each other. Give one of them.")
        for name, value in given.items():
            least = 2 if name == "arity" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Checkpointed got {name}={value!r}. Give an integer >= {least}.")

    def scheme(self, dynamics: Dynamics, losses: int) -> Scheme:
        steps = dynamics.steps
        if self.memory is not None:
            size = dynamics.state_bytes
            least = losses + min(steps, 2)  # the adjoints, the state at the beginning, the one that is advanced
            if self.memory < size * least:
                raise ValueError(
                    f"Checkpointed got memory={self.memory}: a state takes {size} bytes, and {least} must be held at a time, "
                    f"{losses} of them adjoints. Give at least {size * least}, or use gdtuo.Reversible()."
                )
            room = self.memory // size - least
            return Scheme(0, room, binomial)
        if self.arity is not None:
            return Scheme(0, 0, k_ary(self.arity))
        return Scheme(0, 1, two_levels(self.segments or math.isqrt(steps - 1) + 1))


def evenly(length: int, parts: int) -> list[int]:
    """Lengths that differ by one at most, the longer ones last: the last part need not be computed twice."""
    short, longer = divmod(length, parts)
    return [short] * (parts - longer) + [short + 1] * longer


def two_levels(segments: int) -> Split:
    """Into segments, and those into steps."""

    def split(length: int, room: int) -> list[Part]:
        if not room or not 1 < segments < length:
            return every_step(length, 0)
        return [(part, 0) for part in evenly(length, segments)]

    return split


def k_ary(arity: int) -> Split:
    """Into k parts, again and again."""

    def split(length: int, room: int) -> list[Part]:
        return [(part, 0) for part in evenly(length, min(arity, length))]

    return split


def binomial(length: int, room: int) -> list[Part]:
    """Into two parts, where that costs the fewest steps with so many states to keep.

    With s states, the one at the beginning included, and no step advanced more than r times, C(s + r, s) steps can be
    reversed. The second part has one state less, the first the same and one repetition less.
    """
    if room >= length - 1:
        return every_step(length, 0)
    states, repetitions = room + 1, 1
    while math.comb(states + repetitions, states) < length:
        repetitions += 1
    first = min(math.comb(states + repetitions - 1, states), length - math.comb(states + repetitions - 2, states - 1))
    return [(first, room), (length - first, room - 1)]
