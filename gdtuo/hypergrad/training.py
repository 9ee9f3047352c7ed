"""`Training`: one training run, described."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..level import Level
from .tree import Tree

__all__ = ["Batches", "InnerLoss", "OuterLoss", "Training", "scalar", "seeded"]

InnerLoss: TypeAlias = Callable[[Any, Any, Any], Tensor]
ONE_AT_A_TIME = threading.RLock()  # the generators belong to the process
OuterLoss: TypeAlias = Callable[[Any, Any], Tensor]
Batches: TypeAlias = Callable[[int], Any] | Sequence[Any] | None


@dataclass(frozen=True, eq=False)
class Training:
    r"""A training run: a pure function from initial weights and hyperparameters to trained weights.

    .. math::
        s_t = \Phi_t(s_{t-1}, \lambda), \qquad t = 1 \dots T

    where the state s holds the weights and the optimizer's own state, and Φ_t is one update of the optimizer with the
    gradient of `loss` on batch t-1.

    Args:
        loss: `loss(params, hyper, batch)`, a scalar that is twice differentiable in params. `params` and `hyper` are
            nested dicts of tensors like those given to `hypergradient`. Weights that it does not use have gradient 0.
        optimizer: an unbound level, as `gdtuo.SGD(lr=0.1, momentum=0.9)`, of any rule; not a tower. Its numbers hold
            wherever `hyper["optimizer"]` does not override them.
        batches: what `loss` gets as `batch` at step t = 0, 1, ...: `batches(t)` of a function, which is called again
            whenever the step is evaluated; `batches[t % len(batches)]` of a sequence, so that one shorter than the
            run is gone through again and again; or None.
        steps: T >= 1.
        seed: what `loss` and `batches` draw at a step from the global generators of torch, numpy and random is that of
            (seed, step), so dropout and data order repeat when a method evaluates the step again. Afterwards the
            generators are as they were.

    `hyper["optimizer"]` holds the optimizer's numbers that are hyperparameters, by their names (`lr`, `beta1`, ...).
    Each is a tensor whose first dimension counts steps, or a nested dict of such tensors that branches like `params`
    and may end early, where one tensor then governs a whole branch:

    | shape | meaning |
    |---|---|
    | [] | one number |
    | [T] | a schedule: entry t for step t |
    | [1, ...] | one number a weight: the rest broadcasts against the weights it governs |
    | [T, ...] | a schedule for each weight |

    `hyper["optimizer"]["state"][name]` holds initial states, nested and shaped like `params`; others are the rule's own.

    Raises:
        TypeError, ValueError: if an argument cannot be what it should.

    References:
        Franceschi, Donini, Frasconi, Pontil, "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML
        2017, equation 1.

    Example:
        >>> import torch, gdtuo
        >>> inputs, targets = torch.randn(64, 3), torch.randn(64)
        >>> def loss(params, hyper, rows):
        ...     return (inputs[rows] @ params["w"] - targets[rows]).square().mean() + hyper["l2"] * params["w"].square().sum()
        >>> training = gdtuo.Training(loss, gdtuo.SGD(lr=0.1), batches=lambda t: torch.randperm(64)[:16], steps=100)
        >>> hyper = {"l2": torch.tensor(0.1), "optimizer": {"lr": torch.full((100,), 0.1)}}
        >>> result = gdtuo.hypergradient(training, lambda params, hyper: params["w"].sum(), {"w": torch.zeros(3)}, hyper)
        >>> result.hyper["optimizer"]["lr"].shape
        torch.Size([100])
    """

    loss: InnerLoss
    optimizer: Level
    batches: Batches = None
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise TypeError(f"Training got loss={self.loss!r}. Give a function loss(params, hyper, batch) that returns a scalar.")
        if not isinstance(self.optimizer, Level):
            raise TypeError(
                f"Training got optimizer={type(self.optimizer).__name__}. Give a level without parameters, as gdtuo.SGD(lr=0.1): "
                "torch's own optimizers change tensors in place and cannot be differentiated."
            )
        if self.optimizer.param_groups:
            raise ValueError(
                f"Training got an optimizer that has parameters of its own. Give one without, as "
                f"gdtuo.{type(self.optimizer).__name__}(lr=0.1); the weights are given to hypergradient()."
            )
        if self.optimizer.height:
            raise ValueError(
                f"Training got the tower {self.optimizer}: what its upper levels learn would not be fixed hyperparameters. "
                "Leave optimizer= out of it; name what is to be learned in hyper['optimizer']."
            )
        sequence = (
            hasattr(self.batches, "__getitem__") and hasattr(self.batches, "__len__") and not isinstance(self.batches, Mapping)
        )
        if not (self.batches is None or callable(self.batches) or sequence):
            raise TypeError(
                f"Training got batches={type(self.batches).__name__}. A step must find its batch again: give a function of "
                "the step, a sequence, as list(loader), or None."
            )
        if not (self.batches is None or callable(self.batches)) and not len(self.batches):
            raise ValueError("Training got an empty sequence of batches. Give batches=None if the loss needs none.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Training got steps={self.steps!r}: it counts updates. Give an integer >= 1.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Training got seed={self.seed!r}. Give an integer >= 0.")

    def batch(self, step: int) -> Any:
        """The batch of a step, counted from 0."""
        if self.batches is None:
            return None
        return self.batches(step) if callable(self.batches) else self.batches[step % len(self.batches)]

    def evaluate(self, params: Tree, hyper: Tree, step: int, device: torch.device) -> Tensor:
        """The loss of a step, counted from 0, with the step's random numbers on the CPU and on `device`."""
        # Attention in plain operations: torch's fused kernels have no second derivatives.
        with seeded(self.seed, step, device), sdpa_kernel(SDPBackend.MATH):
            return scalar(self.loss(params, hyper, self.batch(step)), "loss")


def scalar(loss: Any, name: str) -> Tensor:
    """The loss, if it is one.

    Raises:
        TypeError: else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"a tensor of shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"{name} returned {what}. Return one real number as a tensor, for example losses.mean().")
    return loss.reshape(())


@contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """The random numbers of a step, and afterwards those that would have come without it."""
    state = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    devices = [device] if device.type == "cuda" else []
    with ONE_AT_A_TIME, torch.random.fork_rng(devices, device_type="cuda"):
        before = random.getstate(), np.random.get_state()
        torch.default_generator.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        for other in devices:
            with torch.cuda.device(other):
                torch.cuda.manual_seed(state)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
