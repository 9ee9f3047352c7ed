"""`check_hypergradient` finds what is wrong, and says so in a table."""

from __future__ import annotations

import torch
from problems import ALGORITHMS, F64, Problem

import gdtuo

PROBLEM = Problem(ALGORITHMS["momentum"])


class WrongCurvature(torch.autograd.Function):
    """x², whose gradient is right and whose second derivative is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * gradient


def test_a_wrong_second_derivative_is_found():
    start, hyper = {"w": torch.ones(3, dtype=F64)}, {"l2": torch.tensor(0.5, dtype=F64)}
    for square, sound in ((torch.square, True), (WrongCurvature.apply, False)):
        training = gdtuo.Training(lambda p, h, b, f=square: h["l2"] * f(p["w"]).sum(), gdtuo.SGD(lr=0.1), steps=5)
        check = gdtuo.check_hypergradient(training, lambda p, h: p["w"].sum(), start, hyper)
        assert (check.worst < 1e-8) is sound
        if not sound:
            assert check.worst > 0.1


def test_a_truncated_hypergradient_is_found_out():
    hyper = PROBLEM.hyper(PROBLEM.scalars())
    arguments = (PROBLEM.training(), PROBLEM.outer, PROBLEM.params(), hyper)
    assert gdtuo.check_hypergradient(*arguments, gdtuo.Truncated(3), directions=1).worst > 1e-2
    assert gdtuo.check_hypergradient(*arguments, gdtuo.Forward(), directions=1).worst < 1e-8


def test_rows_and_table():
    hyper = PROBLEM.hyper({"lr": torch.linspace(0.05, 0.1, 12, dtype=F64), "momentum": torch.tensor([0.999], dtype=F64)})
    check = gdtuo.check_hypergradient(PROBLEM.training(), PROBLEM.outer, PROBLEM.params(), hyper, entries=2, directions=2)
    names = [row.name for row in check.rows]
    assert "hyper['optimizer']['momentum'][0]" in names
    assert "hyper['l2']['second']" in names
    assert "hyper['optimizer']['lr'], direction 2" in names
    assert "params['second']['bias'][1]" in names
    assert "params['first']['weight'], direction 1" in names
    assert check.worst < 1e-7
    table = str(check).splitlines()
    assert len(table) == len(names) + 1
    assert all(len(line) == len(table[0]) for line in table)
    for line, row in zip(table[1:], check.rows, strict=True):
        assert line.startswith(row.name)
        assert float(line.split()[-1]) == float(f"{row.error:.1e}")


def test_a_kink_shows_as_uncertainty():
    training = gdtuo.Training(lambda p, h, b: ((p["w"] - h["c"]) ** 2).sum(), gdtuo.SGD(lr=0.5), steps=1)  # w = c
    hyper = {"c": torch.tensor(1.0, dtype=F64)}

    def outer(params, hyper):
        return (params["w"] - 1.00005).abs().sum() + params["w"].sum()

    row = gdtuo.check_hypergradient(training, outer, {"w": torch.zeros(1, dtype=F64)}, hyper).rows[0]
    assert row.error > 0.1
    assert row.uncertainty > 0.1


def test_several_losses_are_checked_each_for_its_own():
    hyper = {"l2": torch.tensor(0.3, dtype=F64), "optimizer": {"lr": torch.tensor(0.1, dtype=F64)}}
    training = gdtuo.Training(lambda p, h, b: h["l2"] * (p["w"] ** 2).sum(), gdtuo.SGD(), steps=4)
    losses = {"l2": lambda p, h: p["w"].sum(), "optimizer": lambda p, h: (p["w"] ** 3).sum()}
    check = gdtuo.check_hypergradient(training, losses, {"w": torch.ones(2, dtype=F64)}, hyper)
    assert [row.name for row in check.rows] == ["hyper['l2']", "hyper['optimizer']['lr']"]
    assert check.worst < 1e-9


def test_zero_derivatives_and_infinities():
    training = gdtuo.Training(lambda p, h, b: (p["w"] ** 2).sum() + 0 * h["a"], gdtuo.SGD(lr=0.1), steps=3)
    hyper = {"a": torch.tensor(0.0, dtype=F64)}
    start = {"w": torch.ones(1, dtype=F64)}
    assert gdtuo.check_hypergradient(training, lambda p, h: p["w"].sum(), start, hyper).worst < 1e-9
    broken = gdtuo.check_hypergradient(training, lambda p, h: p["w"].sum() * float("nan"), start, hyper)
    assert broken.worst == float("inf")
