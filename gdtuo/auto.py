"""`auto`: an optimizer that needs no number."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from .level import Level
from .optimizers import SGD, AdamW

__all__ = ["auto"]

AnyLevel = TypeVar("AnyLevel", bound=Level)

HORIZON = 100  # updates that the learning rate is judged by


class _Numbers(NamedTuple):
    """What is written for a level where the user writes nothing."""

    step: float  # of the learning rate, at most, in parts of itself
    lr: float | None = None  # where it starts, if not at the level's own default


# A rate of plain SGD has the units of the problem: it starts where hardly any diverges, and needs to climb fast.
USUAL = _Numbers(step=0.1)
NUMBERS: dict[type[Level], _Numbers] = {SGD: _Numbers(step=0.2, lr=1e-6)}


def auto(params: Any, level: type[AnyLevel] = AdamW, **arguments: Any) -> AnyLevel:  # type: ignore[assignment]
    """A tower whose learning rate needs no tuning: AdamW, judged by its last hundred updates, under SGD.

    Each step multiplies the weights' learning rate by e^(-s c). c is the cosine between the gradient and Z, the way in
    which a larger rate would have moved the weights over the last hundred updates: Z <- 0.99 Z + d(update) / d(log lr).
    s, the step size of the SGD above, is 0.1, so that a rate which is wrong by a factor of 100 is corrected within some
    fifty steps where gradients agree. docs/robust-default.md says what was tried, and where it fails.

    Args:
        params: as any torch optimizer takes them: tensors, named ones or groups.
        level: the class that trains the weights. Default: `AdamW`. With `SGD` the rate starts at 1e-6 and s is 0.2.
        **arguments: of the level. They replace what is set here, `horizon=100` and `optimizer=gdtuo.SGD(lr=s)`, and its
            defaults: whatever is written is used as it is written.

    Returns:
        a level with these parameters, a `torch.optim.Optimizer`.

    Raises:
        TypeError: if `level` is no class of a level, or does not take the arguments.

    It costs what a tower of height 1 costs, and one buffer more, of the size of the weights.

    References:
        Chandra et al., "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022; the horizon answers Wu et al.,
        "Understanding Short-Horizon Bias in Stochastic Meta-Optimization", ICLR 2018.

    Example:
        >>> import torch
        >>> optimizer = auto(torch.nn.Linear(2, 1).parameters())
        >>> str(optimizer), optimizer.hyperparameters()["L0/g0/lr"]
        ('adamw / sgd', 0.001)
    """
    if not (isinstance(level, type) and issubclass(level, Level)):
        raise TypeError(f"auto() got level={level!r}. Give a class: gdtuo.AdamW, gdtuo.SGD or another level.")
    numbers = NUMBERS.get(level, USUAL)
    chosen = {"horizon": HORIZON, "optimizer": SGD(lr=numbers.step)}
    if numbers.lr is not None:
        chosen["lr"] = numbers.lr
    return level(params, **{**chosen, **arguments})
