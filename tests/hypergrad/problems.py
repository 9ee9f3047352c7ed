"""The runs that the tests of this folder differentiate, and the naive way: one graph of the whole run.

The naive way shares no code with the package: its updates are those of `twin`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import twin
from cases import Drift, Normalised
from torch import Tensor

import gdtuo

F64 = torch.float64
STEPS = 12


@dataclass(frozen=True)
class Algorithm:
    """An inner optimizer with a number for everything that it has, and its name in `twin`."""

    level: type[gdtuo.Level]
    twin: str
    numbers: dict[str, float]
    switches: dict[str, Any] = field(default_factory=dict)
    reversible: bool = False
    matrices: bool = False  # whether it takes no other parameters
    flat: bool = False  # whether weights do not follow the loss that they are trained with

    def make(self) -> gdtuo.Level:
        """The level, at its own defaults: the numbers come from hyper."""
        settings = {"momentum": 0.5} if self.switches.get("nesterov") else {}
        return self.level(**self.switches, **settings)


SGD = {"lr": 0.1, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.05}
ADAM = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.05}
RMSPROP = {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.05, "momentum": 0.6}
ALGORITHMS = {
    "descent": Algorithm(gdtuo.SGD, "sgd", {"lr": 0.1, "weight_decay": 0.05}),
    "momentum": Algorithm(gdtuo.SGD, "sgd", SGD, reversible=True),
    "momentum, ascending": Algorithm(gdtuo.SGD, "sgd", {**SGD, "lr": 0.01}, {"maximize": True}, reversible=True),
    "nesterov": Algorithm(gdtuo.SGD, "sgd", {k: v for k, v in SGD.items() if k != "dampening"}, {"nesterov": True}),
    "averaging": Algorithm(gdtuo.AveragingSGD, "averaging", {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.05}, reversible=True),
    "adam": Algorithm(gdtuo.Adam, "adam", ADAM),
    "amsgrad": Algorithm(gdtuo.Adam, "adam", ADAM, {"amsgrad": True}),
    "adamw": Algorithm(gdtuo.AdamW, "adamw", ADAM),
    "adagrad": Algorithm(
        gdtuo.AdaGrad,
        "adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "eps": 1e-3},
        {"initial_accumulator_value": 0.1},
    ),
    "rmsprop": Algorithm(gdtuo.RMSProp, "rmsprop", RMSPROP),
    "rmsprop, centred": Algorithm(gdtuo.RMSProp, "rmsprop", RMSPROP, {"centered": True}),
    "nadam": Algorithm(gdtuo.NAdam, "nadam", {**ADAM, "momentum_decay": 0.1}),
    "radam": Algorithm(gdtuo.RAdam, "radam", ADAM, {"decoupled_weight_decay": True}),
    "lion": Algorithm(gdtuo.Lion, "lion", {"lr": 0.05, "weight_decay": 0.05}, flat=True),
    "adafactor": Algorithm(
        gdtuo.Adafactor, "adafactor", {"lr": 0.1, "weight_decay": 0.05, "beta2_decay": -0.6, "eps2": 0.3, "d": 1.02}
    ),
    "muon": Algorithm(gdtuo.Muon, "muon", {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8}, matrices=True),
    "a rule of one's own": Algorithm(Drift, "drift", {"lr": 0.05, "momentum": 0.7}),
    "one that is not elementwise": Algorithm(Normalised, "normalised", {"lr": 0.1, "eps": 0.1, "pull": 0.1}),
}


@dataclass(frozen=True)
class Problem:
    """A small network on random data whose minibatch differs at each step."""

    algorithm: Algorithm
    steps: int = STEPS
    hidden: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        make = torch.Generator().manual_seed(self.seed)
        object.__setattr__(self, "x", torch.randn(40, 3, generator=make, dtype=F64))
        object.__setattr__(self, "y", torch.randn(40, 2, generator=make, dtype=F64))

    def params(self) -> dict[str, Any]:
        """Two layers, nested."""
        make = torch.Generator().manual_seed(self.seed + 1)

        def layer(rows: int, columns: int) -> dict[str, Tensor]:
            return {
                "weight": 0.5 * torch.randn(rows, columns, generator=make, dtype=F64),
                "bias": 0.1 * torch.randn(*([1] if self.algorithm.matrices else []), columns, generator=make, dtype=F64),
            }

        return {"first": layer(3, self.hidden), "second": layer(self.hidden, 2)}

    def batch(self, step: int) -> Tensor:
        """The rows of a step."""
        return torch.randperm(30, generator=torch.Generator().manual_seed(100 + step))[:8]

    def forward(self, params: Any, rows: Tensor) -> Tensor:
        hidden = (self.x[rows] @ params["first"]["weight"] + params["first"]["bias"]).tanh()
        return hidden @ params["second"]["weight"] + params["second"]["bias"]

    def inner(self, params: Any, hyper: Any, rows: Tensor) -> Tensor:
        """Weighted squares, a penalty for each layer, one of them for each weight."""
        losses = (self.forward(params, rows) - self.y[rows]).square().mean(dim=1)
        penalty = (hyper["l2"]["first"] * params["first"]["weight"] ** 2).sum()
        penalty = penalty + hyper["l2"]["second"] * (params["second"]["weight"] ** 2).sum()
        return (hyper["weights"][rows].exp() * losses).mean() + penalty

    def outer(self, params: Any, hyper: Any) -> Tensor:
        """Squares of the rows that no batch has; a direct term."""
        rows = torch.arange(30, 40)
        return (self.forward(params, rows) - self.y[rows]).square().mean() + 0.1 * hyper["l2"]["first"].square().sum()

    def hyper(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """The losses' own hyperparameters, and the optimizer's."""
        make = torch.Generator().manual_seed(self.seed + 2)
        return {
            "l2": {
                "first": 0.05 * torch.rand(3, self.hidden, generator=make, dtype=F64),
                "second": torch.tensor(0.02, dtype=F64),
            },
            "weights": 0.1 * torch.randn(40, generator=make, dtype=F64),
            "optimizer": optimizer,
        }

    def scalars(self) -> dict[str, Tensor]:
        """Every number of the optimizer."""
        return {name: torch.tensor(value, dtype=F64) for name, value in self.algorithm.numbers.items()}

    def schedules(self) -> dict[str, Any]:
        """The first number as a schedule for each block, the second for each weight of one block; the others as they are."""
        numbers: dict[str, Any] = self.scalars()
        ramp = torch.linspace(0.8, 1.2, self.steps, dtype=F64)
        first, *others = numbers
        numbers[first] = {
            "first": {"weight": numbers[first] * ramp, "bias": numbers[first].clone()},
            "second": numbers[first] * ramp.flip(0),
        }
        if others:
            spread = torch.linspace(0.9, 1.0, 3 * self.hidden, dtype=F64).reshape(1, 3, self.hidden)
            numbers[others[0]] = {
                "first": {"weight": numbers[others[0]] * spread, "bias": numbers[others[0]] * spread[:, 0]},
                "second": numbers[others[0]] * ramp[:, None] / 1.3,
            }
        return numbers

    def training(self) -> gdtuo.Training:
        return gdtuo.Training(self.inner, self.algorithm.make(), batches=self.batch, steps=self.steps)


def leaves_of(tree: Any) -> list[Tensor]:
    """Leaves in order."""
    return [leaf for value in tree.values() for leaf in leaves_of(value)] if isinstance(tree, dict) else [tree]


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The tree with a function of each leaf."""
    return {key: mapped(value, function) for key, value in tree.items()} if isinstance(tree, dict) else function(tree)


def number_at(tree: Any, path: tuple[str, ...], step: int, steps: int) -> Tensor:
    """What the specification says hyper["optimizer"][name] means for a weight at a step."""
    for key in path:
        if isinstance(tree, dict):
            tree = tree[key]
    return tree if tree.ndim == 0 else tree[step if len(tree) == steps and steps > 1 else 0]


def unrolled(problem: Problem, params: Any, hyper: Any, start: dict[str, Any] | None = None) -> tuple[float, Any, Any, Any]:
    """(E, dE/dhyper, dE/dparams, trained weights) from one graph."""
    params, hyper = (mapped(tree, lambda leaf: leaf.clone().requires_grad_()) for tree in (params, hyper))
    weights = {(layer, name): w for layer, part in params.items() for name, w in part.items()}
    defaults = {"beta1": 0.9, "beta2": 0.99} if problem.algorithm.twin == "lion" else {}
    defaults |= dict.fromkeys(("momentum", "dampening", "weight_decay", "lr_decay"), 0.0)
    states: dict[Any, dict[str, Tensor]] = {path: {} for path in weights}
    for name, tree in hyper["optimizer"].get("state", {}).items():
        for path in weights:
            if path[0] in tree and path[1] in tree[path[0]]:
                states[path][name] = tree[path[0]][path[1]]
    nested = params
    for step in range(problem.steps):
        loss = problem.inner(nested, hyper, problem.batch(step))
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        after = {}
        for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
            numbers = {name: number_at(hyper["optimizer"][name], path, step, problem.steps) for name in problem.algorithm.numbers}
            after[path], states[path] = twin.RULES[problem.algorithm.twin](
                weight, gradient, states[path], defaults | numbers, step + 1, **problem.algorithm.switches
            )
        weights = after
        nested = {layer: {n: weights[layer, n] for n in part} for layer, part in params.items()}
    value = problem.outer(nested, hyper)
    leaves = leaves_of(hyper) + leaves_of(params)
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    found = iter([torch.zeros_like(x) if s is None else s for s, x in zip(slopes, leaves, strict=True)])
    return (
        float(value.detach()),
        mapped(hyper, lambda _: next(found)),
        mapped(params, lambda _: next(found)),
        mapped(nested, Tensor.detach),
    )


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Every leaf, relative to its own size."""
    a, b = leaves_of(ours), leaves_of(theirs)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * max(float(y.abs().max()), 1e-8))
