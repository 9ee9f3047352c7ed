"""What a user may do without thinking of it: odd weights, odd losses, odd surroundings."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from problems import ALGORITHMS, F64, Problem, assert_close, leaves_of
from torch import nn

import gdtuo

EXACT = [gdtuo.Reverse(), gdtuo.Checkpointed(), gdtuo.Forward(), gdtuo.Reverse(products="forward-over-reverse")]
EACH = pytest.mark.parametrize("method", EXACT, ids=repr)
PROBLEM = Problem(ALGORITHMS["momentum"])


def call(method=None, problem: Problem = PROBLEM):
    return gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), problem.hyper(problem.scalars()), method)


# ---------------------------------------------------------------- dead units


@EACH
@pytest.mark.parametrize("optimizer", [gdtuo.Adam(lr=0.01), gdtuo.RMSProp(lr=0.01), gdtuo.AdaGrad(lr=0.1)], ids=repr)
def test_inputs_that_are_always_0_in_training(optimizer, method):
    """The derivative 1 / ε of a direction that has always been 0 must not grow without bound on the way back."""
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=make, dtype=F64), torch.randint(0, 3, (30,), generator=make)
    training_x = x.clone()
    training_x[:, 2] = 0.0

    def inner(params, hyper, batch):
        return nn.functional.cross_entropy(training_x @ params["w"], y) + hyper["l2"] * params["w"].square().sum()

    def outer(params, hyper):
        return nn.functional.cross_entropy(x @ params["w"], y)

    training = gdtuo.Training(inner, optimizer, steps=60)
    hyper = {"l2": torch.tensor(0.01, dtype=F64), "optimizer": {"lr": torch.tensor(0.02, dtype=F64)}}
    check = gdtuo.check_hypergradient(
        training, outer, {"w": torch.zeros(4, 3, dtype=F64)}, hyper, method, entries=1, directions=0
    )
    assert len(check.rows) == 2
    assert check.worst < 1e-6


# ---------------------------------------------------------------- weights


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_scalar_weights_keep_their_precision(method, dtype):
    training = gdtuo.Training(lambda p, h, b: h["a"] * (p["s"] ** 2 + p["w"].square().sum()), gdtuo.Adam(lr=0.1), steps=3)
    params = {"s": torch.tensor(1.0, dtype=dtype), "w": torch.ones(2, dtype=dtype)}
    result = gdtuo.hypergradient(
        training, lambda p, h: p["s"] * p["w"].sum(), params, {"a": torch.tensor(0.3, dtype=F64)}, method
    )
    assert result.final["s"].dtype == result.final["w"].dtype == dtype
    assert result.hyper["a"].dtype == F64
    torch.testing.assert_close(result.final["s"], result.final["w"][0])
    assert result.hyper["a"] != 0


@pytest.mark.parametrize("method", [*EXACT, gdtuo.Reversible(), gdtuo.Implicit(), gdtuo.Truncated(2)], ids=repr)
@pytest.mark.filterwarnings("ignore:Implicit")
def test_empty_weights(method):
    hyper = {"a": torch.tensor(0.5, dtype=F64)}
    training = gdtuo.Training(
        lambda p, h, b: h["a"] * sum(w.square().sum() for w in p.values()), gdtuo.SGD(momentum=0.5), steps=3
    )
    both = {"w": torch.ones(2, dtype=F64), "none": torch.zeros(0, 3, dtype=F64)}
    result = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), both, hyper, method)
    assert result.final["none"].shape == (0, 3)
    alone = gdtuo.hypergradient(training, lambda p, h: p["none"].sum() + h["a"], {"none": both["none"]}, hyper, method)
    assert alone.hyper["a"] == 1


@EACH
def test_expanded_tensors(method):
    training = gdtuo.Training(lambda p, h, b: (h["a"] * p["w"] ** 2).sum(), gdtuo.SGD(), steps=3)
    hyper = {"a": torch.tensor(0.5, dtype=F64).expand(2), "optimizer": {"lr": torch.tensor(0.1, dtype=F64).expand(3)}}
    result = gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.ones(1, dtype=F64).expand(2)}, hyper, method)
    torch.testing.assert_close(result.final["w"], torch.full((2,), 0.9**3, dtype=F64))


# ---------------------------------------------------------------- losses


NETWORKS = {
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_reversible_with_functions_that_torch_computes_in_two_ways(name):
    torch.manual_seed(0)
    apply, params = gdtuo.make_functional(nn.Sequential(nn.Linear(3, 4), NETWORKS[name](), nn.Linear(4, 1)).to(F64))
    x = torch.randn(9, 3, dtype=F64)
    training = gdtuo.Training(lambda p, h, b: apply(p, x).square().mean(), gdtuo.SGD(lr=0.1, momentum=0.9), steps=10)
    results = [
        gdtuo.hypergradient(training, lambda p, h: apply(p, x).sum(), params, {}, method)
        for method in (gdtuo.Reversible(), gdtuo.Reverse())
    ]
    assert_close(results[0].params, results[1].params, 1e-10)


@pytest.mark.parametrize("method", [*EXACT, gdtuo.Reversible()], ids=repr)
def test_attention(method):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).to(F64)
    apply, params = gdtuo.make_functional(layer)
    x = torch.randn(3, 5, 4, dtype=F64)
    training = gdtuo.Training(lambda p, h, b: apply(p, x).square().mean() * h["a"], gdtuo.SGD(lr=0.1, momentum=0.5), steps=3)
    hyper = {"a": torch.tensor(0.7, dtype=F64)}
    check = gdtuo.check_hypergradient(
        training, lambda p, h: apply(p, x).sin().sum(), params, hyper, method, entries=1, directions=0
    )
    assert check.worst < 1e-6


def test_a_loss_without_a_graph():
    for loss in (lambda p, h, b: p["w"].detach().sum(), lambda p, h, b: torch.tensor(1.0)):
        with pytest.raises(TypeError, match="without detach"):
            gdtuo.hypergradient(gdtuo.Training(loss, gdtuo.SGD()), lambda p, h: p["w"].sum(), {"w": torch.ones(2)}, {})


def test_forward_says_that_its_dropout_is_another():
    x = torch.randn(4, 5, 3, dtype=F64)

    def inner(params, hyper, batch):
        return nn.functional.dropout((x * params["w"]).transpose(1, 2), 0.3).square().mean()

    training = gdtuo.Training(inner, gdtuo.SGD(), steps=2)
    arguments = (training, lambda p, h: p["w"].sum(), {"w": torch.ones(3, dtype=F64)}, {"optimizer": {"lr": torch.tensor(0.1)}})
    with pytest.warns(RuntimeWarning, match=r"Call \.contiguous\(\) before the dropout"):
        gdtuo.hypergradient(*arguments, gdtuo.Forward())
    with pytest.warns(RuntimeWarning, match="random numbers") as caught:
        gdtuo.realtime(*arguments)
    assert caught[0].filename == __file__


# ---------------------------------------------------------------- steps that are not the same again


@pytest.mark.parametrize("method", [gdtuo.Reverse(), gdtuo.Checkpointed(), gdtuo.Truncated(3)], ids=repr)
def test_batches_that_change_are_noticed(method):
    own = random.Random(0)
    training = gdtuo.Training(PROBLEM.inner, gdtuo.SGD(), lambda t: torch.tensor(own.sample(range(30), 8)), steps=12)
    with pytest.raises(RuntimeError, match=r"not the same when it was evaluated again.*function of the step alone"):
        gdtuo.hypergradient(training, PROBLEM.outer, PROBLEM.params(), PROBLEM.hyper({}), method)


@pytest.mark.parametrize("method", [gdtuo.Reverse(), gdtuo.Reversible(), gdtuo.Forward()], ids=repr)
def test_numpy_and_random_are_part_of_the_run(method):
    def batches(t):
        return torch.as_tensor(np.concatenate([np.random.permutation(15)[:4], np.array(random.sample(range(15, 30), 4))]))

    training = gdtuo.Training(PROBLEM.inner, gdtuo.SGD(momentum=0.9), batches, steps=6)
    random.seed(4)
    np.random.seed(4)
    expected = random.random(), np.random.rand()
    random.seed(4)
    np.random.seed(4)
    results = [
        gdtuo.hypergradient(training, PROBLEM.outer, PROBLEM.params(), PROBLEM.hyper({}), m)
        for m in (method, gdtuo.Checkpointed())
    ]
    assert_close(results[0].hyper, results[1].hyper, 1e-10)
    assert (random.random(), np.random.rand()) == expected


# ---------------------------------------------------------------- numbers


def test_reversible_refuses_an_increment_that_does_not_fit():
    """Between 2048 and 4096 an increment alone is out of range, though its sum with the weight is not."""
    start, hyper = {"w": torch.tensor([1500.0], dtype=F64)}, {"k": torch.tensor(1000.0, dtype=F64)}
    training = gdtuo.Training(lambda p, h, b: (h["k"] * p["w"]).sum(), gdtuo.SGD(lr=3.0, momentum=0.5), steps=1)
    with pytest.raises(OverflowError, match="lower its learning rate"):
        gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), start, hyper, gdtuo.Reversible())


def test_a_beta_of_1_is_refused():
    hyper = PROBLEM.hyper({"beta1": torch.tensor([1.0], dtype=F64)})
    with pytest.raises(ValueError, match=r"a beta is in \[0, 1\)"):
        gdtuo.hypergradient(Problem(ALGORITHMS["adam"]).training(), PROBLEM.outer, PROBLEM.params(), hyper)


def test_implicit_refuses_a_weight_decay_that_it_would_leave_out():
    def inner(params, hyper, batch):
        return ((params["w"] - hyper["c"]) ** 2).sum()

    training = gdtuo.Training(inner, gdtuo.SGD(lr=0.1, weight_decay=0.5), steps=200)
    arguments = (training, lambda p, h: p["w"].sum(), {"w": torch.zeros(2, dtype=F64)}, {"c": torch.ones(2, dtype=F64)})
    with pytest.raises(ValueError, match=r"Implicit\('fixed_point'\)"):
        gdtuo.hypergradient(*arguments, gdtuo.Implicit())
    found = gdtuo.hypergradient(*arguments, gdtuo.Implicit("fixed_point", 1000)).hyper["c"]
    torch.testing.assert_close(found, torch.full((2,), 2 / 2.5, dtype=F64), rtol=1e-8, atol=0)  # w = 2 c / (2 + 0.5)


# ---------------------------------------------------------------- surroundings


@pytest.mark.parametrize("method", [gdtuo.Reverse(), gdtuo.Forward(), gdtuo.Reversible()], ids=repr)
def test_inference_mode(method):
    expected = call(method)
    with torch.inference_mode():
        assert_close(call(method).hyper, expected.hyper, 0.0)  # its tensors are made in here as well
        record = next(
            gdtuo.realtime(
                PROBLEM.training(), PROBLEM.outer, PROBLEM.params(), PROBLEM.hyper(PROBLEM.scalars()), 12, gdtuo.SGD(lr=0.0)
            )
        )
    assert_close(record.hypergradient, expected.hyper, 1e-10)


# (torch 2.13 itself fails here for Forward: it decomposes tanh's forward derivative on the default device.)
@pytest.mark.parametrize("method", [gdtuo.Reverse(), gdtuo.Checkpointed(arity=2), gdtuo.Reversible()], ids=repr)
def test_another_default_device(method):
    expected = call(method)
    params, hyper = PROBLEM.params(), PROBLEM.hyper(PROBLEM.scalars())

    def rows(t):
        with torch.device("cpu"):
            return PROBLEM.batch(t)

    def outer(params, hyper):
        with torch.device("cpu"):
            return PROBLEM.outer(params, hyper)

    training = gdtuo.Training(PROBLEM.inner, gdtuo.SGD(), rows, PROBLEM.steps)
    torch.set_default_device("meta")  # on which nothing can be computed
    try:
        result = gdtuo.hypergradient(training, outer, params, hyper, method)
    finally:
        torch.set_default_device(None)
    assert_close(result.hyper, expected.hyper, 0.0)


def test_realtime_is_not_disturbed_by_its_user():
    arguments = (PROBLEM.training(), PROBLEM.outer, PROBLEM.params(), PROBLEM.hyper(PROBLEM.scalars()), 3)
    undisturbed = list(gdtuo.realtime(*arguments))
    iterator = gdtuo.realtime(*arguments)
    for leaf in leaves_of(arguments[2]):
        leaf.zero_()
    for record, expected in zip(iterator, undisturbed, strict=True):
        assert_close(record.params, expected.params, 0.0)
        for leaf in (*leaves_of(record.params), *leaves_of(record.hyper)):
            leaf.mul_(100)


# ---------------------------------------------------------------- mistakes


def square(params, hyper, batch=None):
    return params["w"].square().sum()


W = {"w": torch.ones(2)}


def test_a_hyperparameter_that_nothing_reads():
    training = gdtuo.Training(square, gdtuo.SGD(), steps=2)
    with pytest.warns(RuntimeWarning, match=r"hyper\['lr'\] has no effect.*hyper\['optimizer'\]") as caught:
        gdtuo.hypergradient(training, square, W, {"lr": torch.tensor(0.1)})
    assert caught[0].filename == __file__


def test_mistakes_in_the_outer_loss_show_before_the_run():
    def never(params, hyper, batch):
        raise AssertionError("it ran")

    training = gdtuo.Training(never, gdtuo.SGD(), steps=2)
    for outer, error in ((lambda p: 1, TypeError), (lambda p, h: p["w"], TypeError), (lambda p, h: p["v"], KeyError)):
        for run in (gdtuo.hypergradient, gdtuo.realtime, gdtuo.check_hypergradient):
            with pytest.raises(error):
                run(training, outer, W, {"a": torch.tensor(1.0)})


def test_one_training_where_one_is_asked_for():
    training = gdtuo.Training(square, gdtuo.SGD(), steps=2)
    for run in (
        lambda t: gdtuo.realtime(t, square, W, {"a": torch.tensor(1.0)}),
        lambda t: gdtuo.check_hypergradient(t, square, W, {}),
        lambda t: gdtuo.plan(t, W, {}),
    ):
        with pytest.raises(TypeError, match=r"Give one gdtuo\.Training"):
            run([training])


def test_losses_of_two_kinds():
    training, hyper = gdtuo.Training(square, gdtuo.SGD(), steps=2), {"a": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="all of one kind"):
        gdtuo.hypergradient([training] * 2, [square, {"a": square}], W, hyper)


def test_names_of_a_module():
    apply, params = gdtuo.make_functional(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"lacks \['bias'\].*besides \['bais'\]"):
        apply({"weight": params["weight"], "bais": params["bias"]}, torch.zeros(1, 2))


def test_a_rule_that_forgets_a_state():
    class Forgetful(gdtuo.Rule):
        hyperparameters = {"lr": (0.1, gdtuo.Positive())}

        def init(self, weights, hyper):
            return {"m": torch.zeros_like(weights)}

        def update(self, weights, gradient, state, hyper, step):
            return -hyper["lr"] * gradient, {"n": gradient}

    class Counting(Forgetful):
        def init(self, weights, hyper):
            return {"m": torch.zeros(weights.shape, dtype=torch.int64)}

    class ForgetfulLevel(gdtuo.Level):
        rule = Forgetful

    class CountingLevel(gdtuo.Level):
        rule = Counting

    with pytest.raises(ValueError, match="Return the same names"):
        gdtuo.hypergradient(gdtuo.Training(square, ForgetfulLevel(), steps=2), square, W, {})
    with pytest.raises(TypeError, match="Keep real numbers"):
        gdtuo.hypergradient(gdtuo.Training(square, CountingLevel(), steps=2), square, W, {})


@pytest.mark.parametrize("memory", [0, -5, "4GB", True, float("nan")])
def test_plan_needs_a_number_of_bytes(memory):
    with pytest.raises(ValueError, match=r"4 \* 2\*\*30"):
        gdtuo.plan(gdtuo.Training(square, gdtuo.SGD(), steps=2), W, {}, memory=memory)


def test_plan_of_what_torch_func_cannot_do():
    def inner(params, hyper, batch):
        return params["w"].square().sum() * float(params["w"].detach().numpy()[0])

    plan = gdtuo.plan(gdtuo.Training(inner, gdtuo.SGD(), steps=5), W, {"a": torch.tensor(1.0)})
    (row,) = (row for row in plan.rows if isinstance(row.method, gdtuo.Forward))
    assert row.note.startswith("cannot: torch.func fails")
    assert plan.best == gdtuo.Reverse()
    (row,) = (
        row
        for row in gdtuo.plan(gdtuo.Training(square, gdtuo.SGD(), steps=5), W, {}).rows
        if isinstance(row.method, gdtuo.Forward)
    )
    assert "hyper is empty" in row.note


def test_plan_says_when_nothing_fits():
    plan = gdtuo.plan(gdtuo.Training(square, gdtuo.SGD(), steps=50), {"w": torch.ones(1000)}, {"a": torch.tensor(1.0)}, memory=10)
    assert not plan.fits
    assert "more than there is" in str(plan)


def test_options_that_are_arrays():
    method = gdtuo.Implicit(batch=np.zeros(3))
    assert "batch=" in repr(method)
    assert method == gdtuo.Implicit(batch=torch.ones(2))
    training = gdtuo.Training(square, gdtuo.SGD(), [torch.ones(1)], steps=2)
    assert training == training
    assert hash(training)
