"""Domains against the formulas that they stand for, written once more in NumPy; and the blocks that are learned in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from gdtuo import Domain, Positive, Real, UnitInterval
from gdtuo.compat.domains import HalfLogit, Square
from gdtuo.learned import Learned, written


def logit(y):
    return np.log(y) - np.log1p(-y)


def sigmoid(r):
    return 1 / (1 + np.exp(-r))


class Twin(NamedTuple):
    """A domain in NumPy: value -> raw, raw -> value, d value / d raw; and values to try it at."""

    raw: Callable
    forward: Callable
    slope: Callable
    values: list[float]


TINY = [1e-12, 1e-8, 1e-3, 0.1, 0.5, 0.9]
TWINS = {
    Positive(): Twin(np.log, np.exp, np.exp, [*TINY, 1.0, 30.0, 1e6]),
    UnitInterval(): Twin(logit, sigmoid, lambda r: sigmoid(r) * sigmoid(-r), [*TINY, 0.99, 0.999999]),
    Real(): Twin(lambda y: y, lambda r: r, np.ones_like, [-3.0, -1e-9, 0.0, *TINY, 20.0]),
    HalfLogit(): Twin(
        lambda y: np.arctanh(2 * y - 1),
        lambda r: (np.tanh(r) + 1) / 2,
        lambda r: (1 - np.tanh(r) ** 2) / 2,
        [0.01, 0.1, 0.5, 0.999],
    ),
    Square(): Twin(np.sqrt, np.square, lambda r: 2 * r, [0.0, *TINY, 4.0]),
}
ALL = pytest.mark.parametrize("domain", TWINS, ids=lambda domain: type(domain).__name__)
SHIFTS = np.linspace(-3, 3, 25)


def double(x):
    return torch.as_tensor(x, dtype=torch.float64)


def grid(domain):
    """Every value with every shift."""
    values, shifts = np.meshgrid(TWINS[domain].values, SHIFTS)
    return values.ravel(), shifts.ravel()


@ALL
def test_raw(domain):
    twin = TWINS[domain]
    values = np.array(twin.values)
    np.testing.assert_allclose(domain.raw(double(values)).numpy(), twin.raw(values), rtol=1e-13, atol=1e-13)


@ALL
def test_shifted_and_slope(domain):
    twin = TWINS[domain]
    values, shifts = grid(domain)
    raw = twin.raw(values) + shifts
    np.testing.assert_allclose(domain.shifted(double(values), double(shifts)).numpy(), twin.forward(raw), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(domain.slope(double(values), double(shifts)).numpy(), twin.slope(raw), rtol=1e-11, atol=1e-15)


@ALL
def test_slope_by_central_differences(domain):
    values, shifts = grid(domain)
    h = 1e-5
    up, down = (domain.shifted(double(values), double(shifts + d)).numpy() for d in (h, -h))
    slope = domain.slope(double(values), double(shifts)).numpy()
    np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=1e-7, atol=1e-10)


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_shift_of_0_returns_the_value_to_the_bit(domain, dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 1, 20_000), 10 ** rng.uniform(-30, 0, 20_000), TWINS[domain].values])
    values = torch.tensor(values, dtype=dtype)
    values = values[values < 1] if domain.maximum <= 1 else values
    assert torch.equal(domain.shifted(values, torch.zeros_like(values)), values)


@pytest.mark.parametrize("domain", [Positive(), UnitInterval(), HalfLogit()], ids=lambda domain: type(domain).__name__)
@pytest.mark.parametrize(("dtype", "huge"), [(torch.float64, 350.0), (torch.float64, 700.0), (torch.float32, 80.0)])
def test_0_stays_0(domain, dtype, huge):
    if isinstance(domain, HalfLogit):
        huge /= 2  # it doubles the shift
    shifts = torch.tensor([-huge, -5.0, 0.0, 5.0, huge], dtype=dtype)
    zeros = torch.zeros_like(shifts)
    assert torch.equal(domain.shifted(zeros, shifts), zeros)
    assert torch.equal(domain.slope(zeros, shifts), zeros)
    assert not domain.learnable(0.0)
    low, high = domain.limits(zeros)
    assert torch.equal(low, torch.full_like(low, -math.inf))
    assert torch.equal(high, torch.full_like(high, math.inf))


@ALL
def test_extreme_shifts_stay_finite(domain):
    values = double(TWINS[domain].values)
    for huge in (-690.0, 690.0):
        shift = torch.full_like(values, huge)
        assert domain.shifted(values, shift).isfinite().all()
        assert domain.slope(values, shift).isfinite().all()


@ALL
def test_shifts_add(domain):
    """What is learned is one coordinate: moving twice is moving by the sum."""
    for value in TWINS[domain].values:
        if value == 0:
            continue
        value, a, b = double(value), double(0.3), double(-0.7)
        if isinstance(domain, Square):  # whose coordinate has a sign that the value does not tell
            a, b = a.abs(), b.abs()
        twice = domain.shifted(domain.shifted(value, a), b)
        torch.testing.assert_close(twice, domain.shifted(value, a + b), rtol=1e-6 if domain.maximum <= 1 else 1e-12, atol=0)


def test_square_passes_through_0():
    value = double(0.04)
    assert Square().shifted(value, double(-0.2)) == 0
    assert Square().shifted(value, double(-0.5)) == pytest.approx(0.09)
    assert Square().slope(value, double(-0.5)) == pytest.approx(-0.6)
    low, high = Square().limits(value)
    assert (low, high) == (-math.inf, math.inf)


# ---------------------------------------------------------------- what a user may write, and what can be learned

LEARNABLE = [
    (Positive(), [1e-300, 1e-8, 1.0, 1e300], [0.0, -1.0, math.inf, math.nan]),
    (Positive(0.1, 0.2), [0.1, 0.15, 0.2], [0.0, 0.05, 0.3]),
    (UnitInterval(), [1e-8, 0.5, 0.999999], [0.0, 1.0, -0.5, 1.5, math.nan]),
    (UnitInterval(0.5, 0.9), [0.5, 0.7, 0.9], [0.0, 0.4, 0.95]),
    (Real(), [-5.0, 0.0, 5.0], [math.inf, -math.inf, math.nan]),
    (Real(-1.0, 1.0), [-1.0, 0.0, 1.0], [-2.0, 2.0]),
    (HalfLogit(), [1e-8, 0.5, 0.999999], [0.0, 1.0, math.nan]),
    (Square(), [0.0, 1e-8, 4.0], [-1.0, math.inf, math.nan]),
]


@pytest.mark.parametrize(("domain", "can", "cannot"), LEARNABLE, ids=str)
def test_learnable(domain, can, cannot):
    assert [domain.learnable(value) for value in can] == [True] * len(can)
    assert [domain.learnable(value) for value in cannot] == [False] * len(cannot)


@pytest.mark.parametrize(
    ("domain", "may", "may_not"),
    [
        (Positive(0.1, 0.2), [0.0, 0.15, 5.0], [-1e-300, math.inf, math.nan]),  # bounds limit learning, not writing
        (UnitInterval(0.5, 0.9), [0.0, 0.7, 1.0], [-0.1, 1.0001, math.nan]),
        (Real(-1.0, 1.0), [-7.0, 0.0, 7.0], [math.inf, -math.inf, math.nan]),
        (HalfLogit(), [0.0, 0.5], [-0.1, 1.0, math.nan]),
        (Square(), [0.0, 9.0], [-0.1, math.inf, math.nan]),
    ],
    ids=str,
)
def test_allows(domain, may, may_not):
    assert [domain.allows(value) for value in may] == [True] * len(may)
    assert [domain.allows(value) for value in may_not] == [False] * len(may_not)
    assert domain.text.startswith("a ")


@pytest.mark.parametrize("kind", [Positive, UnitInterval, Real, HalfLogit])
@pytest.mark.parametrize(("minimum", "maximum"), [(0.5, 0.2), (0.3, 0.3), (math.nan, 0.5), (0.1, math.nan)])
def test_bounds_in_the_wrong_order(kind, minimum, maximum):
    with pytest.raises(ValueError, match="Swap them or drop one"):
        kind(minimum, maximum)


@pytest.mark.parametrize("wrong", [{"minimum": -1.0}, {"maximum": 1.5}, {"minimum": -0.5, "maximum": 0.5}])
def test_bounds_outside_of_the_domain(wrong):
    with pytest.raises(ValueError, match=r"outside of the domain itself: a bound is a number in \[0, 1\]"):
        UnitInterval(**wrong)
    with pytest.raises(ValueError, match="a bound is a number >= 0"):
        Positive(minimum=-1.0)


def test_domains_are_immutable_values():
    assert Positive(maximum=0.2) == Positive(0.0, 0.2) != Positive()
    assert Positive() != Real()
    assert len({UnitInterval(), UnitInterval(), UnitInterval(maximum=0.9)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Positive().maximum = 1.0


# ---------------------------------------------------------------- blocks


@dataclasses.dataclass(frozen=True)
class Scaled(Real):
    """A user's domain, with a parameter of its own."""

    scale: float = 1.0

    def raw(self, value):
        return value / self.scale

    def shifted(self, value, shift):
        return value + self.scale * shift

    def slope(self, value, shift):
        return torch.full_like(shift, self.scale)


MIXED: dict[str, Domain] = {
    "a": Positive(0.01, 1.0),
    "b": UnitInterval(0.1, 0.95),
    "c": Real(-1.0, 2.0),
    "d": Positive(),
    "e": Scaled(scale=10.0, maximum=3.0),
    "f": Scaled(scale=0.1),
}
WRITTEN = [[0.1, 0.9, 0.5, 0.02, 1.0, 1.0], [0.02, 0.5, -0.5, 3.0, -2.0, 0.0], [0.5, 0.2, 1.5, 0.0, 2.0, 5.0]]


def learned(domains=MIXED, numbers=WRITTEN):
    block = Learned(domains)
    block.write(double(numbers))
    return block


ALIKE: dict[str, Domain] = {"a": Positive(0.01, 1.0), "d": Positive(), "g": Positive(maximum=5.0)}


@pytest.mark.parametrize("domains", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_a_block_evaluates_each_column_in_its_domain(domains):
    numbers = double(WRITTEN)[:, : len(domains)].abs().clamp(0.02, 0.9)
    block = learned(domains, numbers.tolist())
    shift = torch.randn(numbers.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.05
    for column, domain in enumerate(domains.values()):
        inside = block.project(shift)[:, column]
        assert torch.equal(block.effective(shift)[:, column], domain.shifted(numbers[:, column], inside))
        assert torch.equal(block.slope(shift)[:, column], domain.slope(numbers[:, column], inside))


@pytest.mark.parametrize("size", [0.1, 3.0, 300.0])
def test_bounds_hold_after_projection(size):
    block = learned()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        shift = torch.randn(3, 6, dtype=torch.float64, generator=generator) * size
        projected, effective = block.project(shift), block.effective(shift)
        assert torch.equal(block.project(projected), projected)
        assert torch.equal(block.effective(projected), effective)
        assert effective.isfinite().all()
        for column, domain in enumerate(MIXED.values()):
            slack = 1e-12
            assert (effective[:, column] >= domain.minimum - slack).all()
            assert (effective[:, column] <= domain.maximum + slack).all()
            # a shift that stays within the bounds is left alone
            free = domain.shifted(block.written[:, column], shift[:, column])
            inside = (free > domain.minimum) & (free < domain.maximum)
            assert torch.equal(projected[inside, column], shift[inside, column])
        assert effective[2, 3] == 0  # which stands at 0


def test_bounds_are_attained():
    block = learned()
    for sign, bound in ((1.0, "maximum"), (-1.0, "minimum")):
        effective = block.effective(torch.full((3, 6), sign * 60.0, dtype=torch.float64))
        for column in (0, 1, 2):
            target = getattr(list(MIXED.values())[column], bound)
            torch.testing.assert_close(
                effective[:, column], torch.full((3,), target, dtype=torch.float64), rtol=1e-12, atol=1e-12
            )


def test_a_number_written_outside_of_the_bounds_is_brought_back():
    """A scheduler may write what learning may not reach."""
    block = learned({"a": Positive(0.01, 0.2)}, [[1.0], [0.001], [0.1], [0.0]])
    effective = block.effective(torch.zeros(4, 1, dtype=torch.float64))
    torch.testing.assert_close(effective, double([[0.2], [0.01], [0.1], [0.0]]), rtol=1e-12, atol=0)


def test_written_takes_numbers_and_tensors():
    like = torch.zeros((), dtype=torch.float64)
    assert torch.equal(written([[0.1, 2], [0.3, 4]], like), double([[0.1, 2.0], [0.3, 4.0]]))
    number = torch.tensor([0.5], requires_grad=True)
    mixed = written([[0.1, number], [torch.tensor(0.25), 4]], like)
    assert torch.equal(mixed, double([[0.1, 0.5], [0.25, 4.0]]))
    assert mixed.dtype == torch.float64
    assert not mixed.requires_grad
    assert written([[], []], like).shape == (2, 0)
