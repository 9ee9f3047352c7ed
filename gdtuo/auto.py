"""`auto`: an optimizer that needs no number."""

from __future__ import annotations

from typing import Any, TypeVar

from .level import Level
from .optimizers import SGD, AdamW

__all__ = ["auto"]

L = TypeVar("L", bound=Level)

START = 1000.0  # a learning rate above all limits: the first update moves the weights by what `trust` allows
STEP = 0.1  # of the learning rate, at most, in parts of itself
TRUST = 0.05  # length of an update, at most, in parts of the weights


def auto(params: Any, bottom: type[L] = AdamW, **arguments: Any) -> L:  # type: ignore[assignment]
    """AdamW, SGD or another, whose learning rate needs no tuning: begun at 5 % of the weights, judged by 100 updates.

    The first update is as long as five hundredths of the weights (`trust`), whatever the scale of the loss. Each
    later step multiplies the learning rate by e^(-0.1 c). c is the cosine between the gradient and Z, the way in which a
    larger rate would have moved the weights over the last hundred updates (`horizon`):
    Z <- (1 - 1/100) Z + d(update) / d(log lr); and no update is longer than `trust` allows.
    docs/robust-default.md says what was tried, and where it fails.

    Args:
        params: as any torch optimizer takes them: tensors, named ones or groups.
        bottom: what moves the weights: a class of levels with a learning rate, as `AdamW` (the default), `SGD`, `Lion`, `Muon`.
        **arguments: of that class. They replace what is set here, `lr=1000` (which is lowered before the first update),
            `trust=0.05` and `optimizer=gdtuo.SGD(lr=0.1)`, and its defaults, `horizon=100` among them. Whatever is written is
            used: a learning rate is where learning starts, unless an update with it would be longer than `trust` allows.

    Returns:
        a level with these parameters, a `torch.optim.Optimizer`. `hyperparameters()` tells the learning rate in use;
        `param_groups[0]["lr"]` stays what was written, for schedulers.

    It costs what a tower of height 1 costs.

    Raises:
        TypeError: if `bottom` is no class of levels.
        ValueError: for `per="element"`, with which the start would not be lowered; and where `bottom` does.

    References:
        Chandra et al., "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022; the horizon answers Wu et al.,
        "Understanding Short-Horizon Bias in Stochastic Meta-Optimization", ICLR 2018; the limit is the trust coefficient of
        You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017.

    Example:
        >>> import torch, gdtuo
        >>> w = torch.nn.Parameter(torch.full((4,), 2.0))
        >>> optimizer = auto([w], gdtuo.SGD, momentum=0.9)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> str(optimizer), round(optimizer.hyperparameters()["L0/g0/lr"], 4)  # of |w| / |g| = 1/2
        ('sgd / sgd', 0.025)
    """
    if not (isinstance(bottom, type) and issubclass(bottom, Level)):
        raise TypeError(f"auto got bottom={bottom!r}. Give a class of levels, as gdtuo.auto(params, gdtuo.SGD).")
    if arguments.get("per") == "element":
        raise ValueError(
            f"{bottom.__name__} under auto starts where trust= allows, which per='element' leaves out. Write the tower: "
            f"gdtuo.{bottom.__name__}(params, lr=1e-3, optimizer=gdtuo.SGD(), ...)."
        )
    return bottom(params, **{"lr": START, "trust": TRUST, "optimizer": SGD(lr=STEP), **arguments})
