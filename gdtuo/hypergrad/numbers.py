"""The optimizer's numbers at each step: those of the level, overridden by `hyper["optimizer"]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..blueprint import Blueprint
from ..domains import Domain
from .tree import Path, shown

__all__ = ["OPTIMIZER", "STATE", "Numbers"]

OPTIMIZER, STATE = "optimizer", "state"


@dataclass(frozen=True)
class Source:
    """How the numbers of the steps lie in a leaf of the hyperparameters."""

    timed: bool  # a first dimension counts steps
    scheduled: bool  # and it is longer than 1

    def row(self, leaf: Tensor, step: int) -> Tensor:
        """The number at a step, counted from 0."""
        if not self.timed:
            return leaf
        return leaf[step if self.scheduled else 0]


class Numbers:
    """What the rule of each parameter sees at each step.

    Args:
        blueprint: the inner optimizer.
        weights: path -> initial weight.
        leaves: path -> hyperparameter, all of them.
        steps: T.

    Raises:
        ValueError: for a name, a branch, a shape or a value that the rule or the weights do not have.
    """

    def __init__(self, blueprint: Blueprint, weights: Mapping[Path, Tensor], leaves: Mapping[Path, Tensor], steps: int) -> None:
        self._schema, self._settings = blueprint.schema, blueprint.settings
        rule = blueprint.schema.rule
        written = zip(self._schema.names, blueprint.read(blueprint.settings), strict=True)
        self._constants = {name: torch.as_tensor(float(n), dtype=torch.float64, device="cpu") for name, n in written}
        present = [name for name, number in self._constants.items() if name not in rule.optional or number != 0]
        self._sources: dict[int, Source] = {}
        self._domains: dict[int, tuple[Path, Domain]] = {}
        governed: dict[Path, dict[str, int]] = {path: {} for path in weights}  # weight -> name -> leaf
        self.states: dict[int, tuple[str, Path]] = {}  # leaf -> the initial state that it is
        for i, (path, leaf) in enumerate(leaves.items()):
            if path[0] != OPTIMIZER:
                continue
            if path[1:2] == (STATE,) and len(path) > 2:
                self.states[i] = (self._state(path, leaf, weights), path[3:])
                continue
            name = self._name(path)
            mine = self._governed(path, weights, path[2:])
            self._sources[i] = self._source(path, leaf, [weights[w] for w in mine], steps)
            self._domains[i] = (path, rule.hyperparameters[name][1])
            for weight in mine:
                governed[weight][name] = i
        self._table = [
            {name: own.get(name) for name in self._schema.names if name in present or name in own} for own in governed.values()
        ]
        self._weights = list(weights.values())

    def names(self, weight: int) -> list[str]:
        """The hyperparameters that the rule of a parameter has."""
        return list(self._table[weight])

    def has(self, name: str) -> bool:
        """Whether the rule of any parameter has a hyperparameter."""
        return any(name in names for names in self._table)

    def scheduled(self, leaf: int) -> bool:
        """Whether a leaf's first dimension is one entry a step."""
        return leaf in self._sources and self._sources[leaf].scheduled

    def governing(self, weight: int, name: str) -> int | None:
        """The leaf that holds a parameter's number, if one does."""
        return self._table[weight][name]

    def constant(self, name: str) -> Tensor:
        """The level's own number."""
        return self._constants[name]

    def row(self, leaf: int, values: Tensor, step: int) -> Tensor:
        """What `values`, which lie like a leaf, hold for a step, counted from 0."""
        return self._sources[leaf].row(values, step)

    def rows(self, leaves: Sequence[Tensor], step: int) -> dict[int, Tensor]:
        """leaf -> what it holds for a step, counted from 0."""
        return {i: source.row(leaves[i], step) for i, source in self._sources.items()}

    def of(self, weight: int, rows: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """What the rule of one parameter sees, for it to broadcast."""
        like = self._weights[weight]
        numbers = {}
        for name, leaf in self._table[weight].items():
            number = self._constants[name] if leaf is None else rows[leaf]
            # A 0-d number keeps its precision beside weights of any other on any device, unless they are 0-d themselves.
            numbers[name] = number.to(like) if number.ndim or not like.ndim else number
        return numbers

    def scatter(self, gradients: Sequence[Tensor], rows: Mapping[int, Tensor | None], step: int) -> None:
        """Add gradients of `rows` to those of the leaves, in place."""
        for i, row in rows.items():
            if row is not None:
                self._sources[i].row(gradients[i], step).add_(row)

    # ---------------------------------------------------------------- checks

    def domain(self, leaf: int) -> Domain | None:
        """Where a leaf's numbers may lie, if it is the optimizer's."""
        return self._domains[leaf][1] if leaf in self._domains else None

    def check(self, leaves: Sequence[Tensor]) -> None:
        """Raise ValueError unless the rule takes the leaves' values."""
        for i, (path, domain) in self._domains.items():
            for value in {float(leaves[i].detach().min()), float(leaves[i].detach().max())} if leaves[i].numel() else ():
                if not domain.allows(value):
                    raise ValueError(
                        f"{shown(path, 'hyper')} holds {value}: a {path[1]} is {domain.text}. Keep it there; in `realtime`, by "
                        f"project=, with gdtuo.project_box({shown(path, 'hyper')}, ...)."
                    )

    def extremes(self, leaves: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
        """The level's settings with the smallest and the largest number of each leaf in their places."""
        for i, (path, _) in self._domains.items():
            for value in (leaves[i].detach().min(), leaves[i].detach().max()) if leaves[i].numel() else ():
                yield self._schema.replaced(self._settings, str(path[1]), float(value))

    def _name(self, path: Path) -> str:
        name = path[1] if len(path) > 1 else None
        if name not in self._schema.names:
            raise ValueError(
                f"There is {shown(path, 'hyper')}, but {self._schema.title} has no hyperparameter {name!r}. It has "
                f"{', '.join(self._schema.names)}; initial states stand in hyper['optimizer']['state']."
            )
        return str(name)

    @staticmethod
    def _governed(path: Path, weights: Mapping[Path, Tensor], branch: Path) -> list[Path]:
        mine = [weight for weight in weights if weight[: len(branch)] == branch]
        if not mine:
            raise ValueError(
                f"There is {shown(path, 'hyper')}, but no {shown(branch, 'params')}. Name weights as params does: "
                f"{', '.join(shown(weight, 'params') for weight in list(weights)[:8])}."
            )
        return mine

    @staticmethod
    def _source(path: Path, leaf: Tensor, weights: Sequence[Tensor], steps: int) -> Source:
        remedy = (
            f"Its first dimension counts steps: give [] for one number, [{steps}] for a schedule, [1, ...] for one number a "
            f"weight, [{steps}, ...] for both; what follows the first dimension broadcasts against the weights."
        )
        if leaf.ndim and leaf.shape[0] not in (1, steps):
            raise ValueError(f"{shown(path, 'hyper')} has shape {list(leaf.shape)} in a run of {steps} steps. {remedy}")
        for weight in weights:
            try:
                fits = torch.broadcast_shapes(leaf.shape[1:], weight.shape) == weight.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"{shown(path, 'hyper')} has shape {list(leaf.shape)}, the weight {list(weight.shape)}. {remedy}"
                )
        return Source(leaf.ndim > 0, leaf.ndim > 0 and steps > 1 and leaf.shape[0] == steps)

    @staticmethod
    def _state(path: Path, leaf: Tensor, weights: Mapping[Path, Tensor]) -> str:
        weight = weights.get(path[3:])
        if weight is None:
            raise ValueError(
                f"{shown(path, 'hyper')} is no state of one weight. An initial state is nested like params: "
                "hyper['optimizer']['state']['momentum_buffer']['w']."
            )
        return str(path[2])
