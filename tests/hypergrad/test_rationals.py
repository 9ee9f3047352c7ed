"""Numbers as fractions, against Python's."""

from fractions import Fraction

import torch

from gdtuo.hypergrad.rationals import DENOMINATOR_BITS, rational

F64 = torch.float64


def test_nearest_fractions():
    make = torch.Generator().manual_seed(0)
    uniform = torch.rand(3000, generator=make, dtype=F64) * 0.999 + 1e-3
    near_one = 1 - torch.rand(1000, generator=make, dtype=F64) * 1e-5
    simple = torch.tensor([i / j for j in range(1, 40) for i in range(1, j + 1) if i / j > 1e-3], dtype=F64)
    single = torch.rand(500, generator=make).clamp_min(1e-3).double()
    values = torch.cat([uniform, near_one, simple, single, torch.tensor([1.0, 0.9, 0.98, 0.99, 1 - 2.0**-53], dtype=F64)])
    n, d = rational(values)
    expected = [Fraction(value).limit_denominator(2**DENOMINATOR_BITS) for value in values.tolist()]
    assert list(zip(n.tolist(), d.tolist(), strict=True)) == [(f.numerator, f.denominator) for f in expected]


def test_close_enough_everywhere():
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=F64).clamp_min(1e-6)
    n, d = rational(values)
    assert bool((n >= 1).all() and (n <= d).all() and (d <= 2**DENOMINATOR_BITS).all())
    error = (n.double() / d.double() - values).abs()
    assert error.max() < 2.0**-31
    assert error.median() < 1e-17


def test_shapes_and_too_small_numbers():
    n, d = rational(torch.tensor([[1e-12, 2.0**-30, 2.0**-32]], dtype=F64))
    assert n.tolist() == [[0, 1, 0]]
    assert d[0, 1] == 2**30
    assert [x.ndim for x in rational(torch.tensor(0.5))] == [0, 0]
