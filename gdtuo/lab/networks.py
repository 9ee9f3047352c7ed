"""The networks of some cells: one as it is, or several on stacked weights that `torch.func.vmap` trains at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from .tasks import Model, Task

__all__ = ["Networks", "networks"]


class Networks(ABC):
    """As many networks as there are seeds given, each with initial weights of its seed."""

    @abstractmethod
    def weights(self, k: int) -> list[nn.Parameter]:
        """The parameters of network k; after `backward` their gradients are those of its own loss."""

    @abstractmethod
    def backward(self, batches: dict[int, Any]) -> Tensor:
        """The losses [cells] on the batches of their seeds; their gradients, in place of what the weights had."""

    @abstractmethod
    def model(self, k: int) -> Model:
        """Network k as a function, for evaluation."""


def networks(task: Task, seeds: Sequence[int]) -> Networks:
    """One network, or several of a task whose loss vmap can take."""
    return _Alone(task, seeds[0]) if len(seeds) == 1 else _Stacked(task, seeds)


def _made(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return task.model()


class _Alone(Networks):
    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed, self.network = task, seed, _made(task, seed)

    def weights(self, k: int) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def backward(self, batches: dict[int, Any]) -> Tensor:
        self.network.zero_grad()
        loss = self.task.loss(self.network, batches[self.seed])
        loss.backward()
        return loss.detach()[None]

    def model(self, k: int) -> Model:
        return self.network.eval()


class _Stacked(Networks):
    """Parameters and gradients of each network are views of stacks, so that one backward pass serves all of them."""

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        made = {seed: _made(task, seed) for seed in dict.fromkeys(seeds)}
        self.network = made[seeds[0]]
        if any(True for _ in self.network.buffers()):
            raise ValueError("The network has buffers, which vmap would share among cells. Give the task together=1.")
        self.seeds = list(made)
        self.whose = torch.tensor([self.seeds.index(seed) for seed in seeds])  # [cells]
        starts = [dict(made[seed].named_parameters()) for seed in seeds]
        self.stacks = {name: torch.stack([start[name].detach() for start in starts]) for name in starts[0]}
        for name, stack in self.stacks.items():
            if starts[0][name].requires_grad:
                stack.requires_grad_().grad = torch.zeros_like(stack)
        batch_dim = 0 if len(made) > 1 else None
        self.losses = vmap(partial(_loss, task, self.network), in_dims=(0, batch_dim), randomness="error")

    def weights(self, k: int) -> list[nn.Parameter]:
        found = []
        for stack in self.stacks.values():
            parameter = nn.Parameter(stack.detach()[k], requires_grad=stack.requires_grad)
            parameter.grad = None if stack.grad is None else stack.grad[k]
            found.append(parameter)
        return found

    def backward(self, batches: dict[int, Any]) -> Tensor:
        for stack in self.stacks.values():
            if stack.grad is not None:
                stack.grad.zero_()
        if len(self.seeds) == 1:
            batch = batches[self.seeds[0]]
        else:
            batch = tree_map(lambda *parts: torch.stack(parts)[self.whose], *(batches[seed] for seed in self.seeds))
        losses: Tensor = self.losses(self.stacks, batch)
        losses.sum().backward()
        return losses.detach()

    def model(self, k: int) -> Model:
        weights = {name: stack.detach()[k] for name, stack in self.stacks.items()}
        network = self.network.eval()
        return lambda *inputs, **more: functional_call(network, weights, inputs, more)


def _loss(task: Task, network: nn.Module, weights: dict[str, Tensor], batch: Any) -> Tensor:
    return task.loss(lambda *inputs, **more: functional_call(network, weights, inputs, more), batch)
