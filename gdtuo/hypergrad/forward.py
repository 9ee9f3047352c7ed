"""Forward mode through the whole run."""

from __future__ import annotations

from dataclasses import dataclass

from .dynamics import Cost, Dynamics
from .method import Derivative, Meter, Method
from .outer import Outer
from .tangents import Tangents, check_chunk

__all__ = ["Forward"]


@dataclass(frozen=True, repr=False)
class Forward(Method):
    r"""Forward mode: the derivatives of the state with respect to all hyperparameters are carried along.

    .. math::
        Z_t = A_t Z_{t-1} + B_t, \qquad \frac{dE}{d\lambda} = \nabla_s E \cdot Z_T + \frac{\partial E}{\partial \lambda}

    Exact. Memory 1 + H states whatever the number of steps, time T gradients and T H products, where H counts every
    entry of every hyperparameter: for a few of them, or long runs. The tangents are `torch.func.jvp`'s, vectorised by
    `torch.func.vmap`, so `loss` must be a function that these can transform. `result.params` is None.

    Args:
        chunk: how many tangents are pushed forward together, >= 1: fewer take less memory and more time. Default: as
            many as take 64 MiB.

    Raises:
        ValueError: if chunk is no positive integer.

    References:
        Franceschi et al. 2017, algorithm 2.

    Example:
        >>> import gdtuo
        >>> gdtuo.Forward()
        Forward()
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        check_chunk(self.chunk, "Forward")

    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        tangents = Tangents(dynamics, self.chunk)
        notes = [f"Forward: {note}." for note in tangents.notes()]
        dynamics.cost.states = 1 + tangents.count
        for t in range(dynamics.steps):
            tangents.advance(t)
            meter.tick()
        final = tangents.state[: len(dynamics.weights)]
        slopes = outer.slopes(dynamics, final)
        return Derivative(slopes, final, tangents.contract(slopes), None, notes)

    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        count = sum(leaf.numel() for leaf in dynamics.leaves)
        return Cost(dynamics.steps, dynamics.steps * count, 1 + count)
