"""`make_functional`: an nn.Module as a function of nested dicts of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["make_functional"]


def make_functional(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as a pure function, and its weights.

    Args:
        module: is copied, and not changed. Tied weights stay tied; weights with requires_grad=False are constants.

    Returns:
        `apply(params, *args, **kwargs)`, which calls the module with these weights, and `params`, a dict that has the
        trainable weights as named_parameters() names them, cloned. For a nested dict see the example.

    Buffers are constants: a run is a function of weights and hyperparameters, and what it depends on besides must not
    change while it is differentiated. So a BatchNorm layer in training mode normalises by its batch, as ever, but its running
    statistics stay what they were; one in evaluation mode uses those. Which of the two holds is what
    `module.training` says at the time of this call: for an outer loss in evaluation mode call it once more, on
    `module.eval()`. Dropout draws from torch's generator, whose seed is part of each step.

    Raises:
        TypeError: if it is no module.

    References:
        torch.func.functional_call, which this wraps.

    Example:
        >>> import torch, gdtuo
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
        >>> apply, params = gdtuo.make_functional(net)
        >>> list(params)
        ['0.weight', '0.bias', '1.weight', '1.bias', '3.weight', '3.bias']
        >>> apply(params, torch.zeros(5, 3)).shape
        torch.Size([5, 1])
        >>> encoder, encoder_params = gdtuo.make_functional(torch.nn.Linear(3, 2))
        >>> head, head_params = gdtuo.make_functional(torch.nn.Linear(2, 1))
        >>> params = {"encoder": encoder_params, "head": head_params}
        >>> head(params["head"], encoder(params["encoder"], torch.zeros(5, 3))).shape
        torch.Size([5, 1])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"make_functional got {type(module).__name__}. Give an nn.Module; a function of params needs no helper.")
    frozen = copy.deepcopy(module)
    params = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
    names = params.keys()

    def apply(params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if params.keys() != names:
            raise ValueError(
                f"The module has the weights {', '.join(sorted(names))}; params lacks {sorted(names - params.keys())} "
                f"and has besides {sorted(params.keys() - names)}. Give all of them, under these names."
            )
        buffers = {name: buffer.clone() for name, buffer in frozen.named_buffers()}  # BatchNorm writes to its own
        return torch.func.functional_call(frozen, {**buffers, **params}, args, kwargs)

    return apply, params
