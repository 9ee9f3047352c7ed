"""One training problem, run in every way in which ranks can share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gdtuo

F64 = torch.float64
STEPS = range(12)
BATCH = 8


class Model(nn.Module):
    """Uneven parts: three rows for two ranks, and a scalar-like weight that one rank has none of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inner = nn.Linear(5, 7, dtype=F64)
        self.norm = nn.LayerNorm(7, dtype=F64)
        self.outer = nn.Linear(7, 3, dtype=F64)
        self.scale = nn.Parameter(torch.full((1,), 1.3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.outer(self.norm(self.inner(x)).tanh())


class Pair(nn.Module):
    """Two layers that tensor parallelism cuts evenly, and a weight that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.inner = nn.Linear(5, 8, dtype=F64)
        self.outer = nn.Linear(8, 3, dtype=F64)
        self.scale = nn.Parameter(torch.full((1,), 1.3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.outer(self.inner(x).tanh())


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The inputs and targets of a step, of all ranks together."""
    make = torch.Generator().manual_seed(900 + step)
    return torch.randn(BATCH, 5, generator=make, dtype=F64), torch.randn(BATCH, 3, generator=make, dtype=F64)


TOWERS: dict[str, dict[str, Any]] = {
    "lr": {"optimizer": gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD(lr=0.05))},
    "all": {"optimizer": gdtuo.Adam(lr=0.02), "learn": "all", "weight_decay": 0.01},
    "exact": {"optimizer": gdtuo.SGD(lr=1e-4), "hypergradient": "exact"},
    "horizon": {"optimizer": gdtuo.SGD(lr=0.05), "horizon": 4, "learn": ("lr", "betas")},
    # how long an update was is known of each rank's part: with another number of ranks its limit is another for one step
    "tensor": {"optimizer": gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()), "per": "tensor", "trust": math.inf},
    "torch": {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.5)},
}


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: biases apart, with a smaller rate."""
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if "bias" not in name]},
        {"params": [p for name, p in named if "bias" in name], "lr": 3e-3},
    ]


def backward(model: Callable[[Tensor], Tensor], step: int, rows: slice = slice(None), parts: int = 1) -> None:
    """The gradient of the mean loss over some rows of a step's batch; in parts, accumulated."""
    x, y = batch(step)
    for inputs, targets in zip(x[rows].chunk(parts), y[rows].chunk(parts), strict=True):
        ((model(inputs) - targets).square().mean() / parts).backward()


def train(model: Any, optimizer: Any, steps: Iterable[int] = STEPS, rows: slice = slice(None)) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, rows)
        optimizer.step()


def alone(tower: str, make: type[nn.Module] = Model, grouped: bool = True) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Trained in one process on whole batches: (weights, hyperparameters)."""
    model = make()
    optimizer = gdtuo.AdamW(groups_of(model) if grouped else model.parameters(), lr=1e-2, **TOWERS[tower])
    train(model, optimizer)
    return {name: p.detach() for name, p in model.named_parameters()}, optimizer.hyperparameters()
