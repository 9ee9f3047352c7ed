"""`Function` in its three forms, with each other and with the function itself: Python's numbers, NumPy's, torch's."""

from __future__ import annotations

import math

import pytest
import torch

from gdtuo.numbers import Function
from gdtuo.recording import record
from gdtuo.tape import quiet

F64 = torch.float64
NAMES = ("a", "b", "c")
THREE = torch.tensor(3.0, dtype=F64)

FUNCTIONS = {
    "add": lambda a, b, c: a + b + 1,
    "sub": lambda a, b, c: a - b - 0.5,
    "rsub": lambda a, b, c: 1 - a,
    "mul": lambda a, b, c: 2.5 * a * b,
    "div": lambda a, b, c: a / b,
    "div by": lambda a, b, c: 1.0 / a + a / 0.1,
    "pow": lambda a, b, c: a**b,
    "powers": lambda a, b, c: a**2 + 0.9**c,
    "neg": lambda a, b, c: -a,
    "reciprocal": lambda a, b, c: a.reciprocal(),
    "comparisons": lambda a, b, c: (a > b) + 2.0 * (a >= b) + 4.0 * (a < b) + 8.0 * (a <= b) + 16.0 * (a == b) + 32.0 * (a != b),
    "log": lambda a, b, c: a.log(),
    "exp": lambda a, b, c: (100 * a).exp(),
    "sqrt": lambda a, b, c: a.sqrt(),
    "root": lambda a, b, c: a**0.25,  # torch takes -inf ** 0.5 for a square root, C does not
    "logical_and": lambda a, b, c: torch.logical_and(a > 0, b > 0) * c,
    "where": lambda a, b, c: torch.where(a > b, c, 0.0 * b),
    "adam": lambda a, b, c: -a * (1 - b**c) ** 0.51 / (1 - a**c),
    "overflow": lambda a, b, c: a * 1e300 * 1e300,
    "integer overflow": lambda a, b, c: (1e200 * a) ** 2,
    "not in the table": lambda a, b, c: a.sin() * b.tanh(),
    "alpha": lambda a, b, c: torch.add(a, b, alpha=3),
    "copies": lambda a, b, c: (a.clone() * 2).detach() + b.to(torch.float32),
    "constants": lambda a, b, c: a * THREE + torch.zeros((), dtype=F64),
    "constants made inside": lambda a, b, c: a * torch.tensor(3.0, dtype=F64) + b,
    "an input itself": lambda a, b, c: a,
    "a constant itself": lambda a, b, c: torch.full((), 2.5, dtype=F64),
}


def recorded(*functions) -> Function:
    given = {name: torch.ones((), dtype=F64) for name in NAMES}
    outputs, calls = record(lambda: [function(*given.values()) for function in functions])
    return Function(calls, given, outputs)


def columns(seed: int, count: int) -> torch.Tensor:
    """[3, count] numbers, with 0, negative, huge and tiny ones and some that are not finite among them."""
    rng = torch.Generator().manual_seed(seed)
    bad = torch.tensor([0.0, -0.0, -1.0, -0.5, 1.0, 2.0, 1e300, -1e300, 1e-300, math.inf, -math.inf, math.nan], dtype=F64)
    given = torch.rand(3, count, generator=rng, dtype=F64) * 2
    wild = torch.rand(3, count, generator=rng) < 0.4
    return torch.where(wild, bad[torch.randint(len(bad), (3, count), generator=rng)], given)


def agree(ours, theirs) -> None:
    torch.testing.assert_close(torch.as_tensor(ours, dtype=F64), theirs.to(F64), rtol=1e-13, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_forms_agree(name):
    function = FUNCTIONS[name]
    made, given = recorded(function), columns(1, 200)
    expected = torch.stack([function(*column.unbind(0)).to(F64) for column in given.unbind(1)])
    agree(made(given)[0], expected)
    with quiet():
        agree(made.evaluator(200)(given.numpy())[0].copy(), expected)
        one = made.evaluator(1)
        agree([one(column.tolist())[0] for column in given.unbind(1)], expected)


def test_all_at_once():
    """Many outputs that share what they are made of; a second evaluation does not remember the first."""
    made, given = recorded(*FUNCTIONS.values()), columns(2, 50)
    with quiet():
        one, many = made.evaluator(1), made.evaluator(50)
        many(given.flip(1).numpy())
        found = many(given.numpy())
    for i, function in enumerate(FUNCTIONS.values()):
        agree(found[i].copy(), torch.stack([function(*column.unbind(0)).to(F64) for column in given.unbind(1)]))
    with quiet():
        for column in given.unbind(1):
            agree(one(column.tolist()), torch.stack([f(*column.unbind(0)).to(F64) for f in FUNCTIONS.values()]))
    for row, function in zip(made(given), FUNCTIONS.values(), strict=True):
        agree(row, torch.stack([function(*column.unbind(0)).to(F64) for column in given.unbind(1)]))


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda a, b, c: a / b, (1.0, 0.0, 0.0)),
        (lambda a, b, c: a / b, (0.0, 0.0, 0.0)),
        (lambda a, b, c: a**b, (1e200, 2.0, 0.0)),
        (lambda a, b, c: a**b, (0.0, -1.0, 0.0)),
        (lambda a, b, c: a**b, (-8.0, 1 / 3, 0.0)),
        (lambda a, b, c: a.exp(), (1000.0, 0.0, 0.0)),
        (lambda a, b, c: a.log(), (0.0, 0.0, 0.0)),
        (lambda a, b, c: a.log(), (-1.0, 0.0, 0.0)),
        (lambda a, b, c: a.sqrt(), (-1.0, 0.0, 0.0)),
        (lambda a, b, c: a.reciprocal(), (0.0, 0.0, 0.0)),
        (lambda a, b, c: (a * b) ** 0.5 * c, (-1.0, 1.0, 0.5)),
        (lambda a, b, c: (a * b) ** 0.5 > c, (-1.0, 1.0, 0.5)),
    ],
)
def test_where_python_raises_the_others_go_on(function, given):
    expected = function(*(torch.tensor(x, dtype=F64) for x in given))
    made = recorded(function)
    with quiet():
        agree(made.evaluator(1)(given), expected.reshape(1))
        agree(made.evaluator(2)([[x, x] for x in given])[0].copy(), expected.expand(2))
    agree(made(torch.tensor(given, dtype=F64).unsqueeze(1))[0], expected.reshape(1))


def test_no_outputs():
    made = recorded()
    assert made(torch.ones(3, 4, dtype=F64)).shape == (0, 4)
    assert list(made.evaluator(1)([1.0, 2.0, 3.0])) == []
