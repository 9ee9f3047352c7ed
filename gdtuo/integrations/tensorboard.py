"""TensorBoard: every effective hyperparameter as a scalar."""

from __future__ import annotations

from typing import Any, Protocol

from ..observing import snapshot

__all__ = ["ScalarWriter", "log_hyperparameters"]


class ScalarWriter(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter` and its like have."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write a number for a step."""


def log_hyperparameters(writer: ScalarWriter, optimizer: Any, step: int, section: str = "hyperparameters") -> None:
    """Write what an optimizer works with, and how many hyper-updates were skipped, to a `SummaryWriter`.

    Tags are "hyperparameters/L0/g0/lr" and its like for every effective value of every level,
    "hyperparameters/written/L0/g0/lr" for the user's or a scheduler's number beside one that is learned, and
    "hyperparameters/skipped". One device synchronisation. TensorBoard keeps scalars in 32 bits.

    Args:
        writer: torch's, tensorboardX's, or Lightning's `logger.experiment`.
        optimizer: a level with parameters, a torch optimizer, or a wrapper of one, as for `gdtuo.hyperparameters`.
        step: where on the axis.
        section: what the tags begin with; with several optimizers, a name for each.

    Raises:
        TypeError: if `writer` writes no scalars, or there is no optimizer in `optimizer`; before anything is written.

    Example:
        >>> import torch, gdtuo
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))], lr=0.1, eps=1e-6)
        >>> log_hyperparameters(Printer(), optimizer, step=3, section="generator")
        3 generator/L0/g0/lr 0.1
        3 generator/L0/g0/momentum 0.0
        3 generator/L0/g0/alpha 0.99
        3 generator/L0/g0/eps 1e-06
        3 generator/L0/g0/weight_decay 0.0
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"log_hyperparameters got {type(writer).__name__} as its writer. Give a torch.utils.tensorboard.SummaryWriter; "
            "Lightning's logger has one as logger.experiment."
        )
    for name, value in snapshot(optimizer).items():
        writer.add_scalar(f"{section}/{name}", value, step)
