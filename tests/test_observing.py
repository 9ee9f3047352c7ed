"""gdtuo.observing: one function shows what any optimizer works with, whatever stands around it."""

from __future__ import annotations

import math

import pytest
import torch
from cases import F64, PAIRS, RICH, TOWERS, Awkward, train, two_groups

import gdtuo
from gdtuo.observing import snapshot, unwrap


class Wrapper:
    """Holds an optimizer under some name, and passes the groups on, as accelerate, Lightning and ZeRO do."""

    def __init__(self, optimizer, name="optimizer"):
        setattr(self, name, optimizer)
        self.param_groups = optimizer.param_groups


def trained(shape="adam/sgd/sgd"):
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    train(model, optimizer, range(6))
    return optimizer


@pytest.mark.parametrize("shape", TOWERS)
def test_of_a_level_it_is_what_the_level_says(shape):
    optimizer = trained(shape)
    assert gdtuo.hyperparameters(optimizer) == optimizer.hyperparameters()


@pytest.mark.parametrize("name", ["optimizer", "optim", "base_optimizer"])
def test_through_a_chain_of_wrappers(name):
    optimizer = trained()
    wrapped = Wrapper(Wrapper(Wrapper(optimizer, name), "optimizer"), name)
    assert unwrap(wrapped) is optimizer
    assert gdtuo.hyperparameters(wrapped) == optimizer.hyperparameters()
    assert gdtuo.hyperparameters(torch.optim.lr_scheduler.StepLR(optimizer, 5)) == optimizer.hyperparameters()


def test_a_wrapper_that_passes_for_what_it_wraps():
    """Lightning's has a class of its own that inherits from the wrapped optimizer's, and none of its attributes."""
    optimizer = trained()

    class Passing(gdtuo.Adam):
        def __init__(self, inner):
            self.__dict__["optimizer"] = inner

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    assert unwrap(Passing(optimizer)) is optimizer
    assert gdtuo.hyperparameters(Passing(optimizer)) == optimizer.hyperparameters()


def test_a_wrapper_around_itself_ends():
    optimizer = trained()
    optimizer.optimizer = Wrapper(optimizer)
    assert gdtuo.hyperparameters(optimizer.optimizer) == optimizer.hyperparameters()


#: numbers that are settings of ours, not hyperparameters
SWITCHES = {"adafactor": {"eps1"}, "muon": {"eps", "ns_steps", *(f"ns_coefficient{i}" for i in (1, 2, 3))}}


@pytest.mark.parametrize("name", PAIRS)
def test_of_a_torch_optimizer_its_numbers_under_the_same_keys(name):
    pair = PAIRS[name]
    model = pair.model()
    ours = pair.ours(two_groups(model, 0.02), lr=0.02, **RICH[name])
    theirs = pair.theirs(two_groups(model, 0.02), lr=0.02, **RICH[name])
    found, mine = gdtuo.hyperparameters(theirs), ours.hyperparameters()
    assert {key: found.get(key) for key in mine} == mine
    assert {key.split("/")[2] for key in found.keys() - mine.keys()} == SWITCHES.get(name, set())
    assert found["L0/g1/lr"] == 0.01


def test_of_a_torch_optimizer_with_a_tensor_and_sequences():
    w = torch.nn.Parameter(torch.ones(2, 2))
    adam = torch.optim.Adam([w], lr=torch.tensor(0.25), betas=(0.5, 0.75))
    assert gdtuo.hyperparameters(adam) == dict(zip(KEYS_OF_ADAM, (0.25, 0.5, 0.75, 1e-8, 0.0), strict=True))
    rprop = gdtuo.hyperparameters(torch.optim.Rprop([w]))
    assert (rprop["L0/g0/eta1"], rprop["L0/g0/eta2"], rprop["L0/g0/step_size2"]) == (0.5, 1.2, 50.0)


KEYS_OF_ADAM = [f"L0/g0/{name}" for name in ("lr", "beta1", "beta2", "eps", "weight_decay")]


@pytest.mark.parametrize("nothing", [None, torch.nn.Linear(1, 1), [], {"optimizer": None}])
def test_where_there_is_no_optimizer(nothing):
    with pytest.raises(TypeError, match=r"Give a torch\.optim\.Optimizer, or a wrapper"):
        gdtuo.hyperparameters(nothing)


def test_of_a_template():
    with pytest.raises(RuntimeError, match="Bind it first"):
        gdtuo.hyperparameters(gdtuo.Adam())


# ---------------------------------------------------------------- everything at once


def test_a_snapshot_is_effective_values_written_ones_skips_and_what_is_added():
    model = Awkward()
    tower = gdtuo.SGD(lr=0.02, momentum=0.8, learn=("lr", "momentum"), optimizer=gdtuo.Adam(learn="betas", optimizer=gdtuo.SGD()))
    optimizer = tower.bind(two_groups(model, 0.02))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, range(4))
    scheduler.step()
    model.bias.grad = torch.full_like(model.bias, math.nan)
    optimizer.step()
    found = snapshot(optimizer, {"loss": torch.tensor(0.5, dtype=torch.bfloat16), "epoch": 3})
    expected = {
        **optimizer.hyperparameters(),
        **{f"written/L0/g{g}/lr": group["lr"] for g, group in enumerate(optimizer.param_groups)},
        **{f"written/L0/g{g}/momentum": 0.8 for g in range(2)},
        **{f"written/L1/g{g}/beta{i}": beta for g in range(2) for i, beta in ((1, 0.9), (2, 0.999))},
        "skipped": 1.0,
        "loss": 0.5,
        "epoch": 3.0,
    }
    assert found == expected
    assert found["written/L0/g1/lr"] == pytest.approx(0.009)
    assert found["L0/g0/lr"] != found["written/L0/g0/lr"]


def mixed(per="group"):
    """A group that learns nothing, one with the level's tower, one with a tower of its own."""
    model = Awkward()
    groups = [
        {"params": [model.tied], "learn": ()},
        {"params": [model.bias]},
        {"params": [model.scale, model.unused], "optimizer": gdtuo.Adam(lr=0.02, optimizer=gdtuo.SGD()), "learn": ("lr", "eps")},
    ]
    optimizer = gdtuo.Adam(groups, lr=0.01, learn=("lr", "eps"), per=per, optimizer=gdtuo.SGD(lr=0.05))
    train(model, optimizer, range(5))
    return optimizer


def test_a_snapshot_of_groups_that_learn_in_ways_of_their_own():
    optimizer = mixed()
    found = snapshot(optimizer)
    written = {key for key in found if key.startswith("written/")}
    assert written == {f"written/{key}" for key in ("L0/g1/lr", "L0/g1/eps", "L0/g2/lr", "L0/g2/eps", "L1/g2/lr")}
    assert {key: found[key] for key in found if key.startswith("L")} == optimizer.hyperparameters()
    assert found["L0/g0/lr"] == 0.01 != found["L0/g1/lr"]
    assert found["skipped"] == 0


def test_a_snapshot_is_read_at_once(monkeypatch):
    """Each tolist or item is a wait for the device."""
    optimizer = mixed("tensor")
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1, dtype=F64)
    snapshot(optimizer)
    calls = []
    for name in ("tolist", "item", "__float__", "__bool__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, own=own, name=name: calls.append(name) or own(t))
    found = snapshot(optimizer, {"loss": torch.tensor(0.5)})
    assert calls == ["tolist"]
    assert found["written/L0/g1/lr"] == 0.1


def test_many_groups_cost_no_more_than_in_proportion():
    """Looking for each group among all of them would be 17 times the work, four times the groups."""
    counts = []
    for groups in (16, 64):
        weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(groups)]
        optimizer = gdtuo.Adam([{"params": [w]} for w in weights], optimizer=gdtuo.SGD())
        optimizer.hyperparameters()
        with torch.profiler.profile() as profile:
            optimizer.hyperparameters()
        counts.append(sum(event.count for event in profile.key_averages()))
    assert counts[1] < 5 * counts[0]
