"""Looking at an optimizer from outside: through wrappers, beside plain torch optimizers, everything in one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import report
from .level import Level
from .rules import Number

__all__ = ["hyperparameters", "snapshot", "unwrap"]

#: Under which name a wrapper holds what it wraps: accelerate, Lightning, HF's Trainer; ZeRO-1; SAM and its like.
WRAPPED = ("optimizer", "optim", "base_optimizer")

#: Numbers of torch's optimizers that say where a state starts.
STARTS = ("initial_accumulator_value",)


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The innermost optimizer of a chain of wrappers; an optimizer itself is returned as it is.

    Raises:
        TypeError: if there is none.
    """
    found, seen = optimizer, {id(optimizer)}
    while True:
        held = (getattr(found, name, None) for name in WRAPPED)
        inner = next((x for x in held if hasattr(x, "param_groups")), None)
        if inner is None or id(inner) in seen:
            break
        found = inner
        seen.add(id(found))
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(
            f"There is no optimizer in this {type(optimizer).__name__}. Give a torch.optim.Optimizer, or a wrapper that holds "
            f"one as {', '.join(f'.{name}' for name in WRAPPED)}; of several, give one at a time."
        )
    return found


@torch.no_grad()
def hyperparameters(optimizer: Any) -> dict[str, float]:
    """The effective values of every level, as `optimizer.hyperparameters()`, through any wrapper.

    Of a torch optimizer, the numbers in its groups under the same keys, so that one line of logging serves both.

    Args:
        optimizer: a level with parameters, a torch optimizer, or what holds one as `.optimizer`, `.optim` or
            `.base_optimizer`, at any depth: accelerate's, Lightning's and ZeRO's wrappers, a scheduler, a trainer.

    Returns:
        "L{level}/g{group}/{name}" -> value, read with one device synchronisation.

    Raises:
        TypeError: if there is no optimizer in it.
        RuntimeError: for a template.

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.ones(1))]
        >>> hyperparameters(torch.optim.SGD(weights, lr=0.1))
        {'L0/g0/lr': 0.1, 'L0/g0/momentum': 0.0, 'L0/g0/dampening': 0.0, 'L0/g0/weight_decay': 0.0}
    """
    return report.floats(_effective(unwrap(optimizer)))


@torch.no_grad()
def snapshot(optimizer: Any, extra: Mapping[str, Number] | None = None) -> dict[str, float]:
    """Everything that a log wants to know of an optimizer, and `extra` numbers, read with one device synchronisation.

    Besides `hyperparameters`, of a tower: "written/L0/g0/lr" and its like, what a user or a scheduler wrote beside what
    is learned; "skipped", how many hyper-updates were not finite.
    """
    inner = unwrap(optimizer)
    table = _effective(inner)
    skips: dict[str, Number] = {}
    if isinstance(inner, Level):
        table |= {f"written/{key}": number for key, number in inner._bound().written().items()}
        skips = {f"skipped/{g}": group["skipped"] for g, group in enumerate(inner.param_groups) if "skipped" in group}
    found = report.floats(table | skips | dict(extra or {}))
    if skips:
        found["skipped"] = sum(found.pop(key) for key in skips)
    return found


def _effective(optimizer: torch.optim.Optimizer) -> dict[str, Number]:
    """Numbers, some of which may be tensors on a device."""
    if isinstance(optimizer, Level):
        return optimizer._bound().hyperparameters()
    return {
        f"L0/g{g}/{name}": number
        for g, group in enumerate(optimizer.param_groups)
        for key in optimizer.defaults
        for name, number in _numbers(key, group.get(key)).items()
    }


def _numbers(key: str, value: Any) -> dict[str, Number]:
    """What a torch optimizer holds under a key, by our names: "betas" are "beta1" and "beta2"."""
    if isinstance(value, tuple | list):
        stem = key if key == "eps" else key.removesuffix("s")
        return {name: number for i, x in enumerate(value, 1) for name, number in _numbers(f"{stem}{i}", x).items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number or (isinstance(value, Tensor) and value.numel() == 1)
    return {key: value} if number and key not in STARTS else {}
