"""State dicts: snapshots of groups and states, and whether one fits the optimizer that is to take it over."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

__all__ = ["TOWER_KEY", "check_group", "check_state", "snapshot"]

#: Keys in a group that belong to a tower.
TOWER_KEY = re.compile(r"L\d+/")


def snapshot(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose tensors no longer change."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}


def check_group(title: str, g: int, saved: Mapping[str, Any], group: Mapping[str, Any], names: Collection[str], top: str) -> None:
    """Raise ValueError unless a saved group holds the same optimizer and tower as ours, or no tower at all.

    Args:
        title: what our optimizer is.
        g: the group's number.
        names: of the weights' hyperparameters.
        top: what the keys of a torch optimizer on top begin with, which are there from its first step on; "" without one.
    """
    missing = [key for key in names if key not in saved]
    if missing:
        raise ValueError(
            f"The state dict holds another optimizer than this one ({title}): group {g} has no {', '.join(missing)}. Load it "
            "into the optimizer that it was saved from."
        )
    theirs, ours = (_shapes(saved, top), _shapes(group, top))
    differ = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if theirs and differ:
        raise ValueError(
            f"The state dict holds another tower than this one ({title}): group {g} differs in {', '.join(differ[:5])}. Build "
            "the optimizer with the optimizer=, learn= and per= that it was saved with."
        )


def _shapes(group: Mapping[str, Any], top: str) -> dict[str, Any]:
    """Of the tower's tensors; how many parameters each rank had does not count."""
    tower = {key: x for key, x in group.items() if TOWER_KEY.match(key) and isinstance(x, Tensor)}
    return {key: x.shape[key == "L0/last" :] for key, x in tower.items() if not (top and key.startswith(top))}


def check_state(p: Tensor, saved: Mapping[str, Any], state: Mapping[str, Any], uniform: Collection[str]) -> None:
    """Raise ValueError unless the saved state of a parameter has the shapes of ours; one number may stand for all weights."""
    for name, value in saved.items():
        own = state.get(name)
        if not isinstance(value, Tensor) or not isinstance(own, Tensor) or (name in uniform and value.numel() == 1):
            continue
        if value.shape != own.shape:
            raise ValueError(
                f"The state dict holds {name} of shape {tuple(value.shape)} for a parameter of shape {tuple(p.shape)}. Load it "
                "into an optimizer over the same parameters, in the same order."
            )
