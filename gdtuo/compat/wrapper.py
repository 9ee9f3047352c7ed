"""`ModuleWrapper`: a module and its tower, in the published training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .optimizers import NOTHING, NoOpOptimizer, Optimizable, Tower

__all__ = ["ModuleWrapper"]


class ModuleWrapper(Optimizable):
    """A module together with the tower that trains it.

    Args:
        module: any module. Its parameters stay the leaves that they are.
        optimizer: one of the published optimizers. Default: none, the module is not trained.

    Attributes:
        parameters: name -> parameter.

    Example:
        >>> import torch
        >>> from gdtuo import compat as gdtuo
        >>> wrapper = gdtuo.ModuleWrapper(torch.nn.Linear(2, 1), gdtuo.Adam(optimizer=gdtuo.SGD(1e-5)))
        >>> wrapper.initialize()
        >>> for _ in range(3):
        ...     wrapper.begin()
        ...     loss = wrapper.forward(torch.ones(1, 2)).square().sum()
        ...     wrapper.zero_grad()
        ...     loss.backward()  # create_graph=True is tolerated, and of no use
        ...     wrapper.step()
        >>> wrapper.optimizer.parameters["alpha"] > 1e-3
        tensor(True)
    """

    def __init__(self, module: torch.nn.Module, optimizer: Tower | NoOpOptimizer = NOTHING) -> None:
        self.module, self.optimizer = module, optimizer
        self.parameters: dict[str, Tensor] = dict(module.named_parameters())

    def begin(self) -> None:
        """Drop the gradients of the last step."""
        for p in self.parameters.values():
            p.grad = None

    def zero_grad(self) -> None:
        """Set the gradients to zero: parameters that the loss does not reach are updated with a gradient of 0, as there."""
        self.module.zero_grad()
        for p in self.parameters.values():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)

    def forward(self, *inputs: Any) -> Any:
        """The module's output."""
        return self.module(*inputs)

    def step(self) -> None:
        """Update the module's parameters and the tower."""
        self.optimizer.step(self.parameters)

    def train(self) -> None:
        """Put the module in training mode."""
        self.module.train()

    def eval(self) -> None:
        """Put the module in evaluation mode."""
        self.module.eval()
