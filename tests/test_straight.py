"""Source code for plain numbers against torch, on the tables of `test_tape` and on its own limits."""

from __future__ import annotations

import pytest
import torch
from cases import F64

from gdtuo.recording import record
from gdtuo.straight import BINARY, UNARY, CannotTranslateError, StraightLine
from gdtuo.tape import Tape, live, quiet


def code_of(function, inputs):
    """A function of the inputs' elements that returns the elements of the result, from a recording of `function`."""
    result, calls = record(lambda: function(*inputs))
    code, names = StraightLine(), []
    for k, x in enumerate(inputs):
        names.append([f"x{k}_{i}" for i in range(x.numel())])
        code.define(x, names[-1])
    for call in live(calls, [result]):
        code.add(call)
    straight = code.function(names, [code.elements(result)])
    return lambda *given: straight(*(x.flatten().tolist() for x in given))[0]


FUNCTIONS = {
    "neg": lambda x, y: -x,
    "exp": lambda x, y: x.exp(),
    "log": lambda x, y: x.abs().log(),
    "sqrt": lambda x, y: x.abs().sqrt(),
    "reciprocal": lambda x, y: x.reciprocal(),
    "logic": lambda x, y: (~(x > y) | ((x < 0) & (y <= 0)) | torch.logical_not(x >= y)).to(F64),
    "comparisons": lambda x, y: (x == y).to(F64) + (x != y).to(F64) * 2,
    "arithmetic": lambda x, y: (x + y * 2 - 3 / x) * (1 - y) / x,
    "powers": lambda x, y: x.abs() ** y + 0.9**x + x**2 + torch.full_like(x, -3.0) ** 2 * x,
    "minimum, maximum": lambda x, y: torch.minimum(x, y) - torch.maximum(x, y.clamp_min(-0.5)),
    "where": lambda x, y: torch.where(x > y, x, 0.0),
    "sums": lambda x, y: x.sum(0, keepdim=True) * y.sum(1, keepdim=True) + x.sum((0, 1)),
    "broadcasting": lambda x, y: x[:, :1] * y[0] + x.unsqueeze(-1)[..., 0],
    "joins": lambda x, y: torch.cat((x, torch.stack((y[:, 0], x[:, 1]), dim=1), y[:1]), dim=0)[1:],
    "choice": lambda x, y: x[torch.tensor([1, 0, 1])] + y[:, torch.tensor([1, 0])][torch.tensor([2, 1, 0])],
    "scatter": lambda x, y: torch.zeros(2, 2, dtype=F64).index_add_(0, torch.tensor([1, 0, 1]), x) * torch.full_like(y[:2], 3),
    "in place": lambda x, y: (x + 1).mul_(y).add_(x),
    "constants": lambda x, y: x * torch.tensor(3.0, dtype=F64) + torch.ones_like(y),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_torch(name):
    make = torch.Generator().manual_seed(4)
    example = [torch.randn(3, 2, generator=make, dtype=F64) for _ in range(2)]
    straight = code_of(FUNCTIONS[name], example)
    for _ in range(5):
        inputs = [torch.randn(3, 2, generator=make, dtype=F64) for _ in range(2)]
        inputs[1][0] = inputs[0][0]  # equal numbers among them
        expected = FUNCTIONS[name](*inputs).flatten()
        torch.testing.assert_close(torch.tensor(straight(*inputs), dtype=F64), expected, rtol=1e-14, atol=1e-14)


def test_every_template_is_tested():
    """The functions above, recorded, call every operator that has one."""
    inputs = [torch.full((3, 2), 0.5, dtype=F64) for _ in range(2)]
    called = set()
    for function in FUNCTIONS.values():
        called |= {call.name.removesuffix("_") for call in record(lambda function=function: function(*inputs))[1]}
    clamps, logic = {"clamp_min", "clamp_max"}, {"logical_and", "logical_or"}
    assert (UNARY.keys() | BINARY.keys()) - clamps - logic <= called


@pytest.mark.parametrize("name", ["clamp_min", "clamp_max", "logical_and", "logical_or"])
def test_the_remaining_templates(name):
    x, y = torch.tensor([-1.0, 0.0, 2.0, float("nan")], dtype=F64), torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=F64)
    if name.startswith("logical"):
        function = lambda x, y: getattr(torch, name)(x > 0, y > 0).to(F64)  # noqa: E731
    else:
        function = lambda x, y: getattr(torch, name)(x, 0.5)  # noqa: E731
    torch.testing.assert_close(torch.tensor(code_of(function, [x, y])(x, y), dtype=F64), function(x, y), equal_nan=True)


def test_minimum_and_maximum_keep_nan():
    nan, one = torch.tensor([float("nan"), 1.0], dtype=F64), torch.tensor([1.0, float("nan")], dtype=F64)
    for function in (torch.minimum, torch.maximum):
        assert all(x != x for x in code_of(function, [nan, one])(nan, one))


def test_what_has_no_counterpart_is_refused():
    x = torch.rand(3, dtype=F64)
    with pytest.raises(CannotTranslateError):
        code_of(lambda x: x.cumsum(0), [x])
    with pytest.raises(CannotTranslateError, match="too many"):
        code_of(lambda x: x * 2 + 1, [torch.rand(1000, dtype=F64)])


def test_a_tape_uses_it_and_falls_back_where_python_raises(monkeypatch):
    """1 / 0 and overflow: torch's inf and NaN all the same, and the state is right afterwards too."""
    x, state = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64)

    def function() -> None:
        state.add_(x.exp() / (x - 1))

    tape = Tape(function, [state])
    assert tape._straight is not None
    for values in ([2.0, 3.0], [1.0, 0.5], [1000.0, 2.0], [float("nan"), -1.0]):
        x.copy_(torch.tensor(values, dtype=F64))
        state.zero_()
        function()
        expected = state.clone()
        state.zero_()
        with quiet():
            tape()
        torch.testing.assert_close(state, expected, rtol=1e-14, atol=0, equal_nan=True)
