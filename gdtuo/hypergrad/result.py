"""`Result`: what a differentiated run is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dynamics import Cost

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """What `hypergradient` returns.

    Args:
        value: the outer loss at the trained weights, a 0-d tensor; a dict of them where outer_loss is one.
        hyper: dE/dλ with the structure and shapes of `hyper`, the direct term ∂E/∂λ included.
        params: dE/dw_0 with the structure of `params`; a dict of such where outer_loss is one; None where the method
            would pay extra for it.
        final: the trained weights w_T, with the structure of `params`.
        cost: what was evaluated.

    With several trainings `value`, `hyper` and `params` are means, `final` is a list.
    """

    value: Any
    hyper: Any
    params: Any
    final: Any
    cost: Cost
