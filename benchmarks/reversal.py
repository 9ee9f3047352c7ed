"""How exact a run is that is undone step by step: `gdtuo.Reversible` beside what it departs from.

Momentum descent on a robust regression with 10 weights. Each line is another way to undo the multiplication of the velocity
by γ: the bits that are kept, a weight and step; how far the velocity that was multiplied is from v γ, in units of 2^-52; and
the error of dE/dw_0, relative, against reverse mode.

    python -m benchmarks.reversal
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

import gdtuo
from gdtuo.hypergrad.rationals import rational
from gdtuo.hypergrad.remainders import Remainders

__all__ = ["MOMENTA", "WAYS", "Problem", "Undone", "error", "table"]

MOMENTA = (0.9, 1 / (1 + math.exp(-2.2)))  # a simple fraction; and such as learning arrives at
LR = 0.3
UNIT = 2.0**-52  # of the fixed-point numbers


class Problem(NamedTuple):
    """L = mean log cosh(X w - y), E = |w_T|² / 2; v ← γ v - (1-γ) g, w ← w + α v."""

    inputs: Tensor  # [m, n]
    targets: Tensor  # [m]
    start: Tensor  # [n]
    steps: int

    @classmethod
    def random(cls, steps: int, size: int = 10) -> Problem:
        """Ill-conditioned inputs: along some directions the end remembers the start."""
        make = torch.Generator().manual_seed(0)
        inputs = torch.randn(3 * size, size, generator=make, dtype=torch.float64) * torch.logspace(
            -1, 0, size, dtype=torch.float64
        )
        targets = 3 * torch.randn(3 * size, generator=make, dtype=torch.float64)
        return cls(inputs, targets, torch.randn(size, generator=make, dtype=torch.float64), steps)

    def gradient(self, w: Tensor) -> Tensor:
        """∇L."""
        return self.inputs.T @ (self.inputs @ w - self.targets).tanh() / len(self.targets)

    def curvature(self, w: Tensor, vector: Tensor) -> Tensor:
        """∇²L times a vector."""
        slopes = 1 - (self.inputs @ w - self.targets).tanh().square()
        return self.inputs.T @ (slopes * (self.inputs @ vector)) / len(self.targets)

    def by_gdtuo(self, momentum: float, method: gdtuo.hypergrad.Method) -> Tensor:
        """dE/dw_0 by one of gdtuo's methods."""
        result = gdtuo.hypergradient(
            self.training(momentum), lambda p, h: p["w"].square().sum() / 2, {"w": self.start}, {}, method
        )
        return torch.as_tensor(result.params["w"])

    def training(self, momentum: float) -> gdtuo.Training:
        """The run, described."""

        def loss(params: dict[str, Tensor], hyper: object, batch: object) -> Tensor:
            return (self.inputs @ params["w"] - self.targets).cosh().log().mean()

        return gdtuo.Training(loss, gdtuo.AveragingSGD(lr=LR, momentum=momentum), steps=self.steps)


class Undone(NamedTuple):
    """What comes of a run that was undone."""

    gradient: Tensor  # dE/dw_0
    bits: float  # kept, a weight and step
    stray: float  # the most by which a multiplied velocity is off, in units


# ---------------------------------------------------------------- ways to undo


class PushPop:
    """The buffer of Maclaurin et al.: a remainder is pushed, and what is popped in return takes its place."""

    def __init__(self, size: int) -> None:
        self._held = [0] * size

    def multiply(self, v: Tensor, n: Tensor, d: Tensor) -> Tensor:
        """v n / d, to within n units."""
        return self._exchanged(v, int(d), int(n))

    def divide(self, v: Tensor, n: Tensor, d: Tensor) -> Tensor:
        """The inverse of the last `multiply`."""
        return self._exchanged(v, int(n), int(d))

    def _exchanged(self, v: Tensor, push: int, pop: int) -> Tensor:
        after = []
        for i, number in enumerate(v.tolist()):
            held = self._held[i] * push + number % push
            after.append(number // push * pop + held % pop)
            self._held[i] = held // pop
        return torch.tensor(after)

    @property
    def information(self) -> float:
        """Bits a number."""
        return sum(held.bit_length() for held in self._held) / len(self._held)

    @property
    def empty(self) -> bool:
        """Whether everything that went in has come out."""
        return not any(self._held)


def undone(problem: Problem, buffer: PushPop | Remainders, forward: Fraction, adjoint: float) -> Undone:
    """Train on integers and go back, as Maclaurin et al. do.

    Args:
        problem: what is trained.
        buffer: how the velocity is multiplied.
        forward: the γ of the run.
        adjoint: the γ of the derivatives.

    Raises:
        RuntimeError: if the way back ends elsewhere than it began.
    """
    n, d, gamma = torch.tensor(forward.numerator), torch.tensor(forward.denominator), float(forward)
    w, v = fixed(problem.start), fixed(torch.zeros_like(problem.start))
    stray = 0.0
    for _ in range(problem.steps):
        gradient, before = problem.gradient(floating(w)), v
        v = buffer.multiply(v, n, d)
        stray = max(stray, *(abs(float(a - b * forward)) for a, b in zip(v.tolist(), before.tolist(), strict=True)))
        v = v - fixed((1 - gamma) * gradient)
        w = w + fixed(LR * floating(v))
    bits = buffer.information / problem.steps
    dw, dv = floating(w), torch.zeros_like(problem.start)
    for _ in range(problem.steps):
        w = w - fixed(LR * floating(v))
        v = buffer.divide(v + fixed((1 - gamma) * problem.gradient(floating(w))), n, d)
        dw, dv = pulled(problem, floating(w), dw, dv, adjoint)
    if not buffer.empty or not torch.equal(w, fixed(problem.start)):
        raise RuntimeError("the run did not come back to where it began")
    return Undone(dw, bits, stray)


def pulled(problem: Problem, w: Tensor, dw: Tensor, dv: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """One step's adjoints, at the weights before it."""
    dv = dv + LR * dw
    return dw - (1 - gamma) * problem.curvature(w, dv), gamma * dv


def fixed(x: Tensor) -> Tensor:
    """To integers."""
    return (x / UNIT).round().to(torch.int64)


def floating(x: Tensor) -> Tensor:
    """And back."""
    return x.to(torch.float64) * UNIT


def kept_nothing(problem: Problem, momentum: float) -> Undone:
    """In floating point: the velocity is divided by γ."""
    w, v = problem.start, torch.zeros_like(problem.start)
    for _ in range(problem.steps):
        v = momentum * v - (1 - momentum) * problem.gradient(w)
        w = w + LR * v
    dw, dv = w, torch.zeros_like(v)
    for _ in range(problem.steps):
        w = w - LR * v
        v = (v + (1 - momentum) * problem.gradient(w)) / momentum
        dw, dv = pulled(problem, w, dw, dv, momentum)
    return Undone(dw, 0.0, 0.0)


def as_published(problem: Problem, momentum: float) -> Undone:
    """γ to 16 bits, rounded up, in the run; γ itself in the derivatives."""
    return undone(problem, PushPop(len(problem.start)), Fraction(int(momentum * 2**16 + 1), 2**16), momentum)


def one_fraction(problem: Problem, momentum: float) -> Undone:
    """The published buffer, with one fraction for γ in both, the one that gdtuo takes."""
    return undone(problem, PushPop(len(problem.start)), nearest(momentum), momentum)


def reversible(problem: Problem, momentum: float) -> Undone:
    """What gdtuo does."""
    found = undone(problem, Remainders(problem.start.shape, problem.start.device), nearest(momentum), momentum)
    return found._replace(gradient=problem.by_gdtuo(momentum, gdtuo.Reversible()))


def nearest(momentum: float) -> Fraction:
    """The fraction that gdtuo takes."""
    n, d = rational(torch.tensor(momentum, dtype=torch.float64))
    return Fraction(int(n), int(d))


WAYS: dict[str, Callable[[Problem, float], Undone]] = {
    "floating point, nothing kept": kept_nothing,
    "as published (2015)": as_published,
    "its buffer, one fraction": one_fraction,
    "gdtuo.Reversible()": reversible,
}


# ---------------------------------------------------------------- what comes out


def error(problem: Problem, momentum: float, found: Undone) -> float:
    """|dE/dw_0 - that of reverse mode|, relative."""
    exact = problem.by_gdtuo(momentum, gdtuo.Reverse())
    return float((found.gradient - exact).norm() / exact.norm())


def table(problem: Problem) -> str:
    """All ways, for each momentum."""
    lines = []
    for momentum in MOMENTA:
        fraction = nearest(momentum)
        lines += [
            "",
            f"momentum {momentum:.7g} = {fraction}, {problem.steps:,} steps, log2(d / n) = {-math.log2(momentum):.3f}",
        ]
        lines.append(f"{'':28}  {'bits':>5}  {'stray, units':>12}  {'error':>7}")
        for name, way in WAYS.items():
            found = way(problem, momentum)
            stray = "" if way is kept_nothing else f"{found.stray:,.1f}"
            lines.append(f"{name:28}  {found.bits:5.3f}  {stray:>12}  {error(problem, momentum, found):7.0e}")
    return "\n".join(lines[1:])


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reversal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="T", help="default: 1000")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}: give at least 1")
    torch.set_num_threads(1)
    print(table(Problem.random(arguments.steps)))


if __name__ == "__main__":
    main()
