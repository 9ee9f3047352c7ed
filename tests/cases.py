"""The tables that the tests share: configurations of every optimizer, networks with awkward parameters, towers.

Importable by name, so that pickles made of these towers load in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import gdtuo

F64 = torch.float64

# ---------------------------------------------------------------- optimizers


@dataclass(frozen=True)
class Pair:
    """A class of ours, its torch namesake, and the options under which the two must agree."""

    ours: type[gdtuo.Level]
    theirs: type[torch.optim.Optimizer]
    lr: float  # with which the networks below learn
    matrix: Mapping[str, Sequence[Any]]
    valid: Callable[[Mapping[str, Any]], bool] = lambda options: True

    def options(self) -> Iterator[dict[str, Any]]:
        for values in product(*self.matrix.values()):
            options = dict(zip(self.matrix, values, strict=True))
            if self.valid(options):
                yield options


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
}
CONFIGURATIONS = [(name, options) for name, pair in PAIRS.items() for options in pair.options()]
#: one configuration a class that uses as much of it as possible, for tests that need no more
RICH = {
    "sgd": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "adam": {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    "adamw": {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1},
    "rmsprop": {"alpha": 0.9, "momentum": 0.8, "centered": True, "weight_decay": 0.1},
}


def describe(options: Mapping[str, Any]) -> str:
    """A test id: "momentum=0.9,nesterov"; what is off is left out."""
    return ",".join(k if v is True else f"{k}={v}" for k, v in options.items() if v is not False and v != 0)


# ---------------------------------------------------------------- networks


class Awkward(nn.Module):
    """A weight that is used twice, a frozen one, one whose gradient is always None, and one that is used at times."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(3)
        self.tied = nn.Parameter(0.5 * torch.randn(5, 4, generator=make, dtype=F64).to(dtype))
        self.bias = nn.Parameter(0.1 * torch.randn(5, generator=make, dtype=F64).to(dtype))
        self.frozen = nn.Parameter(torch.randn(4, generator=make, dtype=F64).to(dtype), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3, generator=make, dtype=F64).to(dtype))
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))

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
