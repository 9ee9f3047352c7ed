"""Every scheduler of torch composes with what is learned: the group is the scheduler's, the shift is the tower's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ONE_UPDATE, Awkward, backward, differences, learned_values, tower_values, train, two_groups
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

import gdtuo

STEPS = 20


def lambdas(optimizer, f):
    return [f] * len(optimizer.param_groups)


def sequential(optimizer):
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=5), schedulers.CosineAnnealingLR(optimizer, T_max=10)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[5])


def chained(optimizer):
    return schedulers.ChainedScheduler([schedulers.ConstantLR(optimizer, 0.5, 4), schedulers.ExponentialLR(optimizer, 0.9)])


def one_cycle(optimizer):
    return schedulers.OneCycleLR(optimizer, max_lr=[0.04, 0.02], total_steps=STEPS + 10, cycle_momentum=True)


def cyclic(optimizer):
    return schedulers.CyclicLR(optimizer, base_lr=[0.005, 0.003], max_lr=[0.04, 0.02], step_size_up=4, cycle_momentum=True)


#: one sensible construction at least of every class in torch.optim.lr_scheduler
MAKE: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambdas(o, lambda epoch: 1 / (1 + epoch))),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambdas(o, lambda epoch: 0.93)),
    "StepLR": lambda o: schedulers.StepLR(o, 4, 0.7),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [3, 8, 15], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 0.9, 12),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "SequentialLR": sequential,
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=18, power=2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=7, eta_min=1e-3),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "CyclicLR": cyclic,
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2, eta_min=1e-4),
    "OneCycleLR": one_cycle,
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=6),
}

BOTTOMS = {
    "adam, height 3": (
        lambda p: gdtuo.Adam(p, lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())), **ONE_UPDATE),
        torch.optim.Adam,
        {},
    ),
    "momentum, height 1": (
        lambda p: gdtuo.SGD(p, lr=0.01, momentum=0.85, learn=("lr", "momentum"), optimizer=gdtuo.Adam(lr=0.01)),
        torch.optim.SGD,
        {"momentum": 0.85},
    ),
    "per element, height 1": (
        lambda p: gdtuo.RMSProp(p, lr=0.01, momentum=0.85, per="element", optimizer=gdtuo.SGD()),
        torch.optim.RMSprop,
        {"momentum": 0.85},
    ),
}


def plateau_metric(step: int) -> float:
    """Falls, then stays."""
    return max(1.0 - 0.2 * step, 0.5)


def advance(scheduler: Any, step: int) -> None:
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        scheduler.step(plateau_metric(step))
    else:
        scheduler.step()


def written(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What schedulers write."""
    return [
        {k: g[k] for k in ("lr", "momentum", "betas", "initial_lr", "max_lr", "min_lr") if k in g} for g in optimizer.param_groups
    ]


def assert_composed(tower: gdtuo.Level, plain: torch.optim.Optimizer) -> None:
    """Effective lr = scheduled lr · e^shift, momenta likewise in the logit; `plain` had the same schedule and no tower."""
    values, columns = tower.hyperparameters(), tower._options.learn
    for g, (group, scheduled) in enumerate(zip(tower.param_groups, plain.param_groups, strict=True)):
        shift, lr = group["L0/shift"], float(scheduled["lr"])
        if tower._options.per == "element":
            assert values[f"L0/g{g}/lr/mean"] == pytest.approx((lr * shift[:, 0].exp()).mean().item(), rel=1e-13, abs=0)
            continue
        assert values[f"L0/g{g}/lr"] == pytest.approx(lr * math.exp(shift[0, 0]), rel=1e-13, abs=0)
        momenta = {"momentum": scheduled["momentum"]} if "momentum" in scheduled else {}
        momenta |= {f"beta{i}": beta for i, beta in enumerate(scheduled.get("betas", ()), 1)}
        for name, momentum in momenta.items():
            turn = shift[0, columns.index(name)].item() if name in columns else 0.0
            odds = momentum / (1 - momentum) * math.exp(turn)
            assert values[f"L0/g{g}/{name}"] == pytest.approx(odds / (1 + odds), rel=1e-12, abs=0)


def make_twins(bottom: str):
    """A tower and the plain torch optimizer, on twin networks."""
    ours, theirs, options = BOTTOMS[bottom]
    model, twin = Awkward(), Awkward()
    return (model, ours(two_groups(model, 0.02))), (twin, theirs(two_groups(twin, 0.02), lr=0.01, **options))


def test_item_10_no_class_of_torch_is_forgotten():
    found = {
        name
        for name, cls in vars(schedulers).items()
        if inspect.isclass(cls) and issubclass(cls, schedulers.LRScheduler) and name.strip("_") != "LRScheduler"
    }
    assert found == MAKE.keys() - {"SWALR"}


@pytest.mark.parametrize("bottom", BOTTOMS)
@pytest.mark.parametrize("name", MAKE)
def test_item_10_every_scheduler_composes(name, bottom):
    (model, tower), (twin, plain) = make_twins(bottom)
    ours, theirs = MAKE[name](tower), MAKE[name](plain)
    history = []
    for step in range(STEPS):
        for net, optimizer, scheduler in ((model, tower, ours), (twin, plain, theirs)):
            backward(net, step)
            optimizer.step()
            advance(scheduler, step)
        assert written(tower) == written(plain), f"step {step}"
        assert all(isinstance(g["lr"], float) for g in tower.param_groups)
        assert_composed(tower, plain)
        history.append([g["lr"] for g in tower.param_groups])
    assert len({rates[0] for rates in history}) > 1  # the scheduler did something
    assert all(value.any() for key, value in learned_values(tower).items()), "and the tower learned"
    assert ours.get_last_lr() == theirs.get_last_lr()


@pytest.mark.parametrize("name", MAKE)
def test_item_10_a_learning_rate_that_is_a_tensor_composes_too(name):
    """Schedulers fill it in place; it stays the user's."""

    def groups(model):
        rates = (torch.tensor(rate, dtype=torch.float64) for rate in (0.02, 0.01))
        return [{**group, "lr": rate} for group, rate in zip(two_groups(model, 0.02), rates, strict=True)]

    model, twin = Awkward(), Awkward()
    tower = gdtuo.SGD(groups(model), momentum=0.85, learn=("lr", "momentum"), optimizer=gdtuo.Adam(lr=0.01))
    plain = torch.optim.SGD(groups(twin), momentum=0.85)
    own = [id(g["lr"]) for g in tower.param_groups]
    ours, theirs = MAKE[name](tower), MAKE[name](plain)
    rates = set()
    for step in range(STEPS):
        for net, optimizer, scheduler in ((model, tower, ours), (twin, plain, theirs)):
            backward(net, step)
            optimizer.step()
            advance(scheduler, step)
        assert [float(g["lr"]) for g in tower.param_groups] == [float(g["lr"]) for g in plain.param_groups]
        assert_composed(tower, plain)
        rates.add(float(plain.param_groups[0]["lr"]))
    assert len(rates) > 1
    assert [id(g["lr"]) for g in tower.param_groups] == own
    assert all(value.any() for value in learned_values(tower).values())


CYCLED = {
    "momentum of SGD": (gdtuo.SGD, torch.optim.SGD, ("lr", "momentum"), {"momentum": 0.85}),
    "momentum of RMSProp": (gdtuo.RMSProp, torch.optim.RMSprop, ("lr", "momentum"), {"momentum": 0.85}),
    "beta1 of Adam": (gdtuo.Adam, torch.optim.Adam, ("lr", "betas"), {}),
    "beta1 of AdamW": (gdtuo.AdamW, torch.optim.AdamW, ("lr", "beta1"), {}),
}


@pytest.mark.parametrize("what", CYCLED)
def test_item_11_one_cycle_moves_rate_and_momentum_beside_what_is_learned(what):
    ours, theirs, learn, options = CYCLED[what]
    model, twin = Awkward(), Awkward()
    above = gdtuo.SGD(lr=0.02, optimizer=gdtuo.SGD())
    tower = ours(two_groups(model, 0.02), lr=0.01, learn=learn, optimizer=above, **options)
    plain = theirs(two_groups(twin, 0.02), lr=0.01, **options)
    cycles = [schedulers.OneCycleLR(o, max_lr=[0.04, 0.02], total_steps=STEPS + 1, cycle_momentum=True) for o in (tower, plain)]
    momenta = set()
    for step in range(STEPS):
        for net, optimizer, cycle in zip((model, twin), (tower, plain), cycles, strict=True):
            backward(net, step)
            optimizer.step()
            cycle.step()
        assert written(tower) == written(plain), f"step {step}"
        assert_composed(tower, plain)
        momenta.add(plain.param_groups[0].get("momentum") or plain.param_groups[0]["betas"][0])
    assert min(momenta) < 0.87
    assert max(momenta) > 0.94  # a cycle from 0.95 down and up
    assert all(value.any() for value in learned_values(tower).values())


@pytest.mark.parametrize("name", MAKE)
def test_the_weights_follow_the_composed_rate(name):
    """With learning off, a tower whose shift is s under a scheduler is torch at e^s times the scheduled rate."""
    (model, tower), _ = make_twins("adam, height 3")
    train(model, tower, range(6))
    tower.learning = False
    shifts = [g["L0/shift"].item() for g in tower.param_groups]
    twin = Awkward()
    twin.load_state_dict(model.state_dict())
    plain = torch.optim.Adam(two_groups(twin, 0.02), lr=0.01, foreach=False)
    plain.load_state_dict({**tower.state_dict(), "param_groups": [_torch_group(g) for g in tower.state_dict()["param_groups"]]})
    scheduler = MAKE[name](tower)
    for step in range(6, 16):
        for g, shift, group in zip(plain.param_groups, shifts, tower.param_groups, strict=True):
            g["lr"], g["betas"] = group["lr"] * math.exp(shift), group["betas"]
        train(model, tower, range(step, step + 1))
        train(twin, plain, range(step, step + 1))
        advance(scheduler, step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def _torch_group(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if not k.startswith("L") and k not in ("learning", "skipped")}


@pytest.mark.parametrize("bottom", BOTTOMS)
def test_a_hand_written_loop(bottom):
    (model, tower), (_, plain) = make_twins(bottom)
    for step in range(STEPS):
        for g in (*tower.param_groups, *plain.param_groups):
            g["lr"] = 0.01 / (1 + step)
        before = learned_values(tower)
        assert_composed(tower, plain)
        backward(model, step)
        tower.step()
        assert [g["lr"] for g in tower.param_groups] == [0.01 / (1 + step)] * 2
        assert_composed(tower, plain)
        assert differences(before, learned_values(tower)) or step == 0
    assert [tuple(g["L0/shift"].shape) for g in tower.param_groups]


@pytest.mark.parametrize("kind", ["float", "tensor"])
def test_item_4_a_write_in_mid_run_is_used_at_once(kind):
    """Zero gradients for the tower's top would hide it, so compare with a twin that was written before the step."""
    model = Awkward()
    rate = 0.01 if kind == "float" else torch.tensor(0.01, dtype=torch.float64)
    tower = gdtuo.SGD(model.parameters(), lr=rate, optimizer=gdtuo.SGD())
    train(model, tower, range(5))
    tower.learning = False
    shift = tower.param_groups[0]["L0/shift"].item()
    if kind == "float":
        tower.param_groups[0]["lr"] = 0.003
    else:
        tower.param_groups[0]["lr"].fill_(0.003)
    backward(model, 5)
    before, gradient = model.tied.detach().clone(), model.tied.grad.clone()
    tower.step()
    torch.testing.assert_close(before - model.tied, 0.003 * math.exp(shift) * gradient, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("bottom", BOTTOMS)
@pytest.mark.parametrize("hand", [False, True])
def test_warm_up_from_zero(bottom, hand):
    """lr = 0 moves nothing and breaks nothing; learning starts with the first real step."""
    (model, tower), _ = make_twins(bottom)
    start = model.weights()
    scheduler = None if hand else schedulers.LambdaLR(tower, lambdas(tower, lambda step: max(0, min(1, (step - 2) / 5))))
    for step in range(40):
        if hand:
            for g in tower.param_groups:
                g["lr"] = 0.02 * max(0, min(1, (step - 2) / 5))
        backward(model, step)
        tower.step()
        if scheduler is not None:
            scheduler.step()
        assert all(math.isfinite(value) for value in (*tower.hyperparameters().values(), *tower.hypergradients().values()))
        if step <= 2:
            assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
            rates = [shift[:, 0] for key, shift in learned_values(tower).items() if key.endswith("L0/shift")]
            assert not any(rate.any() for rate in rates)  # an update that moved nothing says nothing about the rate
    assert tower.skipped == 0
    assert all(value.isfinite().all() for value in tower_values(tower).values())
    assert all(value.any() for value in learned_values(tower).values())
    losses = train(model, tower, range(40, 120))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_schedule_that_ends_at_zero_and_restarts():
    (model, tower), _ = make_twins("adam, height 3")
    for step in range(30):
        for g in tower.param_groups:
            g["lr"] = 0.0 if 10 <= step < 15 else 0.01
        before = model.weights(), learned_values(tower)
        backward(model, step)
        tower.step()
        if 10 <= step < 15:
            assert all(torch.equal(a, b) for a, b in zip(before[0], model.parameters(), strict=True))
        if step > 15:
            assert differences(before[1], learned_values(tower))
        if 10 < step <= 15:  # the first of them pulls back the last real update; the others, updates of rate 0
            unmoved = [key for key in before[1] if "L0" in key]
            assert not set(unmoved) & set(differences(before[1], learned_values(tower)))
    assert tower.skipped == 0


@pytest.mark.parametrize("name", MAKE)
def test_attached_in_mid_run(name):
    (model, tower), (twin, plain) = make_twins("momentum, height 1")
    for net, optimizer in ((model, tower), (twin, plain)):
        train(net, optimizer, range(8))
    learned = learned_values(tower)
    ours, theirs = MAKE[name](tower), MAKE[name](plain)
    assert not differences(learned, learned_values(tower))  # attaching costs nothing that was learned
    for step in range(8, 20):
        for net, optimizer, scheduler in ((model, tower, ours), (twin, plain, theirs)):
            backward(net, step)
            optimizer.step()
            advance(scheduler, step)
        assert written(tower) == written(plain)
        assert_composed(tower, plain)


@pytest.mark.parametrize("name", MAKE)
def test_resumed_with_its_state(name):
    """Model, tower and scheduler saved after 9 steps and loaded into new ones: the next 9 are bitwise the same."""
    (model, tower), _ = make_twins("momentum, height 1")
    scheduler = MAKE[name](tower)

    def go(model, tower, scheduler, steps):
        for step in steps:
            backward(model, step)
            tower.step()
            advance(scheduler, step)
        return dict(model.named_parameters()) | tower_values(tower) | {"written": written(tower)}

    go(model, tower, scheduler, range(9))
    saved = [{k: v.clone() for k, v in model.state_dict().items()}, tower.state_dict(), scheduler.state_dict()]
    (new_model, new_tower), _ = make_twins("momentum, height 1")
    new_scheduler = MAKE[name](new_tower)
    for target, state in zip((new_model, new_tower, new_scheduler), saved, strict=True):
        target.load_state_dict(state)
    assert not differences(go(model, tower, scheduler, range(9, 18)), go(new_model, new_tower, new_scheduler, range(9, 18)))
