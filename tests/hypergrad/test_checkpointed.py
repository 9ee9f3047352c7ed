"""What is kept and what is computed again: counted, held against the best that is possible, against the forecast."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import pytest
import torch
from problems import ALGORITHMS, F64, Problem, leaves_of

import gdtuo
from gdtuo.hypergrad.checkpointed import binomial
from gdtuo.hypergrad.sweep import Action, sweep

LENGTHS = (1, 2, 3, 7, 10, 100, 101, 1000)


class Counted:
    """A run that counts its loss evaluations and the states that exist, from outside."""

    def __init__(self, steps: int) -> None:
        self.calls = 0

        def loss(params, hyper, batch):
            self.calls += 1
            return hyper["a"] * (params["w"] ** 2).sum()

        self.training = gdtuo.Training(loss, gdtuo.SGD(lr=0.001), steps=steps)
        self.params = {"w": torch.ones(3, dtype=F64)}
        self.hyper = {"a": torch.tensor(0.5, dtype=F64)}

    def run(self, method) -> gdtuo.Result:
        self.calls = 0
        return gdtuo.hypergradient(self.training, lambda p, h: p["w"].sum(), self.params, self.hyper, method)


def methods(steps: int) -> list[gdtuo.hypergrad.Method]:
    return [
        gdtuo.Reverse(),
        gdtuo.Checkpointed(),
        gdtuo.Checkpointed(1),
        gdtuo.Checkpointed(4),
        gdtuo.Checkpointed(steps + 5),
        gdtuo.Checkpointed(arity=2),
        gdtuo.Checkpointed(arity=5),
        gdtuo.Checkpointed(memory=3 * 24),
        gdtuo.Checkpointed(memory=5 * 24),
        gdtuo.Checkpointed(memory=10**9),
        gdtuo.Truncated(max(1, steps // 3)),
        gdtuo.Truncated(steps + 1),
    ]


@pytest.mark.parametrize("steps", [1, 2, 5, 23])
def test_same_bits_and_as_many_evaluations_as_said(steps):
    counted = Counted(steps)
    reference = counted.run(gdtuo.Reverse())
    for method in methods(steps):
        result = counted.run(method)
        assert counted.calls == result.cost.gradients, method
        forecast = method.forecast(gdtuo.hypergrad.Dynamics(counted.training, counted.params, counted.hyper))
        assert result.cost == forecast, method
        if not isinstance(method, gdtuo.Truncated) or method.k >= steps:
            assert torch.equal(result.hyper["a"], reference.hyper["a"]), method
            assert torch.equal(result.params["w"], reference.params["w"]), method


def cost(method: gdtuo.hypergrad.Method, steps: int):
    counted = Counted(steps)
    return method.forecast(gdtuo.hypergrad.Dynamics(counted.training, counted.params, counted.hyper))


@pytest.mark.parametrize("steps", LENGTHS)
def test_states(steps):
    """In states of the run, the adjoint included."""
    assert cost(gdtuo.Reverse(), steps).states == steps + 1
    assert cost(gdtuo.Truncated(5), steps).states == min(steps, 5) + 1
    root = math.isqrt(steps - 1) + 1
    assert cost(gdtuo.Checkpointed(), steps).states <= 2 * root + 1
    for k in (2, 3, 5):
        levels = math.ceil(math.log(steps, k) - 1e-9) if steps > 1 else 0
        assert cost(gdtuo.Checkpointed(arity=k), steps).states <= (k - 1) * levels + 2
        assert cost(gdtuo.Checkpointed(arity=k), steps).gradients <= steps * (levels + 1)
    for n in (1, 3, 20):
        n = min(n, steps)
        assert cost(gdtuo.Checkpointed(n), steps).states <= n + math.ceil(steps / n) + 1
        assert cost(gdtuo.Checkpointed(n), steps).gradients <= 3 * steps


@pytest.mark.parametrize("room", [3, 4, 6, 12])
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 100])
def test_memory_is_kept_and_used_as_well_as_possible(steps, room):
    """Against dynamic programming over all ways to split, in evaluations besides those that are pulled back."""
    forecast = cost(gdtuo.Checkpointed(memory=room * 24 + 7), steps)
    assert forecast.states <= room
    assert forecast.states == room or steps < room - 1

    @lru_cache(None)
    def least(length: int, free: int) -> int:
        if length == 1:
            return 0
        if not free:
            return length * (length - 1) // 2
        return min(first + least(length - first, free - 1) + least(first, free) for first in range(1, length))

    assert forecast.gradients - steps == least(steps, room - 3)


def test_binomial_never_leaves_a_part_whole():
    for length in range(2, 60):
        for room in range(8):
            parts = binomial(length, room)
            assert sum(n for n, _ in parts) == length
            assert len(parts) >= 2
            assert all(n >= 1 for n, _ in parts)


def test_actions_pull_every_step_back_once_and_from_the_right_state():
    stack, pulled = [3], []
    for action, t in sweep(3, 40, 2, binomial):
        if action is Action.COPY:
            stack.append(stack[-1])
        elif action is Action.ADVANCE:
            assert stack[-1] == t
            stack[-1] = t + 1
        else:
            assert stack.pop() == t
            pulled.append(t)
    assert pulled == list(reversed(range(3, 40)))
    assert not stack


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"segments": 2, "arity": 2}, "Give one of them"),
        ({"arity": 2, "memory": 100}, "Give one of them"),
        ({"segments": 0}, "integer >= 1"),
        ({"arity": 1}, "integer >= 2"),
        ({"memory": 1.5}, "integer >= 1"),
        ({"segments": True}, "integer >= 1"),
        ({"products": "sideways"}, "reverse-over-reverse"),
    ],
)
def test_bad_options(options, remedy):
    with pytest.raises(ValueError, match=remedy):
        gdtuo.Checkpointed(**options)


def test_too_little_memory_says_how_much_is_needed():
    counted = Counted(10)
    with pytest.raises(ValueError, match="Give at least 72"):
        counted.run(gdtuo.Checkpointed(memory=71))
    assert counted.calls == 0
    counted.run(gdtuo.Checkpointed(memory=72))


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None])
def test_truncated_needs_a_count(k):
    with pytest.raises(ValueError, match="integer >= 1"):
        gdtuo.Truncated(k)


def test_truncated_error_falls_geometrically_on_a_contraction():
    steps = 60

    def inner(params, hyper, batch):
        curvature = torch.linspace(0.5, 2.0, 5, dtype=F64)
        return (0.5 * curvature * params["w"] ** 2 - hyper["b"] * params["w"]).sum() + 0.05 * params["w"].sin().sum()

    training = gdtuo.Training(inner, gdtuo.SGD(lr=0.4), steps=steps)
    start, hyper = {"w": torch.zeros(5, dtype=F64)}, {"b": torch.arange(1.0, 6.0, dtype=F64)}

    def slope(method):
        return gdtuo.hypergradient(training, lambda p, h: (p["w"] ** 3).sum(), start, hyper, method)

    exact = slope(gdtuo.Reverse())
    errors = [(slope(gdtuo.Truncated(k)).hyper["b"] - exact.hyper["b"]).norm().item() for k in range(1, 31)]
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert max(ratios) < 0.85  # the slowest direction contracts by 1 - 0.4 · 0.5, less what the sine does
    assert min(ratios) > 0.7
    assert slope(gdtuo.Truncated(5)).params is None
    whole = slope(gdtuo.Truncated(steps))
    assert torch.equal(whole.hyper["b"], exact.hyper["b"])
    assert torch.equal(whole.params["w"], exact.params["w"])


def test_truncated_leaves_early_schedule_entries_at_zero():
    problem = Problem(ALGORITHMS["momentum"])
    hyper = problem.hyper({"lr": torch.full((problem.steps,), 0.1, dtype=F64)})
    slopes = gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper, gdtuo.Truncated(4)).hyper
    assert not slopes["optimizer"]["lr"][:-4].any()
    assert slopes["optimizer"]["lr"][-4:].all()
    assert all(leaf.any() for leaf in leaves_of(slopes))
