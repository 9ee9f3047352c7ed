"""The contestants: a table of optimizers by name, and what one training iteration asks of any of them.

Rates are so small that weights and hyperparameters stay where they are: all contestants compute with the same numbers,
and nobody runs away while the same gradients stand for thousands of steps. What is computed does not depend on them.
Parameter-free optimizers find theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

import gdtuo

__all__ = ["BARE", "BASELINES", "CONTESTANTS", "HEIGHTS", "LEARN", "OPTIMIZERS", "PUBLISHED", "Driver", "driver", "tower_name"]

RATE = 1e-5

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
Factory = Callable[[Parameters], torch.optim.Optimizer]


# ---------------------------------------------------------------- ours

HEIGHTS = (1, 3, 5, 11)
LEARN: dict[str, str | tuple[str, ...]] = {"lr": "lr", "lr+betas+eps": ("lr", "betas", "eps")}


def tower_name(learn: str, height: int, fused: bool = False) -> str:
    """What the tower is called in the table."""
    return f"gdtuo {'fused' if fused else 'eager'}, {learn}, height {height}"


def tower(learn: str, height: int, fused: bool = False, per: Literal["group", "tensor"] = "group") -> Factory:
    """Adam with `height` SGDs above it; `learn` is a key of LEARN."""
    above = gdtuo.tower("/".join([f"sgd(lr={RATE})"] * height))
    return gdtuo.Adam(lr=RATE, optimizer=above, learn=LEARN[learn], per=per, fused=fused or None).bind


def grouped(factory: Factory) -> Factory:
    """The same with a parameter group for each tensor."""
    return lambda parameters: factory([{"params": [p]} for p in parameters])


# ---------------------------------------------------------------- parameter-free peers, imported by those who measure them


def prodigy(parameters: Parameters) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko, Defazio 2024)."""
    from prodigyopt import Prodigy

    return Prodigy(parameters)


def dadaptation(parameters: Parameters) -> torch.optim.Optimizer:
    """Adam by D-Adaptation (Defazio, Mishchenko 2023)."""
    from dadaptation import DAdaptAdam

    return DAdaptAdam(parameters)


def schedule_free(parameters: Parameters) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024)."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(parameters, lr=RATE)
    optimizer.train()
    return optimizer


# ---------------------------------------------------------------- the table

BASELINES = ("torch Adam", "torch Adam, fused")
PUBLISHED = "published, lr+betas, height 1"

OPTIMIZERS: dict[str, Factory] = {
    "torch Adam": lambda parameters: torch.optim.Adam(parameters, lr=RATE),
    "torch Adam, fused": lambda parameters: torch.optim.Adam(parameters, lr=RATE, fused=True),
    "torch Adam, foreach": lambda parameters: torch.optim.Adam(parameters, lr=RATE, foreach=True),
    **{
        tower_name(learn, height, fused): tower(learn, height, fused)
        for fused in (False, True)
        for learn in LEARN
        for height in HEIGHTS
    },
    "Prodigy": prodigy,
    "D-Adapt Adam": dadaptation,
    "Schedule-Free AdamW": schedule_free,
}

#: What can take a bare step, and what can take part in an iteration.
BARE = tuple(OPTIMIZERS)
CONTESTANTS = (*BARE, PUBLISHED)

# Beside the contest: what memory is counted from, and what `benchmarks.targets` compares.
OPTIMIZERS |= {
    "torch SGD": lambda parameters: torch.optim.SGD(parameters, lr=RATE),
    "gdtuo eager, lr, height 1, per tensor": tower("lr", 1, per="tensor"),
    "gdtuo eager, lr, height 1, a group for each tensor": grouped(tower("lr", 1)),
}


# ---------------------------------------------------------------- one iteration's part of an optimizer


class Driver(Protocol):
    """What an iteration calls, in this order: `zero_grad`, the model, `backward`, `step`."""

    def zero_grad(self) -> None:
        """Before the model is called."""

    def backward(self, loss: Tensor) -> None:
        """Give the parameters their gradients."""

    def step(self) -> None:
        """Move the weights."""


class Standard:
    """Any torch.optim.Optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


class Published:
    """The published package: it takes the module over, and its backward pass keeps the graph."""

    def __init__(self, model: nn.Module) -> None:
        from gradient_descent_the_ultimate_optimizer import gdtuo as published

        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        self.wrapper = published.ModuleWrapper(model, published.Adam(RATE, optimizer=published.SGD(RATE)))
        self.wrapper.initialize()

    def zero_grad(self) -> None:
        self.wrapper.begin()
        self.wrapper.zero_grad()

    def backward(self, loss: Tensor) -> None:
        loss.backward(create_graph=True)

    def step(self) -> None:
        self.wrapper.step()


def driver(name: str, model: nn.Module) -> Driver:
    """The optimizer of that name, at work on a model.

    Raises:
        ValueError: if there is none of that name.
    """
    if name == PUBLISHED:
        return Published(model)
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}. There are {', '.join(map(repr, (*OPTIMIZERS, PUBLISHED)))}.")
    return Standard(OPTIMIZERS[name](model.parameters()))
