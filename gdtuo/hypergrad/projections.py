"""Nearest points of convex sets, to keep hyperparameters there after an outer step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_box", "project_budget", "project_simplex"]


def project_box(x: Tensor, minimum: float = 0.0, maximum: float = float("inf")) -> Tensor:
    """The nearest point with minimum <= x <= maximum, entry by entry.

    Args:
        x: of any shape.
        minimum: -inf for none. Default: 0.
        maximum: inf for none. Default: inf.

    Raises:
        ValueError: if the box is empty.

    Example:
        >>> import torch
        >>> project_box(torch.tensor([-0.5, 0.5, 1.5]), 0.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not minimum <= maximum:
        raise ValueError(f"project_box got minimum={minimum}, maximum={maximum}: no number lies there. Swap them.")
    return x.detach().clamp(minimum, maximum)


def project_simplex(x: Tensor, total: float = 1.0) -> Tensor:
    r"""The nearest point with x >= 0 and Σ x = total, over all entries.

    .. math::
        x_i \leftarrow \max(x_i - \tau, 0)

    with the τ that makes the sum right, found exactly by sorting.

    Args:
        x: of any shape.
        total: > 0. Default: 1.

    Raises:
        ValueError: if total is no positive number, or x is empty.

    References:
        Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming 1974.

    Example:
        >>> import torch
        >>> project_simplex(torch.tensor([0.9, 0.7, -0.2]))
        tensor([0.6000, 0.4000, 0.0000])
    """
    if not 0 < total < float("inf"):
        raise ValueError(f"project_simplex got total={total}. Give a number > 0, as 1.0.")
    if not x.numel():
        raise ValueError("project_simplex got an empty tensor, whose entries have no sum. Give at least one entry.")
    shifted = _below_0(x)  # which changes nothing but the rounding of large numbers
    descending = shifted.flatten().sort(descending=True).values
    counts = torch.arange(1, len(descending) + 1, dtype=torch.float64, device=x.device)
    thresholds = (descending.cumsum(0) - total) / counts
    last = int((descending > thresholds).sum()) - 1  # with the largest entry alone the threshold always lies below it
    return (shifted - thresholds[last]).clamp_min(0.0).to(x.dtype)


def project_budget(x: Tensor, total: float) -> Tensor:
    r"""The nearest point with 0 <= x <= 1 and Σ x <= total, over all entries.

    .. math::
        x_i \leftarrow \min(\max(x_i - \tau, 0), 1), \qquad \tau \geq 0

    with τ = 0 if that keeps the budget, else the τ that makes the sum equal to it: the sum is piecewise linear in τ and
    bends where an entry reaches 0 or 1, so sorting those places gives it exactly.

    Args:
        x: of any shape.
        total: R >= 0.

    Raises:
        ValueError: if total is no number >= 0.

    References:
        Franceschi et al. 2017, section 5.1, for the set (data hyper-cleaning).

    Example:
        >>> import torch
        >>> project_budget(torch.tensor([1.4, 0.8, 0.3]), 1.5)
        tensor([1.0000, 0.5000, 0.0000])
    """
    if not total >= 0:
        raise ValueError(
            f"project_budget got total={total}: a sum of numbers >= 0 keeps below no negative one. Give a number >= 0."
        )
    inside = x.detach().to(torch.float64).clamp(0.0, 1.0)
    if float(inside.sum()) <= total:
        return inside.to(x.dtype)
    shifted = _below_0(x)

    def clipped(tau: Tensor) -> Tensor:
        return (shifted - tau).clamp(0.0, 1.0)

    # The sum falls as τ rises, down to 0 at the largest entry; bisect over the places where it bends.
    bends = torch.cat([shifted.flatten(), shifted.flatten() - 1.0]).sort().values
    low, high = 0, len(bends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(clipped(bends[middle]).sum()) > total else (low, middle)
    between = clipped((bends[low] + bends[high]) / 2)
    free = (between > 0) & (between < 1)  # the same ones everywhere between two bends
    if not free.any():
        return clipped(bends[high]).to(x.dtype)
    tau = (shifted[free].sum() + (between == 1).sum() - total) / free.sum()
    return clipped(tau).to(x.dtype)


def _below_0(x: Tensor) -> Tensor:
    """x - max x, in 64 bits."""
    x = x.detach().to(torch.float64)
    return x - x.max()
