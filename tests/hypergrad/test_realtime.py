"""Hyperparameters learned while training runs."""

from __future__ import annotations

import math

import pytest
import torch
from problems import ALGORITHMS, F64, Problem, assert_close, leaves_of, mapped

import gdtuo

STILL = gdtuo.SGD(lr=0.0)
PROBLEM = Problem(ALGORITHMS["momentum"])


def start(problem: Problem = PROBLEM):
    return problem.training(), problem.outer, problem.params(), problem.hyper(problem.schedules())


@pytest.mark.parametrize("every", [1, 3, 5, 12, 100])
def test_hyper_step_of_0_equals_forward_at_every_update(every):
    training, outer, params, hyper = start()
    records = list(gdtuo.realtime(training, outer, params, hyper, every, STILL))
    steps = sorted({*range(every, 13, every), 12})
    assert [record.step for record in records] == steps
    for record in records:
        problem = Problem(ALGORITHMS["momentum"], steps=record.step)
        shorter = gdtuo.Training(problem.inner, training.optimizer, batches=problem.batch, steps=record.step)
        cut = {**hyper, "optimizer": mapped(hyper["optimizer"], lambda x, n=record.step: x[:n] if x.ndim and len(x) == 12 else x)}
        expected = gdtuo.hypergradient(shorter, outer, params, cut)
        assert record.value.item() == pytest.approx(expected.value.item(), rel=1e-12)
        assert_close(record.params, expected.final, 1e-12)
        for ours, theirs in zip(leaves_of(record.hypergradient), leaves_of(expected.hyper), strict=True):
            if ours.shape != theirs.shape:  # a schedule: what is to come has no effect yet
                assert not ours[record.step :].any()
                ours = ours[: record.step]
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))
        assert_close(record.hyper, hyper, 0.0)


def naive(problem: Problem, lr: float, momentum: float, rate: float, every: int, reset: bool):
    """Real-time learning of two numbers of torch's momentum, written out: Jacobians of each step by autograd."""
    hyper = problem.hyper({})
    shapes = [leaf.shape for leaf in leaves_of(problem.params())]
    sizes = [shape.numel() for shape in shapes]
    count = sum(sizes)
    state = torch.cat([torch.cat([leaf.flatten() for leaf in leaves_of(problem.params())]), torch.zeros(count, dtype=F64)])
    numbers = torch.tensor([lr, momentum], dtype=F64)

    def tree(flat):
        parts = iter([part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)])
        return mapped(problem.params(), lambda _: next(parts))

    z = torch.zeros(2 * count, 2, dtype=F64)
    found = []
    for t in range(problem.steps):

        def step(state, numbers, t=t):
            w, b = state.split(count)
            (g,) = torch.autograd.grad(problem.inner(tree(w), hyper, problem.batch(t)), w, create_graph=True)
            b = numbers[1] * b + g
            return torch.cat([w - numbers[0] * b, b])

        a, by_numbers = torch.autograd.functional.jacobian(step, (state.requires_grad_(), numbers))
        state, z = step(state, numbers).detach(), a @ z + by_numbers
        if (t + 1) % every == 0:
            w = state[:count].clone().requires_grad_()
            (slope,) = torch.autograd.grad(problem.outer(tree(w), hyper), w)
            gradient = slope @ z[:count]
            numbers = numbers - rate * gradient
            found.append((gradient, numbers))
            if reset:
                z = torch.zeros_like(z)
    return found


@pytest.mark.parametrize("reset", [False, True])
def test_against_jacobians_written_out(reset):
    problem = Problem(ALGORITHMS["descent"])
    numbers = {"lr": torch.tensor(0.1, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}
    training = gdtuo.Training(problem.inner, gdtuo.SGD(), batches=problem.batch, steps=12)
    outer = gdtuo.SGD(lr=0.02)
    only = {"weights": problem.hyper({})["weights"], "l2": problem.hyper({})["l2"]}

    def inner(params, hyper, rows):
        return problem.inner(params, only, rows)

    training = gdtuo.Training(inner, gdtuo.SGD(), batches=problem.batch, steps=12)
    records = list(
        gdtuo.realtime(
            training, lambda p, h: problem.outer(p, only), problem.params(), {"optimizer": numbers}, 3, outer, reset=reset
        )
    )
    expected = naive(problem, 0.1, 0.5, 0.02, 3, reset)
    assert len(records) == len(expected) == 4
    for record, (gradient, after) in zip(records, expected, strict=True):
        torch.testing.assert_close(torch.stack(leaves_of(record.hypergradient)), gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.stack(leaves_of(record.hyper)), after, rtol=1e-10, atol=1e-12)


OUTER = {
    "level": gdtuo.Adam(lr=0.01),
    "tower": gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "torch": lambda params: torch.optim.Adam(params, lr=0.01),
}


def bowl(params, hyper, batch=None):
    return (torch.arange(1.0, 5.0, dtype=F64) * (params["w"] - 1) ** 2).sum()


@pytest.mark.parametrize("optimizer", OUTER.values(), ids=OUTER.keys())
def test_any_outer_optimizer_learns(optimizer):
    """A step size that is a hundred times too small grows, and the loss falls far below that of the fixed one."""
    training = gdtuo.Training(bowl, gdtuo.SGD(), steps=200)
    start, hyper = {"w": torch.zeros(4, dtype=F64)}, {"optimizer": {"lr": torch.tensor(1e-3, dtype=F64)}}
    plain = gdtuo.hypergradient(training, bowl, start, hyper, gdtuo.Truncated(1))
    *_, last = gdtuo.realtime(training, bowl, start, hyper, 5, optimizer)
    assert last.value < 1e-3 * plain.value
    assert last.hyper["optimizer"]["lr"] > 0.02


def test_level_and_torch_optimizer_agree():
    runs = [
        list(gdtuo.realtime(*start(), 4, optimizer))
        for optimizer in (gdtuo.Adam(lr=1e-3), lambda params: torch.optim.Adam(params, lr=1e-3), None)
    ]
    assert_close(runs[0][-1].hyper, runs[1][-1].hyper, 1e-12)
    default = list(gdtuo.realtime(*start(), 4, gdtuo.Adam(lr=5e-3)))
    assert_close(runs[2][-1].hyper, default[-1].hyper, 0.0)


def test_records_and_arguments_keep_their_values():
    training, outer, params, hyper = start()
    before = mapped({"p": params, "h": hyper}, torch.clone)
    records, copies = [], []
    for record in gdtuo.realtime(training, outer, params, hyper, 2):
        records.append(record)
        copies.append(mapped({"p": record.params, "h": record.hyper, "g": record.hypergradient}, torch.clone))
    for record, copy in zip(records, copies, strict=True):
        assert_close({"p": record.params, "h": record.hyper, "g": record.hypergradient}, copy, 0.0)
    assert_close({"p": params, "h": hyper}, before, 0.0)
    assert not any(leaf.requires_grad for leaf in leaves_of(copies[0]))


def test_lazy():
    calls = []

    def inner(params, hyper, rows):
        calls.append(1)
        return PROBLEM.inner(params, hyper, rows)

    training = gdtuo.Training(inner, gdtuo.SGD(), batches=PROBLEM.batch, steps=1000)
    hyper = PROBLEM.hyper({"lr": torch.tensor(0.1, dtype=F64)})
    for record in gdtuo.realtime(training, PROBLEM.outer, PROBLEM.params(), hyper, 3):
        if record.step == 6:
            break
    assert len(calls) == 6 + 2  # and two to compare torch.func with


def test_project():
    training, outer, params, hyper = start(Problem(ALGORITHMS["descent"]))

    def project(hyper):
        return {
            "weights": gdtuo.project_simplex(hyper["weights"], 5.0),
            "optimizer": {"weight_decay": hyper["optimizer"]["weight_decay"]},
        }

    for record in gdtuo.realtime(
        training, outer, params, {**hyper, "optimizer": {"weight_decay": torch.tensor(0.1, dtype=F64)}}, 4, project=project
    ):
        assert record.hyper["weights"].sum().item() == pytest.approx(5.0, abs=1e-12)
        assert record.hyper["weights"].min() >= 0


def test_a_number_that_leaves_its_domain():
    hyper = {"optimizer": {"weight_decay": torch.tensor(1e-3, dtype=F64)}}
    training = gdtuo.Training(bowl, gdtuo.SGD(lr=0.01), steps=12)
    arguments = (training, bowl, {"w": torch.zeros(4, dtype=F64)}, hyper, 1)  # which any penalty keeps from its minimum
    with pytest.raises(ValueError, match=r"weight_decay is a number >= 0.*project="):
        list(gdtuo.realtime(*arguments))

    def project(hyper):
        return {"optimizer": {"weight_decay": gdtuo.project_box(hyper["optimizer"]["weight_decay"], 0.0, 0.1)}}

    records = list(gdtuo.realtime(*arguments, project=project))
    assert [record.hyper["optimizer"]["weight_decay"].item() for record in records] == [
        0.001,
        *[0.0] * 11,
    ]  # at w = 0 a penalty does nothing


def test_what_is_not_finite_is_left_out():
    def outer(params, hyper):
        return PROBLEM.outer(params, hyper) * (math.nan if float(params["first"]["bias"][0].detach()) < bound else 1.0)

    hyper = PROBLEM.hyper({"lr": torch.tensor(0.1, dtype=F64)})
    arguments = (PROBLEM.training(), outer, PROBLEM.params(), hyper, 3)
    bound = -math.inf
    finite = list(gdtuo.realtime(*arguments))
    bound = math.inf
    frozen = list(gdtuo.realtime(*arguments))
    assert all(record.hyper["optimizer"]["lr"] == 0.1 for record in frozen)
    assert all(record.hypergradient["optimizer"]["lr"].isnan() for record in frozen)
    assert finite[0].hyper["optimizer"]["lr"] != 0.1


def test_several_losses():
    training, outer, params, hyper = start()
    losses = {"l2": outer, "weights": lambda p, h: 3 * outer(p, h), "optimizer": lambda p, h: -outer(p, h)}
    one = next(gdtuo.realtime(training, outer, params, hyper, 4, STILL))
    several = next(gdtuo.realtime(training, losses, params, hyper, 4, STILL))
    assert_close(several.hypergradient["l2"], one.hypergradient["l2"], 1e-12)
    assert_close(several.hypergradient["weights"], 3 * one.hypergradient["weights"], 1e-12)
    assert_close(several.hypergradient["optimizer"], mapped(one.hypergradient["optimizer"], torch.neg), 1e-12)
    assert several.value["weights"].item() == pytest.approx(3 * one.value.item())


@pytest.mark.parametrize(
    ("options", "error", "remedy"),
    [
        ({"every": 0}, ValueError, "integer >= 1"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, TypeError, "lambda params"),
        ({"optimizer": 3}, TypeError, "lambda params"),
        ({"optimizer": lambda params: None}, TypeError, "Return a torch optimizer"),
        ({"hyper": {}}, ValueError, "at least one tensor"),
        ({"project": lambda h: None}, TypeError, "Return a nested dict"),
        ({"project": lambda h: {"l3": h["weights"]}}, ValueError, "in the shapes of hyper"),
        ({"project": lambda h: {"weights": h["weights"][:3]}}, ValueError, "in the shapes of hyper"),
    ],
)
def test_bad_arguments(options, error, remedy):
    training, outer, params, hyper = start()
    arguments = {"hyper": hyper, "every": 4, **options}
    with pytest.raises(error, match=remedy):
        list(gdtuo.realtime(training, outer, params, **arguments))
