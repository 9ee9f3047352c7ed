"""The implicit function theorem: where it holds, against long runs; where it does not, a warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from problems import F64, assert_close

import gdtuo

METHODS = {
    "cg": gdtuo.Implicit(),
    "neumann": gdtuo.Implicit("neumann", 3000, 1e-12),
    "fixed point": gdtuo.Implicit("fixed_point", 3000, 1e-12),
    "mixed mode": gdtuo.Implicit(products="forward-over-reverse"),
}
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = (X[:, 0] + 0.3 * torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=F64) > 0).to(F64)


def logistic(params, hyper, batch=None):
    """Strictly convex, not quadratic."""
    logits = X[:20] @ params["w"] + params["b"]
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, Y[:20], reduction="none")
    penalty = (hyper["l2"].exp() * params["w"] ** 2).sum() + 0.05 * params["b"] ** 2
    return (hyper["weights"].sigmoid() * losses).mean() + penalty


def validation(params, hyper):
    logits = X[20:] @ params["w"] + params["b"]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, Y[20:]) + 0.01 * hyper["l2"].square().sum()


START = {"w": torch.zeros(4, dtype=F64), "b": torch.zeros((), dtype=F64)}
HYPER = {
    "l2": torch.tensor([-3.0, -2.0, -2.5, -3.0], dtype=F64),
    "weights": torch.linspace(-1, 1, 20, dtype=F64),
    "optimizer": {"lr": torch.tensor(1.0, dtype=F64)},
}


def slopes(method, steps: int = 300, loss=logistic, optimizer: gdtuo.Level | None = None):
    training = gdtuo.Training(loss, optimizer or gdtuo.SGD(momentum=0.8), steps=steps)
    return gdtuo.hypergradient(training, validation, START, HYPER, method)


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_reverse_tends_to_it(method):
    implicit = slopes(method)
    errors = []
    for steps in (20, 60, 1000):
        reverse = slopes(gdtuo.Reverse(), steps)
        errors.append((reverse.hyper["weights"] - implicit.hyper["weights"]).norm().item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert_close({k: implicit.hyper[k] for k in ("l2", "weights")}, {k: reverse.hyper[k] for k in ("l2", "weights")}, 1e-8)
    assert abs(implicit.hyper["optimizer"]["lr"]) < 1e-10
    assert implicit.params is None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_central_differences_of_the_minimum(method):
    check = gdtuo.check_hypergradient(
        gdtuo.Training(logistic, gdtuo.SGD(lr=1.0, momentum=0.8), steps=300),
        validation,
        START,
        {k: HYPER[k] for k in ("l2", "weights")},
        method,
        entries=1,
        directions=1,
    )
    assert check.worst < 1e-7


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_says_that_the_weights_are_not_stationary(method):
    with pytest.warns(RuntimeWarning, match=r"not at a stationary point.*Train longer"):
        slopes(method, steps=5)


def test_says_that_it_is_no_minimum():
    def saddle(params, hyper, batch):
        return (params["w"] ** 4).sum() - hyper["a"] * params["w"].square().sum() - 1e-9 * params["w"].sum()

    training = gdtuo.Training(saddle, gdtuo.SGD(lr=0.01), steps=3)  # it barely leaves the maximum at 0
    with pytest.warns(RuntimeWarning) as caught:
        gdtuo.hypergradient(
            training, lambda p, h: p["w"].sum(), {"w": START["w"]}, {"a": torch.tensor(1.0, dtype=F64)}, gdtuo.Implicit()
        )
    assert any("not positive definite" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("solver", ["cg", "neumann", "fixed_point"])
def test_says_that_it_has_not_converged(solver):
    with pytest.warns(RuntimeWarning, match=rf"{solver} left a residual.*Allow more"):
        slopes(gdtuo.Implicit(solver, 2))


def test_warning_points_at_the_call():
    with pytest.warns(RuntimeWarning) as caught:
        slopes(gdtuo.Implicit("cg", 2))
    assert caught[0].filename == __file__


def test_minibatches_need_the_whole_set():
    def inner(params, hyper, rows):
        return (hyper["a"] * params["w"] ** 2 + (params["w"] - X[rows].mean(0)) ** 2).sum()

    rows = [torch.arange(0, 15), torch.arange(15, 30)]
    training = gdtuo.Training(inner, gdtuo.SGD(lr=0.005), batches=rows, steps=2000)
    start, hyper = {"w": torch.zeros(4, dtype=F64)}, {"a": torch.ones(4, dtype=F64)}

    def outer(params, hyper):
        return (params["w"] - 1).square().sum()

    with pytest.warns(RuntimeWarning, match=r"Implicit\(batch=\.\.\.\)"):
        gdtuo.hypergradient(training, outer, start, hyper, gdtuo.Implicit())
    method = gdtuo.Implicit(batch=torch.arange(30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the weights still swing a little between the halves
        result = gdtuo.hypergradient(training, outer, start, hyper, method)
    mean = X.mean(0)
    expected = 2 * (mean / 2 - 1) * (-mean / 4)  # w = mean / (1 + a)
    torch.testing.assert_close(result.hyper["a"], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("lu",), "'cg', 'neumann', 'fixed_point'"),
        (("cg", 0), "integer >= 1"),
        (("cg", 10, 1.0), "tolerance < 1"),
        (("cg", 10, -1), "tolerance < 1"),
    ],
)
def test_bad_options(arguments, remedy):
    with pytest.raises(ValueError, match=remedy):
        gdtuo.Implicit(*arguments)
