"""Runs that are undone to the bit, and what happens when they cannot be."""

from __future__ import annotations

import random

import pytest
import torch
from problems import ALGORITHMS, F64, Problem, assert_close

import gdtuo
from gdtuo.hypergrad.dynamics import Dynamics
from gdtuo.hypergrad.fixed_point import FixedPointRun

STEPS = 1000


def quartic(params, hyper, batch=None):
    """Smooth, not convex, different at each step."""
    shift = 0.0 if batch is None else 0.3 * torch.sin(torch.arange(10, dtype=F64) + batch)
    return (0.25 * (params["w"] - shift) ** 4 - 0.5 * hyper["a"] * params["w"] ** 2).sum()


def start(count: int = 10) -> dict[str, torch.Tensor]:
    return {"w": torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=F64)}


def dynamics(momentum: torch.Tensor, optimizer: gdtuo.Level | None = None, steps: int = STEPS) -> Dynamics:
    training = gdtuo.Training(quartic, optimizer or gdtuo.SGD(lr=0.05), batches=lambda t: t, steps=steps)
    return Dynamics(training, start(), {"a": torch.ones(10, dtype=F64), "optimizer": {"momentum": momentum}})


PER_ELEMENT = torch.linspace(0.3, 0.999, 10, dtype=F64).reshape(1, 10)
MOMENTA = {
    "0.5": torch.tensor(0.5, dtype=F64),
    "0.9": torch.tensor(0.9, dtype=F64),
    "0.98": torch.tensor(0.98, dtype=F64),
    "1": torch.tensor(1.0, dtype=F64),
    "per element": PER_ELEMENT,
    "schedule": torch.linspace(0.5, 0.99, STEPS, dtype=F64),
}


@pytest.mark.parametrize("optimizer", [gdtuo.SGD(lr=0.02, dampening=0.4), gdtuo.AveragingSGD(lr=0.02)], ids=repr)
@pytest.mark.parametrize("momentum", MOMENTA.values(), ids=MOMENTA.keys())
def test_round_trip(momentum, optimizer):
    run = FixedPointRun(dynamics(momentum, optimizer), 52)
    before = [x.clone() for x in (*run.fixed_weights, *run.fixed_buffers)]
    for t in range(STEPS):
        run.advance(t)
    stays = isinstance(optimizer, gdtuo.AveragingSGD) and bool((momentum == 1).all())  # gradients then have weight 0
    assert torch.equal(run.fixed_weights[0], before[0]) is stays
    predicted = run.bytes_after_all_steps()
    assert run.nbytes == predicted
    for t in reversed(range(STEPS)):
        run.undo_weights(t)
        run.undo_buffers(run.dynamics.gradient(run.weights(), t), t)
    for x, y in zip(before, (*run.fixed_weights, *run.fixed_buffers), strict=True):
        assert torch.equal(x, y)
    run.check_return()  # and nothing is left in the buffer


@pytest.mark.parametrize(("momentum", "bits"), [(0.9, 152), (0.98, 29)])
def test_information_of_a_run(momentum, bits):
    run = FixedPointRun(dynamics(torch.tensor(momentum, dtype=F64)), 52)
    for t in range(STEPS):
        run.advance(t)
    assert run.information == pytest.approx(bits, abs=2)  # of ten weights; test_remainders has more of them


def test_floating_point_cannot_be_undone():
    """The control: the same, without the buffer."""
    lr, momentum = 0.05, 0.9
    w, v = start()["w"], torch.zeros(10, dtype=F64)
    first = w.clone()

    def gradient(w: torch.Tensor, t: int) -> torch.Tensor:
        w = w.clone().requires_grad_()
        return torch.autograd.grad(quartic({"w": w}, {"a": torch.ones(10, dtype=F64)}, t), w)[0]

    for t in range(STEPS):
        v = momentum * v + gradient(w, t)
        w = w - lr * v
    for t in reversed(range(STEPS)):
        w = w + lr * v
        v = (v - gradient(w, t)) / momentum
    assert not (w - first).abs().max() < 0.1


@pytest.mark.parametrize("averaging", [True, False])
def test_equals_stored_reverse_at_100_steps(averaging):
    """For step sizes, momenta, initial weights and velocities, and the loss's own hyperparameters."""
    steps = 100
    problem = Problem(ALGORITHMS["averaging" if averaging else "momentum"], steps=steps)
    make = torch.Generator().manual_seed(4)
    momentum = {
        "first": {
            "weight": 0.8 + 0.19 * torch.rand(steps, 3, 4, generator=make, dtype=F64),
            "bias": torch.tensor(0.9, dtype=F64),
        },
        "second": torch.linspace(0.9, 0.5, steps, dtype=F64),
    }
    lr = torch.linspace(0.05, 0.01, steps, dtype=F64)
    name = "velocity" if averaging else "momentum_buffer"
    v0 = {"first": {"weight": 0.1 * torch.randn(3, 4, generator=make, dtype=F64)}}
    hyper = problem.hyper({"lr": lr, "momentum": momentum, "state": {name: v0}})
    results = [
        gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper, method)
        for method in (gdtuo.Reversible(), gdtuo.Reverse())
    ]
    for part in ("hyper", "params", "final"):
        assert_close(*(getattr(result, part) for result in results), 1e-11)


def test_32_bit_weights():
    problem = Problem(ALGORITHMS["momentum"], steps=50)
    params, hyper = problem.params(), problem.hyper(problem.scalars())

    def single(tree):
        return {k: single(v) if isinstance(v, dict) else v.float() for k, v in tree.items()}

    def inner(params, hyper, rows):
        return Problem.inner(float_problem, params, hyper, rows)

    float_problem = Problem(ALGORITHMS["momentum"], steps=50)
    object.__setattr__(float_problem, "x", float_problem.x.float())
    object.__setattr__(float_problem, "y", float_problem.y.float())
    training = gdtuo.Training(inner, gdtuo.SGD(), batches=problem.batch, steps=50)
    result = gdtuo.hypergradient(training, float_problem.outer, single(params), single(hyper), gdtuo.Reversible())
    exact = gdtuo.hypergradient(problem.training(), problem.outer, params, hyper)
    assert result.params["first"]["weight"].dtype == torch.float32
    assert_close(result.hyper, single(exact.hyper), 2e-3)


# ---------------------------------------------------------------- guards


def differentiate(optimizer: gdtuo.Level, loss=quartic, batches=lambda t: t, hyper=None, steps: int = 30, **options):
    training = gdtuo.Training(loss, optimizer, batches=batches, steps=steps)
    hyper = {"a": torch.ones(10, dtype=F64), **(hyper or {})}
    return gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start(), hyper, gdtuo.Reversible(**options))


def test_momentum_1_is_exactly_1():
    result = differentiate(gdtuo.SGD(lr=0.01, momentum=1.0))
    expected = gdtuo.hypergradient(
        gdtuo.Training(quartic, gdtuo.SGD(lr=0.01, momentum=1.0), batches=lambda t: t, steps=30),
        lambda p, h: p["w"].sum(),
        start(),
        {"a": torch.ones(10, dtype=F64)},
    )
    assert_close(result.hyper, expected.hyper, 1e-11)


@pytest.mark.parametrize(
    ("optimizer", "hyper", "remedy"),
    [
        (gdtuo.SGD(lr=0.1), None, r"Use gdtuo\.SGD\(momentum=0\.9\)"),
        (gdtuo.SGD(lr=0.1, momentum=0.9, nesterov=True), None, "without nesterov"),
        (gdtuo.Adam(), None, r"gdtuo\.Checkpointed\(\)"),
        (gdtuo.SGD(), {"momentum": torch.tensor(0.0, dtype=F64)}, "Keep it above"),
        (gdtuo.SGD(), {"momentum": torch.tensor(-0.1, dtype=F64)}, r"a number in \[0, 1\]"),
        (gdtuo.SGD(), {"momentum": torch.tensor(1.1, dtype=F64)}, r"a number in \[0, 1\]"),
        (gdtuo.SGD(), {"momentum": torch.tensor(float("nan"), dtype=F64)}, r"a number in \[0, 1\]"),
        (gdtuo.SGD(), {"momentum": torch.tensor(1e-12, dtype=F64)}, "Keep it above"),
    ],
)
def test_what_cannot_be_undone_is_refused_before_anything_runs(optimizer, hyper, remedy):
    def never(params, hyper, batch):
        raise AssertionError("it ran")

    with pytest.raises(ValueError, match=remedy):
        differentiate(optimizer, never, hyper=hyper and {"optimizer": hyper})


@pytest.mark.parametrize("lr", [3.0, 1e300])
def test_overflow_and_nan(lr):
    with pytest.raises(OverflowError, match=r"in step \d+.*lower its learning rate.*Reversible\(fraction=44\)"):
        differentiate(gdtuo.SGD(lr=lr, momentum=0.9), steps=200)


def test_start_out_of_range():
    training = gdtuo.Training(lambda p, h, b: p["w"].sum(), gdtuo.SGD(lr=0.1, momentum=0.9), steps=2)
    weights = {"w": torch.tensor([3000.0], dtype=F64)}
    with pytest.raises(OverflowError, match="at the start"):
        gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), weights, {}, gdtuo.Reversible())
    result = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), weights, {}, gdtuo.Reversible(fraction=48))
    assert result.final["w"].item() == pytest.approx(3000 - 0.1 - 0.19, abs=1e-12)


def test_a_batch_that_changes_is_noticed():
    calls = iter(range(10**6))
    with pytest.raises(RuntimeError, match=r"did not come back.*function of the step alone"):
        differentiate(gdtuo.SGD(lr=0.01, momentum=0.9), batches=lambda t: next(calls))


def test_random_numbers_from_elsewhere_are_noticed():
    own = random.Random(0)

    def noisy(params, hyper, batch):
        return quartic(params, hyper, batch) + 1e-9 * own.random() * params["w"].sum()

    with pytest.raises(RuntimeError, match="did not come back"):
        differentiate(gdtuo.SGD(lr=0.01, momentum=0.9), noisy)


def test_dropout_is_reproduced():
    def noisy(params, hyper, batch):
        return quartic({"w": torch.nn.functional.dropout(params["w"], 0.5)}, hyper, batch)

    result = differentiate(gdtuo.SGD(lr=0.01, momentum=0.9), noisy)
    training = gdtuo.Training(noisy, gdtuo.SGD(lr=0.01, momentum=0.9), batches=lambda t: t, steps=30)
    expected = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start(), {"a": torch.ones(10, dtype=F64)})
    assert_close(result.hyper, expected.hyper, 1e-11)


@pytest.mark.parametrize("fraction", [0, 63, 1.5, True])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="Give 1 to 62"):
        gdtuo.Reversible(fraction=fraction)


def test_a_rule_of_your_own():
    class Heavy(gdtuo.Rule):
        hyperparameters = {"lr": (0.01, gdtuo.Positive()), "keep": (0.9, gdtuo.UnitInterval())}

        def init(self, weights, hyper):
            return {"speed": torch.zeros_like(weights)}

        def update(self, weights, gradient, state, hyper, step):
            speed = hyper["keep"] * state["speed"] - 2 * gradient
            return hyper["lr"] * speed, {"speed": speed}

        def momentum_form(self, weights, gradient, hyper, step):
            return gdtuo.MomentumForm("speed", "keep", -2 * gradient, hyper["lr"])

    class HeavyLevel(gdtuo.Level):
        rule = Heavy

    hyper = {"optimizer": {"lr": torch.tensor(0.02, dtype=F64), "keep": torch.tensor(0.85, dtype=F64)}}
    result = differentiate(HeavyLevel(), hyper=hyper)
    training = gdtuo.Training(quartic, HeavyLevel(), batches=lambda t: t, steps=30)
    expected = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start(), {"a": torch.ones(10, dtype=F64), **hyper})
    assert_close(result.hyper, expected.hyper, 1e-11)
