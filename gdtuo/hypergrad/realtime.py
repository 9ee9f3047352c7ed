"""`realtime`: hyperparameters learned by forward mode while the training runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..level import Level
from ..optimizers import Adam
from .dynamics import Dynamics
from .outer import Outer, OuterLosses
from .tangents import Tangents, check_chunk
from .training import Training
from .tree import Tree, flatten, shown

__all__ = ["Record", "realtime"]

OuterOptimizer: TypeAlias = Level | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Projection: TypeAlias = Callable[[Any], Tree]


@dataclass(frozen=True)
class Record:
    """Where a run stands when its hyperparameters have been updated.

    Args:
        step: how many training steps have been made.
        params: the weights after them.
        hyper: the hyperparameters after the update, with which training goes on.
        value: the outer loss at these weights and the hyperparameters before the update; a dict where outer_loss is one.
        hypergradient: its gradient, with the structure of `hyper`, by which they were updated.
    """

    step: int
    params: Any
    hyper: Any
    value: Any
    hypergradient: Any


@torch.inference_mode(False)
def realtime(
    training: Training,
    outer_loss: OuterLosses,
    params: Tree,
    hyper: Tree,
    every: int = 10,
    optimizer: OuterOptimizer | None = None,
    *,
    reset: bool = False,
    project: Projection | None = None,
    chunk: int | None = None,
) -> Iterator[Record]:
    r"""Train once, and every few steps update the hyperparameters by the hypergradient so far.

    .. math::
        Z_t = A_t Z_{t-1} + B_t, \qquad \lambda \leftarrow \text{optimizer}\left(\lambda,\;
        \nabla_s E(s_t) \cdot Z_t + \frac{\partial E}{\partial \lambda}\right) \text{ at } t = \Delta, 2 \Delta, \dots, T

    Neither weights nor Z are reset, so Z is the derivative with respect to hyperparameters that have moved a little since:
    the smaller the outer steps, the better. Memory and time are those of `Forward`, whatever the number of updates.

    Args:
        training, outer_loss, params, hyper: as in `hypergradient`; one training.
        every: Δ >= 1, in training steps; the last interval may be shorter.
        optimizer: what updates the hyperparameters: an unbound level, towers included, or a function that makes a torch
            optimizer of a list of parameters, which are the leaves of `hyper` in their order. Default:
            gdtuo.Adam(lr=5e-3).
        reset: begin with Z = 0 after each update: the hypergradient then is that of the last Δ steps alone.
        project: `project(hyper)` after each update, returns a nested dict with the leaves that it changes, as
            `lambda hyper: {"weights": gdtuo.project_budget(hyper["weights"], 1000)}`.
        chunk: as in `Forward`.

    Yields:
        a `Record` after each update. Where a hypergradient is not finite, that update is left out. The iterator is
        lazy: leaving the loop ends the training.

    Raises:
        TypeError, ValueError: if arguments do not fit each other, before anything has run; later ValueError if a
            hyperparameter of the optimizer leaves its domain because no `project` keeps it there.

    References:
        Franceschi et al. 2017, section 4 (RTHO). Departure: the direct term ∂E/∂λ is included.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: (p["w"] ** 2).sum(), gdtuo.SGD(), steps=30)
        >>> hyper = {"optimizer": {"lr": torch.tensor(0.01)}}
        >>> start = {"w": torch.ones(2)}
        >>> for record in gdtuo.realtime(training, lambda p, h: (p["w"] ** 2).sum(), start, hyper, every=10):
        ...     print(record.step, f"{record.hyper['optimizer']['lr']:.3f}")
        10 0.015
        20 0.020
        30 0.025
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"realtime got every={every!r}: it counts training steps. Give an integer >= 1.")
    check_chunk(chunk, "realtime")
    dynamics = Dynamics(training, params, hyper)
    dynamics.weights = [weight.clone() for weight in dynamics.weights]  # the iterator may be used later
    outer = Outer(outer_loss, dynamics.leaf_paths)
    leaves = [nn.Parameter(leaf.clone()) for leaf in dynamics.leaves]
    updater = _updater(Adam(lr=5e-3) if optimizer is None else optimizer, leaves)
    outer.try_out(dynamics)
    dynamics.leaves = [leaf.detach() for leaf in leaves]  # which share their memory
    tangents = Tangents(dynamics, chunk)
    for note in tangents.notes():
        warnings.warn(f"realtime: {note}.", RuntimeWarning, stacklevel=3)
    return _records(dynamics, outer, tangents, leaves, updater, every, reset, project)


@torch.inference_mode(False)
def _records(
    dynamics: Dynamics,
    outer: Outer,
    tangents: Tangents,
    leaves: list[nn.Parameter],
    updater: torch.optim.Optimizer,
    every: int,
    reset: bool,
    project: Projection | None,
) -> Iterator[Record]:
    count = len(dynamics.weights)
    for t in range(dynamics.steps):
        tangents.advance(t)
        step = t + 1
        if step % every and step != dynamics.steps:
            continue
        weights = tangents.state[:count]
        slopes = outer.slopes(dynamics, weights)
        gradients = outer.chosen(tangents.contract(slopes))
        if all(bool(g.isfinite().all()) for g in gradients):
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            updater.step()
            if project is not None:
                _apply(project, dynamics)
            dynamics.check_leaves(dynamics.leaves)
            if reset:
                tangents.reset()
        yield Record(
            step,
            dynamics.params([weight.clone() for weight in weights]),
            dynamics.hyper([leaf.clone() for leaf in dynamics.leaves]),
            outer.named(slopes.values),
            dynamics.hyper([g.clone() for g in gradients]),
        )


def _updater(optimizer: OuterOptimizer, leaves: list[nn.Parameter]) -> torch.optim.Optimizer:
    if not leaves:
        raise ValueError("realtime got an empty hyper, so there is nothing to learn. Give at least one tensor.")
    if isinstance(optimizer, Level) and not optimizer.param_groups:
        return optimizer.bind(leaves)
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        raise TypeError(
            f"realtime got optimizer={optimizer!r}. Give a level without parameters, as gdtuo.Adam(lr=5e-3), or a function, as "
            "lambda params: torch.optim.Adam(params, lr=5e-3)."
        )
    made = optimizer(leaves)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"realtime got an optimizer= that returned {type(made).__name__}. Return a torch optimizer of its argument."
        )
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if held != {id(leaf) for leaf in leaves}:
        raise ValueError("realtime got an optimizer= of other parameters. Make it of the list that your function is given.")
    return made


def _apply(project: Projection, dynamics: Dynamics) -> None:
    """Copy what `project` returns over the leaves, all or nothing."""
    result = project(dynamics.hyper([leaf.clone() for leaf in dynamics.leaves]))
    places = {path: i for i, path in enumerate(dynamics.leaf_paths)}
    changed: dict[int, Tensor] = {}
    if not isinstance(result, Mapping):
        raise TypeError(f"project returned {type(result).__name__}. Return a nested dict with the leaves that it changes.")
    for path, value in flatten(result, "project(hyper)").items():
        if path not in places or value.shape != dynamics.leaves[places[path]].shape:
            raise ValueError(
                f"{shown(path, 'project(hyper)')} has shape {list(value.shape)}, which no leaf of hyper has. Return leaves under "
                "the names and in the shapes of hyper."
            )
        changed[places[path]] = value
    for i, value in changed.items():
        dynamics.leaves[i].copy_(value)
