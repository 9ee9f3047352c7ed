"""The forecast, held against what a run takes; memory is counted by a meter of this file's own."""

from __future__ import annotations

import weakref

import pytest
import torch
from problems import ALGORITHMS, F64, Problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gdtuo
from gdtuo.hypergrad.plan import PlanRow


class Meter(TorchDispatchMode):
    """The bytes of all tensors that an operator has made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in old and key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key)
                    self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def network(dtype=torch.float32, width: int = 64, rows: int = 32):
    """(apply, params, inner, outer) of a small network on random data."""
    make = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, n, generator=make, dtype=F64).to(dtype) for n in (20, 5))
    layers = torch.nn.Linear(20, width), torch.nn.Tanh(), torch.nn.Linear(width, 5)
    apply, params = gdtuo.make_functional(torch.nn.Sequential(*layers).to(dtype))

    def inner(p, h, batch):
        return (apply(p, x[batch]) - y[batch]).square().mean() + h["l2"] * sum(w.square().sum() for w in p.values())

    def outer(p, h):
        return (apply(p, x[:10]) - y[:10]).square().mean()

    return params, inner, outer, lambda t: torch.randperm(200)[:rows]


RUNS = {
    "momentum": (gdtuo.SGD(lr=0.01, momentum=0.9), 40, torch.float32, 64, 32),
    "adam": (gdtuo.Adam(lr=0.01), 30, F64, 100, 64),
    "a large batch": (gdtuo.AveragingSGD(lr=0.01), 10, torch.float32, 64, 190),
    "one step": (gdtuo.SGD(lr=0.01, momentum=0.9), 1, torch.float32, 64, 32),
}


@pytest.mark.parametrize("run", RUNS)
def test_within_20_percent_of_what_is_measured(run):
    optimizer, steps, dtype, width, rows = RUNS[run]
    params, inner, outer, batches = network(dtype, width, rows)
    training = gdtuo.Training(inner, optimizer, batches=batches, steps=steps)
    hyper = {"l2": torch.tensor(1e-3, dtype=dtype), "optimizer": {"lr": torch.full((steps,), 0.01, dtype=dtype)}}
    plan = gdtuo.plan(training, params, hyper, memory=10**6)
    compared = 0
    for row in plan.rows:
        if row.note.startswith("cannot"):
            assert isinstance(row.method, gdtuo.Reversible)
            assert isinstance(optimizer, gdtuo.Adam)
            continue
        with Meter() as meter:
            if isinstance(row.method, gdtuo.Implicit):
                with pytest.warns(RuntimeWarning, match="stationary"):
                    result = gdtuo.hypergradient(training, outer, params, hyper, row.method)
            else:
                result = gdtuo.hypergradient(training, outer, params, hyper, row.method)
        assert row.gradients == pytest.approx(result.cost.gradients, rel=0.01), row.method
        if isinstance(row.method, gdtuo.Implicit):  # it says "at most"
            assert row.products >= result.cost.products
        else:
            assert row.products == pytest.approx(result.cost.products, rel=0.01), row.method
            assert row.memory == pytest.approx(meter.peak, rel=0.2), row.method
            compared += 1
    assert compared >= 6


def test_implicit_memory():
    training = gdtuo.Training(lambda p, h, b: (h["a"].exp() * p["w"] ** 2).sum() - p["w"].sum(), gdtuo.SGD(lr=0.1), steps=60)
    hyper, start = {"a": torch.linspace(-1, 1, 20_000, dtype=F64)}, {"w": torch.zeros(20_000, dtype=F64)}
    (row,) = (row for row in gdtuo.plan(training, start, hyper).rows if isinstance(row.method, gdtuo.Implicit))
    with Meter() as meter:
        gdtuo.hypergradient(training, lambda p, h: (p["w"] ** 2).sum(), start, hyper, gdtuo.Implicit())
    assert row.memory == pytest.approx(meter.peak, rel=0.2)


def best(plan: gdtuo.Plan) -> gdtuo.hypergrad.Method:
    return plan.best


def test_picks():
    """The least work that fits."""
    params, inner, _, batches = network()
    lr = {"optimizer": {"lr": torch.full((200,), 0.01)}, "l2": torch.tensor(1e-3)}
    one = {"l2": torch.tensor(1e-3)}

    def penalty(params):
        return sum(w.square().sum() for w in params.values())

    def plan(optimizer, hyper, memory):
        return gdtuo.plan(gdtuo.Training(inner, optimizer, batches=batches, steps=200), params, hyper, memory=memory)

    assert plan(gdtuo.Adam(), lr, 10**9).best == gdtuo.Reverse()
    assert isinstance(plan(gdtuo.Adam(), lr, 10**6).best, gdtuo.Checkpointed)
    assert isinstance(plan(gdtuo.SGD(momentum=0.9), lr, 10**6).best, gdtuo.Checkpointed)
    long = gdtuo.Training(lambda p, h, b: penalty(p) * h["l2"].sum(), gdtuo.SGD(momentum=0.98), steps=20_000)
    assert gdtuo.plan(long, params, {"l2": torch.full((300,), 1e-3)}, memory=450_000).best == gdtuo.Reversible()
    assert plan(gdtuo.Adam(), one, 10**6).best == gdtuo.Forward()
    tight = plan(gdtuo.Adam(), lr, 1000)
    assert tight.best == min((row for row in tight.rows if row.exact), key=lambda row: row.memory).method
    for memory in (300_000, 10**6, 10**7):
        chosen = plan(gdtuo.Adam(), lr, memory)
        (row,) = (row for row in chosen.rows if row.method == chosen.best)
        assert row.memory <= memory


def test_nothing_runs():
    """Neither the loss's values nor the generators are touched."""
    problem = Problem(ALGORITHMS["momentum"])
    seen = []

    def inner(params, hyper, rows):
        seen.append(type(params["first"]["weight"]))
        return problem.inner(params, hyper, rows)

    before = torch.get_rng_state()
    training = gdtuo.Training(inner, gdtuo.SGD(), batches=problem.batch, steps=10**6)
    gdtuo.plan(training, problem.params(), problem.hyper({}))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(seen) < 5


def test_a_loss_that_looks_at_values_is_computed_once():
    def inner(params, hyper, batch):
        return (params["w"] ** 2).sum() * (2.0 if params["w"][0].item() > 0 else 1.0) * hyper["a"]

    training = gdtuo.Training(inner, gdtuo.SGD(momentum=0.5), steps=1000)
    plan = gdtuo.plan(training, {"w": torch.ones(1000, dtype=F64)}, {"a": torch.tensor(0.1, dtype=F64)})
    (row,) = (row for row in plan.rows if row.method == gdtuo.Reverse())
    with Meter() as meter:
        gdtuo.hypergradient(
            training, lambda p, h: p["w"].sum(), {"w": torch.ones(1000, dtype=F64)}, {"a": torch.tensor(0.1, dtype=F64)}
        )
    assert row.memory == pytest.approx(meter.peak, rel=0.05)


def test_table():
    params, inner, _, batches = network()
    plan = gdtuo.plan(
        gdtuo.Training(inner, gdtuo.Adam(), batches=batches, steps=50), params, {"l2": torch.tensor(0.1)}, memory=10**9
    )
    lines = str(plan).splitlines()
    assert lines[0].split() == ["gradients", "products", "memory", "work"]
    assert len(lines) == len(plan.rows) + 1
    for line, row in zip(lines[1:], plan.rows, strict=True):
        assert line.startswith(repr(row.method))
        assert f"{row.gradients:,}" in line
    assert sum("<- best" in line for line in lines) == 1
    assert "no momentum" in next(line for line in lines if line.startswith("Reversible"))
    assert isinstance(plan.rows[0], PlanRow)


# ---------------------------------------------------------------- states, counted


@pytest.mark.parametrize("steps", [16, 64])
def test_states_that_live_at_a_time(steps):
    """In arrays of the weights' size, counted from outside; what one step needs comes on top of what is kept."""
    count = 100_000
    start = {"w": torch.ones(count, dtype=F64)}
    hyper = {"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(0.1, dtype=F64)}
    optimizer = gdtuo.SGD(lr=0.01, momentum=0.9)
    training = gdtuo.Training(lambda p, h, b: (h["a"] * p["w"] ** 2 - h["b"] * p["w"]).sum(), optimizer, steps=steps)

    def peak(method) -> float:
        with Meter() as meter:
            gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start, hyper, method)
        return meter.peak / (2 * 8 * count)  # a state is weights and buffer

    step = 9  # of the graph of one step, adjoints and updates included
    assert steps < peak(gdtuo.Reverse()) < steps + step
    assert peak(gdtuo.Checkpointed()) < 2 * steps**0.5 + step
    assert peak(gdtuo.Checkpointed(arity=2)) < torch.tensor(float(steps)).log2() + step
    assert peak(gdtuo.Forward()) < 1 + 2 + 2 * step  # three tangents at once are part of a step
    assert peak(gdtuo.Reversible()) < step + 3 + steps * 0.152 / 64  # the integers, the buffer
    assert peak(gdtuo.Truncated(4)) < 4 + step
