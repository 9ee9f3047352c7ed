"""A tower survives a file, a new process, deepcopy and pickle bit for bit; hooks, closures and new groups work."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import (
    F64,
    ONE_UPDATE,
    TOWERS,
    Awkward,
    backward,
    batch,
    differences,
    learned_values,
    same,
    tower_values,
    train,
    two_groups,
)

import gdtuo

BEFORE, AFTER = range(12), range(12, 22)
SHAPES = pytest.mark.parametrize("shape", TOWERS)


def make(shape: str) -> tuple[Awkward, gdtuo.Level]:
    """A tower over two groups of the awkward network."""
    model = Awkward()
    return model, TOWERS[shape]().bind(two_groups(model, 0.02))


def everything(model: Awkward, optimizer: gdtuo.Level) -> dict:
    """Weights, values and state of every level, flat."""
    state = optimizer.state_dict()
    result = dict(model.named_parameters()) | tower_values(optimizer) | dict(optimizer.hyperparameters())
    result |= {f"state {i} {k}": v for i, entries in state["state"].items() for k, v in entries.items()}
    return result | {"skipped": optimizer.skipped} | {f"grad {k}": v for k, v in optimizer.hypergradients().items()}


def trace(model: Awkward, optimizer: gdtuo.Level, steps: range) -> list[dict]:
    """`everything` after each step."""
    result = []
    for step in steps:
        backward(model, step)
        optimizer.step()
        result.append(
            copy.deepcopy({k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in everything(model, optimizer).items()})
        )
    return result


def assert_same_trace(ours: list[dict], theirs: list[dict]) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert not differences(a, b), f"{step + 1} steps later"


def assert_learns(optimizer: gdtuo.Level, before: dict) -> None:
    """Something at every level has moved since `before`."""
    changed = {key.split("/")[1] for key in differences(before, learned_values(optimizer))}
    assert changed == {key.split("/")[1] for key in before}


# ---------------------------------------------------------------- copies


CONTINUE = """
import sys
import torch
import test_saving

with open(sys.argv[1], "rb") as file:
    saved = torch.load(file, weights_only=True)
traces = {}
for shape, (weights, state) in saved.items():
    model, optimizer = test_saving.make(shape)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    traces[shape] = test_saving.trace(model, optimizer, test_saving.AFTER)
torch.save(traces, sys.argv[2])
"""


def test_item_5_a_new_process_continues_bitwise(tmp_path):
    """All towers in one file and one process, which is slow to start."""
    saved, here = {}, {}
    for shape in TOWERS:
        model, optimizer = make(shape)
        train(model, optimizer, BEFORE)
        saved[shape] = (model.state_dict(), optimizer.state_dict())
        saved[shape] = copy.deepcopy(saved[shape])
        here[shape] = trace(model, optimizer, AFTER)
    torch.save(saved, tmp_path / "saved.pt")
    paths = [str(Path(__file__).parent), str(Path(gdtuo.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CONTINUE, str(tmp_path / "saved.pt"), str(tmp_path / "traces.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = torch.load(tmp_path / "traces.pt", weights_only=True)
    for shape in TOWERS:
        assert differences(here[shape][0], here[shape][-1])  # a standstill would be equal as well
        for step, (ours, theirs) in enumerate(zip(here[shape], there[shape], strict=True)):
            assert not differences(ours, theirs), f"{shape}, {step + 1} steps later"


def by_load(model, optimizer, shape):
    """Through state dicts and a file, in one process."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    twin, other = make(shape)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    return twin, other


WAYS = {
    "state_dict": by_load,
    "deepcopy": lambda model, optimizer, shape: copy.deepcopy((model, optimizer)),
    "pickle": lambda model, optimizer, shape: pickle.loads(pickle.dumps((model, optimizer))),
}


@pytest.mark.parametrize("way", WAYS)
@SHAPES
def test_item_8_a_copy_continues_bitwise_and_leaves_the_original_alone(shape, way):
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    model.zero_grad()
    twin, other = WAYS[way](model, optimizer, shape)
    assert type(other) is type(optimizer)
    assert str(other) == str(optimizer)
    assert not differences(everything(model, optimizer), everything(twin, other))
    original, learned = copy.deepcopy(everything(model, optimizer)), learned_values(other)
    copied = trace(twin, other, AFTER)
    assert_learns(other, learned)
    assert not differences(original, everything(model, optimizer))  # the original stood still
    assert_same_trace(trace(model, optimizer, AFTER), copied)


@SHAPES
def test_saved_between_backward_and_step(shape):
    """The pending pull-back is saved too; gradients are the caller's."""
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    twin, other = by_load(model, optimizer, shape)
    for net in (model, twin):
        backward(net, 12)
    a, b = optimizer.hypergradients(), other.hypergradients()
    assert a == b
    assert any(a.values())
    optimizer.step()
    other.step()
    assert not differences(everything(model, optimizer), everything(twin, other))


@pytest.mark.parametrize("when", [0, 6])
@SHAPES
def test_rolled_back(shape, when):
    """An earlier state loaded into an optimizer that has trained on: nothing of what it holds leaks in."""
    model, optimizer = make(shape)
    train(model, optimizer, range(when))
    weights, state = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    first = trace(model, optimizer, range(when, when + 6))
    train(model, optimizer, range(40, 46))
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    model.zero_grad()
    assert_same_trace(trace(model, optimizer, range(when, when + 6)), first)


@SHAPES
def test_item_6_an_earlier_state_dict_stays_as_it_was(shape):
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    snapshot = optimizer.state_dict()
    frozen = copy.deepcopy(snapshot)
    train(model, optimizer, AFTER)
    assert same(snapshot, frozen)
    assert not same(optimizer.state_dict(), frozen)


@SHAPES
def test_a_fresh_tower_saves_and_loads(shape):
    """Checkpoint tools load into an optimizer that has not stepped; accelerate loads its own state at once."""
    model, optimizer = make(shape)
    optimizer.load_state_dict(optimizer.state_dict())
    twin, other = make(shape)
    assert_same_trace(trace(model, optimizer, range(6)), trace(twin, other, range(6)))
    assert_learns(optimizer, {k: torch.zeros_like(v) for k, v in learned_values(optimizer).items()})


@SHAPES
def test_groups_and_state_hold_what_checkpoints_accept(shape):
    """Tensors and JSON-able primitives under flat string keys; nothing beside "state" and "param_groups"."""
    model, optimizer = make(shape)
    train(model, optimizer, range(3))
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    for entries in state["state"].values():
        assert all(isinstance(v, (torch.Tensor, int, float)) for v in entries.values())
    for group in state["param_groups"]:
        for key, value in group.items():
            assert isinstance(key, str)
            assert isinstance(value, (torch.Tensor, int, float, bool, type(None), list, tuple, str)), key
    with_gradient = {i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]) if p.requires_grad}
    assert with_gradient <= state["state"].keys()


def test_templates_copy_too():
    for name, build in TOWERS.items():
        template = build()
        for twin in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
            assert str(twin) == str(template)
            traces = []
            for tower in (template, twin):
                model = Awkward()
                traces.append(trace(model, tower.bind(two_groups(model, 0.02)), range(4)))
            assert_same_trace(*traces), name


# ---------------------------------------------------------------- state dicts from elsewhere


@pytest.mark.parametrize("optimizer", [gdtuo.SGD(), gdtuo.SGD(optimizer=gdtuo.SGD()), gdtuo.Adam(lr=0.01)], ids=str)
def test_a_torch_adam_state_dict_continues_in_a_tower(optimizer):
    """The first step after loading is torch's (there is nothing to pull back yet); then the tower learns."""
    model, twin = Awkward(), Awkward()
    theirs = torch.optim.Adam(two_groups(model, 0.02), lr=0.01, betas=(0.8, 0.95), amsgrad=True, foreach=False)
    train(model, theirs, BEFORE)
    ours = gdtuo.Adam(two_groups(twin, 0.5), lr=0.7, optimizer=optimizer)
    twin.load_state_dict(model.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
    assert [g["betas"] for g in ours.param_groups] == [(0.8, 0.95)] * 2
    learned = learned_values(ours)
    train(model, theirs, range(12, 13))
    train(twin, ours, range(12, 13))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    losses = train(twin, ours, range(13, 40))
    assert_learns(ours, learned)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("theirs", "ours"), [("Adam", gdtuo.AdamW), ("AdamW", gdtuo.Adam)])
def test_a_torch_dict_of_the_other_weight_decay_is_refused(theirs, ours):
    """torch's two have the same keys and states, and mark which decay is meant."""
    model = Awkward()
    saved = getattr(torch.optim, theirs)(model.parameters(), weight_decay=0.1)
    optimizer = ours(model.parameters(), weight_decay=0.1, optimizer=gdtuo.SGD())
    before = copy.deepcopy(everything(model, optimizer))
    with pytest.raises(ValueError, match=f"Use gdtuo.{theirs}"):
        optimizer.load_state_dict(saved.state_dict())
    assert not differences(before, everything(model, optimizer))


def test_a_torch_state_dict_with_frozen_learning_is_torch():
    model, twin = Awkward(), Awkward()
    theirs = torch.optim.Adam(two_groups(model, 0.02), lr=0.01, foreach=False)
    train(model, theirs, BEFORE)
    ours = gdtuo.Adam(two_groups(twin, 0.5), lr=0.7, optimizer=gdtuo.SGD())
    twin.load_state_dict(model.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours.learning = False
    for step in AFTER:
        train(model, theirs, range(step, step + 1))
        train(twin, ours, range(step, step + 1))
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


OTHERS = {
    "higher": lambda: gdtuo.Adam(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))),
    "lower": lambda: gdtuo.Adam(optimizer=gdtuo.SGD()),
    "learns more": lambda: gdtuo.Adam(learn=("lr", "betas"), optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "other granularity": lambda: gdtuo.Adam(per="tensor", optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "other level above": lambda: gdtuo.Adam(optimizer=gdtuo.Adam(optimizer=gdtuo.SGD())),
    "torch on top": lambda: gdtuo.Adam(optimizer=gdtuo.SGD(optimizer=torch.optim.SGD)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_towers_dict_is_refused_and_changes_nothing(other):
    model, optimizer = make("adam/sgd/sgd")
    train(model, optimizer, BEFORE)
    net = Awkward()
    stranger = OTHERS[other]().bind(two_groups(net, 0.02))
    train(net, stranger, BEFORE)
    before = copy.deepcopy(everything(model, optimizer))
    with pytest.raises(ValueError, match="Build the optimizer with the optimizer="):
        optimizer.load_state_dict(stranger.state_dict())
    assert not differences(before, everything(model, optimizer))
    # and it trains on as if nothing had happened
    twin, undisturbed = make("adam/sgd/sgd")
    train(twin, undisturbed, BEFORE)
    assert_same_trace(trace(model, optimizer, AFTER), trace(twin, undisturbed, AFTER))


def test_a_dict_of_other_groups_is_refused_and_changes_nothing():
    model, optimizer = make("adam/sgd/sgd")
    train(model, optimizer, BEFORE)
    net = Awkward()
    stranger = TOWERS["adam/sgd/sgd"]().bind(net.parameters())
    before = copy.deepcopy(everything(model, optimizer))
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(stranger.state_dict())
    assert not differences(before, everything(model, optimizer))


# ---------------------------------------------------------------- new groups


@pytest.mark.parametrize("lr", ["float", "tensor", "default"])
@SHAPES
def test_item_9_a_new_group_in_mid_run(shape, lr):
    """What was learned stays, to the bit; the old groups go on as without the new one; the new one learns."""
    extra = torch.nn.Parameter(torch.ones(4, dtype=F64))

    def run(add: bool):
        model = Awkward()
        optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
        train(model, optimizer, BEFORE)
        if add:
            rate = {"float": {"lr": 0.03}, "tensor": {"lr": torch.tensor(0.03, dtype=F64)}, "default": {}}[lr]
            before = copy.deepcopy(everything(model, optimizer))
            optimizer.add_param_group({"params": [extra], **rate})
            after = everything(model, optimizer)
            assert not [key for key in differences(before, after) if key in before and not key.startswith(("state", "grad"))]
            assert optimizer.hyperparameters()["L0/g2/lr"] if "tensor" not in shape and "element" not in shape else True
        for step in AFTER:
            backward(model, step)
            if add:
                optimizer.zero_grad()
                backward(model, step)
                extra.grad = None
                (extra - 3).square().sum().backward()
            optimizer.step()
        return model, optimizer

    (alone, without), (model, optimizer) = run(False), run(True)
    assert not differences(dict(alone.named_parameters()), dict(model.named_parameters()))
    old, new = tower_values(without), tower_values(optimizer)
    assert not [key for key in old if not same(old[key], new[key])]
    assert (extra > 1).all()
    shifts = {key: value for key, value in new.items() if key.startswith("g2/") and key.endswith("shift")}
    assert all(value.any() for value in shifts.values()), shifts
    assert [g["lr"] for g in optimizer.param_groups[:2]] == [g["lr"] for g in without.param_groups]


@SHAPES
def test_a_new_group_leaves_the_reported_hypergradients(shape):
    """They are what the last step used, although its gradients still stand in `p.grad`."""
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    before = optimizer.hypergradients()
    assert any(before.values())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4, dtype=F64))]})
    after = optimizer.hypergradients()
    assert {key: after[key] for key in before} == before


@SHAPES
def test_unfreezing_keeps_what_was_learned(shape):
    """A parameter that first has a gradient in mid-run gets its place; until then the run is the frozen one's."""
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    model.frozen.requires_grad_(True)
    before, twin = tower_values(optimizer), copy.deepcopy((model, optimizer))
    backward(model, 12)
    optimizer.hyperparameters()
    assert not differences(before, tower_values(optimizer))  # laid out anew, nothing lost
    optimizer.step()
    # the new parameter has no update to pull back yet: the tower learns as if it were not there
    undisturbed_model, undisturbed = twin
    backward(undisturbed_model, 12)
    undisturbed_model.frozen.grad = None
    undisturbed.step()
    shifts = learned_values(optimizer), learned_values(undisturbed)
    assert [key for key in shifts[0] if shifts[0][key].any()]
    if "per element" not in shape and "per tensor" not in shape:
        assert not differences(*shifts)
    losses = train(model, optimizer, range(13, 60))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@SHAPES
def test_item_9_an_empty_group(shape):
    model, optimizer = make(shape)
    train(model, optimizer, BEFORE)
    twin, other = make(shape)
    train(twin, other, BEFORE)
    optimizer.add_param_group({"params": []})
    train(model, optimizer, AFTER)
    train(twin, other, AFTER)
    for a, b in zip(twin.parameters(), model.parameters(), strict=True):  # the arrays were laid out anew: other vector loops
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    assert all(torch.isfinite(torch.tensor(list(optimizer.hyperparameters().values()))))
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(22, 24))


def test_item_1_groups_with_one_tensor_lr_do_not_alias():
    """A tensor default stands in every group that names none, once each: writing to one leaves the others."""
    w = [torch.nn.Parameter(torch.ones(2, dtype=F64)) for _ in range(3)]
    groups, lr = [{"params": [w[0]]}, {"params": [w[1]]}], torch.tensor(0.1, dtype=F64)
    optimizer = gdtuo.SGD(groups, lr=lr, optimizer=gdtuo.SGD(), **ONE_UPDATE)
    optimizer.add_param_group({"params": [w[2]]})
    for step in range(5):
        for i, p in enumerate(w):
            p.grad = torch.full_like(p, (-1.0) ** (step * i))
        optimizer.step()
    values = optimizer.hyperparameters()
    assert len({values[f"L0/g{g}/lr"] for g in range(2)}) == 2
    assert [float(g["lr"]) for g in optimizer.param_groups] == [0.1] * 3  # the written number is never touched


def test_a_bad_new_group_changes_nothing():
    model, optimizer = make("adam/sgd/sgd")
    train(model, optimizer, BEFORE)
    before = copy.deepcopy(everything(model, optimizer))
    for bad in ({"lr": -1.0}, {"betas": (0.9, 1.5)}, {"L1/lr": -0.1}):
        with pytest.raises(ValueError, match="a number"):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], **bad})
        assert len(optimizer.param_groups) == 2
        assert not differences(before, everything(model, optimizer))


# ---------------------------------------------------------------- hooks, closures


def test_hooks_run():
    model, optimizer = make("adam/sgd/sgd")
    seen = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", model.tied.detach().clone())))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", model.tied.detach().clone())))
    backward(model, 0)
    before = model.tied.detach().clone()
    optimizer.step()
    assert [name for name, _ in seen] == ["pre", "post"]
    assert torch.equal(seen[0][1], before)
    assert torch.equal(seen[1][1], model.tied)
    assert not torch.equal(before, model.tied)


def test_hooks_of_state_dicts_run():
    model, optimizer = make("adam/sgd/sgd")
    train(model, optimizer, range(4))
    calls = []

    def after_saving(opt, state):
        calls.append("saved")
        return {**state, "note": 7}

    def before_loading(opt, state):
        calls.append("loading")
        assert state["note"] == 7
        return {key: value for key, value in state.items() if key != "note"}

    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("saving"))
    optimizer.register_state_dict_post_hook(after_saving)
    optimizer.register_load_state_dict_pre_hook(before_loading)
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append("loaded"))
    before = copy.deepcopy(tower_values(optimizer))
    calls.clear()
    state = optimizer.state_dict()
    assert state["note"] == 7
    optimizer.load_state_dict(state)
    assert calls == ["saving", "saved", "loading", "loaded"]
    calls.clear()
    assert not differences(before, tower_values(optimizer))


def test_a_load_hook_may_translate_a_foreign_dict():
    """What a pre-hook returns is what is checked and loaded."""
    model, optimizer = make("adam/sgd/sgd")
    train(model, optimizer, range(4))
    twin, other = make("adam/sgd/sgd")
    other.register_load_state_dict_pre_hook(lambda opt, wrapped: wrapped["inner"])
    twin.load_state_dict(model.state_dict())
    other.load_state_dict({"inner": optimizer.state_dict()})
    assert_same_trace(trace(model, optimizer, AFTER), trace(twin, other, AFTER))


@pytest.mark.parametrize("grad_mode", [True, False])
@SHAPES
def test_item_2_the_closure_is_called_once_and_its_loss_returned(shape, grad_mode):
    model, optimizer = make(shape)
    twin, other = make(shape)
    for step in range(6):
        calls = []

        def closure(step=step, calls=calls):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = (model(batch(step)) - batch(step)).square().mean()
            loss.backward()
            calls.append(loss)
            return loss

        with torch.set_grad_enabled(grad_mode):
            returned = optimizer.step(closure)
        assert len(calls) == 1
        assert returned is calls[0]
        assert backward(twin, step) == returned.item()
        other.step()
        assert not differences(everything(twin, other), everything(model, optimizer))


def test_zero_grad_keeps_or_drops_gradients():
    """`set_to_none=False` reuses the gradient's memory: what the pull-back needs was copied."""
    runs = []
    for drop in (True, False):
        model, optimizer = make("adam/sgd/sgd")
        for step in range(10):
            optimizer.zero_grad(set_to_none=drop)
            (model(batch(step)) - batch(step)).square().mean().backward()
            optimizer.step()
        runs.append(everything(model, optimizer))
    assert not differences(*runs)
