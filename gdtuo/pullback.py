"""One update differentiated: the derivative with respect to its hyperparameters, and what of it goes upward.

Notation: g is the current gradient, Δ what the last update added to the weights, z = ∂Δ/∂(shift) its tangent.
The vector-Jacobian product of the last update with g is ⟨g, z⟩; the cosine needs |z| as well, so everything
is computed from the tangent (forward mode), never by a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .rules import Hyper, Number, Rule, State

__all__ = ["Sums", "derive", "elementwise_hypergradient", "hypergradient", "noise"]

KINDS = ("cosine", "exact")


def derive(
    rule: Rule, learned: Sequence[str], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
) -> tuple[Tensor, list[Tensor], State]:
    """An update and its tangents, derived from `rule.update` by forward-mode differentiation.

    Returns:
        (Δ, [∂Δ/∂(effective value) for each learned name], the new state).
    """
    tangents = []
    for name in learned:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(hyper[name], torch.ones_like(hyper[name]))
            delta, after = rule.update(weights, gradient, state, {**hyper, name: dual}, step)
            delta, tangent = forward_ad.unpack_dual(delta)
            tangents.append(torch.zeros_like(delta) if tangent is None else tangent.to(delta.dtype))
            after = {key: forward_ad.unpack_dual(value).primal for key, value in after.items()}
    return delta, tangents, after


class Sums(NamedTuple):
    """What the normalisation needs of each block, additive over the parts of a block. B blocks, H hyperparameters."""

    gz: Tensor  # [B, H] ⟨g, z⟩
    zz: Tensor  # [B, H] |z|²
    gg: Tensor  # [B, 1] |g|²
    dd: Tensor  # [B, 1] |Δ|²

    @classmethod
    def of_table(cls, table: Tensor, count: int) -> Sums:
        """Views of a [B, 2 H + 2] table, the one small tensor that a collective would reduce."""
        return cls(*table.split((count, count, 1, 1), dim=1))


def noise(rule: Rule, learned: Sequence[str], eps: float, like: Tensor) -> Tensor:
    """[H] the rounding error of tangents relative to the update: eps of the weights' dtype, 0 for direct ones."""
    return torch.tensor([0.0 if name in rule.direct else eps for name in learned], dtype=like.dtype, device=like.device)


def hypergradient(kind: str, sums: Sums, eps: Tensor) -> Tensor:
    """[B, H]: what the level above receives as its gradient for a hyperparameter that governs a whole block.

    exact:  ⟨g, z⟩ = dL/d(shift)
    cosine: ⟨g, z⟩ / (|g| |z|), in [-1, 1] and without units. It is 0 where |z| <= √eps |Δ| (rounding noise of
            an update that does not depend on the hyperparameter) and where it would be 0/0. NaN stays NaN.

    `eps` [H] comes from `noise`.
    """
    if kind == "exact":
        return sums.gz
    norm = sums.gg.sqrt() * sums.zz.sqrt()
    silent = (norm == 0) | (sums.zz <= eps * sums.dd)
    # sums of 32-bit numbers may leave the interval by a rounding
    return torch.where(silent, 0.0, sums.gz / norm).clamp_min(-1.0).clamp_max(1.0)


def elementwise_hypergradient(kind: str, products: Tensor, sums: Sums, count: Tensor, eps: Tensor) -> Tensor:
    """[n, H]: the same for one hyperparameter a weight, from the products g_i z_i and sums over the weights' group.

    cosine: g_i z_i over the product of the root mean squares of g and z (`count` weights), clamped to ±1.
    """
    if kind == "exact":
        return products
    norm = sums.gg.sqrt() * sums.zz.sqrt() / count
    silent = (norm == 0) | (sums.zz <= eps * sums.dd)
    return torch.where(silent, 0.0, products / norm).clamp(-1.0, 1.0)
