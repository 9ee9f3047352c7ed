"""`auto`: an optimizer that needs no number."""

from __future__ import annotations

from typing import Any, TypeVar

from .level import Level
from .optimizers import SGD, AdamW

__all__ = ["auto"]

AnyLevel = TypeVar("AnyLevel", bound=Level)

HORIZON = 100  # updates that the learning rate is judged by
STEP = 0.05  # the learning rate moves by at most so much of itself a step
START = {"SGD": 1e-6}  # of the learning rate, where a level's own default is no good start for every problem


def auto(params: Any, level: type[AnyLevel] = AdamW, **arguments: Any) -> AnyLevel:  # type: ignore[assignment]
    """A tower whose learning rate needs no tuning: AdamW, judged by its last hundred updates, under SGD.

    Each step multiplies the weights' learning rate by e to the power of -0.05 c, where c is the cosine between the
    gradient and Z, the way in which a larger rate would have moved the weights: Z <- 0.99 Z + d(update)/d(log lr). From
    1e-3, where AdamW starts, a rate that is wrong by a factor of 100 is found within some hundred steps. See
    docs/robust-default.md for what was tried and where it fails.

    Args:
        params: as any torch optimizer takes them: tensors, named ones or groups.
        level: the class that trains the weights. Default: `AdamW`.
        **arguments: of the level, in place of what is set here: `horizon=100`, the level's own learning rate (1e-6 for `SGD`),
            `optimizer=gdtuo.SGD(lr=0.05)`. Whatever is given is used as it is given.

    Returns:
        a level with these parameters: a `torch.optim.Optimizer`.

    It costs what a tower of height 1 costs, and one more buffer of the size of the weights.

    References:
        Chandra et al., "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022; the horizon answers Wu et al.,
        "Understanding Short-Horizon Bias in Stochastic Meta-Optimization", ICLR 2018.

    Example:
        >>> import torch
        >>> optimizer = auto(torch.nn.Linear(2, 1).parameters())
        >>> str(optimizer), optimizer.hyperparameters()["L0/g0/lr"]
        ('adamw / sgd', 0.001)
    """
    chosen = {"horizon": HORIZON, "optimizer": SGD(lr=STEP)}
    if level.__name__ in START:
        chosen["lr"] = START[level.__name__]
    return level(params, **{**chosen, **arguments})
