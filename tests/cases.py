"""The tables that the tests share: configurations of every optimizer, networks with awkward parameters, towers.

Importable by name, so that pickles made of these towers load in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import lion_pytorch
import torch
from lion_pytorch.lion_pytorch import update_fn as published_lion
from torch import Tensor, nn

import gdtuo

F64 = torch.float64

#: How a tower learns by the last update alone, and however far it goes: what hand-made sums are compared with.
ONE_UPDATE = {"horizon": 1, "trust": math.inf}

# ---------------------------------------------------------------- optimizers


class PublishedLion(lion_pytorch.Lion):
    """The published package's, with a `maximize`, and with complex numbers as pairs of real ones."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False):
        super().__init__(params, lr, betas, weight_decay)
        for group in (self.defaults, *self.param_groups):
            group["maximize"] = maximize
        self.update_fn = self._update

    def __setstate__(self, state):
        super().__setstate__(state)
        self.decoupled_wd, self._init_lr, self.update_fn = False, 1.0, self._update  # else a copy has none

    def _update(self, p, gradient, mean, *numbers):
        p, gradient, mean = (torch.view_as_real(x) if x.is_complex() else x for x in (p, gradient, mean))
        published_lion(p, -gradient if self.defaults["maximize"] else gradient, mean, *numbers)


def pairwise(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Some of the rows, in which every pair of values of two options occurs that occurs in all of them."""

    def pairs(row: dict[str, Any]) -> set[tuple[Any, ...]]:
        return set(combinations(row.items(), 2))

    missing = set().union(*map(pairs, rows))
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        yield best


@dataclass(frozen=True)
class Pair:
    """A class of ours, its torch namesake, and the options under which the two must agree."""

    ours: type[gdtuo.Level]
    theirs: type[torch.optim.Optimizer]
    lr: float  # with which the networks below learn
    matrix: Mapping[str, Sequence[Any]]
    valid: Callable[[Mapping[str, Any]], bool] = lambda options: True
    extra: Mapping[str, Any] = field(default_factory=lambda: {"foreach": False})  # theirs as a plain loop
    every: bool = True  # all combinations of options; else every pair of them
    complex: bool = True  # whether it takes complex parameters
    matrices: bool = False  # whether it takes nothing else

    def options(self) -> Iterator[dict[str, Any]]:
        rows = [dict(zip(self.matrix, values, strict=True)) for values in product(*self.matrix.values())]
        rows = [row for row in rows if self.valid(row)]
        yield from rows if self.every else pairwise(rows)

    def model(self, dtype: torch.dtype = F64) -> Awkward:
        return Awkward(dtype, self.matrices)


ADAM = {
    "amsgrad": (False, True),
    "weight_decay": (0.0, 0.1),
    "maximize": (False, True),
    "betas": ((0.9, 0.999), (0.5, 0.8), (0.0, 0.9)),
    "eps": (1e-8, 1e-2),
}
PAIRS = {
    "sgd": Pair(
        gdtuo.SGD,
        torch.optim.SGD,
        0.05,
        {
            "momentum": (0.0, 0.9),
            "dampening": (0.0, 0.3),
            "nesterov": (False, True),
            "weight_decay": (0.0, 0.1),
            "maximize": (False, True),
        },
        lambda o: not o["nesterov"] or (o["momentum"] > 0 and o["dampening"] == 0),
    ),
    "adam": Pair(gdtuo.Adam, torch.optim.Adam, 0.01, ADAM),
    "adamw": Pair(gdtuo.AdamW, torch.optim.AdamW, 0.01, ADAM),
    "adagrad": Pair(
        gdtuo.AdaGrad,
        torch.optim.Adagrad,
        0.05,
        {
            "lr_decay": (0.0, 0.1),
            "initial_accumulator_value": (0.0, 0.1),
            "weight_decay": (0.0, 0.1),
            "maximize": (False, True),
            "eps": (1e-10, 1e-2),
        },
    ),
    "rmsprop": Pair(
        gdtuo.RMSProp,
        torch.optim.RMSprop,
        0.01,
        {
            "alpha": (0.99, 0.8),
            "momentum": (0.0, 0.9),
            "centered": (False, True),
            "weight_decay": (0.0, 0.1),
            "maximize": (False, True),
            "eps": (1e-8, 1e-2),
        },
    ),
    "lion": Pair(
        gdtuo.Lion,
        PublishedLion,
        0.01,
        {"betas": ((0.9, 0.99), (0.5, 0.8), (0.0, 0.9)), "weight_decay": (0.0, 0.1), "maximize": (False, True)},
        extra={},
        every=False,
    ),
    "nadam": Pair(
        gdtuo.NAdam,
        torch.optim.NAdam,
        0.01,
        {
            "betas": ((0.9, 0.999), (0.5, 0.8), (0.0, 0.9)),
            "momentum_decay": (4e-3, 0.0, 0.5),
            "eps": (1e-8, 1e-2),
            "weight_decay": (0.0, 0.1),
            "decoupled_weight_decay": (False, True),
            "maximize": (False, True),
        },
        every=False,
    ),
    "radam": Pair(
        gdtuo.RAdam,
        torch.optim.RAdam,
        0.01,
        {
            "betas": ((0.9, 0.999), (0.5, 0.8), (0.0, 0.9), (0.9, 0.5)),  # the last is never rectified
            "eps": (1e-8, 1e-2),
            "weight_decay": (0.0, 0.1),
            "decoupled_weight_decay": (False, True),
            "maximize": (False, True),
        },
        every=False,
    ),
    "adafactor": Pair(
        gdtuo.Adafactor,
        torch.optim.Adafactor,
        0.05,
        {
            "beta2_decay": (-0.8, -0.3, 0.0),
            "eps": ((None, 1e-3), (1e-2, 1.0)),
            "d": (1.0, 1.3),
            "weight_decay": (0.0, 0.1),
            "maximize": (False, True),
        },
        every=False,
        complex=False,
    ),
    "muon": Pair(
        gdtuo.Muon,
        torch.optim.Muon,
        0.01,
        {
            "weight_decay": (0.1, 0.0),
            "momentum": (0.95, 0.5, 0.0),
            "nesterov": (True, False),
            "ns_coefficients": ((3.4445, -4.775, 2.0315), (1.5, -0.5, 0.0)),
            "eps": (1e-7, 1e-2),
            "ns_steps": (5, 2),
            "adjust_lr_fn": (None, "original", "match_rms_adamw"),
        },
        extra={},
        every=False,
        complex=False,
        matrices=True,
    ),
}
#: those whose combinations, with other things too, are covered pair by pair
NEWER = tuple(name for name, pair in PAIRS.items() if not pair.every)
CONFIGURATIONS = [(name, options) for name, pair in PAIRS.items() for options in pair.options()]
#: one configuration a class that uses as much of it as possible, for tests that need no more
RICH = {
    "sgd": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "adam": {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    "adamw": {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1},
    "rmsprop": {"alpha": 0.9, "momentum": 0.8, "centered": True, "weight_decay": 0.1},
    "lion": {"betas": (0.8, 0.95), "weight_decay": 0.1},
    "nadam": {"betas": (0.8, 0.95), "momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "radam": {"betas": (0.8, 0.95), "weight_decay": 0.1, "decoupled_weight_decay": True},
    "adafactor": {"beta2_decay": -0.5, "eps": (1e-4, 0.1), "d": 1.2, "weight_decay": 0.1},
    "muon": {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.2},
}


def describe(options: Mapping[str, Any]) -> str:
    """A test id: "momentum=0.9,nesterov"; what is off is left out."""
    return ",".join(k if v is True else f"{k}={v}" for k, v in options.items() if v is not False and v != 0)


# ---------------------------------------------------------------- networks


class Awkward(nn.Module):
    """A weight that is used twice, a frozen one, one whose gradient is always None, and one that is used at times.

    With `matrices` all have two dimensions, of the same numbers.
    """

    def __init__(self, dtype: torch.dtype = F64, matrices: bool = False) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(3)

        def shaped(x: Tensor) -> Tensor:
            return x.to(dtype).view(1, -1) if matrices else x.to(dtype)

        self.tied = nn.Parameter(0.5 * torch.randn(5, 4, generator=make, dtype=F64).to(dtype))
        self.bias = nn.Parameter(0.1 * shaped(torch.randn(5, generator=make, dtype=F64)))
        self.frozen = nn.Parameter(shaped(torch.randn(4, generator=make, dtype=F64)), requires_grad=False)
        self.unused = nn.Parameter(shaped(torch.randn(3, generator=make, dtype=F64)))
        self.scale = nn.Parameter(shaped(torch.ones((), dtype=F64)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * ((x + self.frozen) @ self.tied.T + self.bias).tanh() @ self.tied

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]


def batch(step: int, size: int = 8, dtype: torch.dtype = F64) -> Tensor:
    """The inputs of a step; an auto-encoder needs no targets."""
    make = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 4, generator=make, dtype=F64).to(dtype)


def backward(model: nn.Module, step: int, dtype: torch.dtype = F64, maximize: bool = False) -> float:
    """Zero the gradients, evaluate the loss of a step's batch (its negative to `maximize`), differentiate it."""
    model.zero_grad()
    x = batch(step, dtype=dtype)
    loss = (model(x) - x).square().mean() * (-1 if maximize else 1)
    loss.backward()
    return loss.item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Plain steps; returns their losses."""
    losses = []
    for step in steps:
        losses.append(backward(model, step))
        optimizer.step()
    return losses


def two_groups(model: Awkward, lr: float, weight_decay: float = 0.05) -> list[dict[str, Any]]:
    """The parameters in two groups, the second with numbers of its own."""
    return [
        {"params": [model.tied, model.frozen, model.unused]},
        {"params": [model.bias, model.scale], "lr": 0.5 * lr, "weight_decay": weight_decay},
    ]


# ---------------------------------------------------------------- towers


class DriftRule(gdtuo.Rule):
    """Sign-like steps along a momentum that is normalised softly: no closed form, so its pull-back is derived."""

    hyperparameters = {"lr": (1e-2, gdtuo.Positive()), "momentum": (0.8, gdtuo.UnitInterval())}

    def init(self, weights, hyper):
        return {"mean": torch.zeros_like(weights)}

    def update(self, weights, gradient, state, hyper, step):
        mean = hyper["momentum"] * state["mean"] + (1 - hyper["momentum"]) * gradient
        return -hyper["lr"] * (3 * mean).tanh(), {"mean": mean}


class Drift(gdtuo.Level):
    """A user's own rule."""

    rule = DriftRule


class NormalisedRule(gdtuo.Rule):
    """Gradients of length one, and a pull back to where the tensor began: not elementwise, its state made of weights."""

    hyperparameters = {"lr": (1e-2, gdtuo.Positive()), "eps": (1e-3, gdtuo.Positive()), "pull": (0.1, gdtuo.UnitInterval())}
    elementwise = False

    def init(self, weights, hyper):
        return {"anchor": weights.clone()}

    def update(self, weights, gradient, state, hyper, step):
        direction = gradient / (gradient.norm() + hyper["eps"])
        return -hyper["lr"] * direction + hyper["pull"] * (state["anchor"] - weights), state


class Normalised(gdtuo.Level):
    """A user's own rule that looks at whole tensors."""

    rule = NormalisedRule


def torch_adam(params):
    """A torch optimizer for the top of a tower; a function, since a lambda cannot be pickled."""
    return torch.optim.Adam(params, lr=0.01)


TOWERS: dict[str, Callable[[], gdtuo.Level]] = {
    "adam/sgd/sgd": lambda: gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "momentum/adam, per tensor": lambda: gdtuo.SGD(
        lr=0.05, momentum=0.8, learn=("lr", "momentum"), per="tensor", optimizer=gdtuo.Adam(lr=0.01)
    ),
    "adam/momentum/adam, horizon": lambda: gdtuo.Adam(
        lr=0.01, horizon=5, learn=("lr", "betas"), optimizer=gdtuo.SGD(lr=0.02, momentum=0.5, optimizer=gdtuo.Adam(lr=0.01))
    ),
    "sgd/sgd/sgd, per element": lambda: gdtuo.SGD(
        lr=0.05, per="element", optimizer=gdtuo.SGD(per="element", optimizer=gdtuo.SGD())
    ),
    "adamw/torch": lambda: gdtuo.AdamW(lr=0.01, learn=("lr", "weight_decay"), optimizer=torch_adam),
    "rmsprop/adagrad/sgd, exact": lambda: gdtuo.RMSProp(
        lr=0.01,
        momentum=0.5,
        learn=("lr", "alpha", "momentum"),
        hypergradient="exact",
        optimizer=gdtuo.AdaGrad(lr=0.02, hypergradient="exact", optimizer=gdtuo.SGD(lr=0.01)),
    ),
    "nadam/radam/sgd": lambda: gdtuo.NAdam(
        lr=0.01,
        momentum_decay=0.1,
        learn=("lr", "momentum_decay"),
        optimizer=gdtuo.RAdam(lr=0.02, learn=("lr", "beta2"), optimizer=gdtuo.SGD(lr=1e-3)),
    ),
    "momentum/lion": lambda: gdtuo.SGD(lr=0.05, momentum=0.8, optimizer=gdtuo.Lion(lr=0.02)),
    "drift/sgd": lambda: Drift(lr=0.01, learn="all", optimizer=gdtuo.SGD(lr=0.02)),
}


def tower_values(optimizer: gdtuo.Level, group: int | None = None) -> dict[str, Tensor]:
    """Copies of all numbers of the levels above the weights, "skipped" left out."""
    groups = optimizer.state_dict()["param_groups"]
    chosen = range(len(groups)) if group is None else [group]
    return {
        f"g{g}/{key}": value.detach().clone()
        for g in chosen
        for key, value in groups[g].items()
        if key.startswith("L") and isinstance(value, Tensor)
    }


def learned_values(optimizer: gdtuo.Level) -> dict[str, Tensor]:
    """The shifts of all levels."""
    return {key: value for key, value in tower_values(optimizer).items() if key.endswith("/shift")}


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested dicts, sequences, tensors and numbers; NaN equals NaN."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(torch.equal(a.nan_to_num(nan=1.2345), b.nan_to_num(nan=1.2345)))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The keys under which two dicts differ, for an assertion that says what it found: `assert not differences(a, b)`."""
    return sorted(k for k in a.keys() | b.keys() if k not in a or k not in b or not same(a[k], b[k]))
