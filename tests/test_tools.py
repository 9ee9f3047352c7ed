"""What tools do to an optimizer's groups and state by assignment: ours follows, as torch's does."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from cases import F64

import gdtuo

LEVELS = {"plain": gdtuo.AdamW, "tower": partial(gdtuo.AdamW, optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()))}
MAKE = pytest.mark.parametrize("make", LEVELS.values(), ids=LEVELS)


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    make = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(size, generator=make, dtype=F64)) for size in ((3, 2), (4,), (2,), (5,))]


def step(optimizer: torch.optim.Optimizer, params, n: int) -> None:
    make = torch.Generator().manual_seed(100 + n)
    for p in params:
        p.grad = torch.randn(p.shape, generator=make, dtype=F64)
    optimizer.step()


# ---------------------------------------------------------------- what is done; each returns the parameters from then on


def replace_groups(optimizer, params):
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    optimizer.param_groups[0]["lr"] = 0.0
    return params


def delete_a_group(optimizer, params):
    del optimizer.param_groups[1]
    return params


def append_a_parameter(optimizer, params):
    extra = torch.nn.Parameter(torch.ones(3, dtype=F64))
    optimizer.param_groups[0]["params"].append(extra)
    return [*params, extra]


def remove_a_parameter(optimizer, params):
    optimizer.param_groups[0]["params"].pop(0)
    return params


def swap_a_parameter(optimizer, params, which=1):
    """As densification does: more rows, their moments beside the old ones."""
    old = params[which]
    new = torch.nn.Parameter(torch.cat([old.detach(), old.detach()[:1]]))
    state = optimizer.state.pop(old)
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name][:1])])
    optimizer.state[new] = state
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    return [new if p is old else p for p in params]


def reset_a_moment(optimizer, params):
    optimizer.state[params[1]]["exp_avg"] = torch.zeros_like(params[1])
    return params


def forget_a_state(optimizer, params):
    optimizer.state.pop(params[1])
    return params


def empty_a_state(optimizer, params):
    optimizer.state[params[1]] = {}
    return params


DONE = [
    replace_groups,
    delete_a_group,
    append_a_parameter,
    remove_a_parameter,
    swap_a_parameter,
    partial(swap_a_parameter, which=0),
    reset_a_moment,
    forget_a_state,
    empty_a_state,
]


@MAKE
@pytest.mark.parametrize("done", DONE, ids=lambda f: getattr(f, "__name__", "swap_the_first_parameter"))
def test_equals_torch(make, done):
    """A tower whose learning is switched off at that moment, too."""
    results = []
    for build in (make, torch.optim.AdamW):
        params = weights()
        optimizer = build([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], lr=0.01)
        if isinstance(optimizer, gdtuo.Level) and optimizer.height:
            optimizer.learning = False
        for n in range(4):
            step(optimizer, params, n)
        params = done(optimizer, params)
        for n in range(4, 8):
            step(optimizer, params, n)
        results.append([p.detach().clone() for p in params])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", ["group", "tensor", "element"])
def test_a_state_that_is_moved_away_and_back_after_each_step_learns_on(per):
    """As offloading does."""
    found = []
    for moved in (False, True):
        params = weights()
        optimizer = gdtuo.Adam(params, lr=0.01, optimizer=gdtuo.SGD(lr=0.05), per=per, learn=("lr", "betas"))
        for n in range(8):
            step(optimizer, params, n)
            if moved:
                for p in params:
                    optimizer.state[p] = {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[p].items()}
        found.append((optimizer.hyperparameters(), [p.detach().clone() for p in params]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", ["tensor", "element"])
def test_what_each_tensor_has_learned_goes_with_it(per):
    params = weights()
    optimizer = gdtuo.SGD(params, lr=0.01, optimizer=gdtuo.SGD(lr=0.05), per=per)
    for n in range(5):
        step(optimizer, params, n)
    before = optimizer.param_groups[0]["L0/shift"].clone()
    optimizer.param_groups[0]["params"].pop(1)
    optimizer.hyperparameters()
    kept = [0, 2, 3] if per == "tensor" else [*range(6), *range(10, 17)]
    assert torch.equal(optimizer.param_groups[0]["L0/shift"], before[kept])


def test_a_state_of_other_weights_is_refused():
    params = weights()
    optimizer = gdtuo.Adam(params, optimizer=gdtuo.SGD())
    step(optimizer, params, 0)
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(9, dtype=F64)
    with pytest.raises(ValueError, match="exp_avg of shape \\(9,\\) for a parameter of shape \\(4,\\)"):
        step(optimizer, params, 1)


@MAKE
def test_empty_parameters(make):
    """In every granularity, beside others and alone."""
    for per in ("group", "tensor", "element"):
        for horizon in (1, 3):
            empty, full = (torch.nn.Parameter(torch.ones(size, dtype=F64)) for size in (0, 3))
            options = {"per": per, "horizon": horizon} if make is LEVELS["tower"] else {}
            optimizer = make([{"params": [full, empty]}, {"params": [torch.nn.Parameter(torch.ones(0, dtype=F64))]}], **options)
            for n in range(4):
                step(optimizer, [full, *(p for g in optimizer.param_groups for p in g["params"])], n)
            assert full.isfinite().all()
            optimizer.load_state_dict(optimizer.state_dict())


# ---------------------------------------------------------------- groups that cannot be


@pytest.mark.parametrize(
    ("group", "remedy"),
    [
        ({"optimzer": gdtuo.SGD()}, "Did you mean 'optimizer'"),
        ({"lern": "lr"}, "Did you mean 'learn'"),
        ({"weight_decays": 0.1}, "Did you mean 'weight_decay'"),
        ({"per": "tensor"}, r"Give it to the optimizer: Adam\(params, per='tensor'\)"),
        ({"sharded": True}, "Give it to the optimizer"),
        ({"optimizer": lambda params: torch.optim.SGD(params, lr=-1.0)}, "Invalid learning rate"),
        ({"optimizer": gdtuo.SGD(), "lr": -1.0}, "a learning rate is a number >= 0"),
    ],
)
def test_a_refused_group_leaves_nothing_behind(group, remedy):
    params = weights()
    optimizer = gdtuo.Adam(params[:2], optimizer=gdtuo.SGD())
    step(optimizer, params[:2], 0)
    before, groups = copy.deepcopy(optimizer.state_dict()), len(optimizer.param_groups)
    with pytest.raises((TypeError, ValueError), match=remedy):
        optimizer.add_param_group({"params": params[2:], **group})
    assert len(optimizer.param_groups) == groups
    assert optimizer.state_dict().keys() == before.keys()
    assert not optimizer._others
    pickle.dumps(optimizer)
    step(optimizer, params[:2], 1)


def test_groups_of_the_callers_stay_as_they_were():
    params = weights()
    groups = [{"params": params[:2], "L1/lr": 0.3}, {"params": params[2:]}]
    first = gdtuo.SGD(groups, optimizer=gdtuo.SGD())
    step(first, params, 0)
    step(first, params, 1)
    assert [set(group) for group in groups] == [{"params", "L1/lr"}, {"params"}]
    second = gdtuo.SGD(groups, optimizer=gdtuo.SGD(lr=0.01))
    assert second.hyperparameters()["L0/g0/lr"] == 0.01
    assert second.hyperparameters()["L1/g1/lr"] == 0.01


def test_parameters_without_numbers_are_refused():
    with pytest.raises(ValueError, match="to_empty"):
        gdtuo.SGD([torch.nn.Parameter(torch.ones(2, device="meta"))])


@pytest.mark.parametrize("tower", [None, gdtuo.SGD()])
def test_adams_state_is_not_adamws(tower):
    params = weights()
    saved = gdtuo.Adam(params, optimizer=tower, weight_decay=0.1).state_dict()
    with pytest.raises(ValueError, match=r"Use gdtuo\.Adam"):
        gdtuo.AdamW(params, optimizer=tower).load_state_dict(saved)


def test_a_group_that_is_put_under_a_tower_without_any_learns():
    """All groups had towers of their own; what is appended without one has the constructor's, from its first step on."""
    params = weights()
    optimizer = gdtuo.SGD([{"params": params[:1], "optimizer": gdtuo.Adam()}], lr=0.01, optimizer=gdtuo.SGD(lr=0.05))
    step(optimizer, params[:1], 0)
    optimizer.param_groups.append({"params": params[1:2]})
    for n in range(1, 4):
        step(optimizer, params[:2], n)
    assert optimizer.hyperparameters()["L0/g1/lr"] != 0.01
    assert "L0/g1/lr" in optimizer.hypergradients()
