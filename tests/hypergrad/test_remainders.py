"""The information buffer: exact both ways, as small as it can be, against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from gdtuo.hypergrad.rationals import rational
from gdtuo.hypergrad.remainders import BLOCK, Order, Remainders, growth, stacked_bytes

F64 = torch.float64
COUNT, STEPS = 300, 1000


def start() -> Tensor:
    return (torch.randn(COUNT, generator=torch.Generator().manual_seed(0), dtype=F64) * 2**52).to(torch.int64)


def kick(step: int) -> Tensor:
    """What a gradient would add."""
    make = torch.Generator().manual_seed(1000 + step)
    return (torch.randn(COUNT, generator=make, dtype=F64) * 0.1 * 2**52).to(torch.int64)


def fractions(momenta: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Those of all steps; equal ones computed once."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for momentum in momenta:
        if id(momentum) not in known:
            known[id(momentum)] = rational(momentum)
    return [known[id(momentum)] for momentum in momenta]


def there(momenta: list[Tensor]) -> tuple[Tensor, Remainders]:
    v, remainders = start(), Remainders(torch.Size([COUNT]), torch.device("cpu"))
    for step, fraction in enumerate(fractions(momenta)):
        v = remainders.multiply(v, *fraction) + kick(step)
    return v, remainders


def back(v: Tensor, remainders: Remainders, momenta: list[Tensor]) -> Tensor:
    known = fractions(momenta)
    for step in reversed(range(len(momenta))):
        v = remainders.divide(v - kick(step), *known[step])
    return v


def each(low: float, high: float, seed: int = 5) -> Tensor:
    return low + (high - low) * torch.rand(COUNT, generator=torch.Generator().manual_seed(seed), dtype=F64)


MOMENTA = {
    "0.5": [torch.tensor(0.5, dtype=F64)] * STEPS,
    "0.9": [torch.tensor(0.9, dtype=F64)] * STEPS,
    "0.98": [torch.tensor(0.98, dtype=F64)] * STEPS,
    "1": [torch.tensor(1.0, dtype=F64)] * STEPS,
    "32 bits": [torch.tensor(0.9)] * STEPS,
    "1e-6": [torch.tensor(1e-6, dtype=F64)] * 200,
    "per element": [each(0.05, 1.0)] * STEPS,
    "schedule": [torch.tensor(0.5 + 0.4999 * math.sin(t) ** 2, dtype=F64) for t in range(300)],
    "schedule, per element": [each(0.2, 1.0, seed=t) for t in range(100)],
}


@pytest.mark.parametrize("momenta", MOMENTA.values(), ids=MOMENTA.keys())
def test_there_and_back(momenta):
    v, remainders = there(momenta)
    assert torch.equal(back(v, remainders, momenta), start())
    assert remainders.empty


@pytest.mark.parametrize(("momentum", "bits"), [("0.5", 1000), ("0.9", 152), ("0.98", 29)])
def test_information(momentum, bits):
    _, remainders = there(MOMENTA[momentum])
    assert remainders.information == pytest.approx(bits, abs=1)
    assert remainders.nbytes * 8 / COUNT <= 1.5 * bits + 64
    stack = remainders.nbytes - 8 * COUNT
    assert stack == stacked_bytes(sum(growth(*f) for f in fractions(MOMENTA[momentum])), torch.Size([COUNT]))


@pytest.mark.parametrize("momentum", ["per element", "schedule", "32 bits"])
def test_information_of_any_fraction(momentum):
    _, remainders = there(MOMENTA[momentum])
    ideal = -sum(float(m.double().log2().mean()) for m in MOMENTA[momentum])
    assert ideal - 2 < remainders.information < 1.01 * ideal + 30  # a denominator's bits, to begin with
    assert remainders.nbytes * 8 / COUNT <= 1.5 * ideal + 64
    stack = remainders.nbytes - 8 * COUNT
    assert stack == stacked_bytes(sum(growth(*f) for f in fractions(MOMENTA[momentum])), torch.Size([COUNT]))


@pytest.mark.parametrize("momentum", ["0.9", "0.98", "per element", "schedule, per element"])
def test_product_is_right_to_one_unit(momentum):
    v, remainders = start(), Remainders(torch.Size([COUNT]), torch.device("cpu"))
    for value in MOMENTA[momentum][:20]:
        n, d = (x.expand(COUNT) for x in rational(value))
        after = remainders.multiply(v, n, d)
        for x, y, numerator, denominator in zip(v.tolist(), after.tolist(), n.tolist(), d.tolist(), strict=True):
            assert abs(Fraction(x * numerator, denominator) - y) < 1
        v = after


@pytest.mark.parametrize(("n", "d"), [(9, 10), (49, 50), (1, 2), (3, 7), (5, 5), (2, 9), (1, 6), (7, 11)])
def test_order_lists_every_pair_once(n, d):
    pairs = sorted((u, r) for r in range(d) for u in range(n))
    for c in range(n):
        expected = [(r, u) for u, r in pairs if (r * n + u) // d == c]
        assert len(expected) == d
        order = Order(torch.tensor(c), torch.tensor(n), torch.tensor(d))
        r, u = order.pair(torch.arange(d))
        assert list(zip(r.tolist(), u.tolist(), strict=True)) == expected
        assert order.rank(r, u).tolist() == list(range(d))


def test_no_elements():
    remainders = Remainders(torch.Size([0]), torch.device("cpu"))
    n, d = rational(torch.full((0,), 0.5))
    assert remainders.multiply(torch.zeros(0, dtype=torch.int64), n, d).shape == (0,)
    assert remainders.information == 0.0
    assert remainders.empty


@pytest.mark.parametrize(
    "momentum", [torch.tensor(0.9, dtype=F64), torch.rand(2 * BLOCK + 5, dtype=F64) * 0.9 + 0.05], ids=["one", "each"]
)
def test_blocks_change_nothing(momentum):
    v = (torch.randn(2 * BLOCK + 5, dtype=F64) * 2**52).to(torch.int64)
    n, d = rational(momentum)
    whole = Remainders(v.shape, v.device)
    parts = [Remainders(part.shape, v.device) for part in v.split(1000)]
    for _ in range(40):
        pieces = [
            r.multiply(p, *(x if x.ndim == 0 else x.split(1000)[i] for x in (n, d)))
            for i, (r, p) in enumerate(zip(parts, v.split(1000), strict=True))
        ]
        v = whole.multiply(v, n, d)
        assert torch.equal(v, torch.cat(pieces))
    assert whole.nbytes == sum(part.nbytes for part in parts)
    for _ in range(40):
        v = whole.divide(v, n, d)
    assert whole.empty
