"""The limit of a learned learning rate: how long updates are, when it holds, and what it leaves alone.

Step by step it is compared with plain loops in test_pullback.py; here with lengths measured from outside.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import F64

import gdtuo

RULES = {
    "adam": lambda p, **more: gdtuo.Adam(p, optimizer=gdtuo.SGD(), **more),
    "adamw": lambda p, **more: gdtuo.AdamW(p, optimizer=gdtuo.Adam(), weight_decay=0.3, **more),
    "sgd": lambda p, **more: gdtuo.SGD(p, optimizer=gdtuo.SGD(), **more),
    "momentum": lambda p, **more: gdtuo.SGD(p, momentum=0.9, nesterov=True, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()), **more),
    "rmsprop": lambda p, **more: gdtuo.RMSProp(p, learn="all", optimizer=gdtuo.SGD(), **more),
    "lion": lambda p, **more: gdtuo.Lion(p, optimizer=gdtuo.SGD(), **more),
    "muon": lambda p, **more: gdtuo.Muon(p, optimizer=gdtuo.SGD(), **more),
}


def weights(scale=1.0):
    make = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(scale * torch.randn(shape, generator=make, dtype=F64)) for shape in ((5, 4), (7, 3))]


def length(tensors):
    return math.sqrt(sum(float(x.square().sum()) for x in tensors))


def limit(params, trust):
    """trust times the weights' length, each weight counted for 0.03 at least."""
    return trust * math.sqrt(sum(float(p.detach().square().sum()) + 0.03**2 * p.numel() for p in params))


def step(params, optimizer, seed, scale=1.0):
    """Returns how far it went, for each parameter."""
    make, before = torch.Generator().manual_seed(seed), [p.detach().clone() for p in params]
    for p in params:
        p.grad = scale * torch.randn(p.shape, generator=make, dtype=F64)
    optimizer.step()
    return [p.detach() - b for p, b in zip(params, before, strict=True)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("trust", [0.05, 0.4])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_update_is_as_long_as_allowed_whatever_the_scale(name, trust, scale):
    params = weights(scale)
    optimizer = RULES[name](params, lr=1e9, trust=trust)
    expected = limit(params, trust)
    found = length(step(params, optimizer, 0, scale))
    assert found == pytest.approx(expected, rel=1e-3 if name == "muon" else 1e-9)  # Muon's values are of 16 bits
    assert optimizer.param_groups[0]["lr"] == 1e9  # the number that is written stays
    assert optimizer.skipped == 0


def test_the_limit_is_each_group_s_or_each_tensor_s():
    for options in ({}, {"per": "tensor"}):
        params = weights()
        groups = [{"params": [p]} for p in params] if not options else params
        optimizer = gdtuo.SGD(groups, lr=1e6, trust=0.1, optimizer=gdtuo.SGD(), **options)
        expected = [limit([p], 0.1) for p in params]
        assert [length([x]) for x in step(params, optimizer, 0)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_a_rate_below_the_limit_is_used_as_written(name):
    params, free = weights(), weights()
    bound, unbound = RULES[name](params, lr=1e-4), RULES[name](free, lr=1e-4, trust=math.inf)
    for seed in range(6):
        step(params, bound, seed)
        step(free, unbound, seed)
    assert all(torch.equal(a, b) for a, b in zip(params, free, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_that_explodes_moves_the_weights_no_farther(momentum):
    """SGD without momentum keeps the limit to the last digit; with it, the old direction may add its own length."""
    params = weights()
    optimizer = gdtuo.SGD(params, lr=1e3, momentum=momentum, trust=0.1, optimizer=gdtuo.SGD())
    allowed = limit(params, 0.1)
    for seed, scale in enumerate((1.0, 1e3, 1e12, 1e3, 1.0)):
        longest = 1 if momentum == 0 else 1 + momentum
        assert length(step(params, optimizer, seed, scale)) <= longest * allowed * (1 + 1e-9)
    assert optimizer.skipped == 0


def test_weights_that_begin_at_zero_move_and_the_limit_grows_with_their_way():
    w = torch.nn.Parameter(torch.zeros(100, dtype=F64))
    optimizer, ways = gdtuo.auto([w]), []
    for _ in range(200):
        w.grad = w.detach() - 50.0
        before = w.detach().clone()
        optimizer.step()
        ways.append((w.detach() - before).abs().max().item())
    assert ways[0] == pytest.approx(0.05 * 0.03, rel=1e-6)
    assert max(ways) > 100 * ways[0]
    assert (w.detach() - 50.0).abs().max() < 20.0


def test_a_schedule_that_warms_up_from_zero_meets_the_limit_when_it_gets_there():
    params = weights()
    optimizer = gdtuo.Adam(params, lr=1e-3, trust=0.1, optimizer=gdtuo.SGD())
    allowed = limit(params, 0.1)
    for seed in range(8):
        for group in optimizer.param_groups:
            group["lr"] = [0.0, 0.0, 1e-3, 1.0, 100.0][min(seed, 4)]
        assert length(step(params, optimizer, seed)) <= 1.2 * allowed  # Adam's direction changes its length a little


def test_a_state_of_torch_is_measured_with_the_direction_that_it_stands_for():
    params, theirs = weights(), weights()
    torchs = torch.optim.SGD(theirs, lr=1e-3, momentum=0.9)
    for seed in range(5):
        step(theirs, torchs, seed)
    for p, q in zip(params, theirs, strict=True):
        p.data.copy_(q.data)
    optimizer = gdtuo.SGD(params, lr=1e-3, momentum=0.9, trust=0.1, optimizer=gdtuo.SGD())
    optimizer.load_state_dict(torchs.state_dict())
    optimizer.param_groups[0]["lr"] = 1e3
    expected = limit(params, 0.1)
    assert length(step(params, optimizer, 9)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bottom", [gdtuo.SGD, gdtuo.AdamW])
def test_a_gradient_of_zero_is_not_what_a_start_is_measured_with(bottom):
    """Nor does a weight decay, which moves the weights meanwhile, go farther than the limit."""
    a, b = weights()
    optimizer = gdtuo.auto([a, b], bottom, per="tensor")
    for _ in range(3):
        before, expected = b.detach().clone(), limit([b], 0.05)
        a.grad, b.grad = torch.ones_like(a), torch.zeros_like(b)
        optimizer.step()
        assert length([b.detach() - before]) <= 1.001 * expected
    expected = limit([b], 0.05)
    assert 0 < length(step([a, b], optimizer, 1)[1:]) <= 1.001 * expected


@pytest.mark.parametrize("capturable", [False, True])
def test_waiting_for_a_gradient_changes_nothing(capturable):
    """Gradients of 0 leave nothing behind, however many there are."""
    (w, _), (v, _) = weights(), weights()
    options = {"trust": 0.1, "learn_after": 3, "lr": 1e-12, "capturable": capturable, "optimizer": gdtuo.SGD()}
    waiting, fresh = gdtuo.SGD([w], **options), gdtuo.SGD([v], **{**options, "learn_after": 0})
    for _ in range(3):
        w.grad = torch.zeros_like(w)
        waiting.step()
    waiting.param_groups[0]["lr"] = fresh.param_groups[0]["lr"] = 1e3
    step([w], waiting, 1)
    step([v], fresh, 1)
    torch.testing.assert_close(w, v, rtol=1e-12, atol=0)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("waits", [{"learn_after": 2}, {"learning": False}])
@pytest.mark.parametrize("trust", [None, 1e-3])
def test_steps_that_do_not_learn(trust, waits, capturable):
    """They ask for what is written, but for a limit that is written, too, which their first keeps to."""
    params = weights()
    options = {"learn_after": waits.get("learn_after", 0), "capturable": capturable, "optimizer": gdtuo.SGD()}
    optimizer = gdtuo.SGD(params, lr=500.0, **options, **({} if trust is None else {"trust": trust}))
    optimizer.learning = waits.get("learning", True)
    allowed = limit(params, trust or gdtuo.blueprint.TRUST)
    first = length(step(params, optimizer, 0))
    rate = optimizer.hyperparameters()["L0/g0/lr"]
    if trust is None:
        assert first > 100 * allowed
        assert rate == 500.0
    else:
        assert first == pytest.approx(allowed, rel=1e-9)
    before = [p.detach().clone() for p in params]
    for p, q in zip(params, before, strict=True):
        p.grad = torch.full_like(p, 0.5)
        q -= rate * p.grad
    optimizer.step()
    assert optimizer.hyperparameters()["L0/g0/lr"] == rate
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=0.0)
    optimizer.learning = True
    for seed in (2, 3):
        step(params, optimizer, seed)
    assert optimizer.hyperparameters()["L0/g0/lr"] != rate


def test_what_is_measured_is_saved():
    params = weights()
    optimizer = gdtuo.SGD(params, lr=1e3, trust=0.1, optimizer=gdtuo.SGD())
    for seed in range(3):
        step(params, optimizer, seed)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = gdtuo.SGD(others, lr=1e3, trust=0.1, optimizer=gdtuo.SGD())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 8):
        step(params, optimizer, seed, 10.0**seed)
        step(others, resumed, seed, 10.0**seed)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@pytest.mark.parametrize("start", [1e-8, 1.0, 10.0])
@pytest.mark.parametrize("level", [gdtuo.SGD, gdtuo.Adam, gdtuo.AdamW])
def test_a_valley_in_which_rates_run_away_is_left_finite(level, start):
    """Rosenbrock's, without noise: without a limit SGD's rate climbs until the weights are gone."""
    w = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=F64))

    def value():
        return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2

    optimizer = level([w], lr=start, optimizer=gdtuo.SGD(lr=0.1, optimizer=gdtuo.SGD()))
    before = value().item()
    for _ in range(1000):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert value().item() < 0.5 * before
    assert optimizer.skipped == 0


@pytest.mark.parametrize(
    ("options", "error", "remedy"),
    [
        ({"trust": 0.0}, ValueError, "math.inf"),
        ({"trust": -1}, ValueError, "math.inf"),
        ({"trust": math.nan}, ValueError, "math.inf"),
        ({"trust": None}, TypeError, "math.inf"),
        ({"trust": "much"}, TypeError, r"trust=0\.15"),
        ({"trust": True}, TypeError, r"trust=0\.15"),
        ({"trust": 0.1, "learn": "betas"}, ValueError, "Name it in learn="),
        ({"trust": 0.1, "per": "element"}, ValueError, "per='tensor'"),
        ({"trust": 0.1, "domains": {"lr": gdtuo.Real()}}, ValueError, "Leave trust= out"),
    ],
)
def test_what_cannot_be_limited_is_said(options, error, remedy):
    with pytest.raises(error, match=remedy):
        gdtuo.Adam(weights(), optimizer=gdtuo.SGD(), **options)


def test_levels_above_the_weights_have_none():
    with pytest.raises(ValueError, match="Give it there"):
        gdtuo.Adam(weights(), optimizer=gdtuo.SGD(trust=0.1, optimizer=gdtuo.SGD()))


def test_published_settings_have_no_limit_and_no_horizon():
    """As has a rate for each weight: what is learned so is not limited."""
    for options in ({"hypergradient": "exact"}, {"per": "element"}, {"domains": {"lr": gdtuo.Real()}}, {"learn": "betas"}):
        optimizer = gdtuo.Adam(weights(), lr=1e-2, optimizer=gdtuo.SGD(), **options)
        assert "L0/lengths" not in optimizer.param_groups[0]
    exact = gdtuo.Adam(weights(), optimizer=gdtuo.SGD(), hypergradient="exact")
    step([p for group in exact.param_groups for p in group["params"]], exact, 0)
    assert not [key for state in exact.state.values() for key in state if key.startswith("trace")]


@pytest.mark.parametrize("learning", [True, False])
def test_a_gradient_of_zero_measures_nothing_even_if_the_run_is_resumed_then(learning):
    """What it left in the state is no measure: the first gradient that says something is."""
    ends = []
    for resumes in (False, True):
        (p, _) = weights()
        optimizer = gdtuo.auto([p])
        optimizer.learning = learning
        p.grad = torch.zeros_like(p)
        optimizer.step()
        if resumes:
            state, optimizer = copy.deepcopy(optimizer.state_dict()), gdtuo.auto([p])
            optimizer.load_state_dict(state)
        step([p], optimizer, 1)
        ends.append((p.detach().clone(), optimizer.hyperparameters()["L0/g0/lr"]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1] < 1.0


@pytest.mark.parametrize("waits", [{"learn_after": 10}, {"learning": False}])
def test_a_warm_up_from_zero_before_anything_is_learned(waits):
    (p, _) = weights()
    optimizer = gdtuo.auto([p], gdtuo.SGD, learn_after=waits.get("learn_after", 0))
    optimizer.learning = waits.get("learning", True)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 4))
    allowed = limit([p], 0.05)
    for _ in range(8):
        assert length(step([p], optimizer, 0)) <= 1.001 * allowed
        warm_up.step()
    assert optimizer.hyperparameters()["L0/g0/lr"] > 0


@pytest.mark.parametrize("capturable", [False, True])
def test_weights_that_are_measured_late_are_measured_at_that_step(capturable):
    """Adam's bias corrections depend on the count of updates, those with a gradient of 0 included."""
    (p, _) = weights()
    optimizer = gdtuo.Adam([p], lr=1e3, trust=0.05, capturable=capturable, optimizer=gdtuo.SGD())
    for _ in range(5):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    allowed = limit([p], 0.05)
    assert length(step([p], optimizer, 1)) == pytest.approx(allowed, rel=1e-6)
