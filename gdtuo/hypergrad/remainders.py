"""Multiplying integers by a fraction so that it can be undone: what would be lost goes into an information buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .rationals import DENOMINATOR_BITS

__all__ = ["Remainders", "growth", "stacked_bytes"]

BLOCK = 2**14  # elements that are worked on at a time
WORD = 16  # bits that move from a head to the stack at a time
HEAD = 62  # the most bits of a head: a step may add d to what it makes of it
UNIT = 2**32  # the count of bits is an integer in this unit, so that it can be counted back exactly
#: A step and a move may leave an integer larger than its share, by d and by 1. Of integers of START bits and more that
#: is less than SLACK bits, so they are counted from START on.
START = HEAD - WORD
SLACK = UNIT >> (START - DENOMINATOR_BITS - 2)


OneToOne: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Remainders:
    """One non-negative integer for each element, of growing length.

    `multiply` maps (v, H) one to one to (v', H'), where v' is v n / d to within one unit and H is the element's integer.
    With v = q d + r, H = h n + u and a dither u that H itself supplies,

        c = (r n + u) // d,    v' = q n + c,    H' = h d + ρ(c, r, u)

    where ρ counts the pairs (r, u) with this c, of which there are d, in the order of u. So v' carries what it can, and H
    grows by log2(d / n) bits a step, no more. (Maclaurin et al. let u stand in for r, and v' strays by up to n units.)

    The highest bits of H, its head, are one machine word; whenever a head might become too long its lowest 16 bits move
    to a stack. When that is follows from the fractions alone, so nothing besides these bits is stored.

    Args:
        shape: of the elements.
        device: where they are.

    References:
        Maclaurin et al. 2015, section 2.2, whose buffer is one Python integer an element; Townsend, Bird, Barber,
        "Practical Lossless Compression with Latent Variables using Bits Back Coding", ICLR 2019, for the dither.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._head = torch.zeros(shape, dtype=torch.int64, device=device)
        self._stack: list[Tensor] = []
        self._bits = torch.tensor(START * UNIT, device="cpu")  # that an integer may have, rounded up, in units

    def multiply(self, v: Tensor, n: Tensor, d: Tensor) -> Tensor:
        """v n / d, within one unit; n and d broadcast against v, 1 <= n <= d <= 2^30."""
        before, self._bits = self._bits, self._bits + growth(n, d)
        words = moved(self._bits) - moved(before)
        for already in range(most(words)):
            self._spill(already < words)
        return self._in_blocks(multiplied, v, n, d)

    def divide(self, v: Tensor, n: Tensor, d: Tensor) -> Tensor:
        """The inverse of the last `multiply`."""
        v = self._in_blocks(divided, v, n, d)
        after, self._bits = self._bits, self._bits - growth(n, d)
        words = moved(after) - moved(self._bits)
        for already in reversed(range(most(words))):
            self._refill(already < words)
        return v

    def _in_blocks(self, function: OneToOne, v: Tensor, n: Tensor, d: Tensor) -> Tensor:
        """A map of (v, head), block by block: it needs some twenty temporaries."""
        if v.numel() <= BLOCK:
            v, self._head = function(v, self._head, n, d)
            return v
        result, heads = torch.empty_like(v, memory_format=torch.contiguous_format), torch.empty_like(self._head)
        n, d = (x if x.numel() == 1 else x.expand_as(v).reshape(-1) for x in (n, d))
        flat = v.reshape(-1), self._head.reshape(-1), result.view(-1), heads.view(-1)
        for low in range(0, v.numel(), BLOCK):
            block = slice(low, low + BLOCK)
            here = [x if x.numel() == 1 else x[block] for x in (n, d)]
            flat[2][block], flat[3][block] = function(flat[0][block], flat[1][block], *here)
        self._head = heads
        return result

    def _spill(self, which: Tensor) -> None:
        which = which.to(self._head.device).expand_as(self._head)
        low = self._head & (2**WORD - 1)
        self._stack.append((low[which] - 2 ** (WORD - 1)).to(torch.int16))
        self._head = torch.where(which, self._head >> WORD, self._head)

    def _refill(self, which: Tensor) -> None:
        which = which.to(self._head.device).expand_as(self._head)
        low = torch.zeros_like(self._head)
        low[which] = self._stack.pop().to(torch.int64) + 2 ** (WORD - 1)
        self._head = torch.where(which, (self._head << WORD) | low, self._head)

    @property
    def empty(self) -> bool:
        """Whether everything that went in has come out."""
        return not self._stack and not bool(self._head.any())

    @property
    def information(self) -> float:
        """log2 of the integers, in bits, averaged over the elements."""
        if not self._head.numel():
            return 0.0
        stacked = WORD * sum(word.numel() for word in self._stack)
        return (stacked + float((self._head.to(torch.float64) + 1).log2().sum())) / self._head.numel()

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(t.numel() * t.element_size() for t in (self._head, *self._stack))


def multiplied(v: Tensor, head: Tensor, n: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(v, H) -> (v', H')."""
    q = v.div(d, rounding_mode="floor")
    h = head.div(n, rounding_mode="floor")
    r, u = v - q * d, head - h * n
    c = (r * n + u).div(d, rounding_mode="floor")
    return q * n + c, h * d + Order(c, n, d).rank(r, u)


def divided(v: Tensor, head: Tensor, n: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(v', H') -> (v, H)."""
    q = v.div(n, rounding_mode="floor")
    h = head.div(d, rounding_mode="floor")
    r, u = Order(v - q * n, n, d).pair(head - h * d)
    return q * d + r, h * n + u


class Order:
    """The d pairs (r, u), 0 <= r < d, 0 <= u < n, with c d <= r n + u < (c + 1) d, in the order of u, then of r.

    Of d consecutive numbers r n + u every u is the residue of f = d // n, and those in a cyclic interval that begins with
    a = c d mod n and is d mod n long, of one more. On a line that makes three regions of u, in the outer two of
    which u occurs `outer` times, in the middle one, [low, high), `inner` times.
    """

    def __init__(self, c: Tensor, n: Tensor, d: Tensor) -> None:
        self._first = (c * d).div(n, rounding_mode="floor")  # the r of the first of the numbers
        self._a = c * d - self._first * n
        often = d.div(n, rounding_mode="floor")
        end = self._a + (d - often * n)
        wraps = end > n
        self._low = torch.where(wraps, end - n, self._a)
        self._high = torch.where(wraps, self._a, end)
        self._outer = often + wraps.to(often.dtype)
        self._inner = 2 * often + 1 - self._outer
        self._at_low = self._low * self._outer  # the ranks at which the regions begin
        self._at_high = self._at_low + (self._high - self._low) * self._inner

    def rank(self, r: Tensor, u: Tensor) -> Tensor:
        """The place of a pair."""
        before = torch.where(
            u < self._low,
            u * self._outer,
            torch.where(
                u < self._high,
                self._at_low + (u - self._low) * self._inner,
                self._at_high + (u - self._high) * self._outer,
            ),
        )
        return before + r - self._smallest(u)

    def pair(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """The pair at a place."""
        left, middle = rank < self._at_low, rank < self._at_high
        start = torch.where(left, 0, torch.where(middle, self._low, self._high))
        begin = torch.where(left, 0, torch.where(middle, self._at_low, self._at_high))
        times = torch.where(left | ~middle, self._outer, self._inner)
        steps = (rank - begin).div(times, rounding_mode="floor")
        u = start + steps
        return self._smallest(u) + (rank - begin - steps * times), u

    def _smallest(self, u: Tensor) -> Tensor:
        return self._first + (u < self._a).to(u.dtype)


def stacked_bytes(grown: Tensor, shape: torch.Size) -> int:
    """The memory of the stack of integers that steps have made to grow by so much, the sum of their `growth`."""
    bits = START * UNIT + grown
    return int(moved(bits).expand(shape).sum()) * WORD // 8


def growth(n: Tensor, d: Tensor) -> Tensor:
    """How many bits a step adds, rounded up, in units."""
    bits = (d.to(torch.float64) / n.to(torch.float64)).log2()
    return (bits * UNIT).ceil().to(torch.int64) + SLACK


def moved(bits: Tensor) -> Tensor:
    """How many words an integer of so many bits has on the stack: those that keep its head within HEAD bits."""
    word = WORD * UNIT - SLACK  # a move leaves a little more than it should
    return (-((HEAD * UNIT - bits).div(word, rounding_mode="floor"))).clamp_min(0)


def most(words: Tensor) -> int:
    """The largest of them."""
    return int(words.max()) if words.numel() else 0
