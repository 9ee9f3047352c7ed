"""The inner gradient with its second derivatives, as products with a vector.

For a vector q of the weights' shapes both classes give (∂²L/∂w²) q and (∂²L/∂λ∂w) q, the latter for each leaf λ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "LINEARIZATIONS",
    "ForwardOverReverse",
    "Linearization",
    "Loss",
    "Products",
    "ReverseOverReverse",
    "gradient_of",
    "pulled_back",
]

Loss: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
Products: TypeAlias = Literal["reverse-over-reverse", "forward-over-reverse"]


class Linearization(ABC):
    """The gradient of `loss(weights, leaves)` with respect to the weights, to first order.

    Attributes:
        value: the gradient, 0 where the loss does not depend on a weight.
    """

    value: list[Tensor]

    @abstractmethod
    def product(self, vector: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """The vector's products: for each weight, and for each leaf, None where it does not matter."""


class ReverseOverReverse(Linearization):
    """Differentiates the backward pass: the fastest, and every operation with a double backward will do."""

    def __init__(self, loss: Loss, weights: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        self._inputs = [x.detach().requires_grad_() for x in (*weights, *leaves)]
        self._count = len(weights)
        with torch.enable_grad():
            value = loss(self._inputs[: self._count], self._inputs[self._count :])
            self._gradient = gradient_of(value, self._inputs[: self._count], create_graph=True)
        self.value = [g.detach() for g in self._gradient]

    def product(self, vector: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        slopes = pulled_back(self._gradient, self._inputs, vector, keep=True)
        by_weights = zip(slopes, self._inputs[: self._count], strict=False)
        return [torch.zeros_like(x) if s is None else s for s, x in by_weights], list(slopes[self._count :])


class ForwardOverReverse(Linearization):
    """Pushes the vector forward through the gradient's own computation: less memory in recurrent losses."""

    def __init__(self, loss: Loss, weights: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        self._loss, self._weights, self._leaves = loss, weights, leaves
        inputs = [x.detach().requires_grad_() for x in weights]
        with torch.enable_grad():
            self.value = gradient_of(loss(inputs, leaves), inputs)

    def product(self, vector: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        inputs = [x.detach().requires_grad_() for x in (*self._weights, *self._leaves)]
        count = len(self._weights)
        with forward_ad.dual_level(), torch.enable_grad():
            duals = [forward_ad.make_dual(x, v.to(x.dtype)) for x, v in zip(inputs, vector, strict=False)]
            # By symmetry the tangent of ∂L/∂λ along the weights is the product with the mixed derivative.
            gradients = gradient_of(self._loss(duals, inputs[count:]), inputs)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradients]
        by_weights = zip(tangents, inputs[:count], strict=False)
        return [torch.zeros_like(x) if t is None else t.detach() for t, x in by_weights], [
            None if t is None else t.detach() for t in tangents[count:]
        ]


LINEARIZATIONS: Mapping[str, Callable[[Loss, Sequence[Tensor], Sequence[Tensor]], Linearization]] = {
    "reverse-over-reverse": ReverseOverReverse,
    "forward-over-reverse": ForwardOverReverse,
}


def gradient_of(loss: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """∇loss; 0 where the loss does not depend on a tensor."""
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True))


def pulled_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], adjoint: Sequence[Tensor], keep: bool
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product, None where nothing depends on an input; `keep` the graph for another one."""
    pairs = [(output, p) for output, p in zip(outputs, adjoint, strict=True) if output.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    roots, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(roots, inputs, cotangents, allow_unused=True, retain_graph=keep)
