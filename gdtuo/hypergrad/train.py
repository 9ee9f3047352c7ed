"""`train`: a run, without its derivative."""

from __future__ import annotations

from typing import Any

import torch

from .dynamics import Dynamics
from .method import Meter, Progress
from .training import Training
from .tree import Tree

__all__ = ["train"]


@torch.inference_mode(False)
def train(training: Training, params: Tree, hyper: Tree, progress: Progress | None = None) -> Any:
    """The weights that a run ends with, for what has been learned to be used, or a grid to be tried.

    Args:
        training, params, hyper, progress: as in `hypergradient`; one training.

    Returns:
        w_T, with the structure of `params`: `hypergradient(...).final`, for T gradients and nothing else.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other, before anything has run.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: (p["w"] ** 2).sum(), gdtuo.SGD(), steps=2)
        >>> gdtuo.train(training, {"w": torch.ones(1)}, {"optimizer": {"lr": torch.tensor(0.25)}})
        {'w': tensor([0.2500])}
    """
    dynamics = Dynamics(training, params, hyper)
    state = dynamics.run(Meter(progress, dynamics, 0, dynamics.steps).tick)
    return dynamics.params(state[: len(dynamics.weights)])
