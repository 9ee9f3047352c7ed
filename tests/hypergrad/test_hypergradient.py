"""What `hypergradient` takes and gives: several losses, several runs, progress, determinism, errors."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from problems import ALGORITHMS, F64, STEPS, Problem, assert_close, leaves_of, mapped

import gdtuo

PROBLEM = Problem(ALGORITHMS["momentum"])
METHODS = {
    "reverse": gdtuo.Reverse(),
    "mixed mode": gdtuo.Reverse(products="forward-over-reverse"),
    "checkpointed": gdtuo.Checkpointed(),
    "forward": gdtuo.Forward(),
    "reversible": gdtuo.Reversible(),
}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def arguments(problem: Problem = PROBLEM):
    return problem.training(), problem.outer, problem.params(), problem.hyper(problem.scalars())


# ---------------------------------------------------------------- several losses, several runs


@EACH
def test_a_loss_for_each_key(method):
    training, outer, params, hyper = arguments()

    def other(params, hyper):
        return params["second"]["weight"].square().sum() + hyper["l2"]["second"] ** 2

    ours = gdtuo.hypergradient(training, {"l2": other, "weights": outer, "optimizer": other}, params, hyper, method)
    first, second = (gdtuo.hypergradient(training, loss, params, hyper, method) for loss in (outer, other))
    assert_close(ours.hyper["weights"], first.hyper["weights"], 1e-12)
    assert_close(ours.hyper["l2"], second.hyper["l2"], 1e-12)
    assert_close(ours.hyper["optimizer"], second.hyper["optimizer"], 1e-12)
    assert ours.value == {"l2": second.value, "weights": first.value, "optimizer": second.value}
    if ours.params is not None:
        assert_close(ours.params["weights"], first.params, 1e-12)
        assert_close(ours.params["l2"], second.params, 1e-12)
    assert_close(ours.final, first.final, 1e-12)


@EACH
def test_runs_are_averaged(method):
    problems = [Problem(ALGORITHMS["momentum"], seed=seed) for seed in (0, 1, 2)]
    params, hyper = problems[0].params(), problems[0].hyper(problems[0].scalars())
    trainings, losses = [p.training() for p in problems], [p.outer for p in problems]
    together = gdtuo.hypergradient(trainings, losses, params, hyper, method)
    apart = [gdtuo.hypergradient(t, loss, params, hyper, method) for t, loss in zip(trainings, losses, strict=True)]
    assert together.value.item() == pytest.approx(sum(r.value.item() for r in apart) / 3, rel=1e-14)
    for ours, *theirs in zip(leaves_of(together.hyper), *(leaves_of(r.hyper) for r in apart), strict=True):
        torch.testing.assert_close(ours, sum(theirs) / 3, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(together.final, apart, strict=True):
        assert_close(ours, theirs.final, 0.0)
    assert together.cost.gradients == sum(r.cost.gradients for r in apart)
    if together.params is not None:
        for ours, *theirs in zip(leaves_of(together.params), *(leaves_of(r.params) for r in apart), strict=True):
            torch.testing.assert_close(ours, sum(theirs) / 3, rtol=1e-12, atol=1e-14)
        own = gdtuo.hypergradient(trainings, losses, [p.params() for p in problems], hyper, method)
        for problem, ours in zip(problems, own.params, strict=True):
            alone = gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper, method)
            assert_close(ours, mapped(alone.params, lambda x: x / 3), 1e-12)


def test_one_loss_for_several_runs():
    training, outer, params, hyper = arguments()
    twice = gdtuo.hypergradient([training, training], outer, params, hyper)
    once = gdtuo.hypergradient(training, outer, params, hyper)
    assert_close(twice.hyper, once.hyper, 1e-15)
    assert len(twice.final) == 2


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    "method", [*METHODS.values(), gdtuo.Truncated(3), gdtuo.Checkpointed(arity=2), gdtuo.Implicit("fixed_point", 5)], ids=repr
)
@pytest.mark.filterwarnings("ignore:Implicit")
def test_progress(method):
    training, outer, params, hyper = arguments()
    calls: list[tuple[int, int]] = []
    result = gdtuo.hypergradient([training] * 2, outer, params, hyper, method, lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {result.cost.gradients}
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    assert len(set(done)) >= 2 * STEPS


# ---------------------------------------------------------------- determinism


def noisy(problem: Problem) -> gdtuo.Training:
    """Dropout in the loss, and batches drawn from torch's generator."""

    def inner(params, hyper, rows):
        dropped = mapped(params, lambda x: torch.nn.functional.dropout(x, 0.3))
        return problem.inner(dropped, hyper, rows) + 0.1 * (torch.randn(4, 2, dtype=F64) * params["second"]["weight"]).sum()

    return gdtuo.Training(inner, problem.algorithm.make(), batches=lambda t: torch.randperm(30)[:8], steps=problem.steps, seed=5)


def noisy_outer(params, hyper):
    return PROBLEM.outer(mapped(params, lambda x: torch.nn.functional.dropout(x, 0.3)), hyper)


@EACH
def test_dropout_and_data_order_are_part_of_the_run(method):
    training, (_, _, params, hyper) = noisy(PROBLEM), arguments()
    reference = gdtuo.hypergradient(training, noisy_outer, params, hyper)
    torch.manual_seed(123)
    torch.rand(7)
    result = gdtuo.hypergradient(training, noisy_outer, params, hyper, method)
    assert_close(result.hyper, reference.hyper, 1e-10)
    assert result.value.item() == pytest.approx(reference.value.item(), rel=1e-12)
    assert gdtuo.check_hypergradient(training, noisy_outer, params, hyper, method, entries=1, directions=1).worst < 1e-7
    other = gdtuo.Training(training.loss, training.optimizer, training.batches, training.steps, seed=6)
    assert gdtuo.hypergradient(other, noisy_outer, params, hyper, method).value != result.value


def test_every_step_has_its_own_random_numbers():
    drawn = []

    def inner(params, hyper, batch):
        drawn.append(torch.rand(1).item())
        return params["w"].sum()

    training = gdtuo.Training(inner, gdtuo.SGD(), steps=6)
    gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.ones(1)}, {}, gdtuo.Truncated(1))
    assert len(set(drawn)) == 6


@EACH
def test_generators_and_arguments_are_left_as_they_were(method):
    training, (_, _, params, hyper) = noisy(PROBLEM), arguments()
    before = mapped({"p": params, "h": hyper}, torch.clone)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    result = gdtuo.hypergradient(training, noisy_outer, params, hyper, method)
    assert torch.equal(torch.rand(3), expected)
    assert_close({"p": params, "h": hyper}, before, 0.0)
    found = {"h": result.hyper, "f": result.final, "v": result.value, **({"p": result.params} if result.params else {})}
    assert not any(leaf.requires_grad for leaf in leaves_of(found))


def test_generators_are_restored_when_a_loss_fails():
    def inner(params, hyper, batch):
        if batch == 3:
            raise RuntimeError("mine")
        return params["w"].sum() * torch.rand(())

    training = gdtuo.Training(inner, gdtuo.SGD(), batches=range(10), steps=10)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mine"):
        gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.ones(1)}, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_order_of_methods_does_not_matter():
    """Nothing is left behind in the process by one method that another would see."""
    training, (_, _, params, hyper) = noisy(PROBLEM), arguments()
    forwards, backwards = (
        {name: gdtuo.hypergradient(training, noisy_outer, params, hyper, METHODS[name]) for name in order}
        for order in (list(METHODS), list(reversed(METHODS)))
    )
    for name in METHODS:
        assert_close(forwards[name].hyper, backwards[name].hyper, 0.0)
        assert_close(forwards[name].final, backwards[name].final, 0.0)


@EACH
def test_under_no_grad_and_in_another_default_precision(method):
    training, outer, params, hyper = arguments()
    expected = gdtuo.hypergradient(training, outer, params, hyper, method)
    with torch.no_grad():
        result = gdtuo.hypergradient(training, outer, params, hyper, method)
    assert_close(result.hyper, expected.hyper, 0.0)
    torch.set_default_dtype(F64)
    try:
        result = gdtuo.hypergradient(training, outer, params, hyper, method)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(result.hyper, expected.hyper, 0.0)


def test_batches():
    """A function, a sequence, a sequence that is gone through again."""
    training, outer, params, hyper = arguments()
    expected = gdtuo.hypergradient(training, outer, params, hyper)
    listed = gdtuo.Training(training.loss, training.optimizer, [PROBLEM.batch(t) for t in range(STEPS)], STEPS)
    assert_close(gdtuo.hypergradient(listed, outer, params, hyper).hyper, expected.hyper, 0.0)
    three = [PROBLEM.batch(t) for t in range(3)]
    again = gdtuo.Training(training.loss, training.optimizer, three, STEPS)
    by_hand = gdtuo.Training(training.loss, training.optimizer, lambda t: three[t % 3], STEPS)
    assert_close(
        gdtuo.hypergradient(again, outer, params, hyper).hyper, gdtuo.hypergradient(by_hand, outer, params, hyper).hyper, 0.0
    )


def test_an_outer_loop_learns():
    """Adam on hypergradients brings the outer loss down."""
    training, outer, params, hyper = arguments()
    leaves = [leaf.requires_grad_() for leaf in leaves_of({k: hyper[k] for k in ("l2", "weights")})]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    values = []
    for _ in range(15):
        result = gdtuo.hypergradient(training, outer, params, hyper)
        for leaf, slope in zip(leaves, leaves_of({k: result.hyper[k] for k in ("l2", "weights")}), strict=True):
            leaf.grad = slope
        optimizer.step()
        values.append(result.value.item())
    assert values[-1] < 0.9 * values[0]


def test_divergence_is_a_result():
    training = gdtuo.Training(lambda p, h, b: (p["w"] ** 4).sum() * h["a"], gdtuo.SGD(lr=10.0), steps=30)
    result = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.ones(2)}, {"a": torch.tensor(1.0)})
    assert not result.value.isfinite()
    assert not result.hyper["a"].isfinite()


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not name.startswith("nesterov")])
def test_zero_gradients(name):
    """Dead units: every hypergradient is finite."""
    algorithm = ALGORITHMS[name]
    hyper = {
        "optimizer": {key: torch.tensor(value, dtype=F64) for key, value in algorithm.numbers.items()},
        "a": torch.tensor(0.0, dtype=F64),
    }
    training = gdtuo.Training(lambda p, h, b: (h["a"] * p["w"]).sum() + p["v"].relu().sum(), algorithm.make(), steps=4)
    params = {"w": torch.ones(2, dtype=F64), "v": -torch.ones(2, dtype=F64), "unused": torch.ones(1, dtype=F64)}
    if algorithm.matrices:
        params = {name: p[None] for name, p in params.items()}
    for method in (gdtuo.Reverse(), gdtuo.Forward(), gdtuo.Reverse(products="forward-over-reverse")):
        result = gdtuo.hypergradient(training, lambda p, h: (p["w"] + p["v"]).sum() + p["unused"].sum(), params, hyper, method)
        assert all(leaf.isfinite().all() for leaf in leaves_of(result.hyper))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_train_is_the_run_alone(name):
    problem = Problem(ALGORITHMS[name])
    training, outer, params, hyper = arguments(problem)
    calls: list[tuple[int, int]] = []
    final = gdtuo.train(training, params, hyper, lambda *call: calls.append(call))
    assert_close(final, gdtuo.hypergradient(training, outer, params, hyper).final, 1e-13)
    assert calls == [(t + 1, STEPS) for t in range(STEPS)]


def test_no_hyperparameters():
    """Then the initial weights' gradient is what there is to know."""
    training, outer, params, _ = arguments()
    fixed = PROBLEM.hyper({})
    training = gdtuo.Training(lambda p, h, rows: PROBLEM.inner(p, fixed, rows), gdtuo.SGD(momentum=0.9), PROBLEM.batch, STEPS)
    results = [
        gdtuo.hypergradient(training, lambda p, h: outer(p, fixed), params, {}, method)
        for method in (gdtuo.Reverse(), gdtuo.Reversible(), gdtuo.Forward())
    ]
    assert results[0].hyper == {}
    assert_close(results[0].params, results[1].params, 1e-10)
    assert_close(results[0].final, results[2].final, 1e-12)
    assert results[2].cost.gradients == STEPS


def test_copies_and_pickles():
    for method in METHODS.values():
        assert pickle.loads(pickle.dumps(method)) == method
    training, outer, params, hyper = arguments()
    result = gdtuo.hypergradient(copy.deepcopy(training), outer, params, hyper)
    again = pickle.loads(pickle.dumps(result))
    assert_close(again.hyper, result.hyper, 0.0)


# ---------------------------------------------------------------- errors


def square(params, hyper, batch=None):
    return (params["w"] ** 2).sum()


def one(**changes):
    """A call that is right, with changes that are not."""
    settings = {
        "loss": square,
        "optimizer": gdtuo.SGD(lr=0.1, momentum=0.9),
        "batches": None,
        "steps": 4,
        "outer_loss": square,
        "params": {"w": torch.ones(3)},
        "hyper": {"a": torch.tensor(1.0)},
        "method": gdtuo.Reverse(),
        "seed": 0,
        **changes,
    }
    training = gdtuo.Training(*(settings.pop(name) for name in ("loss", "optimizer", "batches", "steps", "seed")))
    return gdtuo.hypergradient(settings.pop("training", training), **settings)


def opt(**numbers):
    return {"optimizer": {name: torch.as_tensor(number) for name, number in numbers.items()}}


BAD = {
    "loss": ({"loss": 3}, TypeError, r"loss\(params, hyper, batch\)"),
    "loss gives a vector": ({"loss": lambda p, h, b: p["w"]}, TypeError, r"losses\.mean\(\)"),
    "loss gives a number": ({"loss": lambda p, h, b: 1.0}, TypeError, r"as a tensor"),
    "torch optimizer": ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, TypeError, r"gdtuo\.SGD\(lr=0\.1\)"),
    "bound level": ({"optimizer": gdtuo.SGD([torch.nn.Parameter(torch.zeros(1))])}, ValueError, r"Give one without"),
    "tower": ({"optimizer": gdtuo.SGD(optimizer=gdtuo.SGD())}, ValueError, r"Leave optimizer= out"),
    "generator": ({"batches": iter([1, 2])}, TypeError, r"list\(loader\)"),
    "loader": ({"batches": torch.utils.data.DataLoader([1, 2])}, TypeError, r"list\(loader\)"),
    "no batches": ({"batches": []}, ValueError, r"batches=None"),
    "steps": ({"steps": 0}, ValueError, r"integer >= 1"),
    "steps a float": ({"steps": 4.0}, ValueError, r"integer >= 1"),
    "seed": ({"seed": -1}, ValueError, r"integer >= 0"),
    "outer loss": ({"outer_loss": 3}, TypeError, r"outer_loss\(params, hyper\)"),
    "outer loss gives a vector": ({"outer_loss": lambda p, h: p["w"]}, TypeError, r"losses\.mean\(\)"),
    "outer losses": ({"outer_loss": {"b": square}}, ValueError, r"one for each key of hyper"),
    "params a tensor": ({"params": torch.ones(3)}, TypeError, r"nested dict"),
    "params a module": ({"params": torch.nn.Linear(2, 2)}, TypeError, r"nested dict"),
    "no params": ({"params": {}}, ValueError, r"params is empty"),
    "a number in params": ({"params": {"w": 1.0}}, TypeError, r"params\['w'\] is 1\.0.*torch\.tensor\(0\.1\)"),
    "a list in params": ({"params": {"w": [torch.ones(1)]}}, TypeError, r"params\['w'\]"),
    "integers in params": ({"params": {"w": torch.ones(3, dtype=torch.int64)}}, TypeError, r"tensor of torch\.int64"),
    "a number in hyper": ({"hyper": {"optimizer": {"lr": 0.1}}}, TypeError, r"hyper\['optimizer'\]\['lr'\] is 0\.1"),
    "unknown number": ({"hyper": opt(rate=0.1)}, ValueError, r"It has lr, momentum, dampening, weight_decay"),
    "betas": ({"optimizer": gdtuo.Adam(), "hyper": opt(betas=0.1)}, ValueError, r"It has lr, beta1, beta2"),
    "optimizer a tensor": ({"hyper": {"optimizer": torch.tensor(0.1)}}, ValueError, r"It has lr"),
    "unknown weight": (
        {"hyper": {"optimizer": {"lr": {"v": torch.tensor(0.1)}}}},
        ValueError,
        r"Name weights as params does: params\['w'\]",
    ),
    "length": ({"hyper": opt(lr=torch.full((5,), 0.1))}, ValueError, r"give \[\] for one number, \[4\] for a schedule"),
    "one a weight": ({"hyper": opt(lr=torch.full((3,), 0.1))}, ValueError, r"\[1, \.\.\.\] for one number a weight"),
    "too wide": ({"hyper": opt(lr=torch.full((4, 2), 0.1))}, ValueError, r"broadcasts against the weights"),
    "too many dimensions": ({"hyper": opt(lr=torch.full((1, 2, 3), 0.1))}, ValueError, r"broadcasts against the weights"),
    "negative": ({"hyper": opt(lr=-0.1)}, ValueError, r"a lr is a number >= 0"),
    "NaN": ({"hyper": opt(momentum=float("nan"))}, ValueError, r"a number in \[0, 1\]"),
    "unknown state": (
        {"hyper": {"optimizer": {"state": {"speed": {"w": torch.zeros(3)}}}}},
        ValueError,
        r"It has momentum_buffer",
    ),
    "state of what": (
        {"hyper": {"optimizer": {"state": {"momentum_buffer": torch.zeros(3)}}}},
        ValueError,
        r"nested like params",
    ),
    "state's shape": (
        {"hyper": {"optimizer": {"state": {"momentum_buffer": {"w": torch.zeros(4)}}}}},
        ValueError,
        r"Give the state's, \[3\]",
    ),
    "method a class": ({"method": gdtuo.Forward}, TypeError, r"gdtuo\.Reverse\(\)"),
    "training": ({"training": 3}, TypeError, r"gdtuo\.Training"),
    "no training": ({"training": []}, TypeError, r"a list of them"),
    "too many params": ({"params": [{"w": torch.ones(3)}] * 2}, ValueError, r"one for each"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_remedy(case):
    changes, error, remedy = BAD[case]
    changes = dict(changes)
    ran = []
    if "loss" not in changes:
        changes["loss"] = lambda p, h, b: ran.append(1) or square(p, h)
    with pytest.raises(error) as caught:
        one(**changes)
    assert re.search(remedy, str(caught.value)), str(caught.value)
    assert not ran or case == "outer loss gives a vector"


def test_the_call_that_is_right():
    assert one().value.item() > 0


@pytest.mark.parametrize("chunk", [0, 1.5, True])
def test_chunk_counts_tangents(chunk):
    with pytest.raises(ValueError, match="integer >= 1"):
        gdtuo.Forward(chunk)
