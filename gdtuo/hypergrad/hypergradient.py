"""`hypergradient`: the derivative of an outer loss with respect to everything that a training run depends on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .dynamics import Cost, Dynamics
from .method import Derivative, Meter, Method, Progress, check_method
from .numbers import OPTIMIZER
from .outer import Outer, OuterLosses
from .result import Result
from .reverse import Reverse
from .training import Training
from .tree import Tree, flatten, shown

__all__ = ["hypergradient"]


@torch.inference_mode(False)
def hypergradient(
    training: Training | Sequence[Training],
    outer_loss: OuterLosses | Sequence[OuterLosses],
    params: Tree | Sequence[Tree],
    hyper: Tree,
    method: Method | None = None,
    progress: Progress | None = None,
) -> Result:
    r"""Train, and differentiate the outer loss of the trained weights with respect to hyperparameters and initial weights.

    .. math::
        \frac{dE}{d\lambda} = \frac{\partial E}{\partial \lambda} + \frac{\partial E}{\partial w_T} \frac{d w_T}{d \lambda}

    Args:
        training: the run; or a sequence of runs, over which the outer loss is averaged.
        outer_loss: `outer_loss(params, hyper)`, a scalar, tried out once before the run; or a dict that has one for every key
            of `hyper`, whose gradient then is that loss's; or, for several runs, a sequence of either.
        params: initial weights, a nested dict of tensors; or, for several runs, a sequence of such. See
            `make_functional` for those of an nn.Module.
        hyper: hyperparameters, a nested dict of tensors. `hyper["optimizer"]` overrides the optimizer's numbers, as
            `Training` says; the rest is whatever the losses read.
        method: `Reverse()` (default), `Truncated(k)`, `Checkpointed(...)`, `Reversible()`, `Forward()` or
            `Implicit(...)`. `plan` says which.
        progress: called as `progress(done, total)` after each step, in evaluations of the inner gradient.

    Returns:
        a `Result`. The arguments are not changed, and nothing in it requires gradients. A run that diverges gives
        infinities or NaN, and no error.

    Raises:
        TypeError, ValueError: if arguments do not fit each other, or the method not the run; before anything has run.
        RuntimeError: if a step was another one when it was evaluated again, because a batch or random numbers changed.

    Warns:
        RuntimeWarning: where a method says that its result is inexact, and of hyperparameters without any effect.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: h["l2"] * (p["w"] ** 2).sum(), gdtuo.SGD(lr=0.1), steps=1)
        >>> result = gdtuo.hypergradient(
        ...     training, lambda p, h: p["w"].sum(), params={"w": torch.tensor([1.0])}, hyper={"l2": torch.tensor(0.5)}
        ... )
        >>> result.final["w"], result.hyper["l2"], result.params["w"]  # w - 0.2 l2 w; -0.2 w; 1 - 0.2 l2
        (tensor([0.9000]), tensor(-0.2000), tensor([0.9000]))
    """
    method = Reverse() if method is None else method
    check_method(method)
    single = isinstance(training, Training)
    runs = _runs(training, outer_loss, params, hyper, method)
    # A forecast raises where the method does not fit the run.
    total = sum(method.forecast(dynamics, outer.count).gradients for dynamics, outer in runs)
    for dynamics, outer in runs:
        outer.try_out(dynamics)
    cost, parts = Cost(), []
    for dynamics, outer in runs:
        meter = Meter(progress, dynamics, cost.gradients, total)
        derivative = method.differentiate(dynamics, outer, meter)
        for note in derivative.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=3)
        parts.append(_part(derivative, dynamics, outer))
        cost = cost + dynamics.cost
    value, gradient, start = (_mean([part[i] for part in parts]) for i in range(3))
    if start is not None and not isinstance(params, Mapping):  # each run's own initial weights
        start = [_scaled(part[2], 1 / len(parts)) for part in parts]
    for path, slope in flatten(gradient, "hyper").items():
        if path[0] != OPTIMIZER and slope.numel() and not slope.any():
            warnings.warn(
                f"{shown(path, 'hyper')} has no effect: its hypergradient is exactly 0. Does a loss read it? The "
                "optimizer's own numbers stand in hyper['optimizer'].",
                RuntimeWarning,
                stacklevel=3,
            )
    finals = [part[3] for part in parts]
    return Result(value, gradient, start, finals[0] if single else finals, cost)


def _runs(
    training: Training | Sequence[Training], outer_loss: Any, params: Any, hyper: Tree, method: Method
) -> list[tuple[Dynamics, Outer]]:
    trainings = [training] if isinstance(training, Training) else training
    if not isinstance(trainings, Sequence) or not trainings or not all(isinstance(t, Training) for t in trainings):
        raise TypeError(f"hypergradient got training={training!r}. Give a gdtuo.Training, or a list of them.")

    def each(given: Any, name: str) -> Sequence[Any]:
        if not isinstance(given, (list, tuple)):
            return [given] * len(trainings)
        if len(given) != len(trainings):
            raise ValueError(f"hypergradient got {len(given)} {name} for {len(trainings)} trainings. Give one, or one for each.")
        return given

    runs = []
    for one, loss, weights in zip(trainings, each(outer_loss, "outer losses"), each(params, "params"), strict=True):
        dynamics = Dynamics(one, weights, hyper, method.products)
        runs.append((dynamics, Outer(loss, dynamics.leaf_paths)))
    if len({outer.keys and frozenset(outer.keys) for _, outer in runs}) > 1:
        raise ValueError("hypergradient got a function as one run's outer loss and a dict as another's. Give all of one kind.")
    return runs


def _part(derivative: Derivative, dynamics: Dynamics, outer: Outer) -> tuple[Any, Any, Any, Any]:
    """(value, dE/dλ, dE/dw_0, final) of one run, as trees."""
    starts = derivative.by_weights
    return (
        outer.named(derivative.slopes.values),
        dynamics.hyper(outer.chosen(derivative.by_leaves)),
        None if starts is None else outer.named([dynamics.params(start) for start in starts]),
        dynamics.params(derivative.final),
    )


def _mean(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], Mapping):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return trees[0] if trees[0] is None or len(trees) == 1 else torch.stack(list(trees)).mean(dim=0)


def _scaled(tree: Any, factor: float) -> Any:
    return {key: _scaled(value, factor) for key, value in tree.items()} if isinstance(tree, Mapping) else tree * factor
