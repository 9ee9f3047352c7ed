"""The implicit function theorem at the end of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .curvature import Linearization, Products
from .dynamics import Cost, Dynamics, RunState
from .method import Derivative, Meter, Method, check_products
from .outer import Outer
from .solvers import POWER, SOLVERS, Product, Vector, conjugate_gradients, inner

__all__ = ["Implicit"]

STATIONARY = 1e-3  # |w - w*| / |w| by Newton's step: above this the trained weights are no stationary point
GOOD_ENOUGH = 1e-3  # a residual, relative to that of x = 0, that nobody is told of
NEWTON = 20  # iterations for it, at most
KEPT = 5  # vectors of the weights' size: the gradient, and a solver's own


@dataclass(frozen=True, repr=False)
class Implicit(Method):
    r"""The derivative of a minimum, whatever path led there.

    .. math::
        \nabla_w L(w^*, \lambda) = 0 \quad\Rightarrow\quad
        \frac{dE}{d\lambda} = \frac{\partial E}{\partial \lambda} - \frac{\partial^2 L}{\partial \lambda \partial w} x,
        \qquad \frac{\partial^2 L}{\partial w^2} x = \nabla_w E

    The training is run, and its last weights are taken for w*. Exact there, so it says how far away that is: memory O(1)
    states, time T gradients and, for each outer loss, up to `iterations` products. The optimizer's own hyperparameters
    get 0, initial weights None: they do not move a minimum. A weight decay does, and with it the minimum is not the
    loss's: only "fixed_point" takes it.

    | solver | |
    |---|---|
    | "cg" | conjugate gradients; the fastest; needs a Hessian that is positive definite |
    | "neumann" | x = η Σ (I - η H)^j ∇E, with η from the largest eigenvalue |
    | "fixed_point" | Σ p B with p ← p A, A and B being those of the optimizer's own step: converges where training does |

    Args:
        solver: one of these. Default: "cg".
        iterations: at most so many, >= 1. Default: 100.
        tolerance: stop where the residual is so small, relative to that of x = 0. Default: 1e-10.
        batch: what `loss` gets as the batch that w* minimises it on. Default: the last step's.
        products: as in `Reverse`.

    Raises:
        ValueError: if an argument is out of range.

    Warns:
        RuntimeWarning: where w is no stationary point (Newton's step is longer than a thousandth of |w|), where the
            Hessian is not positive definite, or where the tolerance was not reached: the result is then inexact.

    References:
        Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016; Lorraine, Vicol, Duvenaud,
        "Optimizing Millions of Hyperparameters by Implicit Differentiation", AISTATS 2020; Grazzi, Franceschi, Pontil,
        Salzo, "On the Iteration Complexity of Hypergradient Computation", ICML 2020.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: ((p["w"] - h["c"]) ** 2).sum(), gdtuo.SGD(lr=0.1), steps=100)
        >>> hyper = {"c": torch.tensor([1.0, 2.0])}  # w* = c, so dE/dc = ∇E
        >>> method = gdtuo.Implicit()
        >>> gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.zeros(2)}, hyper, method).hyper["c"]
        tensor([1., 1.])
    """

    solver: Literal["cg", "neumann", "fixed_point"] = "cg"
    iterations: int = 100
    tolerance: float = 1e-10
    batch: Any = field(default=None, kw_only=True, compare=False)
    products: Products = field(default="reverse-over-reverse", kw_only=True)

    def __post_init__(self) -> None:
        check_products(self.products)
        names = (*SOLVERS, "fixed_point")
        if self.solver not in names:
            raise ValueError(f"Implicit got solver={self.solver!r}. It is one of {', '.join(map(repr, names))}.")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"Implicit got iterations={self.iterations!r}. Give an integer >= 1.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"Implicit got tolerance={self.tolerance!r}, relative to where it starts. Give 0 <= tolerance < 1.")

    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        self._check_decay(dynamics)
        state = dynamics.run(meter.tick)
        end = dynamics if self.batch is None else dynamics.on_batch(self.batch)
        weights = state[: len(dynamics.weights)]
        slopes = outer.slopes(dynamics, weights)
        gradient = end.linearize(weights, end.steps - 1)
        notes = [] if dynamics.numbers.has("weight_decay") else stationary(end, gradient, weights)
        solve = self._fixed_point if self.solver == "fixed_point" else self._solve
        into = slopes.direct()
        for adjoint, totals in zip(slopes.adjoints(state), into, strict=True):
            notes += solve(end, gradient, state, adjoint, totals)
        meter.tick()
        dynamics.cost.states = self.forecast(dynamics, outer.count).states
        return Derivative(slopes, weights, into, None, [f"Implicit: {note}." for note in notes])

    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        self._check_decay(dynamics)
        products = losses * (self.iterations + 1) + NEWTON + (self.solver == "neumann") * POWER * losses
        weights = sum(weight.numel() * weight.element_size() for weight in dynamics.weights)
        return Cost(dynamics.steps + 1, products, 1 + losses + KEPT * weights / dynamics.state_bytes)

    def _check_decay(self, dynamics: Dynamics) -> None:
        if self.solver != "fixed_point" and dynamics.numbers.has("weight_decay"):
            raise ValueError(
                "Implicit got an optimizer with a weight decay, which moves the minimum away from the loss's. Put the penalty "
                "into the loss, or use gdtuo.Implicit('fixed_point')."
            )

    def _solve(
        self, end: Dynamics, gradient: Linearization, state: RunState, adjoint: RunState, totals: list[Tensor]
    ) -> list[str]:
        slope = adjoint[: len(end.weights)]
        solution = SOLVERS[self.solver](products_of(end, gradient), slope, self.iterations, self.tolerance)
        end.cost.products += 1
        for total, part in zip(totals, gradient.product(solution.x)[1], strict=True):
            if part is not None:
                total -= part
        if solution.curvature > 0:
            return self._converged(solution.residual)
        return [
            f"the inner Hessian is not positive definite at the trained weights (curvature {solution.curvature:.2g}), so they "
            "are no minimum. Train longer, add a penalty to the inner loss, or use gdtuo.Checkpointed()"
        ]

    def _fixed_point(
        self, end: Dynamics, gradient: Linearization, state: RunState, adjoint: RunState, totals: list[Tensor]
    ) -> list[str]:
        first = square = inner(adjoint, adjoint)
        p = adjoint
        for _ in range(self.iterations):
            if not self.tolerance**2 * first < square < math.inf:
                break
            (p,) = end.pull(gradient, state, end.steps - 1, [p], [totals])
            square = inner(p, p)
        return self._converged((square / first) ** 0.5 if first else 0.0)

    def _converged(self, residual: float) -> list[str]:
        if residual <= max(self.tolerance, GOOD_ENOUGH):
            return []
        return [f"{self.solver} left a residual of {residual:.2g} after {self.iterations} iterations. Allow more of them"]


def stationary(end: Dynamics, gradient: Linearization, weights: list[Tensor]) -> list[str]:
    """What there is to say if the weights are no stationary point."""
    newton = conjugate_gradients(products_of(end, gradient), gradient.value, NEWTON, 1e-2).x
    away, size = inner(newton, newton) ** 0.5, inner(weights, weights) ** 0.5
    if away <= STATIONARY * size:
        return []
    return [
        f"the trained weights are not at a stationary point: Newton's step is {away:.2g} long, the weights {size:.2g}. "
        "Train longer, give the whole training set as Implicit(batch=...), or use gdtuo.Checkpointed()"
    ]


def products_of(end: Dynamics, gradient: Linearization) -> Product:
    """Products with the inner Hessian, counted."""

    def product(vector: Vector) -> Vector:
        end.cost.products += 1
        return gradient.product(vector)[0]

    return product
