"""When, where and within which bounds a tower learns."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from functools import partial

import pytest
import torch
from cases import F64, Awkward, backward, train

import gdtuo


def differences(a, b):
    return [name for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True) if not torch.equal(p, q)]


# ---------------------------------------------------------------- when


def descend(steps, after, every, horizon, lr=0.1, hyper_lr=0.02):
    """SGD that learns log lr from some steps alone, in plain numbers: (weights, learning rate after each step)."""
    w, shift, last, trace = torch.tensor([1.0, -2.0], dtype=F64), 0.0, None, torch.zeros(2, dtype=F64)
    rates = []
    for n in range(1, steps + 1):
        g = gradient(w, n)
        if last is not None and n > after and (n - after) % every == 0:
            shift -= hyper_lr * float(g @ trace)
        rate = lr * math.exp(shift)
        trace = (1 - 1 / horizon) * trace - rate * g  # of w by the shift
        w, last = w - rate * g, g
        rates.append(rate)
    return w, rates


def gradient(w, n):
    """Of a quadratic whose minimum moves about."""
    return torch.tensor([1.0, 3.0], dtype=F64) * (w - torch.tensor([math.sin(n), math.cos(2 * n)], dtype=F64))


@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize(("after", "every"), [(0, 1), (5, 1), (0, 3), (4, 3)])
def test_learning_after_n_steps_every_k_steps(after, every, horizon):
    expected, rates = descend(14, after, every, horizon)
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
    hyper = gdtuo.SGD(lr=0.02)
    optimizer = gdtuo.SGD(
        [w], lr=0.1, optimizer=hyper, hypergradient="exact", learn_after=after, learn_every=every, horizon=horizon
    )
    for n, rate in enumerate(rates, start=1):
        w.grad = gradient(w.detach(), n)
        optimizer.step()
        assert optimizer.hyperparameters()["L0/g0/lr"] == pytest.approx(rate, rel=1e-12)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=0)
    assert len(set(rates)) == 1 + sum(n > max(after, 1) and (n - after) % every == 0 for n in range(1, 15))


def test_hyperstep_learns_between_the_steps_that_do():
    """The update that it judges is the last one, though the step after it would not have learned."""
    model = Awkward()
    optimizer = gdtuo.Adam(model.parameters(), lr=0.01, optimizer=gdtuo.SGD(), learn_every=100)
    twin, other = Awkward(), None
    other = gdtuo.Adam(twin.parameters(), lr=0.01, optimizer=gdtuo.SGD())
    for each, tower in ((model, optimizer), (twin, other)):
        backward(each, 0)
        tower.step()
        backward(each, 1)
        tower.hyperstep()
    assert optimizer.hyperparameters()["L0/g0/lr"] == other.hyperparameters()["L0/g0/lr"] != 0.01


def test_resuming_keeps_the_count_of_steps():
    def make():
        model = Awkward()
        return model, gdtuo.Adam(model.parameters(), lr=0.01, optimizer=gdtuo.SGD(lr=0.05), learn_after=2, learn_every=4)

    model, optimizer = make()
    train(model, optimizer, range(7))
    resumed, other = make()
    resumed.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, range(7, 16))
    train(resumed, other, range(7, 16))
    assert not differences(model, resumed)
    assert other.hyperparameters() == optimizer.hyperparameters()


# ---------------------------------------------------------------- where

NAMES = ("tied", "bias", "scale")
OWN = {
    "tied": {"learn": ("lr", "beta1"), "lr": 0.02},
    "bias": {"optimizer": gdtuo.Adam(lr=0.03, optimizer=gdtuo.SGD(lr=0.02))},
    "scale": {"learn": (), "lr": 0.03},
    "unused": {"optimizer": None},
    "frozen": {"optimizer": partial(torch.optim.SGD, lr=0.02, momentum=0.5)},
}


def together(**options):
    """One optimizer whose groups name what is theirs."""
    model = Awkward()
    groups = [{"params": [(name, p)], **OWN[name]} for name, p in model.named_parameters()]
    return model, gdtuo.Adam(groups, lr=0.01, optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()), **options)


def apart(**options):
    """An optimizer for each."""
    model = Awkward()
    optimizers = []
    for name, p in model.named_parameters():
        settings = {"lr": 0.01, "optimizer": gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()), **options, **OWN[name]}
        if settings.get("learn") == ():
            settings |= {"learn": "lr", "optimizer": None}
        if settings["optimizer"] is None:
            settings.pop("learn", None)
        optimizers.append(gdtuo.Adam([p], **settings))
    return model, optimizers


@pytest.mark.parametrize("options", [{}, {"per": "tensor"}, {"hypergradient": "exact"}, {"horizon": 3}, {"per": "element"}])
def test_groups_with_towers_of_their_own_are_optimizers_of_their_own(options):
    (model, optimizer), (twin, others) = together(**options), apart(**options)
    model.frozen.requires_grad_(True)
    twin.frozen.requires_grad_(True)
    for step in range(12):
        backward(model, step)
        optimizer.step()
        backward(twin, step)
        for other in others:
            other.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
    found = optimizer.hyperparameters()
    for g, ((name, _), other) in enumerate(zip(model.named_parameters(), others, strict=True)):
        for key, value in other.hyperparameters().items():
            pattern = key.replace("/g0/", f"/g{g}/").removesuffix("/0") + f"(/{name}|/mean)?"
            mine = next((k for k in found if re.fullmatch(pattern, k)), "")
            if OWN[name].get("learn") != () or key.startswith("L0"):
                assert found[mine] == pytest.approx(value, rel=1e-12), key
    assert not [key for key in optimizer.hypergradients() if key.startswith("L0/g4")]  # "scale" learns nothing
    assert list(found) == sorted(found, key=lambda key: [int(part[1:]) for part in key.split("/")[:2]])


def test_groups_that_name_the_same_object_share_a_tower():
    model, hyper = Awkward(), gdtuo.SGD(lr=0.05)
    optimizer = gdtuo.SGD([{"params": [p], "optimizer": hyper} for p in model.parameters()], lr=0.01)
    assert len(optimizer._parts.engines) == 1
    assert optimizer.learning
    train(model, optimizer, range(3))
    assert optimizer.hyperparameters()["L0/g0/lr"] != 0.01


@pytest.mark.parametrize("way", ["load", "pickle", "deepcopy"])
def test_saving_groups_with_towers_of_their_own(way):
    model, optimizer = together()
    train(model, optimizer, range(6))
    if way == "load":
        copied, other = together()
        train(copied, other, range(50, 52))
        copied.load_state_dict(model.state_dict())
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        copied, other = pickle.loads(pickle.dumps((model, optimizer))) if way == "pickle" else copy.deepcopy((model, optimizer))
    train(model, optimizer, range(6, 10))
    train(copied, other, range(6, 10))
    assert not differences(model, copied)
    assert other.hyperparameters() == optimizer.hyperparameters()


def test_another_assignment_of_towers_does_not_load():
    model, optimizer = together()
    state = optimizer.state_dict()
    groups = [{"params": [p], "optimizer": OWN["bias"]["optimizer"]} for p in model.parameters()]
    other = gdtuo.Adam(groups, lr=0.01, optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()))
    before = other.hyperparameters()
    with pytest.raises(ValueError, match="Build the optimizer with the optimizer=, learn= and per= that it was saved with"):
        other.load_state_dict(state)
    assert other.hyperparameters() == before


def test_a_group_of_ones_own_dictionaries_can_be_used_again():
    """They are not emptied of what they name."""
    model = Awkward()
    groups = [{"params": [p], "optimizer": gdtuo.Adam()} for p in model.parameters()]
    for _ in range(2):
        assert gdtuo.SGD(groups).learning


def test_adding_a_group_with_a_tower_of_its_own_in_mid_run():
    model = Awkward()
    optimizer = gdtuo.Adam([model.tied], lr=0.01, optimizer=gdtuo.SGD(lr=0.05))
    twin = Awkward()
    first, second = gdtuo.Adam([twin.tied], lr=0.01, optimizer=gdtuo.SGD(lr=0.05)), None
    for step in range(8):
        if step == 4:
            optimizer.add_param_group({"params": [model.bias], "lr": 0.02, "optimizer": gdtuo.Adam(lr=0.03)})
            second = gdtuo.Adam([twin.bias], lr=0.02, optimizer=gdtuo.Adam(lr=0.03))
        backward(model, step)
        optimizer.step()
        backward(twin, step)
        first.step()
        if second is not None:
            second.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    assert optimizer.hyperparameters()["L0/g1/lr"] == pytest.approx(second.hyperparameters()["L0/g0/lr"], rel=1e-12)


def test_a_group_stops_learning_in_mid_run_where_it_stands():
    """Though the level above has momentum; and goes on when it is told to."""
    model = Awkward()
    optimizer = gdtuo.Adam([model.tied, model.bias], lr=0.01, optimizer=gdtuo.SGD(lr=0.05, momentum=0.9), learn=("lr", "beta1"))
    train(model, optimizer, range(5))
    group = optimizer.param_groups[0]
    group["learn"] = "beta1"
    rate, beta = (optimizer.hyperparameters()[f"L0/g0/{name}"] for name in ("lr", "beta1"))
    train(model, optimizer, range(5, 8))
    assert optimizer.hyperparameters()["L0/g0/lr"] == rate
    assert optimizer.hyperparameters()["L0/g0/beta1"] != beta
    assert list(optimizer.hypergradients()) == ["L0/g0/beta1"]
    group["learn"] = ("lr", "beta1")
    train(model, optimizer, range(8, 10))
    assert optimizer.hyperparameters()["L0/g0/lr"] != rate


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bounds_of_each_hyperparameter_hold_and_are_attained(sign):
    bounds = {"lr": (4e-3, 3e-2), "beta1": (0.8, 0.95), "beta2": (0.9, 0.9995), "weight_decay": (0.05, 0.2), "eps": (1e-9, 1e-7)}
    domains = {
        name: (gdtuo.UnitInterval if "beta" in name else gdtuo.Positive)(minimum=low, maximum=high)
        for name, (low, high) in bounds.items()
    }
    w = torch.nn.Parameter(torch.full((3,), 2.0, dtype=F64))
    optimizer = gdtuo.AdamW([w], lr=1e-2, weight_decay=0.1, optimizer=gdtuo.SGD(lr=1.0), learn="all", domains=domains)
    seen = {name: [] for name in bounds}
    for step in range(30):
        w.grad = w.detach() * (sign if step % 2 else 1.0) * (1 + step % 3)
        optimizer.step()
        for name in bounds:
            seen[name].append(optimizer.hyperparameters()[f"L0/g0/{name}"])
    for name, (low, high) in bounds.items():
        assert low * (1 - 1e-12) <= min(seen[name]) <= max(seen[name]) <= high * (1 + 1e-12)
    attained = [min(abs(v / bound - 1) for v in seen["lr"]) for bound in bounds["lr"]]
    assert min(attained) < 1e-12


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda p: gdtuo.SGD([p], optimizer=gdtuo.SGD(), learn_every=0), "an integer >= 1. The default is 1"),
        (lambda p: gdtuo.SGD([p], optimizer=gdtuo.SGD(), learn_after=-1), "an integer >= 0. The default is 0"),
        (lambda p: gdtuo.SGD([p], optimizer=gdtuo.SGD(), learn_every=2.0), "an integer >= 1"),
        (lambda p: gdtuo.SGD([p], optimizer=gdtuo.SGD(learn_every=2)), "Give it there"),
        (lambda p: gdtuo.SGD([p], optimizer=gdtuo.SGD(sharded=True)), "Give it there"),
        (lambda p: gdtuo.SGD([p], sharded="yes"), "Give True, or the process group"),
        (lambda p: gdtuo.SGD([{"params": [p], "learn": "lr"}]), r"Add optimizer=gdtuo.SGD\(\)"),
        (lambda p: gdtuo.SGD([{"params": [p], "learn": "betas"}], optimizer=gdtuo.SGD()), "It has lr, momentum"),
        (lambda p: gdtuo.SGD([{"params": [p], "optimizer": gdtuo.SGD}]), r"optimizer=SGD\(\)"),
        (lambda p: gdtuo.SGD([{"params": [p], "optimizer": "sgd"}]), "Give a level without parameters"),
        (lambda p: gdtuo.SGD([{"params": [p], "learn": "weight_decay"}], optimizer=gdtuo.SGD()), "Start above 0"),
        (lambda p: gdtuo.SGD([{"params": [p], "optimizer": gdtuo.SGD(), "L1/lr": -1.0}]), "a learning rate is a number >= 0"),
    ],
)
def test_mistakes(make, remedy):
    with pytest.raises((ValueError, TypeError), match=remedy):
        make(torch.nn.Parameter(torch.ones(2)))


def test_asking_in_mid_run_for_what_was_never_learned():
    model = Awkward()
    optimizer = gdtuo.Adam([model.tied, model.bias], optimizer=gdtuo.SGD())
    train(model, optimizer, range(2))
    before = model.weights()
    optimizer.param_groups[0]["learn"] = ("lr", "eps")
    backward(model, 2)
    with pytest.raises(ValueError, match=r"learn=\('lr', 'eps'\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))
