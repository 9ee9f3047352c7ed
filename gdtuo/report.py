"""What a tower shows of itself: flat dictionaries, read from the device at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .blueprint import Blueprint
from .ladder import Ladder
from .rules import Number

__all__ = ["floats", "hypergradients", "hyperparameters", "place", "written"]


Groups: TypeAlias = Sequence[Mapping[str, Any]]
Labelled: TypeAlias = dict[str, dict[str, Tensor]]  # "L0/g0/lr" -> {"": value}, or {"/weight": value, "/bias": value}


def hyperparameters(
    levels: Sequence[Blueprint], groups: Groups, indices: Sequence[int], ladder: Ladder | None
) -> dict[str, Number]:
    """Every effective value of every level, under "L{level}/g{group}/{name}"; `indices` are the groups' numbers."""
    table: dict[str, Number] = {}
    learned: Labelled = {}
    if ladder is not None:
        learned = _labelled(groups, indices, ladder, [ladder.effective(k) for k in range(len(ladder.learned))])
    for k, level in enumerate(levels):
        for g, group in zip(indices, groups, strict=True):
            for name, number in zip(level.schema.names, level.read(group), strict=True):
                key = f"L{k}/g{g}/{name}"
                table |= {key + label: value for label, value in learned[key].items()} if learned.get(key) else {key: number}
    if ladder is not None and ladder.top is not None:
        for g, group in zip(indices, ladder.top.optimizer.param_groups, strict=True):
            if "lr" in group:
                table[f"L{len(levels)}/g{g}/lr"] = group["lr"]
    return table


def written(levels: Sequence[Blueprint], groups: Groups, indices: Sequence[int], ladder: Ladder) -> dict[str, Number]:
    """What the groups hold of the hyperparameters that are learned: the user's or a scheduler's numbers."""
    table: dict[str, Number] = {}
    for k, (level, learned) in enumerate(zip(levels, ladder.learned, strict=False)):  # the topmost level is not learned
        for g, group in zip(indices, groups, strict=True):
            numbers = dict(zip(level.schema.names, level.read(group), strict=True))
            table |= {f"L{k}/g{g}/{name}": numbers[name] for name in learned.names if level.learns(name, group)}
    return table


def hypergradients(
    level: Blueprint, groups: Groups, indices: Sequence[int], ladder: Ladder, values: Sequence[Tensor]
) -> dict[str, Number]:
    """Arrays [B, H] of each level that is learned, under the keys of `hyperparameters`; `level` is the weights' own."""
    idle = {
        f"L0/g{g}/{name}"
        for g, group in zip(indices, groups, strict=True)
        for name in level.schema.names
        if not level.learns(name, group)
    }
    labelled = _labelled(groups, indices, ladder, values)
    return {key + label: value for key, found in labelled.items() if key not in idle for label, value in found.items()}


def place(key: str) -> tuple[int, int]:
    """The level and the group of a key."""
    level, group = key.split("/")[:2]
    return int(level[1:]), int(group[1:])


def _labelled(groups: Groups, indices: Sequence[int], ladder: Ladder, values: Sequence[Tensor]) -> Labelled:
    result: Labelled = {}
    tables = [table.split(rows) for table, rows in zip(values, ladder.blocks, strict=False)]
    for i, (g, group) in enumerate(zip(indices, groups, strict=True)):
        labels: list[str] | None = [""]  # of the rows below, and None where they are too many to name
        for k, learned in enumerate(ladder.learned):
            rows, per = tables[k][i], ladder.plans[k].per
            if k == 0:
                names = group.get("param_names", range(len(group["params"])))
                labels = {"group": [""], "tensor": [f"/{name}" for name in names], "element": None}[per]
                here = labels
            elif per == "element":
                here = None if labels is None else [f"{label}/{name}" for label in labels for name in ladder.learned[k - 1].names]
            else:
                here = [""]
            for h, name in enumerate(learned.names):
                found = result[f"L{k}/g{g}/{name}"] = {}
                if here is not None:
                    found.update({label: row[h] for label, row in zip(here, rows, strict=True)})
                elif len(rows):
                    found.update({f"/{f.__name__}": f(rows[:, h]) for f in (torch.mean, torch.min, torch.max)})
            labels = here
    return result


def floats(table: Mapping[str, Number]) -> dict[str, float]:
    """The same as Python floats, with one synchronisation for all tensors of a device."""
    tensors: dict[torch.device, dict[str, Tensor]] = {}
    for key, value in table.items():
        if isinstance(value, Tensor):
            tensors.setdefault(value.device, {})[key] = value.detach().reshape(())
    read: dict[str, float] = {}
    for found in tensors.values():
        read |= zip(found, torch.stack(list(found.values())).tolist(), strict=True)
    return {key: float(read.get(key, value)) for key, value in table.items()}
