"""Reverse mode from states that are kept, or computed again: what Reverse, Truncated and Checkpointed share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import NamedTuple, TypeAlias

from .curvature import Products
from .dynamics import Cost, Dynamics
from .method import Derivative, Meter, Method, check_products
from .outer import Outer

__all__ = ["Action", "Part", "Scheme", "Split", "Sweep", "sweep"]


class Action(Enum):
    """What is done with the stack of states."""

    COPY = "push the top once more"
    ADVANCE = "replace the top by the next state"
    PULL = "take the top away and pull the step that follows it back"


Part: TypeAlias = tuple[int, int]  # how many steps, and how many states may be kept in between
Split: TypeAlias = Callable[[int, int], list[Part]]  # of a part of more than one step into two parts or more


def sweep(first: int, last: int, room: int, split: Split) -> Iterator[tuple[Action, int]]:
    """The actions that pull steps `last` - 1 ... `first` back, starting from a stack with the state before `first`.

    Every part is split until it is one step; the states at the beginnings of the parts are kept until they are reached.
    """
    agenda = [(first, last, room)]
    while agenda:
        low, high, room = agenda.pop()
        if high - low == 1:
            yield Action.PULL, low
            continue
        parts = split(high - low, room)
        for i, (length, room_inside) in enumerate(parts):
            agenda.append((low, low + length, room_inside))
            if i + 1 < len(parts):
                yield Action.COPY, low
                for t in range(low, low + length):
                    yield Action.ADVANCE, t
            low += length


def tally(length: int, room: int, split: Split) -> tuple[int, int]:
    """(inner gradients, the highest stack) of such a sweep, counted part by part."""
    known: dict[Part, tuple[int, int]] = {}
    agenda = [(length, room)]
    while agenda:
        part = agenda[-1]
        if part[0] == 1:
            known[part] = (1, 1)
        elif part not in known:
            parts = split(*part)
            if missing := set(parts) - known.keys():
                agenda.extend(missing)
                continue
            below = max(i + known[inside][1] for i, inside in enumerate(parts))
            advanced = part[0] - parts[-1][0]
            known[part] = advanced + sum(known[inside][0] for inside in parts), max(below, len(parts))
        agenda.pop()
    return known[length, room]


class Scheme(NamedTuple):
    """Which steps are pulled back, and how they are split."""

    first: int
    room: int
    split: Split


@dataclass(frozen=True, repr=False)
class Sweep(Method):
    """A method that is a scheme of what is kept."""

    products: Products = field(default="reverse-over-reverse", kw_only=True)

    def __post_init__(self) -> None:
        check_products(self.products)

    @abstractmethod
    def scheme(self, dynamics: Dynamics, losses: int) -> Scheme:
        """How a run is pulled back."""

    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        stack = [dynamics.start()]
        count, losses, steps = len(dynamics.weights), outer.count, dynamics.steps
        first, room, split = self.scheme(dynamics, losses)
        skipped = ((Action.ADVANCE, t) for t in range(first))
        for action, t in chain(skipped, sweep(first, steps, room, split)):
            dynamics.cost.states = max(dynamics.cost.states, len(stack) + losses)
            if action is Action.COPY:
                stack.append(stack[-1])
                continue
            if action is Action.ADVANCE:
                stack[-1] = dynamics.advance(stack[-1], t)
            else:
                state = stack.pop()
                gradient = dynamics.linearize(state[:count], t)
                if t == steps - 1:  # the first step to be pulled back is the last of the run
                    end = dynamics.after(state, gradient.value, t)
                    final, slopes = end[:count], outer.slopes(dynamics, end[:count])
                    into, arrived = slopes.direct(), slopes.adjoints(end)
                    del end
                arrived = dynamics.pull(gradient, state, t, arrived, into)
                del gradient  # else its graph lives on while the next is built
            meter.tick()
        dynamics.check_repeated()
        by_weights = dynamics.pull_initial(arrived, into) if first == 0 else None
        return Derivative(slopes, final, into, by_weights)

    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        first, room, split = self.scheme(dynamics, losses)
        gradients, height = tally(dynamics.steps - first, room, split)
        return Cost(first + gradients, (dynamics.steps - first) * losses, height + losses)
