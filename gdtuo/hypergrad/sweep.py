"""Reverse mode from states that are kept, or computed again: what Reverse, Truncated and Checkpointed share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from .curvature import Products
from .dynamics import Cost, Dynamics
from .method import Derivative, Meter, Method, check_products
from .outer import Outer

__all__ = ["Action", "Part", "Split", "Sweep", "sweep"]


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


@dataclass(frozen=True, repr=False)
class Sweep(Method):
    """A method that is a list of actions."""

    products: Products = field(default="reverse-over-reverse", kw_only=True)

    def __post_init__(self) -> None:
        check_products(self.products)

    @abstractmethod
    def actions(self, dynamics: Dynamics, losses: int) -> Iterator[tuple[Action, int]]:
        """What is done, in order; the stack starts with the initial state."""

    def reaches_start(self, steps: int) -> bool:
        """Whether all steps are pulled back, so that the initial state has an adjoint."""
        return True

    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        stack = [dynamics.start()]
        count, losses = len(dynamics.weights), outer.count
        for action, t in self.actions(dynamics, losses):
            dynamics.cost.states = max(dynamics.cost.states, len(stack) + losses)
            if action is Action.COPY:
                stack.append(stack[-1])
                continue
            if action is Action.ADVANCE:
                stack[-1] = dynamics.advance(stack[-1], t)
            else:
                state = stack.pop()
                gradient = dynamics.linearize(state[:count], t)
                if t == dynamics.steps - 1:  # the first step to be pulled back is the last of the run
                    end = dynamics.after(state, gradient.value, t)
                    final, slopes = end[:count], outer.slopes(dynamics, end[:count])
                    into, arrived = slopes.direct(), slopes.adjoints(end)
                    del end
                arrived = dynamics.pull(gradient, state, t, arrived, into)
            meter.tick()
        by_weights = dynamics.pull_initial(arrived, into) if self.reaches_start(dynamics.steps) else None
        return Derivative(slopes, final, into, by_weights)

    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        cost, depth = Cost(), 1
        for action, _ in self.actions(dynamics, losses):
            cost.states = max(cost.states, depth + losses)
            if action is Action.COPY:
                depth += 1
                continue
            cost.gradients += 1
            if action is Action.PULL:
                depth -= 1
                cost.products += losses
        return cost
