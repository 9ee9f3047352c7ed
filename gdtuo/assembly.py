"""The buckets of an engine, made from parameter groups, and the tables that they add to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Workspace
from .blueprint import Blueprint
from .collective import Collective
from .large import LargeBucket
from .layout import Bucket, Place, numel, same
from .recipes import Recipe
from .recording import UnrecordableError
from .sharding import Ranks, is_distributed, ranks_of
from .small import SmallBucket
from .tape import Array, numbers_of
from .whole import WholeBucket

__all__ = ["Assembly", "Known", "carry", "rows_of", "tables_of"]


def rows_of(per: str, p: Tensor) -> int:
    """How many rows of hyperparameters a parameter has of its own."""
    return {"group": 0, "tensor": 1, "element": numel(p)}[per]


class Alike(NamedTuple):
    """What parameters of one bucket have in common; `own` sets one apart that is worked on alone."""

    recipe: Recipe
    device: torch.device
    fused: bool
    ranks: Ranks
    own: int | None


class Assembly(NamedTuple):
    """What buckets are made with.

    Attributes:
        blueprint: the weights' level.
        learned: names of what is learned of it at all.
        present: the hyperparameters that the rule is given in some groups.
        groups: of parameters.
        last: what is kept of each parameter's last update, None if nothing stands above.
        state: the optimizer's own.
        counters: where counts stand, None for with the parameters.
        workspace: temporary memory that buckets share.
    """

    blueprint: Blueprint
    learned: tuple[str, ...]
    present: Callable[[Sequence[Mapping[str, Any]]], tuple[str, ...]]
    groups: Sequence[Mapping[str, Any]]
    last: Array | None
    state: Mapping[Tensor, dict[str, Any]]
    counters: torch.device | None
    workspace: Workspace

    def buckets(self) -> tuple[list[Bucket], list[Tensor]]:
        """Parameters that are worked on together, and those that get a place when they first have a gradient."""
        options = self.blueprint.options
        alike: dict[Alike, list[tuple[Tensor, Place]]] = {}
        waiting: list[Tensor] = []
        index = row = 0
        for g, group in enumerate(self.groups):
            recipes = {dtype: self._recipe(group, dtype) for dtype in {_real(p) for p in group["params"]}}
            for p in group["params"]:
                if options.per == "element" and not numel(p):
                    pass  # no row of hyperparameters governs it, and no weight asks for one
                elif p.requires_grad or p.grad is not None or p in self.state:
                    recipe = recipes[_real(p)]
                    ranks = ranks_of(p, options.sharded)
                    self._check_cut(p, ranks, recipe)
                    own = None if _recordable(recipe) else index
                    key = Alike(recipe, p.device, bool(group.get("fused")), ranks, own)
                    alike.setdefault(key, []).append((p, Place(g, index, row)))
                else:
                    waiting.append(p)
                index, row = index + 1, row + rows_of(options.per, p)
            row += options.per == "group"
        return [self._bucket(key, members) for key, members in alike.items()], waiting

    def _bucket(self, alike: Alike, members: Sequence[tuple[Tensor, Place]]) -> Bucket:
        params = [p for p, _ in members]
        arguments = (
            alike.recipe,
            alike.ranks,
            self.blueprint.schema.names,
            self.learned,
            self.blueprint.options.per,
            params,
            [place for _, place in members],
            self.last,
            self.state,
            self.counters or alike.device,
        )
        if alike.own is not None:
            return WholeBucket(*arguments)
        if SmallBucket.fits(alike.recipe, params):
            return SmallBucket(*arguments, workspace=self.workspace)
        return LargeBucket(*arguments, fused=alike.fused, workspace=self.workspace)

    def _recipe(self, group: Mapping[str, Any], dtype: torch.dtype) -> Recipe:
        blueprint, options = self.blueprint, self.blueprint.options
        rule, present = blueprint.rule(group), self.present([group])
        try:
            hash(rule)
        except TypeError as error:
            raise TypeError(
                f"{type(rule).__name__} has a switch that cannot be hashed: {error}. Give a tuple, not a list."
            ) from error
        # a hyperparameter that this group does not have cannot be learned here; its column stays 0
        able = tuple(name for name in self.learned if name in present)
        own = tuple(name for name in able if blueprint.learns(name, group))
        spread = able if options.per == "element" else ()
        closed_form = blueprint.closed_form(self.learned)
        # Tangents are kept where they accumulate, where no closed form can rebuild them from the state, and
        # where the values to rebuild them with would take as much memory.
        horizon, limited = blueprint.horizon(self.learned), blueprint.trust(self.learned) < torch.inf
        traced = bool(own) and (horizon > 1 or bool(spread) or not closed_form)
        noisy = options.hypergradient == "cosine" and not rule.direct.issuperset(own)
        moved = bool(own) and (noisy or limited)
        return Recipe(rule, present, own, dtype, traced, closed_form, 1.0 - 1.0 / horizon, spread, moved)

    def _check_cut(self, p: Tensor, ranks: Ranks, recipe: Recipe) -> None:
        """Raise ValueError if a parameter that is cut among ranks cannot be worked on in parts."""
        if not ranks:
            return
        title, per = self.blueprint.schema.title, self.blueprint.options.per
        if per == "element" and self.learned:
            raise ValueError(
                f"{title} got per='element' for parameters that are cut among ranks: each rank would have other hyperparameters. "
                "Use per='tensor', or train without sharding."
            )
        if is_distributed(p) and not recipe.rule.elementwise:
            raise ValueError(
                f"{title} got a parameter of shape {tuple(p.shape)} of which each rank has a part, and its rule looks at whole "
                "tensors. Use ZeroRedundancyOptimizer, which keeps tensors whole, or an elementwise optimizer, as gdtuo.AdamW."
            )
        if per == "tensor" and self.learned and not is_distributed(p):
            raise ValueError(
                f"{title} got per='tensor' with sharded=: from plain tensors it cannot tell whether ranks hold parts of the same "
                "tensors or different ones. Use per='group', or fully_shard, whose parameters say so themselves."
            )


def tables_of(
    buckets: Sequence[Bucket], table: Tensor, groups: int, sharded: Any
) -> tuple[dict[Ranks, Array], Collective | None]:
    """Where buckets add their sums, by how their parameters are cut, and what adds these up over ranks into `table`."""
    kinds = [bucket.ranks for bucket in buckets]
    if sharded:
        kinds += [ranks_of(torch.empty(0), sharded)]  # also where this rank has no parameters
    if not any(kinds):
        return {(): numbers_of(table)}, None
    collective = Collective(kinds, table, groups)
    return {kind: numbers_of(table) for kind, table in collective.tables.items()}, collective


class Known(NamedTuple):
    """A group's parameters as they were laid out, and how many rows of hyperparameters each had."""

    params: Sequence[Tensor]
    rows: Sequence[int]


def carry(old: Tensor, view: Tensor, name: str, per: str, known: Known | None, now: Sequence[Tensor]) -> None:
    """Take a group's rows of a number over; those of parameters that it no longer has are dropped.

    Args:
        old, view: the rows as they were, and where they belong now.
        name: of the number: "L0/last" has one row for each parameter.
        per: granularity of what is learned.
        known: the group as it was, None if it is new.
        now: its parameters.
    """
    if known is None or same(known.params, now):
        if len(old) == len(view):
            view.copy_(old)
        elif name == "L0/last":  # of the parameters that another rank had: updated together they all say the same
            view.copy_(old[-1:])
        return
    sizes = [1] * len(known.params) if name == "L0/last" else known.rows
    if sum(sizes) != len(old) or (per == "group" and name != "L0/last"):
        if len(old) == len(view):  # the group's own
            view.copy_(old)
        return
    parts, places = old.split(list(sizes)), {id(p): i for i, p in enumerate(known.params)}
    here, start = {id(p) for p in now}, 0
    for i, p in enumerate(now):
        size = 1 if name == "L0/last" else rows_of(per, p)
        gone = i < len(known.params) and id(known.params[i]) not in here  # p stands in its place
        part = parts[places[id(p)]] if id(p) in places else parts[i] if gone else None
        if part is not None and len(part) == size:
            view[start : start + size].copy_(part)
        start += size


def _real(p: Tensor) -> torch.dtype:
    return p.dtype.to_real()


@functools.lru_cache(1024)
def _recordable(recipe: Recipe) -> bool:
    """Whether a recipe has kernels; else its rule is called for each parameter."""
    if not recipe.rule.elementwise:
        return False
    try:
        for kind in ("update", "learn", "pull") if recipe.own else ("update",):
            recipe.kernel(kind)
    except UnrecordableError:
        return False
    return True
