"""The outer loss, or several, each for some of the hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .curvature import gradient_of
from .dynamics import Dynamics, RunState
from .training import OuterLoss, scalar, seeded
from .tree import Path

__all__ = ["Outer", "OuterLosses", "Slopes"]

OuterLosses: TypeAlias = OuterLoss | Mapping[str, OuterLoss]


class Slopes(NamedTuple):
    """Outer losses E_k at some weights."""

    values: list[Tensor]
    by_weights: list[list[Tensor]]  # [loss][weight] ∂E_k/∂w
    by_leaves: list[list[Tensor]]  # [loss][leaf] ∂E_k/∂λ, the direct term

    def direct(self) -> list[list[Tensor]]:
        """The direct terms, to add to."""
        return [[leaf.clone() for leaf in leaves] for leaves in self.by_leaves]

    def adjoints(self, state: RunState) -> list[RunState]:
        """∂E_k/∂s_T: outer losses see the weights alone."""
        return [[*weights, *(torch.zeros_like(s) for s in state[len(weights) :])] for weights in self.by_weights]


class Outer:
    """What `outer_loss` says, checked.

    Args:
        losses: one loss, or a dict that has one for every key of hyper.
        paths: the leaves of hyper.

    Raises:
        TypeError, ValueError: if it is neither.
    """

    def __init__(self, losses: OuterLosses, paths: Sequence[Path]) -> None:
        self.keys: tuple[str, ...] | None = None
        self._losses: list[OuterLoss] = []
        self._of: dict[Any, int] = {}
        keys = list(dict.fromkeys(path[0] for path in paths))
        if isinstance(losses, Mapping):
            if set(losses) != set(keys):
                raise ValueError(
                    f"outer_loss has losses for {sorted(map(str, losses))}, hyper has {sorted(map(str, keys))}. Give one for "
                    "each key of hyper, or one function for all."
                )
            self.keys = tuple(losses)
        given = losses if isinstance(losses, Mapping) else {None: losses}
        for key, loss in given.items():
            if not callable(loss):
                raise TypeError(f"outer_loss is {loss!r}. Give a function outer_loss(params, hyper) that returns a scalar.")
            if loss not in self._losses:  # a loss that serves several keys is evaluated once
                self._losses.append(loss)
            self._of[key] = self._losses.index(loss)
        self._serves = [self._of[None if self.keys is None else path[0]] for path in paths]

    @property
    def count(self) -> int:
        """How many different losses there are."""
        return len(self._losses)

    def value(self, dynamics: Dynamics, weights: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
        """E_k."""
        params, hyper = dynamics.params(weights), dynamics.hyper(leaves)
        values = []
        for loss in self._losses:
            with seeded(dynamics.training.seed, dynamics.steps, dynamics.device):
                values.append(scalar(loss(params, hyper), "outer_loss"))
        return values

    @torch.no_grad()
    def try_out(self, dynamics: Dynamics) -> None:
        """Evaluate the losses at the initial weights, so that a mistake in them shows before the run and not after it."""
        self.value(dynamics, dynamics.weights, dynamics.leaves)

    def slopes(self, dynamics: Dynamics, weights: Sequence[Tensor]) -> Slopes:
        """E_k and its gradients."""
        inputs = [x.detach().requires_grad_() for x in (*weights, *dynamics.leaves)]
        with torch.enable_grad():
            values = self.value(dynamics, inputs[: len(weights)], inputs[len(weights) :])
        gradients = [gradient_of(value, inputs) for value in values]
        return Slopes(
            [value.detach() for value in values],
            [g[: len(weights)] for g in gradients],
            [g[len(weights) :] for g in gradients],
        )

    def loss_of(self, leaf: int) -> int:
        """Which loss a leaf's derivative is of."""
        return self._serves[leaf]

    def chosen(self, by_loss: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """[loss][leaf] -> [leaf]: of each leaf the derivative of the loss that is its own."""
        return [by_loss[k][leaf] for leaf, k in enumerate(self._serves)]

    def named(self, by_loss: Sequence[Any]) -> Any:
        """One loss's, or a dict like outer_loss."""
        return by_loss[0] if self.keys is None else {key: by_loss[self._of[key]] for key in self.keys}
