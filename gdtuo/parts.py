"""`Parts`: a bound optimizer's parameter groups, one engine for each tower that learns some of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import report
from .blueprint import Blueprint
from .engine import Engine, Runs
from .rules import Number

__all__ = ["Parts", "Tower"]


class Tower(NamedTuple):
    """Levels, bottom up, and the names that are learned of each that has one above it."""

    blueprints: Sequence[Blueprint]
    learned: Sequence[tuple[str, ...]]


class Parts:
    """Most optimizers have one tower and so one engine; groups that name an `optimizer` of their own have others.

    Args:
        state: the optimizer's own.
    """

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self._state = state
        self._levels: list[Sequence[Blueprint]] = []
        self._of: dict[int, int] = {}  # tower -> the place of its engine
        self.engines: list[Engine] = []
        #: for each engine, which of the optimizer's groups it has
        self.indices: list[list[int]] = []

    def add(self, t: int, tower: Tower, members: Mapping[int, dict[str, Any]]) -> None:
        """Put groups, by their numbers, under tower `t`; what they and the state hold that fits is taken over."""
        if t in self._of:
            engine = self.engines[self._of[t]]
            engine.groups += members.values()
            self.indices[self._of[t]] += members
            engine.build()
        elif members:
            self._of[t] = len(self.engines)
            self.engines.append(Engine(tower.blueprints, tower.learned, list(members.values()), self._state))
            self.indices.append(list(members))
            self._levels.append(tower.blueprints)

    # ---------------------------------------------------------------- stepping

    def runs(self) -> list[tuple[Engine, Runs]]:
        """What has a gradient now, by engine."""
        return [(engine, engine.runs()) for engine in self.engines]

    def step(self) -> None:
        """Learn, and move the weights."""
        for engine, runs in self.runs():
            engine.step(runs)

    def hyperstep(self) -> None:
        """Learn alone."""
        for engine, runs in self.runs():
            if engine.learning:
                engine.learn(runs, first=False)

    def compiled_step(self) -> None:
        """`step`, as torch.compile traces it."""
        if self._traceable():
            for engine in self.engines:
                engine.traced.step(engine)
        else:
            self._outside(self.step)

    def compiled_hyperstep(self) -> None:
        """`hyperstep`, as torch.compile traces it."""
        if self._traceable():
            for engine in self.engines:
                if engine.learning:
                    engine.traced.hyperstep(engine)
        else:
            self._outside(self.hyperstep)

    def _traceable(self) -> bool:
        """Whether all of a step can be traced; says why not. A compiler runs it once, while it traces."""
        obstacles = [obstacle for obstacle in (engine.traced.obstacle() for engine in self.engines) if obstacle]
        if obstacles:
            warnings.warn(f"torch.compile leaves an optimizer's step to Python: {obstacles[0]}.", stacklevel=2)
        return not obstacles

    _traceable._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what torch.compiler.assume_constant_result sets

    @staticmethod
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _outside(function: Callable[[], None]) -> None:
        function()

    @property
    def learning(self) -> bool:
        """Whether any group learns."""
        return any(engine.learning for engine in self.engines)

    # ---------------------------------------------------------------- looking at it

    @property
    def skipped(self) -> int:
        """How many hyper-updates were not finite."""
        return sum(engine.skipped for engine in self.engines)

    def hyperparameters(self) -> dict[str, Number]:
        """Every effective value of every level, some of them tensors."""
        for engine in self.engines:
            engine.read()
        return self._together(lambda engine, levels, mine: report.hyperparameters(levels, engine.groups, mine, engine.ladder))

    def written(self) -> dict[str, Number]:
        """What the groups hold of the hyperparameters that are learned."""
        return self._together(
            lambda engine, levels, mine: report.written(levels, engine.groups, mine, engine.ladder) if engine.ladder else {}
        )

    def hypergradients(self) -> dict[str, Number]:
        """Those of everything that is learned."""
        values = {id(engine): engine.hypergradients() for engine in self.engines}
        return self._together(
            lambda engine, levels, mine: (
                report.hypergradients(levels[0], engine.groups, mine, engine.ladder, values[id(engine)]) if engine.ladder else {}
            )
        )

    def _together(self, show: Callable[[Engine, Sequence[Blueprint], Sequence[int]], dict[str, Number]]) -> dict[str, Number]:
        parts = [show(*each) for each in zip(self.engines, self._levels, self.indices, strict=True)]
        if len(parts) == 1:
            return parts[0]
        return dict(sorted({k: v for part in parts for k, v in part.items()}.items(), key=lambda item: report.place(item[0])))

    def learned(self, g: int) -> tuple[str, ...]:
        """The columns of a group's shifts: what its tower can learn of the weights' level."""
        for engine, mine in zip(self.engines, self.indices, strict=True):
            if g in mine and engine.ladder is not None:
                return engine.ladder.learned[0].names
        return ()

    # ---------------------------------------------------------------- saving

    def write_state(self) -> None:
        """Bring what groups and state hold beside tensors up to date."""
        for engine in self.engines:
            engine.write_state()

    def top_state(self, g: int) -> dict[str, Tensor]:
        """The state of a torch optimizer on top of a group's tower, under the keys that the group saves it with."""
        for engine, mine in zip(self.engines, self.indices, strict=True):
            if g in mine:
                return engine.top_state(mine.index(g))
        return {}
