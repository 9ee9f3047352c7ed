"""Optimizers that promise not to need a tuned learning rate, each from an initial one, and the plain ones as a measure.

What "initial" means to each: torch's, the towers' and Schedule-Free's learning rate; Prodigy's and D-Adaptation's first estimate
`d0`; Mechanic's first scale `s_init`; DoG's first step size `init_eta`. Everything else is their default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

import gdtuo
from gdtuo import compat

__all__ = ["CONTENDERS", "PLAIN", "STARTLESS", "UNDER", "USUAL", "Contender", "enter"]

#: The plain optimizers, whose best cell is "tuned".
PLAIN = ("Adam", "SGD")

#: The start of the grid at, or next to, each one's own default.
USUAL = {
    "Adam": 1e-3,
    "SGD": 1e-3,
    "Adam / SGD / SGD": 1e-3,
    "SGD / SGD / SGD": 1e-2,
    "published Adam / SGD": 1e-3,
    "Prodigy": 1e-6,
    "D-Adaptation": 1e-6,
    "Mechanic": 1e-8,
    "DoG": 1e-6,
    "Schedule-Free": 1e-3,
}

#: What is given no initial rate, and runs once for all of them.
STARTLESS = ("auto", "auto, SGD")

#: The plain optimizer that each tower moves the weights with, and is not to be behind of at the same start.
UNDER = {"Adam / SGD / SGD": "Adam", "SGD / SGD / SGD": "SGD", "auto": "Adam", "auto, SGD": "SGD", "published Adam / SGD": "Adam"}


class Contender(NamedTuple):
    """An optimizer at work on a network."""

    zero_grad: Callable[[], object]
    step: Callable[[], object]
    evaluated: Callable[[], nn.Module]  # the network with the weights that are meant to be used


def _torch(optimizer: Callable[[Iterable[nn.Parameter], float], Any]) -> Callable[[nn.Module, float], Contender]:
    def make(model: nn.Module, lr: float) -> Contender:
        made = optimizer(model.parameters(), lr)
        return Contender(made.zero_grad, made.step, lambda: model)

    return make


def _tower(text: str) -> Callable[[nn.Module, float], Contender]:
    return _torch(lambda params, lr: gdtuo.tower(text).bind([{"params": list(params), "lr": lr}]))


def _published(model: nn.Module, lr: float) -> Contender:
    wrapper = compat.ModuleWrapper(model, compat.Adam(alpha=lr, optimizer=compat.SGD(1e-5)))
    wrapper.initialize()

    def zero_grad() -> None:
        wrapper.begin()
        wrapper.zero_grad()

    return Contender(zero_grad, wrapper.step, lambda: model)


def _prodigy(params: Iterable[nn.Parameter], lr: float) -> Any:
    from prodigyopt import Prodigy

    return Prodigy(params, d0=lr)


def _dadaptation(params: Iterable[nn.Parameter], lr: float) -> Any:
    from dadaptation import DAdaptAdam

    return DAdaptAdam(params, d0=lr)


def _mechanic(params: Iterable[nn.Parameter], lr: float) -> Any:
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.Adam, s_init=lr)(params, lr=1.0)


def _dog(model: nn.Module, lr: float) -> Contender:
    from dog import DoG, PolynomialDecayAverager

    optimizer, averager = DoG(model.parameters(), init_eta=lr), PolynomialDecayAverager(model)

    def step() -> None:
        optimizer.step()
        averager.step()

    return Contender(optimizer.zero_grad, step, lambda: averager.av_model)


def _schedule_free(model: nn.Module, lr: float) -> Contender:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(model.parameters(), lr=lr)
    optimizer.train()

    def evaluated() -> nn.Module:
        optimizer.eval()
        return model

    return Contender(optimizer.zero_grad, optimizer.step, evaluated)


CONTENDERS: dict[str, Callable[[nn.Module, float], Contender]] = {
    "Adam": _torch(lambda params, lr: torch.optim.Adam(params, lr=lr)),
    "SGD": _torch(lambda params, lr: torch.optim.SGD(params, lr=lr)),
    "Adam / SGD / SGD": _tower("adam/sgd/sgd"),
    "SGD / SGD / SGD": _tower("sgd/sgd/sgd"),
    "auto": _torch(lambda params, lr: gdtuo.auto(params)),
    "auto, SGD": _torch(lambda params, lr: gdtuo.auto(params, gdtuo.SGD)),
    "published Adam / SGD": _published,
    "Prodigy": _torch(_prodigy),
    "D-Adaptation": _torch(_dadaptation),
    "Mechanic": _torch(_mechanic),
    "DoG": _dog,
    "Schedule-Free": _schedule_free,
}


def enter(name: str, model: nn.Module, lr: float) -> Contender:
    """A contender by name, or a tower by its text: anything that `gdtuo.tower` takes."""
    return (CONTENDERS.get(name) or _tower(name))(model, lr)
