"""Reverse mode through the whole run, all states kept."""

from __future__ import annotations

from dataclasses import dataclass

from .dynamics import Dynamics
from .sweep import Part, Scheme, Sweep

__all__ = ["Reverse"]


@dataclass(frozen=True, repr=False)
class Reverse(Sweep):
    r"""Reverse mode: the adjoint of the state is carried back through every step.

    .. math::
        p_T = \nabla_s E, \qquad \bar\lambda \leftarrow \bar\lambda + p_t B_t, \qquad p_{t-1} = p_t A_t,
        \qquad A_t = \partial \Phi_t / \partial s, \quad B_t = \partial \Phi_t / \partial \lambda

    starting from :math:`\bar\lambda = \partial E / \partial \lambda`. The T states are kept, the graph of one step at a
    time: memory T + O(1) states, time 2 T gradients and T products, whatever the number of hyperparameters.

    Args:
        products: how second derivatives of the inner loss are taken; "forward-over-reverse" takes half the memory where
            the loss itself is recurrent, elsewhere as much, and one and a half to two times as long. Default:
            "reverse-over-reverse".

    References:
        Franceschi et al. 2017, algorithm 1.

    Example:
        >>> import gdtuo
        >>> gdtuo.Reverse()
        Reverse()
    """

    def scheme(self, dynamics: Dynamics, losses: int) -> Scheme:
        return Scheme(0, 0, every_step)


def every_step(length: int, room: int) -> list[Part]:
    """All states are kept."""
    return [(1, 0)] * length
