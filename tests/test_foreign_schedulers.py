"""Schedules from elsewhere compose as torch's do: timm's, Hugging Face's, hand-written ones, and of levels above the first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import F64, Awkward, backward, differences, learned_values, tower_values, train, two_groups
from test_schedulers import assert_composed
from twin import Level as NaiveLevel

import gdtuo

STEPS = 20
HEIGHTS = {
    1: lambda params: gdtuo.Adam(params, lr=0.01, optimizer=gdtuo.SGD()),
    3: lambda params: gdtuo.Adam(params, lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))),
}
HEIGHT = pytest.mark.parametrize("height", HEIGHTS)


def make_twins(height, groups=lambda model: two_groups(model, 0.02)):
    """A tower of Adam and torch's Adam, on twin networks."""
    model, twin = Awkward(), Awkward()
    return (model, HEIGHTS[height](groups(model))), (twin, torch.optim.Adam(groups(twin), lr=0.01))


# ---------------------------------------------------------------- timm


class TimmCosine:
    """What timm's CosineLRScheduler does to an optimizer, by its documentation: it is no torch scheduler.

    The base rate of a group is its "initial_lr", set from "lr" if nobody did. `step(t)` is told the time; it *assigns* each
    group's "lr", times the group's "lr_scale" if it has one. Warm-up rises linearly from `warmup_lr_init`; then a cosine of
    `t_initial` steps falls to `lr_min`, which stays.
    """

    def __init__(self, optimizer, t_initial: int, lr_min: float, warmup_t: int, warmup_lr_init: float) -> None:
        self.optimizer, self.t_initial, self.lr_min = optimizer, t_initial, lr_min
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self.step(0)

    def step(self, t: int) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_values, strict=True):
            if t < self.warmup_t:
                value = self.warmup_lr_init + t * (base - self.warmup_lr_init) / self.warmup_t
            elif t < self.t_initial:
                value = self.lr_min + 0.5 * (base - self.lr_min) * (1 + math.cos(math.pi * t / self.t_initial))
            else:
                value = self.lr_min
            group["lr"] = value * group.get("lr_scale", 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def timm(optimizer) -> TimmCosine:
    return TimmCosine(optimizer, t_initial=16, lr_min=1e-4, warmup_t=5, warmup_lr_init=0.0)


def scaled_groups(model):
    """As timm's layer decay makes them: the second group's rate is multiplied by a scale of its own."""
    first, second = two_groups(model, 0.02)
    return [{**first, "lr_scale": 0.25}, second]


@HEIGHT
@pytest.mark.parametrize("groups", [lambda model: two_groups(model, 0.02), scaled_groups], ids=["plain", "lr_scale"])
def test_item_12_timms_cosine_with_warm_up_from_zero_composes(groups, height):
    (model, tower), (twin, plain) = make_twins(height, groups)
    start = model.weights()
    schedulers = timm(tower), timm(plain)
    for step in range(STEPS):
        for net, optimizer, scheduler in ((model, tower, schedulers[0]), (twin, plain, schedulers[1])):
            backward(net, step)
            optimizer.step()
            if step == 0:  # at a rate of 0
                assert all(torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True))
            scheduler.step(step + 1)
        assert [g["lr"] for g in tower.param_groups] == [g["lr"] for g in plain.param_groups]
        assert all(isinstance(g["lr"], float) for g in tower.param_groups)
        assert_composed(tower, plain)
    ratio = 4 * plain.param_groups[0]["lr"] if "lr_scale" in plain.param_groups[0] else plain.param_groups[0]["lr"]
    assert ratio == pytest.approx(1e-4)  # the end of the cosine
    assert all(value.any() for value in learned_values(tower).values())
    assert tower.skipped == 0


def test_item_12_timms_cosine_is_resumed_bitwise():
    (model, tower), (other_model, other) = make_twins(3)[0], make_twins(3)[0]
    scheduler = timm(tower)

    def go(model, tower, scheduler, steps):
        for step in steps:
            backward(model, step)
            tower.step()
            scheduler.step(step + 1)
        return dict(model.named_parameters()) | tower_values(tower) | {"lr": [g["lr"] for g in tower.param_groups]}

    go(model, tower, scheduler, range(8))
    other_scheduler = timm(other)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(tower.state_dict())
    other_scheduler.load_state_dict(scheduler.state_dict())
    rest = range(8, 18)
    assert not differences(go(model, tower, scheduler, rest), go(other_model, other, other_scheduler, rest))


# ---------------------------------------------------------------- Hugging Face


#: name -> what it takes besides warm-up and length
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "reduce_lr_on_plateau": {"patience": 1, "factor": 0.5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 6},
    "greedy": {"patience": 1, "factor": 0.7},
}


def test_no_schedule_of_hugging_face_is_forgotten():
    from transformers import SchedulerType

    assert {kind.value for kind in SchedulerType} == HUGGING_FACE.keys()


@HEIGHT
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_every_schedule_of_hugging_face_composes(name, height):
    from transformers import get_scheduler

    (model, tower), (twin, plain) = make_twins(height)
    ours, theirs = (get_scheduler(name, o, 5, STEPS, HUGGING_FACE[name]) for o in (tower, plain))
    rates = set()
    for step in range(STEPS):
        for net, optimizer, scheduler in ((model, tower, ours), (twin, plain, theirs)):
            backward(net, step)
            optimizer.step()
            scheduler.step(*([max(1.0 - 0.2 * step, 0.5)] if name in ("reduce_lr_on_plateau", "greedy") else []))
        assert [g["lr"] for g in tower.param_groups] == [g["lr"] for g in plain.param_groups]
        assert ours.get_last_lr() == theirs.get_last_lr()  # what HF's Trainer logs
        assert_composed(tower, plain)
        rates.add(plain.param_groups[0]["lr"])
    assert (len(rates) > 1) == (name != "constant")
    assert all(value.any() for value in learned_values(tower).values())
    assert tower.skipped == 0


# ---------------------------------------------------------------- schedules of the levels above


def test_a_schedule_of_an_upper_levels_rate_moves_the_factor_as_told():
    """L1/lr under a cosine by hand: the tower is, step by step, a naive one with these numbers."""
    make = torch.Generator().manual_seed(5)
    start, target = torch.randn(6, generator=make, dtype=F64), torch.randn(6, generator=make, dtype=F64)
    w = torch.nn.Parameter(start.clone())
    tower = gdtuo.SGD([w], lr=0.05, optimizer=gdtuo.SGD(lr=0.02, optimizer=gdtuo.SGD(lr=0.03)))
    usual = {"horizon": 100, "trust": 0.15}
    zeros = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}
    top = NaiveLevel("sgd", [{"lr": 0.03, **zeros}], kind="cosine")
    middle = NaiveLevel("sgd", [{"lr": 0.02, **zeros}], ("lr",), kind="cosine", maximum={"lr": 0.2}, above=top)
    naive = NaiveLevel("sgd", [{"lr": 0.05, **zeros}], ("lr",), kind="cosine", above=middle, **usual)
    naive.start([[start.clone()]])
    factors = []
    for step in range(STEPS):
        rate = 0.02 * 0.5 * (1 + math.cos(math.pi * step / STEPS)) + 1e-3
        tower.param_groups[0]["L1/lr"] = middle.numbers[0]["lr"] = rate
        gradient = torch.sin(step + torch.arange(6)) + w.detach() - target
        w.grad = gradient.clone()
        tower.step()
        naive.step([[torch.sin(step + torch.arange(6)) + naive.tensors[0][0] - target]])
        torch.testing.assert_close(w.detach(), naive.tensors[0][0], rtol=1e-12, atol=1e-12)
        values = tower.hyperparameters()
        assert values["L1/g0/lr"] == pytest.approx(rate * math.exp(middle.shifts[0].item()), rel=1e-12)
        assert values["L0/g0/lr"] == pytest.approx(0.05 * math.exp(naive.shifts[0].item()), rel=1e-12)
        factors.append(values["L1/g0/lr"] / rate)
    assert tower.param_groups[0]["L1/lr"] == rate
    assert len(set(factors)) > STEPS / 2


def test_an_upper_level_at_rate_zero_stands_still_and_then_goes_on():
    (model, tower), _ = make_twins(3)
    for step in range(STEPS):
        waits = 5 <= step < 10
        tower.param_groups[0]["L1/lr"] = 0.0 if waits else 0.01
        before = learned_values(tower)
        train(model, tower, range(step, step + 1))
        moved = differences(before, learned_values(tower))
        assert ("g0/L0/shift" in moved) == (step > 0 and not waits)
        assert ("g1/L0/shift" in moved) == (step > 0)  # the other group's rate nobody touched
    assert tower.skipped == 0


@HEIGHT
def test_schedules_of_two_levels_at_once(height):
    """Each level's effective rate is its own schedule times its own factor."""
    (model, tower), _ = make_twins(height)
    for step in range(STEPS):
        rates = {"lr": 0.01 * 0.9**step, "L1/lr": 0.02 / (1 + step)}
        for group in tower.param_groups:
            group.update(rates)
        train(model, tower, range(step, step + 1))
        values = tower.hyperparameters()
        for g, group in enumerate(tower.param_groups):
            assert values[f"L0/g{g}/lr"] == pytest.approx(rates["lr"] * group["L0/shift"].exp().item(), rel=1e-13)
            factor = group["L1/shift"].exp().item() if height > 1 else 1.0
            assert values[f"L1/g{g}/lr"] == pytest.approx(rates["L1/lr"] * factor, rel=1e-13)
