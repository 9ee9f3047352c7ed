"""Reverse mode through a run that is undone step by step, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field

from .curvature import Products
from .dynamics import Cost, Dynamics
from .fixed_point import FixedPointRun
from .method import Derivative, Meter, Method, check_products
from .outer import Outer

__all__ = ["Reversible"]


@dataclass(frozen=True, repr=False)
class Reversible(Method):
    r"""Reverse mode without keeping states: momentum SGD is run backwards, exactly.

    Weights and momentum buffer are fixed-point integers. Adding to integers can be undone; multiplying the buffer by the
    momentum γ = n / d cannot, so the remainders of the divisions are kept, :math:`\log_2 (d / n)` bits a weight and step:
    0.152 at γ = 0.9 and 0.029 at 0.98, where keeping 32-bit weights and buffers takes 64. Memory: some four states and
    these bits. 2 T gradients and T products, and integer arithmetic, with which it takes 1.6 times as long as `Reverse` on
    large networks and more than twice as long on small ones. The gradient must be the same to the bit when it is evaluated
    again, which is checked at the end.

    γ becomes the nearest fraction with d <= 2^30: 0.9 is 9 / 10, other numbers stay what they are to 64 bits, or to 1e-10
    close to a simple fraction. The whole run, losses included, sees that value.

    For `gdtuo.SGD` with a momentum above 0 (any dampening; not Nesterov), `gdtuo.AveragingSGD`, and rules of your own
    that have a `momentum_form`.

    Args:
        fraction: fractional bits of the integers, 1 to 62. Weights and buffers must stay within ±2^(63 - fraction),
            and are rounded to 2^-fraction. Default: 52, for ±2048.
        products: as in `Reverse`.

    Raises:
        ValueError: if the optimizer has no such form, or a momentum is 0; before anything has run.
        OverflowError: if the run leaves the range, or is not finite any more.
        RuntimeError: if the way back does not end where the run began, because a gradient was not the same again: a
            batch that changed, random numbers of other generators than the global ones, a device's unordered sums.

    References:
        Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML
        2015. Departures: γ is the same number forward and in the adjoint, out of range is an error, velocity and
        remainders are compared at the end as the weights are, and all of it runs on whole tensors.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: (p["w"] ** 2).sum(), gdtuo.SGD(lr=0.1, momentum=0.9), steps=1000)
        >>> start = {"w": torch.ones(3, dtype=torch.float64)}
        >>> result = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start, {}, method=gdtuo.Reversible())
        >>> result.cost.states < 10  # `Reverse` keeps 1,001
        True
    """

    fraction: int = field(default=52, kw_only=True)
    products: Products = field(default="reverse-over-reverse", kw_only=True)

    def __post_init__(self) -> None:
        check_products(self.products)
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int) or not 1 <= self.fraction <= 62:
            raise ValueError(f"Reversible got fraction={self.fraction!r}: it counts bits after the point. Give 1 to 62, as 52.")

    def differentiate(self, dynamics: Dynamics, outer: Outer, meter: Meter) -> Derivative:
        run = FixedPointRun(dynamics, self.fraction)
        run.give_exact_momenta()
        for t in range(dynamics.steps):
            run.advance(t)
            meter.tick()
        state, size = run.state(), dynamics.state_bytes
        dynamics.cost.states = run.nbytes / size + outer.count
        final = state[: len(dynamics.weights)]
        slopes = outer.slopes(dynamics, final)
        into, arrived = slopes.direct(), slopes.adjoints(state)
        del state  # the buffers' part of it is not needed any more
        for t in reversed(range(dynamics.steps)):
            run.undo_weights(t)
            gradient = dynamics.linearize(run.weights(), t)
            run.undo_buffers(gradient.value, t)
            arrived = dynamics.pull(gradient, run.state(), t, arrived, into)
            del gradient  # else its graph lives on while the next is built
            meter.tick()
        run.check_return()
        return Derivative(slopes, final, into, dynamics.pull_initial(arrived, into))

    def forecast(self, dynamics: Dynamics, losses: int = 1) -> Cost:
        steps, kept = dynamics.steps, FixedPointRun(dynamics, self.fraction).bytes_after_all_steps()
        return Cost(2 * steps, steps * losses, kept / dynamics.state_bytes + losses)
