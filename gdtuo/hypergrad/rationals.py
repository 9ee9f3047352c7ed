"""Numbers in (0, 1] as fractions of small integers, elementwise."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DENOMINATOR_BITS", "rational"]

#: With denominators up to 2^30 the nearest fraction to p / q is p / q, and to a number near it off by 1 / (2^30 q) at most;
#: elsewhere by no more than 64-bit numbers resolve.
DENOMINATOR_BITS = 30


def rational(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest fractions n / d with d <= 2^30, in lowest terms: 0.9 is 9 / 10.

    Continued fractions (Hardy, Wright, "An Introduction to the Theory of Numbers", chapter 10), on integers, so that
    the result does not depend on rounding.

    Args:
        values: in (0, 1].

    Returns:
        n and d, of `values`' shape, int64. n is 0 where a value is below 2^-31.

    Example:
        >>> import torch
        >>> rational(torch.tensor([0.9, 1.0, 0.98], dtype=torch.float64))
        (tensor([ 9,  1, 49]), tensor([10,  1, 50]))
    """
    limit, one = 2**DENOMINATOR_BITS, 2**62
    # value = a / b, reduced by Euclid's algorithm to (0, 1); p1 / q1 is the latest convergent, p0 / q0 the one before
    a = (values.to(torch.float64) * float(one)).to(torch.int64)
    b = torch.full_like(a, one)
    p0, q0, p1, q1 = torch.zeros_like(a), torch.ones_like(a), torch.ones_like(a), torch.zeros_like(a)
    n, d = torch.zeros_like(a), torch.zeros_like(a)
    going = torch.ones_like(a, dtype=torch.bool)
    for _ in range(2 * DENOMINATOR_BITS):  # denominators grow at least like Fibonacci numbers
        if not going.any():
            break
        term = a // b.clamp_min(1)
        exact = b == 0
        fits = ~exact & (term <= (limit - q0) // q1.clamp_min(1))
        # Too large a denominator: the best is this convergent, or the one between it and the next.
        most = (limit - q0) // q1.clamp_min(1)
        between = q0 + most * q1
        earlier = exact | (b <= (one // 2) // between.clamp_min(1))
        done = going & ~fits
        n = torch.where(done, torch.where(earlier, p1, p0 + most * p1), n)
        d = torch.where(done, torch.where(earlier, q1, between), d)
        step = going & fits
        a, b = torch.where(step, b, a), torch.where(step, a - term * b, b)
        p0, p1 = torch.where(step, p1, p0), torch.where(step, p0 + term * p1, p1)
        q0, q1 = torch.where(step, q1, q0), torch.where(step, q0 + term * q1, q1)
        going = step
    return n, d
