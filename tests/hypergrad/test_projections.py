"""Projections: the optimality conditions, and what must not change."""

from __future__ import annotations

import pytest
import torch

import gdtuo

F64 = torch.float64
SETS = {
    "box": (lambda x, s: gdtuo.project_box(x, -0.3 * s, 0.7 * s), lambda x, s: bool(((x >= -0.3 * s) & (x <= 0.7 * s)).all())),
    "simplex": (
        gdtuo.project_simplex,
        lambda x, s: bool((x >= 0).all()) and abs(float(x.sum()) - s) < 1e-12 * s,
    ),
    "budget": (
        gdtuo.project_budget,
        lambda x, s: bool(((x >= 0) & (x <= 1)).all()) and float(x.sum()) <= s * (1 + 1e-12),
    ),
}


def points(scale: float):
    make = torch.Generator().manual_seed(3)
    for shape in ((1,), (2,), (7,), (5, 4), (1000,)):
        yield scale * torch.randn(shape, generator=make, dtype=F64)
        yield scale * torch.rand(shape, generator=make, dtype=F64)
    yield scale * torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5], dtype=F64)  # ties
    yield torch.zeros(6, dtype=F64)
    yield torch.full((6,), 10 * scale, dtype=F64)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", SETS)
def test_feasible_and_idempotent(name, scale):
    project, feasible = SETS[name]
    for x in points(scale):
        for total in (0.3, 1.0, 2.5):
            y = project(x, total)
            assert feasible(y, total)
            assert y.shape == x.shape
            assert (project(y, total) - y).abs().max() <= 1e-14 * max(1.0, total)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_simplex_is_optimal(scale):
    """max(x - τ, 0) with one τ: the Karush-Kuhn-Tucker conditions."""
    for x in points(scale):
        for total in (0.3, 1.0, 2.5):
            y = gdtuo.project_simplex(x, total)
            inside = y > 0
            tau = (x - y)[inside]
            assert tau.max() - tau.min() <= 1e-10 * max(1.0, scale)
            assert (x[~inside] <= tau.mean() + 1e-10 * max(1.0, scale)).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_budget_is_optimal(scale):
    for x in points(scale):
        for total in (0.0, 0.3, 1.0, 2.5, 1e4):
            y = gdtuo.project_budget(x, total)
            free = (y > 0) & (y < 1)
            residual = 1e-10 * max(1.0, scale)
            low, high = (x - 1)[y == 1], x[y == 0]  # bounds on the multiplier τ: x - 1 >= τ at 1, x <= τ at 0
            tau = (x - y)[free]
            upper = low.min() if len(low) else torch.tensor(torch.inf)
            lower = high.max() if len(high) else torch.tensor(-torch.inf)
            assert lower <= upper + residual
            if len(tau):
                assert tau.max() - tau.min() <= residual
                assert lower - residual <= tau.mean() <= upper + residual
                upper = lower = tau.mean()
            slack = total - float(y.sum())
            assert slack >= -residual
            if slack > residual:  # then τ = 0 must do
                assert lower <= residual
                assert not len(tau) or abs(float(tau.mean())) <= residual
            else:
                assert upper >= -residual  # τ >= 0


@pytest.mark.parametrize("name", SETS)
def test_feasible_points_stay(name):
    make = torch.Generator().manual_seed(4)
    x = torch.rand(20, generator=make, dtype=F64) * 0.03
    if name == "simplex":
        x = x / x.sum()
    assert torch.equal(SETS[name][0](x, 1.0), x) or name == "simplex"
    assert (SETS[name][0](x, 1.0) - x).abs().max() <= 1e-16


@pytest.mark.parametrize("name", SETS)
def test_nearest_of_many(name):
    """No feasible point that is tried lies nearer."""
    project, feasible = SETS[name]
    make = torch.Generator().manual_seed(5)
    for _ in range(20):
        x = 2 * torch.randn(4, generator=make, dtype=F64)
        y = project(x, 1.0)
        for _ in range(200):
            other = torch.rand(4, generator=make, dtype=F64) * 1.0
            if name == "simplex":
                other = other / other.sum()
            elif name == "box":
                other = other - 0.3
            else:
                other = other / max(1.0, float(other.sum()))
            assert feasible(other, 1.0)
            assert (x - y).norm() <= (x - other).norm() + 1e-12


def test_a_budget_that_is_hardly_exceeded():
    x = torch.tensor([0.5, 0.25, 0.25 + 1e-9], dtype=F64)
    y = gdtuo.project_budget(x, 1.0)
    torch.testing.assert_close(y, x - 1e-9 / 3, rtol=0, atol=1e-15)


def test_precision_and_gradients():
    x = torch.randn(5, requires_grad=True)
    for y in (gdtuo.project_simplex(x), gdtuo.project_budget(x, 1.0)):
        assert y.dtype == torch.float32
        assert not y.requires_grad


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: gdtuo.project_box(torch.zeros(2), 1.0, 0.0), "Swap them"),
        (lambda: gdtuo.project_simplex(torch.zeros(2), 0.0), "number > 0"),
        (lambda: gdtuo.project_simplex(torch.zeros(0)), "at least one"),
        (lambda: gdtuo.project_budget(torch.zeros(2), -1.0), "number >= 0"),
        (lambda: gdtuo.project_budget(torch.zeros(2), float("nan")), "number >= 0"),
    ],
)
def test_bad_arguments(call, remedy):
    with pytest.raises(ValueError, match=remedy):
        call()
