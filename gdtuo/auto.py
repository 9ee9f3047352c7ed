"""`auto`: an optimizer that needs no number."""

from __future__ import annotations

from typing import Any

from .optimizers import SGD, AdamW

__all__ = ["auto"]

HORIZON = 200  # updates that the learning rate is judged by
STEP = 0.1  # of the learning rate, at most, in parts of itself


def auto(params: Any, **arguments: Any) -> AdamW:
    """AdamW whose learning rate needs no tuning: judged by its last two hundred updates, under SGD.

    Each step multiplies the weights' learning rate by e^(-0.1 c). c is the cosine between the gradient and Z, the way in
    which a larger rate would have moved the weights over the last two hundred updates:
    Z <- (1 - 1/200) Z + d(update) / d(log lr). So a rate that is wrong by a factor of 100 is corrected within some fifty
    steps where gradients agree. docs/robust-default.md says what was tried, and where it fails.

    Args:
        params: as any torch optimizer takes them: tensors, named ones or groups.
        **arguments: of `AdamW`. They replace what is set here, `horizon=200` and `optimizer=gdtuo.SGD(lr=0.1)`, and its
            defaults: whatever is written is used as it is written, a learning rate as well.

    Returns:
        a level with these parameters, a `torch.optim.Optimizer`.

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
    return AdamW(params, **{"horizon": HORIZON, "optimizer": SGD(lr=STEP), **arguments})
