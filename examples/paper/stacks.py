"""Stacks of optimizers by name, built by three packages, each trained in that package's own way.

A stack is written from the weights up, as `Adam(0.001) / SGD(1e-05)`: the published package's classes with their numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import gdtuo
from gdtuo import compat

__all__ = ["LEARNED", "REFEREE", "Trainer", "levels"]

#: The published package itself; "compat" is its algorithm on this package's engine, "gdtuo" this package's own classes.
REFEREE = "published"

#: What a stack's lowest level may learn.
LEARNED = ("lr", "beta1", "beta2", "gamma")

#: The published class -> ours, and what it learns. Theirs learn everything that they have but where the name says otherwise.
OWN: dict[str, tuple[type[gdtuo.Level], tuple[str, ...]]] = {
    "SGD": (gdtuo.SGD, ("lr",)),
    "AdaGrad": (gdtuo.AdaGrad, ("lr",)),
    "Adam": (gdtuo.Adam, ("lr", "betas")),
    "AdamBaydin": (gdtuo.Adam, ("lr",)),
    "RMSProp": (gdtuo.RMSProp, ("lr", "alpha")),
    "RMSPropAlpha": (gdtuo.RMSProp, ("lr",)),
}


def levels(stack: str) -> list[tuple[str, tuple[float, ...]]]:
    """The levels of a stack from the weights up: class and numbers.

    Example:
        >>> levels("RMSProp(0.01, 0.99) / SGD")
        [('RMSProp', (0.01, 0.99)), ('SGD', ())]
    """
    found = []
    for text in stack.split(" / "):
        match = re.fullmatch(r"(\w+)(?:\((.+)\))?", text)
        if match is None or match[1] not in OWN:
            raise ValueError(f"{text!r} is no level of a stack. Write one of {', '.join(OWN)}, with numbers as SGD(0.01).")
        found.append((match[1], tuple(float(number) for number in match[2].split(",")) if match[2] else ()))
    return found


class Trainer:
    """A network and the stack that trains it, in the package's own way.

    Args:
        package: "compat", "gdtuo" or "published".
        stack: its text; "gdtuo" reads the first number of a level as its learning rate, and takes its defaults else.
        model: the network.
    """

    def __init__(self, package: str, stack: str, model: nn.Module) -> None:
        self.package = package
        if package == "gdtuo":
            self.level = _own(stack).bind(model.parameters())
        else:
            library = compat if package == "compat" else _referee()
            self.bottom = _theirs(library, stack)
            self.wrapper = library.ModuleWrapper(model, optimizer=self.bottom)
            self.wrapper.initialize()

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        """One step downhill; returns the loss before it."""
        if self.package == "gdtuo":
            self.level.zero_grad()
            value = loss()
            value.backward()
            self.level.step()
        else:
            self.wrapper.begin()
            value = loss()
            self.wrapper.zero_grad()
            value.backward(create_graph=self.package == REFEREE)
            self.wrapper.step()
        return value.detach()

    def learned(self) -> dict[str, float | str]:
        """The lowest level's hyperparameters as they are; "" for what it has not, or does not learn."""
        found: dict[str, float | str] = dict.fromkeys(LEARNED, "")
        if self.package == "gdtuo":
            names = {"alpha": "gamma"}  # RMSProp's, in torch's words and in the paper's
            for key, value in self.level.hyperparameters().items():
                name = names.get(key.removeprefix("L0/g0/"), key.removeprefix("L0/g0/"))
                found |= {name: value} if name in LEARNED else {}
        else:
            square = type(self.bottom).__name__.startswith("RMSProp")  # whose raw rate is a root
            for name, tensor in self.bottom.parameters.items():
                raw = tensor.double()
                value = (raw.square() if square else raw) if name == "alpha" else (raw.tanh() + 1) / 2
                found |= {"lr" if name == "alpha" else name: value.item()} if name != "mu" else {}
        return found


def _theirs(library: Any, stack: str) -> Any:
    """The stack by the published package, or by its names on our engine."""
    tower = None
    for name, numbers in reversed(levels(stack)):
        tower = getattr(library, name)(*numbers, **({} if tower is None else {"optimizer": tower}))
    return tower


def _own(stack: str) -> gdtuo.Level:
    """The stack by this package's classes: a template."""
    tower: gdtuo.Level | None = None
    for name, numbers in reversed(levels(stack)):
        level, learn = OWN[name]
        keywords: dict[str, Any] = {"lr": numbers[0]} if numbers else {}
        tower = level(**keywords) if tower is None else level(**keywords, optimizer=tower, learn=learn)
    assert tower is not None
    return tower


def _referee() -> Any:
    """The published package."""
    try:
        from gradient_descent_the_ultimate_optimizer import gdtuo as published
    except ImportError as error:
        raise ImportError("The referee is not installed: pip install gradient-descent-the-ultimate-optimizer.") from error
    warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
    return published
