"""Without `optimizer=` a level is the torch optimizer of the same name, update for update; Lion that of its own package."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cases import CONFIGURATIONS, F64, PAIRS, RICH, backward, batch, describe, two_groups

STEPS = 25
#: what 25 steps of differently ordered rounding may add up to
TOLERANCE = {F64: 1e-12, torch.float32: 1e-6}
CLASSES = pytest.mark.parametrize("name", PAIRS)
pytestmark = pytest.mark.usefixtures("numbers_of_64_bits")


def make_twins(name: str, options: dict[str, Any], dtype: torch.dtype = F64, grouped: bool = True):
    """(model, our optimizer), (model, torch's), alike."""
    pair = PAIRS[name]
    result = []
    for cls, extra in ((pair.ours, {}), (pair.theirs, pair.extra)):
        model = pair.model(dtype)
        params = two_groups(model, pair.lr) if grouped else model.parameters()
        result.append((model, cls(params, lr=pair.lr, **options, **extra)))
    return result


def assert_same_weights(ours, theirs, tolerance: float, step: int) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"step {step}, {n}: {m}")


def step_both(twins, step: int, tolerance: float = 1e-12, edit=lambda model: None, dtype: torch.dtype = F64) -> None:
    """One backward and step of each, gradients edited alike; then compare."""
    for model, optimizer in twins:
        backward(model, step, dtype, maximize=optimizer.param_groups[0].get("maximize", False))
        edit(model)
        optimizer.step()
    assert_same_weights(twins[0][0], twins[1][0], tolerance, step)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=[f"{n}-{describe(o)}" for n, o in CONFIGURATIONS])
def test_every_option(name, options, dtype):
    twins = make_twins(name, options, dtype)
    model, before = twins[0][0], twins[0][0].weights()
    for step in range(STEPS):
        step_both(twins, step, TOLERANCE[dtype], dtype=dtype)
        if name == "muon" and dtype != F64:  # the last bit of a weight may decide how a gradient is rounded to 16 bits
            twins[0][0].load_state_dict(twins[1][0].state_dict())
    names = [n for n, _ in model.named_parameters()]
    moved = [n for n, old, p in zip(names, before, model.parameters(), strict=True) if not torch.equal(old, p)]
    assert moved == ["tied", "bias", "scale"]  # and neither the frozen nor the unused one


@CLASSES
def test_defaults(name):
    pair = PAIRS[name]
    model, twin = pair.model(), pair.model()
    ours, theirs = pair.ours(model.parameters()), pair.theirs(twin.parameters())
    common = ours.defaults.keys() & theirs.defaults.keys()
    assert theirs.defaults.keys() - common <= {"decoupled_weight_decay"}
    different = {key for key in common if ours.defaults[key] != theirs.defaults[key]}
    assert different == ({"lr"} if name == "sgd" else set())
    if name == "sgd":
        assert (ours.defaults["lr"], theirs.defaults["lr"]) == (1e-2, 1e-3)
        theirs.param_groups[0]["lr"] = 1e-2
    for step in range(STEPS):
        step_both([(model, ours), (twin, theirs)], step)


@CLASSES
def test_arguments_stand_in_torchs_order(name):
    pair = PAIRS[name]
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (pair.ours, pair.theirs))
    positional = [[p.name for p in ps if p.kind is p.POSITIONAL_OR_KEYWORD] for ps in (ours, theirs)]
    assert positional[0] == positional[1]
    assert {p.name for p in theirs} - {p.name for p in ours} <= {"decoupled_weight_decay"}
    # and positions mean the same: every number at its own value
    values = {"sgd": (0.1, 0.9, 0.0, 0.2, True), "adam": (0.1, (0.8, 0.9), 1e-3, 0.2, True)}
    values |= {"adamw": values["adam"], "adagrad": (0.1, 0.2, 0.3, 0.4, 0.5), "rmsprop": (0.1, 0.7, 1e-3, 0.2, 0.4, True)}
    values |= {"lion": (0.1, (0.8, 0.9), 0.2), "nadam": (0.1, (0.8, 0.9), 1e-3, 0.2, 0.3, True)}
    values |= {"radam": (0.1, (0.8, 0.9), 1e-3, 0.2, True), "adafactor": (0.1, -0.5, (1e-4, 0.1), 1.3, 0.2)}
    values |= {"muon": (0.1, 0.2, 0.8, False, (1.0, 2.0, 3.0), 1e-3, 4, "original")}
    a, b = (cls([torch.nn.Parameter(torch.ones(2, 2))], *values[name]) for cls in (pair.ours, pair.theirs))
    shared = [k for k in b.defaults if k in a.defaults]
    assert {k: a.defaults[k] for k in shared} == {k: b.defaults[k] for k in shared}


@CLASSES
def test_named_parameters(name):
    pair = PAIRS[name]
    model, twin = pair.model(), pair.model()
    ours = pair.ours(model.named_parameters(), lr=pair.lr, **RICH[name])
    theirs = pair.theirs(twin.named_parameters(), lr=pair.lr, **RICH[name])
    for step in range(5):
        step_both([(model, ours), (twin, theirs)], step)
    names = [group["param_names"] for group in ours.state_dict()["param_groups"]]
    assert names == [group["param_names"] for group in theirs.state_dict()["param_groups"]]
    assert names[0] == ["tied", "bias", "frozen", "unused", "scale"]


@CLASSES
def test_one_tensor_lr_in_two_groups(name):
    pair = PAIRS[name]
    twins = []
    for cls in (pair.ours, pair.theirs):
        model = pair.model()
        rate = torch.tensor(pair.lr, dtype=F64)
        groups = [{"params": [model.tied, model.unused], "lr": rate}, {"params": [model.bias, model.scale], "lr": rate}]
        twins.append((model, cls(groups, lr=1.0, **RICH[name])))
    for step in range(12):
        for _, optimizer in twins:
            if step == 6:  # one write reaches both groups, in torch; the shared tensor stays the user's
                optimizer.param_groups[0]["lr"].mul_(0.5)
        step_both(twins, step)


@CLASSES
def test_tensor_lr_is_read_at_every_step(name):
    pair = PAIRS[name]
    twins = []
    for cls in (pair.ours, pair.theirs):
        model = pair.model()
        twins.append((model, cls(model.parameters(), lr=torch.tensor(pair.lr, dtype=F64), **RICH[name])))
    for step in range(12):
        for _, optimizer in twins:
            optimizer.param_groups[0]["lr"].fill_(pair.lr / (1 + step))
        step_both(twins, step)


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if pair.complex])
@pytest.mark.parametrize("plain", [True, False])
def test_complex_parameters(name, plain):
    pair = PAIRS[name]
    options = {} if plain else RICH[name]
    make = torch.Generator().manual_seed(5)
    start = torch.randn(3, 2, generator=make, dtype=torch.complex128)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    real = [torch.nn.Parameter(torch.ones(4, dtype=F64)) for _ in range(2)]
    optimizers = [
        cls([weights[i], real[i]], lr=pair.lr, **options, **(pair.extra if i else {}))
        for i, cls in enumerate((pair.ours, pair.theirs))
    ]
    for step in range(STEPS):
        direction = torch.randn(3, 2, generator=make, dtype=torch.complex128)
        for w, r, optimizer in zip(weights, real, optimizers, strict=True):
            optimizer.zero_grad()
            (((w - direction).abs() ** 2).mean() + (r * r * w.real.mean()).mean()).backward()
            optimizer.step()
        for ours, theirs in (weights, real):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda m, s=step: f"step {s}: {m}")


@CLASSES
@pytest.mark.parametrize("options", ["plain", "rich"])
def test_state_dict_to_us_and_back(name, options):
    """torch for 6 steps, ours for 6, torch for 6: as torch for 18; the state has torch's names and shapes."""
    pair, options = PAIRS[name], RICH[name] if options == "rich" else {}
    (model, ours), (twin, theirs) = make_twins(name, options)
    for step in range(6):
        backward(twin, step)
        theirs.step()
    model.load_state_dict(twin.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for step in range(6, 12):
        step_both([(model, ours), (twin, theirs)], step)
    third = pair.model()
    third.load_state_dict(model.state_dict())
    back = pair.theirs(two_groups(third, 1.0), lr=1.0, **pair.extra)
    back.load_state_dict(ours.state_dict())
    for step in range(12, 18):
        step_both([(third, back), (twin, theirs)], step)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in theirs.state.get(q, {}).items():
            if isinstance(value, torch.Tensor):
                assert ours.state[p][key].shape == value.shape, key


@CLASSES
@pytest.mark.parametrize("options", ["plain", "rich"])
def test_gradients_that_are_none_at_times(name, options):
    twins = make_twins(name, RICH[name] if options == "rich" else {})
    make = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        present = torch.rand(5, generator=make) < 0.6

        def drop(model, present=present):
            for keep, p in zip(present, model.parameters(), strict=True):
                p.grad = p.grad if keep else None

        step_both(twins, step, edit=drop)
    counts = {float(state["step"]) for state in twins[0][1].state.values() if "step" in state}
    assert len(counts) > 2  # the histories really differ


@CLASSES
@pytest.mark.parametrize("options", ["plain", "rich"])
def test_frozen_first_and_unfrozen_later(name, options):
    twins = make_twins(name, RICH[name] if options == "rich" else {})
    before = twins[0][0].frozen.detach().clone()
    for step in range(STEPS):
        if step == 8:
            assert torch.equal(before, twins[0][0].frozen)
            for model, _ in twins:
                model.frozen.requires_grad_(True)
                model.tied.requires_grad_(False)
                model.tied.grad = None
        if step == 16:
            for model, _ in twins:
                model.tied.requires_grad_(True)
        step_both(twins, step)
    assert not torch.equal(before, twins[0][0].frozen)


@CLASSES
def test_bfloat16(name):
    """The state keeps the weights' dtype, as torch's does; each update agrees to a rounding or two of bf16."""
    pair = PAIRS[name]
    make = torch.Generator().manual_seed(11)
    start = torch.randn(5, 8, generator=make)
    weights = [torch.nn.Parameter(start.to(torch.bfloat16)) for _ in range(2)]
    ours = pair.ours([weights[0]], lr=0.05)
    theirs = pair.theirs([weights[1]], lr=0.05, **pair.extra)
    eps = torch.finfo(torch.bfloat16).eps
    for step in range(10):
        gradient = torch.randn(5, 8, generator=make).to(torch.bfloat16)
        for w, optimizer in zip(weights, (ours, theirs), strict=True):
            w.grad = gradient.clone()
            optimizer.step()
            assert w.dtype == torch.bfloat16
        torch.testing.assert_close(
            weights[0], weights[1], rtol=2 * eps, atol=4 * eps * 0.05, msg=lambda m, s=step: f"step {s}: {m}"
        )
        with torch.no_grad():
            weights[1].copy_(weights[0])  # each update on its own
    for key, value in theirs.state[weights[1]].items():
        if isinstance(value, torch.Tensor) and value.dim():
            assert ours.state[weights[0]][key].dtype == value.dtype, key


@CLASSES
def test_closure(name):
    twins = make_twins(name, RICH[name])
    for step in range(5):
        losses = []
        for model, optimizer in twins:

            def closure(model=model, step=step):
                model.zero_grad()
                x = batch(step)
                loss = (model(x) - x).square().mean()
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure))
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
        assert_same_weights(twins[0][0], twins[1][0], 1e-12, step)
