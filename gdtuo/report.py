"""What a tower shows of itself: flat dictionaries of floats, read from the device at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .blueprint import Blueprint
from .ladder import Ladder

__all__ = ["hypergradients", "hyperparameters", "place"]


Groups: TypeAlias = Sequence[Mapping[str, Any]]


def hyperparameters(
    levels: Sequence[Blueprint], groups: Groups, indices: Sequence[int], ladder: Ladder | None
) -> dict[str, float]:
    """Every effective value of every level, under "L{level}/g{group}/{name}"; `indices` are the groups' numbers."""
    table: dict[str, Any] = {}
    learned: dict[str, Tensor] = {}
    if ladder is not None:
        learned = _labelled(groups, indices, ladder, [ladder.effective(k) for k in range(len(ladder.learned))])
    for k, level in enumerate(levels):
        for g, group in zip(indices, groups, strict=True):
            for name, number in zip(level.schema.names, level.read(group), strict=True):
                key = f"L{k}/g{g}/{name}"
                found = {label: value for label, value in learned.items() if label == key or label.startswith(key + "/")}
                table.update(found if found else {key: number})
    if ladder is not None and ladder.top is not None:
        for g, group in zip(indices, ladder.top.optimizer.param_groups, strict=True):
            if "lr" in group:
                table[f"L{len(levels)}/g{g}/lr"] = group["lr"]
    return _floats(table)


def hypergradients(
    level: Blueprint, groups: Groups, indices: Sequence[int], ladder: Ladder, values: Sequence[Tensor]
) -> dict[str, float]:
    """Arrays [B, H] of each level that is learned, under the keys of `hyperparameters`; `level` is the weights' own."""
    idle = {
        f"L0/g{g}/{name}"
        for g, group in zip(indices, groups, strict=True)
        for name in level.schema.names
        if not level.learns(name, group)
    }
    table = _labelled(groups, indices, ladder, values)
    return _floats({key: value for key, value in table.items() if "/".join(key.split("/")[:3]) not in idle})


def place(key: str) -> tuple[int, int]:
    """The level and the group of a key."""
    level, group = key.split("/")[:2]
    return int(level[1:]), int(group[1:])


def _labelled(groups: Groups, indices: Sequence[int], ladder: Ladder, values: Sequence[Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for i, (g, group) in enumerate(zip(indices, groups, strict=True)):
        labels: list[str] | None = [""]  # of the rows below, and None where they are too many to name
        for k, (learned, table) in enumerate(zip(ladder.learned, values, strict=True)):
            rows = table.split(ladder.blocks[k])[i]
            per = ladder.plans[k].per
            if k == 0:
                names = group.get("param_names", range(len(group["params"])))
                labels = {"group": [""], "tensor": [f"/{name}" for name in names], "element": None}[per]
                here = labels
            elif per == "element":
                here = None if labels is None else [f"{label}/{name}" for label in labels for name in ladder.learned[k - 1].names]
            else:
                here = [""]
            for h, name in enumerate(learned.names):
                key = f"L{k}/g{g}/{name}"
                if here is None:
                    if len(rows):
                        result |= {f"{key}/{f.__name__}": f(rows[:, h]) for f in (torch.mean, torch.min, torch.max)}
                else:
                    result |= {key + label: row[h] for label, row in zip(here, rows, strict=True)}
            labels = here
    return result


def _floats(table: Mapping[str, Any]) -> dict[str, float]:
    tensors = {key: value for key, value in table.items() if isinstance(value, Tensor)}
    read = (
        dict(zip(tensors, torch.stack([t.detach().double() for t in tensors.values()]).tolist(), strict=True)) if tensors else {}
    )
    return {key: read[key] if key in read else float(value) for key, value in table.items()}
