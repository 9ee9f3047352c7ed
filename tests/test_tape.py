"""`Tape` against the function that it recorded, run afresh."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gdtuo import tape
from gdtuo.tape import Tape, quiet

F64 = torch.float64

#: x and y are [3, 4], s is [] and b is a boolean [3, 4]
UNARY = {
    "neg": lambda x: -x,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "sqrt": lambda x: x.sqrt(),
    "abs": lambda x: x.abs(),
    "reciprocal": lambda x: x.reciprocal(),
    "bitwise_not": lambda x: ~(x > 0),
    "logical_not": lambda x: x.logical_not(),
    "isfinite": lambda x: torch.ops.aten.isfinite(x / x),
}
BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "clamp_min": lambda x, y: x.clamp_min(y),
    "clamp_max": lambda x, y: x.clamp_max(y),
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "bitwise_and": lambda x, y: (x > 0) & (y > 0),
    "bitwise_or": lambda x, y: (x > 0) | (y > 0),
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
}
OTHERS = {
    "rsub": lambda x, y, s: 1 - x + (2.5 - s),
    "rsub of a tensor": lambda x, y, s: torch.rsub(x, y),
    "numbers on the right": lambda x, y, s: (x + 2) * 3.5 / 7 - 0.25,
    "numbers that overflow": lambda x, y, s: x * 1e300 * 1e300,
    "integer power": lambda x, y, s: x**2 + y**3,
    "power of a number": lambda x, y, s: 0.9**s + 0.9**x,
    "alpha": lambda x, y, s: torch.add(x, y, alpha=3) - torch.sub(x, y, alpha=0.5),
    "division with rounding": lambda x, y, s: torch.div(x, y, rounding_mode="floor"),
    "bits of integers": lambda x, y, s: (x > 0).to(torch.int64) & 5,
    "sign": lambda x, y, s: x.sign(),
    "floats as integers": lambda x, y, s: (x * 8).sign().nan_to_num().to(torch.int64) & 5,
    "broadcast": lambda x, y, s: x * y[:1] + y[:, :1] * s,
    "where": lambda x, y, s: torch.where(x > y, x, y * s),
    "where with numbers": lambda x, y, s: torch.where(x > 0, 0.0, y),
    "where of rows": lambda x, y, s: torch.where(x[:, :1] > 0, x, y[:1]),
    "sum": lambda x, y, s: x.sum(),
    "sum of rows": lambda x, y, s: x.sum(1),
    "sum of rows, kept": lambda x, y, s: x / x.sum(1, keepdim=True),
    "sum over two": lambda x, y, s: (x * y).sum((0, 1)),
    "sum over columns, kept": lambda x, y, s: x.sum(0, keepdim=True) + y.sum((0, 1), keepdim=True),
    "copies": lambda x, y, s: (x.clone() + y).to(torch.float32).to(F64) * s.expand(3, 4),
    "cat": lambda x, y, s: torch.cat((x, y * 2), dim=1),
    "cat of rows": lambda x, y, s: torch.cat((x, y[:1], x + y)),
    "stack": lambda x, y, s: torch.stack((x, y + 1), dim=-1),
    "views": lambda x, y, s: (x.t() @ y)[1:, ::2].reshape(-1) * s,
    "split": lambda x, y, s: torch.cat([a * b for a, b in zip(x.split(2), y.split(2), strict=True)]),
    "repeated views": lambda x, y, s: (x + y)[0] * (x + y)[1] + (x + y)[0],
    "unknown operators": lambda x, y, s: torch.atan2(x, y).sin() + torch.special.erf(x) + x.tanh(),
    "unknown with lists": lambda x, y, s: torch.einsum("ij,kj->ik", x, y).roll((1, 0), (0, 1)),
    "index": lambda x, y, s: x[torch.tensor([2, 0, 0])] + y.unbind(1)[3].unsqueeze(1),
    "cumulated": lambda x, y, s: x.cumsum(1).amax(0),
    "constants": lambda x, y, s: torch.zeros_like(x) + torch.ones(4, dtype=F64) * x + torch.full((3, 1), 2.5, dtype=F64),
    "a constant that is written to": lambda x, y, s: torch.zeros(3, dtype=F64).add_(x[:, 0]).mul_(s),
    "a constant accumulates": lambda x, y, s: torch.full_like(x, 0.5).addcmul_(x, y),
    "index_add": lambda x, y, s: x.new_zeros(2, 4).index_add_(0, torch.tensor([0, 1, 0]), y * s),
}


def inputs(seed: int, awkward: bool = False) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    values = [torch.randn(3, 4, generator=rng, dtype=F64), torch.randn(3, 4, generator=rng, dtype=F64)]
    values[1][1, 1] = values[0][1, 1]  # some that are equal
    if awkward:
        bad = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-320, 1e308, 1.0], dtype=F64)
        for x in values:
            x.copy_(bad[torch.randint(len(bad), (3, 4), generator=rng)])
    return [*values, torch.rand((), generator=rng, dtype=F64)]


def check(function) -> None:
    """Record on one input; replay on many others, awkward ones among them."""
    memory = inputs(0)
    with quiet():
        played = Tape(lambda: function(*memory))
        for seed in range(1, 31):
            fresh = inputs(seed, awkward=seed > 20)
            for x, value in zip(memory, fresh, strict=True):
                x.copy_(value)
            result, expected = played(), function(*fresh)
            assert result.dtype == expected.dtype
            torch.testing.assert_close(result, expected, rtol=1e-14, atol=0.0, equal_nan=True)
            for x, value in zip(memory, fresh, strict=True):
                torch.testing.assert_close(x, value, rtol=0.0, atol=0.0, equal_nan=True)


def test_every_operator_of_the_tables_is_tested():
    assert UNARY.keys() == tape.UNARY.keys()
    assert BINARY.keys() == tape.BINARY.keys()


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    check(lambda x, y, s: UNARY[name](x))
    check(lambda x, y, s: UNARY[name](x[:, 1]))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    check(lambda x, y, s: BINARY[name](x, y))
    check(lambda x, y, s: BINARY[name](y[:, :1], x))


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    check(OTHERS[name])


def test_several_results_keep_their_structure():
    memory = inputs(0)
    played = Tape(lambda: (memory[0] + memory[1], [memory[0] * 2, memory[2] + 1]))
    for x in memory:
        x.mul_(3)
    a, (b, c) = played()
    torch.testing.assert_close(a, memory[0] + memory[1], rtol=0.0, atol=0.0)
    torch.testing.assert_close(b, memory[0] * 2, rtol=0.0, atol=0.0)
    torch.testing.assert_close(c, memory[2] + 1, rtol=0.0, atol=0.0)


# ---------------------------------------------------------------- state


def momentum(state: Tensor, x: Tensor) -> Tensor:
    """Moves parts of a state through views, reads them before and after."""
    mean, weights, count = state[:4], state[4:8].view(2, 2), state[8]
    before = mean.sum()
    mean.mul_(0.9).add_(x, alpha=0.1)
    count.add_(1)
    weights.copy_(weights - 0.1 * mean.view(2, 2) / (1 - 0.9**count))
    weights[0].clamp_(min=-0.5)
    return before + mean.sum() * 10 + weights[1, 1]


def maximum(state: Tensor, x: Tensor) -> Tensor:
    """The same expression before and after what it is made of has changed."""
    first = (state[:4] * 2).sum()
    state[:4] += x
    second = (state[:4] * 2).sum()
    state[4:8] = torch.where(state[:4] > x, state[:4], x)
    snapshot = state.clone()
    state[8:] -= second
    return torch.stack((first, second, snapshot[8], state[8]))


def branches(state: Tensor, x: Tensor) -> Tensor:
    """Keeps the old where the new is not finite, as a ladder does."""
    old = state.clone()
    state[:4].div_(x)
    keep = ~torch.isfinite(state)
    state.copy_(torch.where(keep, old, state))
    return keep.sum()


@pytest.mark.parametrize("function", [momentum, maximum, branches])
def test_state_moves_as_without_a_tape(function):
    rng = torch.Generator().manual_seed(5)
    state, x = torch.randn(9, generator=rng, dtype=F64), torch.randn(4, generator=rng, dtype=F64)
    state[8] = 0.0
    twin = state.clone()
    with quiet():
        played = Tape(lambda: function(state, x), state=[state])
        torch.testing.assert_close(state, twin, rtol=0.0, atol=0.0)  # recording is no step
        for t in range(25):
            x.copy_(torch.randn(4, generator=rng, dtype=F64))
            if t % 5 == 4:
                x[t % 4] = 0.0
            result, expected = played(), function(twin, x)
            torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(state, twin, rtol=1e-13, atol=1e-14)


# ---------------------------------------------------------------- what is computed


def calls_of_numpy(played: Tape, ufunc: np.ufunc) -> int:
    return sum(function is ufunc for function, _ in played._steps)


def test_common_subexpressions_are_computed_once():
    x, y, s = inputs(0)
    played = Tape(lambda: ((x + y).exp()[0] * s + (x + y).exp()[1] * s, (x + y).exp()[1] * s))
    assert calls_of_numpy(played, np.exp) == 1
    assert calls_of_numpy(played, np.add) == 2
    assert calls_of_numpy(played, np.multiply) == 2
    for seed in range(1, 5):
        for a, b in zip((x, y, s), inputs(seed), strict=True):
            a.copy_(b)
        first, second = played()
        expected = (x + y).exp() * s
        torch.testing.assert_close(first, expected[0] + expected[1], rtol=1e-14, atol=0.0)
        torch.testing.assert_close(second, expected[1], rtol=1e-14, atol=0.0)


def test_what_nobody_needs_is_not_computed():
    x, y, _ = inputs(0)

    def function():
        x.exp().log()
        return x + y

    assert len(Tape(function)._steps) == 1


def test_what_is_written_to_is_not_taken_for_the_same():
    """Two equal constants, one of which is written to, and a sum that is read before and after."""
    x, y, _ = inputs(0)

    def function():
        a, b = torch.zeros_like(x), torch.zeros_like(x)
        a.add_(x)
        a[0] = y[0]
        return a + b, b - a

    played = Tape(function)
    for seed in range(1, 5):
        for a, b in zip((x, y), inputs(seed), strict=False):
            a.copy_(b)
        for ours, theirs in zip(played(), function(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


def transcendental(state: Tensor, x: Tensor) -> None:
    y = state[4:8]
    state[:4] = x.exp() + x.abs().log() + x.abs().sqrt() + 0.9**y + x.abs() ** y + x**2 + x.abs() ** 0.5 + x**-1 + 1 / x


def test_python_and_numpy_replay_to_the_same_bits():
    """Which of the two it is depends on how many numbers there are: a group that is added must not change the others."""
    rng = torch.Generator().manual_seed(6)
    state, x = torch.zeros(9, dtype=F64), torch.zeros(4, dtype=F64)
    tape = Tape(lambda: transcendental(state, x), state=[state])
    straight = tape._straight
    assert straight is not None
    for t in range(400):
        x.copy_(torch.randn(4, generator=rng, dtype=F64))
        state[4:8] = torch.randint(-1, 9, (4,), generator=rng) / (1 + t % 2)
        with quiet():
            tape._straight = straight
            tape()
            by_python = state.clone()
            state[:4] = 0.0
            tape._straight = None
            tape()
        assert torch.equal(by_python, state)
