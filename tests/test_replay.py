"""gdtuo.replay: a recorded schedule makes the same run without a tower."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from cases import F64, Awkward, backward, two_groups
from torch.optim import lr_scheduler as schedulers

import gdtuo
from gdtuo.history import History
from gdtuo.replay import Replayed

STEPS = 40


def schedule(step):
    """Warm-up from 0, then a cosine."""
    return step / 8 if step < 8 else 0.5 * (1 + math.cos(math.pi * (step - 8) / 40))


def learn(per="group", groups=lambda model: two_groups(model, 0.02), scheduled=True, steps=STEPS, every=1):
    """A run with a tower, the batches in a fixed order: its network, its history."""
    model = Awkward()
    above = gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD())
    optimizer = gdtuo.Adam(groups(model), lr=0.003, betas=(0.8, 0.99), per=per, optimizer=above)
    scheduler = schedulers.LambdaLR(optimizer, schedule) if scheduled else None
    history = gdtuo.History(optimizer, every)
    for step in range(steps):
        backward(model, step)
        optimizer.step()
        history.record()
        if scheduler:
            scheduler.step()
    return model, history


def follow(history, make, groups=lambda model: two_groups(model, 0.7), steps=STEPS):
    """The same run by another optimizer on the recorded rates."""
    model = Awkward()
    optimizer = make(groups(model))
    scheduler = gdtuo.replay(history, optimizer)
    for step in range(steps):
        backward(model, step)
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def adam(params):
    return torch.optim.Adam(params, lr=0.5, betas=(0.8, 0.99))


def assert_same_weights(model, twin):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ending", [None, "csv", "json"])
def test_plain_adam_on_the_recorded_rates_makes_the_same_weights(ending, tmp_path):
    model, history = learn()
    assert max(history["L0/g0/lr"].values) > 1.2 * 0.003  # the tower learned
    if ending:
        history.save(tmp_path / f"history.{ending}")
        history = History.load(tmp_path / f"history.{ending}")
    twin, _, scheduler = follow(history, adam)
    assert isinstance(scheduler, schedulers.LambdaLR)
    assert_same_weights(model, twin)


def test_rates_per_tensor_go_to_a_group_for_each():
    def separate(model):
        return [{"params": [p]} for p in model.parameters()]

    model, history = learn("tensor", lambda model: model.parameters())
    twin, optimizer, _ = follow(history, adam, separate)
    assert_same_weights(model, twin)
    assert len({group["lr"] for group in optimizer.param_groups}) == 4  # all but the frozen and the unused one


def test_the_rates_are_to_the_bit_whatever_stood_in_the_groups():
    _, history = learn(steps=10)
    for lr in (0.0, 0.5, torch.tensor(0.5, dtype=F64)):
        optimizer = torch.optim.SGD(two_groups(Awkward(), 0.0), lr=lr)
        if isinstance(lr, torch.Tensor):
            optimizer.param_groups[1]["lr"] = torch.tensor(0.1, dtype=F64)
        schedulers.ConstantLR(optimizer, 0.5)  # of an earlier run: it leaves an "initial_lr"
        scheduler = gdtuo.replay(history, optimizer)
        for step in range(12):
            for g, group in enumerate(optimizer.param_groups):
                assert type(group["lr"]) is type(lr)
                assert float(group["lr"]) == history[f"L0/g{g}/lr"].values[min(step, 9)], step  # the last stays
            optimizer.step()
            scheduler.step()


def test_between_records_rates_lie_on_a_geometric_line():
    _, history = learn(scheduled=False, every=7)
    steps, rates = history["L0/g0/lr"]
    rate = Replayed(steps, rates)
    found = [rate(epoch) for epoch in range(STEPS + 10)]
    expected = np.exp(np.interp(np.arange(1, STEPS + 11), steps, np.log(rates)))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert [found[step - 1] for step in steps] == list(rates)


def test_from_and_to_zero_the_line_is_straight():
    rate = Replayed([3, 5, 9], [0.0, 0.4, 0.0])
    assert [rate(epoch) for epoch in range(10)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.3, 0.2, 0.1, 0, 0])


def test_a_replay_is_resumed_from_its_state():
    _, history = learn(steps=20)
    whole, _, _ = follow(history, adam, steps=16)
    half, optimizer, scheduler = follow(history, adam, steps=9)
    file = io.BytesIO()
    torch.save([half.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model = Awkward()
    optimizer = adam(two_groups(model, 0.1))
    scheduler = gdtuo.replay(history, optimizer)
    for target, state in zip((model, optimizer, scheduler), states, strict=True):
        target.load_state_dict(state)
    for step in range(9, 16):
        backward(model, step)
        optimizer.step()
        scheduler.step()
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), model.parameters(), strict=True))


def test_a_tower_that_leaves_the_rate_alone_can_follow():
    """One that is frozen while it is new makes the same run; one that learns the betas has the recorded rates."""

    def frozen(params):
        optimizer = gdtuo.Adam(params, betas=(0.8, 0.99), optimizer=gdtuo.SGD())
        optimizer.learning = False
        return optimizer

    model, history = learn()
    twin, _, _ = follow(history, frozen)
    assert_same_weights(model, twin)
    _, other, _ = follow(history, lambda params: gdtuo.Adam(params, learn="betas", optimizer=gdtuo.SGD()))
    assert other.hyperparameters()["L0/g0/lr"] == history["L0/g0/lr"].values[-1]
    assert other.hyperparameters()["L0/g0/beta1"] != 0.9


@pytest.mark.parametrize("per", ["group", "tensor", "element"])
def test_a_tower_that_moves_the_rate_is_told_to_stop(per):
    _, history = learn(steps=3)
    model = Awkward()
    optimizer = gdtuo.Adam(two_groups(model, 0.7), per=per, optimizer=gdtuo.SGD(lr=0.05))
    remedy = r"optimizer\.learning = False; or .* gdtuo\.replay\(history, gdtuo\.export\(optimizer\)\)"
    with pytest.raises(ValueError, match=remedy):
        gdtuo.replay(history, optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    optimizer.learning = False  # too late: what it has learned stays a factor
    with pytest.raises(ValueError, match=remedy):
        gdtuo.replay(history, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.35]
    if per == "group":
        exported = gdtuo.export(optimizer)
        gdtuo.replay(history, exported)
        assert [group["lr"] for group in exported.param_groups] == [history[f"L0/g{g}/lr"].values[0] for g in (0, 1)]


def test_what_is_no_history_or_no_optimizer_is_told_apart():
    model, history = learn(steps=1)
    plain = adam(two_groups(model, 0.1))
    with pytest.raises(TypeError, match=r"gdtuo\.replay\(gdtuo\.History\.load\('h\.csv'\), optimizer\)"):
        gdtuo.replay("h.csv", plain)
    with pytest.raises(TypeError, match=r"The history comes first: replay\(history, optimizer\)"):
        gdtuo.replay(plain, history)
    with pytest.raises(TypeError, match=r"got a dict\. Give what a gdtuo\.History\(optimizer\) has recorded"):
        gdtuo.replay(dict(history), plain)
    with pytest.raises(TypeError, match=r"Give a torch\.optim\.Optimizer"):
        gdtuo.replay(history, model)
    with pytest.raises(RuntimeError, match=r"template without parameters\. Bind it first"):
        gdtuo.replay(history, gdtuo.Adam(optimizer=gdtuo.SGD()))


def test_more_than_ten_groups_keep_their_order():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(12)]
    history = gdtuo.History(torch.optim.SGD([{"params": [w], "lr": 0.1 + g} for g, w in enumerate(weights)]))
    history.record()
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights])
    gdtuo.replay(history, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 + g for g in range(12)]


def test_mistakes():
    model, history = learn(steps=3)
    with pytest.raises(
        ValueError, match=r"2 learning rates, and this Adam has 1 groups\. Give it a group for each: L0/g0/lr, L0/g1"
    ):
        gdtuo.replay(history, adam(model.parameters()))
    with pytest.raises(ValueError, match=r"no learning rates\. Record some first"):
        gdtuo.replay(gdtuo.History(), adam(model.parameters()))
    _, of_weights = learn("element", steps=3)
    with pytest.raises(ValueError, match=r"rates for each weight, .* Learn with per='tensor'"):
        gdtuo.replay(of_weights, adam(two_groups(model, 0.1)))
