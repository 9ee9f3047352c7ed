"""gdtuo.export: the plain torch optimizer goes on where the tower stood, number for number."""

from __future__ import annotations

import copy
import inspect
import json
import math

import pytest
import torch
from cases import F64, NEWER, PAIRS, RICH, Awkward, Drift, backward, differences, same, train, two_groups
from torch.optim import lr_scheduler as schedulers

import gdtuo
from gdtuo.export import TWINS

#: class -> options with which all of its update is in use, and that torch takes whatever is learned
CLASSES = {name: {k: v for k, v in RICH[name].items() if k != "lr"} for name in PAIRS if name != "lion"}
SWITCHED = {
    "sgd": {"momentum": 0.9, "nesterov": True, "maximize": True},
    "adam": {"maximize": True},
    "adamw": {},
    "adagrad": {"maximize": True},
    "rmsprop": {},
    "nadam": {"maximize": True},
    "radam": {"weight_decay": 0.1},
    "adafactor": {},
    "muon": {"adjust_lr_fn": "match_rms_adamw"},
}
TOWERS = {
    "height 0": dict,
    "height 1, lr": lambda: {"optimizer": gdtuo.SGD(lr=0.05)},
    "height 2, all": lambda: {"learn": "all", "optimizer": gdtuo.Adam(lr=0.02, optimizer=gdtuo.SGD())},
    "height 1, all per tensor": lambda: {"learn": "all", "per": "tensor", "optimizer": gdtuo.SGD(lr=0.05)},
    "torch on top": lambda: {"horizon": 3, "optimizer": lambda params: torch.optim.Adam(params, lr=0.02)},
}


def named_groups(model):
    """Two groups of named parameters, the second with numbers of its own and a key of its user's."""
    named = dict(model.named_parameters())
    first = [(name, named[name]) for name in ("tied", "frozen", "unused")]
    second = [(name, named[name]) for name in ("bias", "scale")]
    return [{"params": first, "name": "body"}, {"params": second, "lr": 0.01, "weight_decay": 0.05, "name": "head"}]


def make(name, tower, options, groups=named_groups, steps=8):
    """A network and a tower that has learned."""
    pair = PAIRS[name]
    model = pair.model()
    optimizer = pair.ours(groups(model), lr=pair.lr, **options, **TOWERS[tower]())
    for step in range(steps):
        backward(model, step, maximize=options.get("maximize", False))
        optimizer.step()
    return model, optimizer


def frozen_twin(model, optimizer):
    """Copies of both, which learn no more."""
    twin, other = copy.deepcopy((model, optimizer))
    if other.height:
        other.learning = False
    return twin, other


def assert_same_weights(model, twin, **tolerance):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


# ---------------------------------------------------------------- going on


@pytest.mark.usefixtures("numbers_of_64_bits")
@pytest.mark.parametrize("options", [CLASSES, SWITCHED], ids=["rich", "switched"])
@pytest.mark.parametrize(
    ("name", "tower"), [(name, tower) for name in CLASSES for tower in TOWERS if name not in NEWER or "all per tensor" in tower]
)
def test_goes_on_as_the_frozen_tower_does(name, tower, options):
    model, optimizer = make(name, tower, options[name])
    twin, frozen = frozen_twin(model, optimizer)
    exported = gdtuo.export(optimizer)
    assert type(exported) is PAIRS[name].theirs
    for step in range(8, 20):
        for net, opt in ((model, exported), (twin, frozen)):
            backward(net, step, maximize=options[name].get("maximize", False))
            if step == 15:  # first gradient after all these steps
                net.unused.grad = torch.ones_like(net.unused)
            opt.step()
        assert_same_weights(model, twin, rtol=1e-12, atol=1e-12)
    assert frozen.hyperparameters() == optimizer.hyperparameters()


@pytest.mark.parametrize("name", CLASSES)
def test_the_groups_hold_what_was_learned_and_what_was_there(name):
    _, optimizer = make(name, "height 2, all", CLASSES[name])
    values, exported = optimizer.hyperparameters(), gdtuo.export(optimizer)
    found = gdtuo.hyperparameters(exported)
    assert all(found[key] == value for key, value in values.items() if key.startswith("L0"))
    for group, ours in zip(exported.param_groups, optimizer.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in ours["params"]]
        assert group["param_names"] == ours["param_names"]
        assert group["name"] == ours["name"]
        for switch in PAIRS[name].ours.rule.switches().keys() & ours.keys():
            assert group[switch] == ours[switch]
        assert group["lr"] != ours["lr"]  # learned
        assert not [key for key in group if key.startswith("L")]
        json.dumps({key: value for key, value in group.items() if key != "params"})
    assert (
        exported.param_groups[0].keys() - {"name", "param_names"} == PAIRS[name].theirs([torch.ones(1, 1)]).param_groups[0].keys()
    )


@pytest.mark.parametrize("named", [True, False])
def test_per_tensor_each_parameter_gets_a_group(named):
    groups = named_groups if named else lambda model: two_groups(model, 0.02)
    _, optimizer = make("adam", "height 1, all per tensor", {"weight_decay": 0.1}, groups)
    values, exported = optimizer.hyperparameters(), gdtuo.export(optimizer)
    labels = ["tied", "frozen", "unused", "bias", "scale"] if named else [0, 1, 2, 0, 1]
    assert len(exported.param_groups) == 5
    for i, (group, label) in enumerate(zip(exported.param_groups, labels, strict=True)):
        g = int(i > 2)
        assert group.get("param_names") == ([label] if named else None)
        assert len(group["params"]) == 1
        found = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        assert found == tuple(values[f"L0/g{g}/{n}/{label}"] for n in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    assert len({group["lr"] for group in exported.param_groups}) > 3


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_groups_that_learn_in_ways_of_their_own(per):
    model = Awkward()
    groups = [
        {"params": [model.tied, model.frozen], "learn": ()},
        {"params": [model.bias], "name": "bias"},
        {"params": [model.scale, model.unused], "optimizer": gdtuo.Adam(lr=0.02), "learn": "all"},
    ]
    learning = {"learn": ("betas", "eps"), "per": per, "optimizer": gdtuo.SGD(lr=0.05)}
    optimizer = gdtuo.AdamW(groups, lr=0.01, weight_decay=0.1, **learning)
    train(model, optimizer, range(8))
    twin, frozen = frozen_twin(model, optimizer)
    exported = gdtuo.export(optimizer)
    assert [len(group["params"]) for group in exported.param_groups] == ([2, 1, 2] if per == "group" else [2, 1, 1, 1])
    assert [group["lr"] == 0.01 for group in exported.param_groups][:3] == [True, True, False]
    assert [group["eps"] == 1e-8 for group in exported.param_groups][:3] == [True, False, False]
    assert not {key for group in exported.param_groups for key in group} & {"learn", "learning", "steps", "skipped", "optimizer"}
    train(model, exported, range(8, 16))
    train(twin, frozen, range(8, 16))
    assert_same_weights(model, twin, rtol=1e-12, atol=1e-12)


def test_the_tower_is_left_as_it_is():
    model, optimizer = make("adam", "height 2, all", CLASSES["adam"])
    before = copy.deepcopy(optimizer.state_dict())
    exported = gdtuo.export(optimizer)
    train(model, exported, range(8, 12))
    assert same(optimizer.state_dict(), before)


def test_what_was_loaded_or_taken_from_a_wrapper_is_exported_too():
    model, optimizer = make("adamw", "height 1, lr", {})
    twin = Awkward()
    other = gdtuo.AdamW(named_groups(twin), optimizer=gdtuo.SGD(lr=0.05))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    scheduler = schedulers.ConstantLR(other, factor=1.0)  # any holder of an `optimizer`
    exported, again = gdtuo.export(optimizer), gdtuo.export(scheduler)
    ours, theirs = exported.state_dict(), again.state_dict()
    for group in theirs["param_groups"]:
        del group["initial_lr"]
    assert same(ours, theirs)


def test_new_groups_of_the_exported_start_with_the_constructors_numbers():
    _, optimizer = make("sgd", "height 1, lr", {"momentum": 0.9, "nesterov": True})
    exported = gdtuo.export(optimizer)
    exported.add_param_group({"params": [("extra", torch.nn.Parameter(torch.ones(1, dtype=F64)))]})
    group = exported.param_groups[2]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (PAIRS["sgd"].lr, 0.9, True)


def test_a_tensor_becomes_a_number():
    model = Awkward()
    optimizer = gdtuo.Adam(model.parameters(), lr=torch.tensor(0.01, dtype=F64), foreach=True, optimizer=gdtuo.SGD())
    train(model, optimizer, range(3))
    exported = gdtuo.export(optimizer)
    assert exported.param_groups[0]["lr"] == optimizer.hyperparameters()["L0/g0/lr"]
    assert exported.param_groups[0]["foreach"] is True  # with which torch takes no tensor
    train(model, exported, range(3, 5))


@pytest.mark.parametrize("learn", ["lr", "betas"])
def test_betas_that_are_tensors_become_numbers(learn):
    model = Awkward()
    betas = (torch.tensor(0.8, dtype=F64), torch.tensor(0.99, dtype=F64))
    optimizer = gdtuo.Adam(model.parameters(), betas=betas, learn=learn, optimizer=gdtuo.SGD(lr=0.05))
    train(model, optimizer, range(3))
    exported = gdtuo.export(optimizer)
    values = optimizer.hyperparameters()
    assert exported.param_groups[0]["betas"] == (values["L0/g0/beta1"], values["L0/g0/beta2"])
    assert all(type(beta) is float for group in (exported.param_groups[0], exported.defaults) for beta in group["betas"])


@pytest.mark.parametrize("name", CLASSES)
def test_fused_is_left_to_torch(name):
    """Here it compiles, there it picks a kernel, which RMSprop does not have."""
    arguments = {} if name in ("adafactor", "muon") else {"fused": True}  # which compiles nothing of theirs
    exported = gdtuo.export(PAIRS[name].ours([torch.nn.Parameter(torch.ones(1, 1))], **arguments))
    assert exported.param_groups[0].get("fused") is None
    assert exported.defaults.get("fused") is None


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("options", [CLASSES, SWITCHED], ids=["rich", "switched"])
@pytest.mark.parametrize("name", CLASSES)
def test_torch_to_tower_to_torch_is_bitwise(name, options):
    pair = PAIRS[name]
    model = pair.model()
    theirs = pair.theirs(named_groups(model), lr=pair.lr, **options[name])
    train(model, theirs, range(8))
    tower = pair.ours(named_groups(model), lr=0.7, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
    tower.load_state_dict(theirs.state_dict())
    back = gdtuo.export(tower)
    twin = copy.deepcopy(model)
    other = pair.theirs(named_groups(twin), lr=0.7)
    other.load_state_dict(theirs.state_dict())  # which turns NAdam's product into the weights' dtype
    assert same(back.state_dict(), other.state_dict())
    train(model, back, range(8, 14))
    train(twin, other, range(8, 14))
    assert not differences(dict(model.named_parameters()), dict(twin.named_parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_decay_is_that_of_the_class_whatever_a_loaded_group_said(name):
    """torch marks the groups of AdamW, and its Adam obeys the mark; our classes do not look at it."""
    model, optimizer = make(name, "height 1, lr", {"weight_decay": 0.1})
    for group in optimizer.param_groups:
        group["decoupled_weight_decay"] = name == "adam"
    twin, frozen = frozen_twin(model, optimizer)
    train(model, gdtuo.export(optimizer), range(8, 14))
    train(twin, frozen, range(8, 14))
    assert_same_weights(model, twin, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("numbers_of_64_bits")
@pytest.mark.parametrize("name", CLASSES)
def test_before_the_first_step(name):
    """torch's state comes with the first step (Adagrad's with the optimizer), and so it does here."""
    model, optimizer = make(name, "height 1, lr", CLASSES[name], steps=0)
    twin, frozen = frozen_twin(model, optimizer)
    exported = gdtuo.export(optimizer)
    fresh = PAIRS[name].theirs(named_groups(twin), lr=PAIRS[name].lr, **CLASSES[name])
    assert exported.state_dict()["state"].keys() == fresh.state_dict()["state"].keys()
    train(model, exported, range(6))
    train(twin, frozen, range(6))
    assert_same_weights(model, twin, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize("tower", ["height 1, lr", "height 1, all per tensor"])
def test_a_schedule_goes_on_with_the_learned_factor(tower):
    def schedule(step):
        return step / 5 if step < 5 else 0.9**step

    model = Awkward()
    optimizer = gdtuo.Adam(named_groups(model), lr=0.01, **TOWERS[tower]())
    scheduler = schedulers.LambdaLR(optimizer, schedule)

    def go(net, opt, sched, steps):
        for step in steps:
            backward(net, step)
            opt.step()
            sched.step()

    go(model, optimizer, scheduler, range(9))
    twin, frozen, its_scheduler = copy.deepcopy((model, optimizer, scheduler))
    frozen.learning = False
    exported = gdtuo.export(optimizer)
    following = schedulers.LambdaLR(exported, schedule, last_epoch=scheduler.last_epoch - 1)  # it takes a step of its own
    go(model, exported, following, range(9, 18))
    go(twin, frozen, its_scheduler, range(9, 18))
    assert_same_weights(model, twin, rtol=1e-12, atol=1e-12)
    assert exported.param_groups[0]["lr"] < 0.01 * 0.9**10


SCHEDULES = {
    "exponential": lambda opt, last: schedulers.ExponentialLR(opt, 0.9, last_epoch=last),
    "step": lambda opt, last: schedulers.StepLR(opt, 3, last_epoch=last),
    "multi-step": lambda opt, last: schedulers.MultiStepLR(opt, [3, 6, 8], last_epoch=last),
    "multiplicative": lambda opt, last: schedulers.MultiplicativeLR(opt, lambda _: 0.9, last_epoch=last),
    "cosine": lambda opt, last: schedulers.CosineAnnealingLR(opt, 20, last_epoch=last),
    "restarts": lambda opt, last: schedulers.CosineAnnealingWarmRestarts(opt, 5, last_epoch=last),
    "one cycle": lambda opt, last: schedulers.OneCycleLR(opt, 0.1, total_steps=40, last_epoch=last),
    "linear": lambda opt, last: schedulers.LinearLR(opt, 0.1, total_iters=10, last_epoch=last),
    "constant": lambda opt, last: schedulers.ConstantLR(opt, 0.1, total_iters=6, last_epoch=last),
    "polynomial": lambda opt, last: schedulers.PolynomialLR(opt, 20, 2.0, last_epoch=last),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [5, 6, 8])
def test_a_scheduler_made_anew_as_the_docstring_says_gives_the_frozen_towers_rates(schedule, steps):
    """After 6 and 8 updates are those where a recursive scheduler would lower the rate twice."""
    model = Awkward()
    optimizer = gdtuo.SGD(two_groups(model, 0.02), lr=0.01, momentum=0.9, optimizer=gdtuo.SGD(lr=0.05))
    old = SCHEDULES[schedule](optimizer, -1)
    for step in range(steps):
        backward(model, step)
        optimizer.step()
        old.step()
    plain = gdtuo.export(optimizer)
    optimizer.learning = False
    rates = [group["lr"] for group in plain.param_groups]
    new = SCHEDULES[schedule](plain, old.last_epoch - 1)
    for group, rate in zip(plain.param_groups, rates, strict=True):
        group["lr"] = rate
    for _ in range(8):
        expected = [optimizer.hyperparameters()[f"L0/g{g}/lr"] for g in (0, 1)]
        assert [group["lr"] for group in plain.param_groups] == pytest.approx(expected, rel=1e-12)
        for each in (optimizer, plain, old, new):
            each.step()


def test_what_one_cycle_keeps_in_the_groups_is_moved_like_what_it_writes():
    model = Awkward()
    optimizer = gdtuo.SGD(two_groups(model, 0.02), lr=0.02, momentum=0.8, learn=("lr", "momentum"), optimizer=gdtuo.SGD(lr=0.05))
    cycle = schedulers.OneCycleLR(optimizer, max_lr=0.05, total_steps=30)
    for step in range(7):
        backward(model, step)
        optimizer.step()
        cycle.step()
    exported = gdtuo.export(optimizer)
    for ours, theirs in zip(optimizer.param_groups, exported.param_groups, strict=True):
        factor, turn = ours["L0/shift"].exp()[0].tolist()
        assert factor != 1
        for key in ("initial_lr", "max_lr", "min_lr"):
            assert theirs[key] == pytest.approx(ours[key] * factor, rel=1e-13)
        for key in ("max_momentum", "base_momentum"):
            odds = ours[key] / (1 - ours[key]) * turn
            assert theirs[key] == pytest.approx(odds / (1 + odds), rel=1e-13)


def test_bounds_hold_for_what_a_schedule_keeps_as_well():
    """The factor that is within the bound for today's low rate would take the initial one beyond it."""
    w = torch.nn.Parameter(torch.tensor([3.0], dtype=F64))
    bounded = {"lr": gdtuo.Positive(maximum=0.1)}
    optimizer = gdtuo.SGD([w], lr=0.08, optimizer=gdtuo.SGD(lr=0.2), domains=bounded, trust=math.inf)
    schedulers.LambdaLR(optimizer, lambda step: 0.25)
    for _ in range(5):
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
    exported = gdtuo.export(optimizer)
    assert exported.param_groups[0]["lr"] == pytest.approx(0.02 * math.exp(0.8))
    assert exported.param_groups[0]["initial_lr"] == pytest.approx(0.1)


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("rule", TWINS, ids=lambda rule: rule.__name__)
def test_a_rule_and_its_twin_call_everything_by_the_same_names(rule):
    (level,) = (cls for cls in vars(gdtuo).values() if inspect.isclass(cls) and vars(cls).get("rule") is rule)
    cls = getattr(torch.optim, TWINS[rule].name)
    assert level._schema().defaults.keys() <= inspect.signature(cls).parameters.keys()
    model = torch.nn.Linear(3, 2, bias=False)
    model.weight.grad = torch.ones_like(model.weight)
    theirs = cls(model.parameters())
    theirs.step()
    state = theirs.state[model.weight]
    assert ("step" in state) == TWINS[rule].counts


# ---------------------------------------------------------------- what cannot be taken away


@pytest.mark.parametrize(
    "own", [gdtuo.AveragingSGD, gdtuo.Lion, Drift, gdtuo.compat.optimizers.AdamLevel], ids=lambda cls: cls.__name__
)
def test_a_rule_that_torch_does_not_have(own):
    optimizer = own([torch.nn.Parameter(torch.ones(1))], optimizer=gdtuo.SGD())
    with pytest.raises(
        ValueError, match=r"no optimizer whose updates are those of \w+\. Keep the tower and set optimizer\.learn"
    ):
        gdtuo.export(optimizer)


def test_a_users_subclass_of_ours_is_its_twin():
    class Mine(gdtuo.AdamW):
        pass

    assert type(gdtuo.export(Mine([torch.nn.Parameter(torch.ones(1))]))) is torch.optim.AdamW


def test_a_twin_that_this_torch_lacks(monkeypatch):
    monkeypatch.delattr(torch.optim, "Adam")
    with pytest.raises(ValueError, match=r"has no torch\.optim\.Adam, a later one has\. Update it"):
        gdtuo.export(gdtuo.Adam([torch.nn.Parameter(torch.ones(1))]))


def test_numbers_for_each_weight():
    optimizer = gdtuo.Adam([torch.nn.Parameter(torch.ones(2))], per="element", optimizer=gdtuo.SGD())
    with pytest.raises(ValueError, match=r"Learn with per='tensor' or per='group', or keep the tower"):
        gdtuo.export(optimizer)
    gdtuo.export(gdtuo.Adam([torch.nn.Parameter(torch.ones(2))], per="element"))  # nothing is learned


@pytest.mark.parametrize(("name", "lr"), [("sgd", 1.0), ("adam", 1.0)])
def test_a_value_that_torch_does_not_take(name, lr):
    w = torch.nn.Parameter(torch.tensor([1.0], dtype=F64))
    above = gdtuo.SGD(lr=lr)
    optimizer = PAIRS[name].ours([w], lr=0.1, optimizer=above, hypergradient="exact", domains={"lr": gdtuo.Real()})
    for sign in (1.0, -1.0):  # uphill after one step
        w.grad = torch.tensor([sign], dtype=F64)
        optimizer.step()
    assert optimizer.hyperparameters()["L0/g0/lr"] < 0
    with pytest.raises(ValueError, match=r"Invalid learning rate: -.*Bound what is learned, as with domains=\{'lr': gdtuo.Pos"):
        gdtuo.export(optimizer)


def test_what_has_no_tower():
    with pytest.raises(TypeError, match=r"got a Adam, which has no tower to leave behind\. Use it as it is"):
        gdtuo.export(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]))
    with pytest.raises(TypeError, match=r"Give a torch\.optim\.Optimizer"):
        gdtuo.export(torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="Bind it first"):
        gdtuo.export(gdtuo.Adam(optimizer=gdtuo.SGD()))


def test_a_momentum_of_zero_is_torchs_momentum_of_zero():
    _, optimizer = make("sgd", "height 1, lr", {"momentum": 0.0, "dampening": 0.3})
    exported = gdtuo.export(optimizer)
    assert exported.state_dict()["state"] == {}
    assert math.isclose(exported.param_groups[0]["dampening"], 0.3)
