"""What all trainers are given: a network, batches, towers; and the loop of plain PyTorch that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gdtuo

F64 = torch.float64
BATCH = 4
EPOCH = 12  # batches


def data() -> tuple[Tensor, Tensor]:
    """Inputs [48, 5] and targets [48, 3]."""
    make = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH * EPOCH, 5, generator=make, dtype=F64)
    return inputs, (inputs @ torch.randn(5, 3, generator=make, dtype=F64)).sin()


def batches(epochs: int = 1) -> list[tuple[Tensor, Tensor]]:
    """In the order of the data, epoch after epoch."""
    return list(zip(*(tensor.split(BATCH) for tensor in data()), strict=True)) * epochs


class Network(nn.Module):
    """Its outputs are those that Hugging Face's Trainer wants."""

    def __init__(self, seed: int = 0, bias: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(5, 6, bias=bias, dtype=F64)
            self.second = nn.Linear(6, 3, bias=bias, dtype=F64)

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.second(self.first(inputs).tanh())
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}

    def groups(self) -> list[dict[str, Any]]:
        """Weights that decay, biases that do not."""
        weights = [p for name, p in self.named_parameters() if not name.endswith("bias")]
        biases = [p for name, p in self.named_parameters() if name.endswith("bias")]
        return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def by_hand(
    network: Network,
    optimizer: gdtuo.Level,
    batches: Iterable[tuple[Tensor, Tensor]],
    clip: Callable[[Iterable[Tensor]], Any] = lambda parameters: None,
    accumulate: int = 1,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[dict[str, float]]:
    """Train with plain PyTorch; returns the effective hyperparameters that every update used."""
    used = []
    for i, (inputs, labels) in enumerate(batches, 1):
        (network(inputs, labels)["loss"] / accumulate).backward()
        if i % accumulate == 0:
            clip([p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()
            optimizer.zero_grad()
            used.append(optimizer.hyperparameters())
            if scheduler is not None:
                scheduler.step()
    return used


def everything(network: nn.Module, optimizer: gdtuo.Level) -> dict[str, Any]:
    """Copies of the weights, of the numbers of all levels, and of their state: flat, for `differences`."""
    saved = optimizer.state_dict()
    result: dict[str, Any] = {name: p.detach().clone() for name, p in network.named_parameters()}
    result |= {f"state {i} {key}": value for i, entries in saved["state"].items() for key, value in entries.items()}
    result |= {f"group {i} {key}": value for i, group in enumerate(saved["param_groups"]) for key, value in group.items()}
    return result | optimizer.hyperparameters()


def assert_learned(used: Sequence[dict[str, float]], optimizer: gdtuo.Level, start: float) -> None:
    """From the given learning rate at the bottom, that of every level below the top has moved."""
    assert used[0]["L0/g0/lr"] <= start  # nothing can have been learned before the first update; `trust` may have lowered it
    for level in range(optimizer.height):
        assert used[-1][f"L{level}/g0/lr"] != used[0][f"L{level}/g0/lr"]
