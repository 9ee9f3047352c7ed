"""What `record` lists: the calls of a function, replayed one by one to the same numbers."""

from __future__ import annotations

import pytest
import torch
from cases import DriftRule
from torch import Tensor

import gdtuo
from gdtuo.pullback import derive
from gdtuo.recording import UnrecordableError, record, tensors_in

F64 = torch.float64


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def replayed(calls: list, given: dict[int, Tensor], results: list[Tensor]) -> list[Tensor]:
    """The calls once more, one after the other, on other inputs: id of a recorded tensor -> what takes its place."""
    memory = dict(given)

    def bound(x):
        if isinstance(x, Tensor):
            return memory.get(id(x), x)
        return type(x)(bound(y) for y in x) if isinstance(x, (list, tuple)) else x

    for call in calls:
        found = call.function(*bound(call.args), **{k: bound(v) for k, v in call.kwargs.items()})
        for old, new in zip(tensors_in((call.result,)), tensors_in((found,)), strict=True):
            memory[id(old)] = new
    return [memory.get(id(x), x) for x in results]


def test_calls_are_listed_in_order_with_what_they_took_and_made():
    x, y = numbers(0, 3), numbers(1, 3)

    def function():
        total = torch.add(x, y, alpha=2)
        total.mul_(x)
        return total.sqrt()

    result, calls = record(function)
    assert [call.name for call in calls] == ["add", "mul_", "sqrt"]
    assert [tuple(map(id, call.tensors)) for call in calls] == [
        (id(x), id(y)),
        (id(calls[0].result), id(x)),
        (id(calls[0].result),),
    ]
    assert dict(calls[0].kwargs) == {"alpha": 2}
    assert calls[2].result is result
    torch.testing.assert_close(result, ((x + 2 * y) * x).sqrt(), equal_nan=True)


def test_tensors_in_lists_of_arguments_are_found():
    x, y, z = numbers(0, 3), numbers(1, 3), numbers(2, 3)
    _, (call,) = record(lambda: torch.stack([x, y]))
    assert [id(t) for t in call.tensors] == [id(x), id(y)]
    _, calls = record(lambda: torch.where(x > 0, y, z))
    assert [id(t) for t in calls[-1].tensors] == [id(calls[0].result), id(y), id(z)]


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x if x > 0 else -x,
        lambda x: x.item(),
        float,
        bool,
        lambda x: torch.zeros(3) if (x == 0).any() else x,
    ],
    ids=["branch", "item", "float", "bool", "any"],
)
def test_looking_at_a_value_raises(look):
    x = torch.ones((), dtype=F64)
    with pytest.raises(UnrecordableError):
        record(lambda: look(x * 2))


def test_recording_ends_with_an_exception():
    with pytest.raises(UnrecordableError):
        record(lambda: torch.ones(()).item())
    assert torch.ones(()).item() == 1.0
    x = torch.ones(2)
    _, calls = record(lambda: (x + 1).exp() * 2)
    assert [call.name for call in calls] == ["add", "exp", "mul"]


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (gdtuo.SGD.rule(nesterov=True), {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}),
        (gdtuo.Adam.rule(amsgrad=True), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2}),
        (gdtuo.RMSProp.rule(), {"lr": 0.05, "alpha": 0.9, "eps": 1e-2, "momentum": 0.6}),
        (DriftRule(), {"lr": 0.1, "momentum": 0.6}),
    ],
    ids=["sgd", "adam", "rmsprop", "drift"],
)
def test_forward_mode_is_recorded_spelled_out(rule, settings):
    """Recorded on ones, replayed on random numbers: what a fresh differentiation gives there."""
    learned = tuple(settings)

    def inputs(make):
        state = {name: make(i).abs() for i, name in enumerate(rule.init(torch.ones(5, dtype=F64), learned))}
        return make(10), make(11), state

    w, g, state = inputs(lambda i: torch.ones(5, dtype=F64))
    hyper = {name: torch.ones((), dtype=F64) for name in learned}
    step = torch.ones((), dtype=F64)
    (delta, tangents, after), calls = record(lambda: derive(rule, learned, w, g, state, hyper, step))
    other_w, other_g, other_state = inputs(lambda i: numbers(i, 5))
    other_hyper = {name: torch.tensor(value, dtype=F64) for name, value in settings.items()}
    other_step = torch.tensor(3.0, dtype=F64)
    given = {id(w): other_w, id(g): other_g, id(step): other_step}
    given |= {id(state[name]): other_state[name] for name in state}
    given |= {id(hyper[name]): other_hyper[name] for name in hyper}
    found = replayed(calls, given, [delta, *tangents, *after.values()])
    expected = derive(rule, learned, other_w, other_g, other_state, other_hyper, other_step)
    for ours, theirs in zip(found, [expected[0], *expected[1], *expected[2].values()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
    # and the derivatives are derivatives
    for i, name in enumerate(learned):
        h = 1e-5 * settings[name]
        ends = [
            rule.update(other_w, other_g, other_state, {**other_hyper, name: other_hyper[name] + s * h}, 3)[0] for s in (1, -1)
        ]
        torch.testing.assert_close(found[1 + i], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-9)
