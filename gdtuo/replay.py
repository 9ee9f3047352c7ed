"""Taking it away: a recorded learning rate as a schedule, for a training run without a tower."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from .history import History
from .level import Level
from .observing import unwrap
from .parts import Parts

__all__ = ["Replayed", "replay"]

RATE = re.compile(r"L0/g(\d+)/lr(?:/(.*))?")


class Replayed:
    """Epoch -> learning rate: as recorded; in between geometric; before and after, the first and the last.

    Args:
        steps: rising, counted from 1: the update that a rate was used for.
        values: the rates.

    Example:
        >>> rate = Replayed([1, 3], [0.1, 0.4])
        >>> [round(rate(epoch), 3) for epoch in range(4)]
        [0.1, 0.2, 0.4, 0.4]
    """

    def __init__(self, steps: Sequence[int], values: Sequence[float]) -> None:
        self.steps, self.values = list(steps), list(values)

    def __call__(self, epoch: int) -> float:
        step = epoch + 1  # a scheduler's epoch counts the updates that have been
        after = bisect_right(self.steps, step)
        if after == 0:
            return self.values[0]
        left = self.values[after - 1]
        if after == len(self.steps) or self.steps[after - 1] == step:
            return left
        right = self.values[after]
        way = (step - self.steps[after - 1]) / (self.steps[after] - self.steps[after - 1])
        if left > 0 and right > 0:  # what is learned is a factor
            return math.exp((1 - way) * math.log(left) + way * math.log(right))
        return (1 - way) * left + way * right


def replay(history: History, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """A scheduler that gives an optimizer the learning rates of a recorded run, without any tower.

    The rates in the groups are the recorded effective ones, whatever stands there now; other hyperparameters stay the
    optimizer's own. Between records a rate is interpolated geometrically (linearly from and to 0); after the last it stays.
    Step the scheduler after every update, as the history was recorded; record before `scheduler.step()`.

    A tower follows, too, where it leaves the rate alone: one that learned it would multiply the recorded rates by its factor.

    Args:
        history: of any optimizer, a tower's or another's; recorded now or loaded.
        optimizer: with as many groups, in the same order. Of rates learned per tensor: with a group for each tensor, as
            `gdtuo.export` makes them.

    Returns:
        a `torch.optim.lr_scheduler.LambdaLR`. Its base rate is 1, for its functions are the rates themselves; its
        `state_dict` holds them.

    Raises:
        TypeError: if `history` is no History, as a file's name, or `optimizer` no optimizer.
        RuntimeError: for a template.
        ValueError: if the optimizer is a tower that learns its rate, or has learned one; if the history has no learning rates,
            one for each weight, or not as many as the optimizer has groups.

    Example:
        >>> import torch, gdtuo
        >>> def train(make, scheduled=None):
        ...     w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        ...     optimizer = make([w])
        ...     history, scheduler = gdtuo.History(optimizer), scheduled and gdtuo.replay(scheduled, optimizer)
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         (w**2).sum().backward()
        ...         optimizer.step()
        ...         history.record()
        ...         if scheduler:
        ...             scheduler.step()
        ...     return round(w.item(), 10), history
        >>> learned, history = train(lambda params: gdtuo.SGD(params, lr=0.1, optimizer=gdtuo.SGD()))
        >>> replayed, _ = train(torch.optim.SGD, history)
        >>> learned == replayed
        True
    """
    _check(history, optimizer)
    found: dict[int, dict[str, Any]] = {}
    for key, series in history.items():
        match = RATE.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2] or ""] = series
    if any(lines.keys() == {"mean", "min", "max"} for lines in found.values()):
        raise ValueError("The history holds rates for each weight, of which it knows mean and range. Learn with per='tensor'.")
    rates = [Replayed(*series) for g in sorted(found) for series in found[g].values()]
    if not rates:
        raise ValueError("The history holds no learning rates. Record some first, with history.record() after each step.")
    if len(rates) != len(optimizer.param_groups):
        raise ValueError(
            f"The history holds {len(rates)} learning rates, and this {type(optimizer).__name__} has "
            f"{len(optimizer.param_groups)} groups. Give it a group for each: "
            f"{', '.join(key for key in history if RATE.fullmatch(key))}."
        )
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(1.0)
        else:
            group["lr"] = 1.0
        group["initial_lr"] = 1.0
    return LambdaLR(optimizer, rates)  # type: ignore[arg-type]  # torch's stubs have int -> float functions alone


def _check(history: Any, optimizer: Any) -> None:
    if isinstance(optimizer, History):
        raise TypeError(
            "replay() got a History in the place of its optimizer. The history comes first: replay(history, optimizer)."
        )
    if isinstance(history, (str, Path)):
        raise TypeError(f"replay() got a name. Load the file: gdtuo.replay(gdtuo.History.load({str(history)!r}), optimizer).")
    if not isinstance(history, History):
        raise TypeError(f"replay() got a {type(history).__name__}. Give what a gdtuo.History(optimizer) has recorded.")
    level = unwrap(optimizer)
    if not isinstance(level, Level):
        return
    parts = level._bound()
    if any(_moves_rate(level, parts, g) for g in range(len(level.param_groups))):
        raise ValueError(
            f"This {type(level).__name__} would multiply the recorded rates by a factor of its own. While it has learned "
            "nothing, set optimizer.learning = False; or leave its tower behind: gdtuo.replay(history, gdtuo.export(optimizer))."
        )


def _moves_rate(level: Level, parts: Parts, g: int) -> bool:
    """Whether a group's rate is not, or will not be, the one that is written."""
    group, columns = level.param_groups[g], parts.learned(g)
    if "lr" not in columns or not level.blueprints()[0].learns("lr", group):
        return False
    return level.learning or bool(group["L0/shift"][:, columns.index("lr")].any())
