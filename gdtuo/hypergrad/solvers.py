"""Linear systems H x = b whose symmetric matrix is given as products, x and b being lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["POWER", "SOLVERS", "Product", "Solution", "Vector", "conjugate_gradients", "inner"]

Vector: TypeAlias = list[Tensor]
Product: TypeAlias = Callable[[Vector], Vector]

POWER = 20  # iterations for the largest eigenvalue


class Solution(NamedTuple):
    """What a solver found."""

    x: Vector
    residual: float  # |H x - b| / |b|
    curvature: float  # the smallest xᵀHx / xᵀx that it met; negative at a saddle


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """⟨a, b⟩."""
    return sum(float(torch.dot(x.flatten(), y.flatten())) for x, y in zip(a, b, strict=True))


def combined(a: Sequence[Tensor], factor: float, b: Sequence[Tensor]) -> Vector:
    """a + factor · b."""
    return [torch.add(x, y, alpha=factor) for x, y in zip(a, b, strict=True)]


def conjugate_gradients(product: Product, b: Vector, iterations: int, tolerance: float) -> Solution:
    """Hestenes, Stiefel 1952; stops at a direction of curvature <= 0, where the system has no minimum to find."""
    x = [torch.zeros_like(y) for y in b]
    r, p = b, b
    square = first = inner(b, b)
    curvature = float("inf")
    for _ in range(iterations):
        if square <= tolerance**2 * first:
            break
        q = product(p)
        bend = inner(p, q)
        curvature = min(curvature, bend / inner(p, p))
        if not bend > 0:
            break
        step = square / bend
        x, r = combined(x, step, p), combined(r, -step, q)
        before, square = square, inner(r, r)
        p = combined(r, square / before, p)
    return Solution(x, (square / first) ** 0.5 if first else 0.0, curvature)


def neumann(product: Product, b: Vector, iterations: int, tolerance: float) -> Solution:
    """x = η Σ_j (I - η H)^j b with η = 1 / the largest eigenvalue (Lorraine, Vicol, Duvenaud, AISTATS 2020)."""
    step, curvature = 1 / largest_eigenvalue(product, b), float("inf")
    term, total = b, [torch.zeros_like(y) for y in b]
    first = square = inner(b, b)
    for _ in range(iterations):
        if square <= tolerance**2 * first or not square < float("inf"):
            break
        total = combined(total, step, term)
        image = product(term)
        curvature = min(curvature, inner(term, image) / square)
        term = combined(term, -step, image)  # which is what H x still misses of b
        square = inner(term, term)
    return Solution(total, (square / first) ** 0.5 if first else 0.0, curvature)


def largest_eigenvalue(product: Product, like: Vector) -> float:
    """An upper estimate of the largest eigenvalue in magnitude, by power iteration: 1.1 times what it comes to."""
    make = torch.Generator("cpu").manual_seed(0)
    v = [torch.randn(x.shape, generator=make, dtype=torch.float64, device="cpu").to(x) for x in like]
    size = 1.0
    for _ in range(POWER):
        norm = inner(v, v) ** 0.5
        if not norm > 0:
            return 1.0
        v = product([x / norm for x in v])
        size = inner(v, v) ** 0.5
    return 1.1 * size if size > 0 else 1.0


SOLVERS: Mapping[str, Callable[[Product, Vector, int, float], Solution]] = {"cg": conjugate_gradients, "neumann": neumann}
