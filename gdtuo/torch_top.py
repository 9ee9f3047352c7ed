"""A torch optimizer on top of a tower: what `optimizer=` accepts besides a level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["TorchFactory", "TorchTop", "check_factory"]

TorchFactory: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class TorchTop:
    """The topmost level, done by torch: one parameter group for each group, a leaf that stands for its shifts."""

    def __init__(self, factory: TorchFactory, shifts: Sequence[Tensor]) -> None:
        self.leaves = [torch.nn.Parameter(shift.clone()) for shift in shifts]
        self.optimizer = factory([{"params": [leaf]} for leaf in self.leaves])

    def shifts(self) -> Tensor:
        """What the last step made of the shifts."""
        return torch.cat([leaf.detach() for leaf in self.leaves])

    def step(
        self, shifts: Sequence[Tensor], gradients: Sequence[Tensor], active: Sequence[bool]
    ) -> list[tuple[int, Tensor, Tensor]]:
        """Step the active groups; returns (group, tensor, what it held) for all state that the step may change."""
        undo = []
        for group, leaf in enumerate(self.leaves):
            leaf.data.copy_(shifts[group])  # whatever projection or loading did to them
            if active[group]:
                leaf.grad = gradients[group].clone()
                undo += [(group, value, value.clone()) for value in self.state(group).values()]
        self.optimizer.step()
        for leaf in self.leaves:
            leaf.grad = None
        return undo

    @staticmethod
    def keep(undo: Sequence[tuple[int, Tensor, Tensor]], kept: Tensor) -> None:
        """Put the state of the groups where `kept` is true back, without a branch."""
        for group, value, before in undo:
            value.copy_(torch.where(kept[group].to(value.device), before, value))

    def state(self, group: int) -> dict[str, Tensor]:
        """The optimizer's state of one group, by name."""
        return {name: value for name, value in self.optimizer.state[self.leaves[group]].items() if isinstance(value, Tensor)}

    def load(self, group: int, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            leaf = self.leaves[group]  # counts of steps stay where they were, as in torch
            self.optimizer.state[leaf] = {
                name: value.to(leaf.device, copy=True) if value.dim() else value.clone() for name, value in state.items()
            }


def check_factory(factory: TorchFactory) -> str:
    """Refuse what does not build an elementwise torch optimizer, by trying it on two numbers; returns its name.

    Raises:
        TypeError: if `factory` does not return an optimizer.
        ValueError: if the optimizer cannot step single numbers or does not treat them one by one.
    """
    together, apart = _try(factory, [[0.5, -0.3]]), _try(factory, [[0.5], [-0.3]])
    if not torch.allclose(together, apart, rtol=1e-12, atol=0):
        raise ValueError(
            f"optimizer= builds {_name(factory)}, which is not elementwise: hyperparameters of different meaning stand side "
            "by side above the first level and must not influence each other. Use an elementwise optimizer, for example "
            "gdtuo.SGD() or lambda params: torch.optim.Adam(params, lr=0.01)."
        )
    return _name(factory)


def _name(factory: TorchFactory) -> str:
    return type(factory([{"params": [torch.nn.Parameter(torch.zeros(1))]}])).__name__


def _try(factory: TorchFactory, values: list[list[float]]) -> Tensor:
    leaves = [torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]
    remedy = "Give a level, as gdtuo.SGD(), or a callable, as lambda params: torch.optim.Adam(params, lr=0.01)."
    try:
        optimizer = factory([{"params": [leaf]} for leaf in leaves])
        if isinstance(optimizer, torch.optim.Optimizer):
            for scale in (0.1, -2.0, 0.7):
                for leaf in leaves:
                    leaf.grad = scale * leaf.detach().abs() + 0.01
                optimizer.step()
    except Exception as error:
        raise ValueError(
            f"optimizer= cannot step single hyperparameters: {type(error).__name__}: {error} Elementwise torch optimizers "
            f"can; LBFGS and Muon, for example, cannot. {remedy}"
        ) from error
    if hasattr(optimizer, "bind"):  # a level of gdtuo, whose own tower would neither be saved nor shown
        raise TypeError(
            f"optimizer= was called with parameters and returned a bound {type(optimizer).__name__}. Give the level itself, "
            f"without parameters: optimizer={type(optimizer).__name__}(...)."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer= was called with parameters and returned {type(optimizer).__name__}. {remedy}")
    return torch.cat([leaf.detach() for leaf in leaves])
