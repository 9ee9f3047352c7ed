"""What is not finite freezes its group for a step; nothing else moves what was learned against its will."""

from __future__ import annotations

import pytest
import torch

import gdtuo

BAD = [float("nan"), float("inf"), -float("inf")]
TOWERS = {
    "adam/sgd/sgd": lambda: gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "exact": lambda: gdtuo.SGD(
        momentum=0.5, learn="all", hypergradient="exact", optimizer=gdtuo.SGD(lr=1e-4, optimizer=gdtuo.SGD(lr=1e-5))
    ),
    "adam above": lambda: gdtuo.SGD(lr=0.01, optimizer=gdtuo.Adam(learn="all", optimizer=gdtuo.Adam())),
    "horizon, per tensor": lambda: gdtuo.Adam(lr=0.01, per="tensor", horizon=4, optimizer=gdtuo.RMSProp(optimizer=gdtuo.SGD())),
    "per element": lambda: gdtuo.AdamW(lr=0.01, per="element", optimizer=gdtuo.SGD(momentum=0.5, optimizer=gdtuo.SGD())),
    "torch on top": lambda: gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))),
}


def two_groups():
    rng = torch.Generator().manual_seed(0)
    w = [torch.nn.Parameter(torch.randn(4, generator=rng, dtype=torch.float64)) for _ in range(3)]
    return [{"params": w[:2]}, {"params": w[2:], "lr": 0.02}]


def fill(optimizer, step, scale=1.0):
    rng = torch.Generator().manual_seed(100 + step)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = (p.detach() + 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype)) * scale


def run(optimizer, steps, scale=1.0):
    for step in steps:
        fill(optimizer, step, scale)
        optimizer.step()


def tower_numbers(optimizer, group):
    """Everything of the tower that a saved group holds, what belongs to the weights' last update left out."""
    saved = optimizer.state_dict()["param_groups"][group]
    weights_own = ("L0/last", "L0/slope")
    return {k: v for k, v in saved.items() if isinstance(v, torch.Tensor) and k.startswith("L") and k not in weights_own}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", TOWERS)
def test_a_bad_gradient_freezes_its_group_at_every_level_and_is_counted(shape, bad):
    optimizer, twin = TOWERS[shape]().bind(two_groups()), TOWERS[shape]().bind(two_groups())
    for some in (optimizer, twin):
        run(some, range(6))
    before = [tower_numbers(optimizer, g) for g in (0, 1)]
    assert before[0]["L0/shift"].any()
    assert optimizer.skipped == 0
    for some in (optimizer, twin):
        fill(some, 6)
    optimizer.param_groups[0]["params"][1].grad[2] = bad
    for some in (optimizer, twin):
        some.step()
    after = [tower_numbers(optimizer, g) for g in (0, 1)]
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    assert optimizer.skipped == 1
    assert twin.skipped == 0
    # the other group goes on as if nothing had happened
    run(optimizer, range(7, 10))
    run(twin, range(7, 10))
    for name, value in tower_numbers(twin, 1).items():
        assert torch.equal(value, tower_numbers(optimizer, 1)[name]), name
    assert torch.equal(optimizer.param_groups[1]["params"][0], twin.param_groups[1]["params"][0])
    assert all(abs(v) < float("inf") for v in optimizer.hyperparameters().values())


def test_weights_do_what_torch_would_do():
    ours, theirs = two_groups(), two_groups()
    optimizer = gdtuo.Adam(ours, lr=0.01, optimizer=gdtuo.SGD(lr=0.0))
    reference = torch.optim.Adam(theirs, lr=0.01)
    for step in range(4):
        for some in (optimizer, reference):
            fill(some, step)
            if step == 2:
                some.param_groups[0]["params"][0].grad[0] = float("nan")
            some.step()
    for a, b in zip(optimizer.param_groups, reference.param_groups, strict=True):
        for p, q in zip(a["params"], b["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert optimizer.param_groups[0]["params"][0][0].isnan()


@pytest.mark.parametrize("shape", TOWERS)
def test_dummy_step_of_checkpoint_tools_changes_nothing(shape):
    optimizer = TOWERS[shape]().bind(two_groups())
    weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    values = optimizer.hyperparameters()
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.no_grad():
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        optimizer.zero_grad()
    assert all(torch.equal(p, w) for p, w in zip((p for g in optimizer.param_groups for p in g["params"]), weights, strict=True))
    assert optimizer.hyperparameters() == values


@pytest.mark.parametrize("shape", [shape for shape in TOWERS if "adam above" not in shape and "torch" not in shape])
def test_zero_gradients_teach_nothing(shape):
    optimizer = TOWERS[shape]().bind(two_groups())
    run(optimizer, range(20), scale=0.0)
    assert all(group["L0/shift"].eq(0).all() for group in optimizer.param_groups)
    assert optimizer.skipped == 0
    run(optimizer, range(20, 24))
    assert all(group["L0/shift"].any() for group in optimizer.param_groups)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("per", ["group", "tensor"])
def test_cosine_has_no_units(scale, per):
    """SGD's learning rate in the units of the problem, gradients of any size: the same cosines."""
    towers = [
        gdtuo.SGD(two_groups(), lr=0.01, momentum=0.5, learn=("lr", "momentum"), per=per, optimizer=gdtuo.SGD()) for _ in range(2)
    ]
    for step in range(6):
        for optimizer, factor in zip(towers, (1.0, scale), strict=True):
            rng = torch.Generator().manual_seed(step)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype) * factor
            optimizer.step()
    plain, scaled = (optimizer.hypergradients() for optimizer in towers)
    assert any(abs(v) > 0.1 for v in plain.values())
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_learning_off_freezes_and_on_resumes():
    optimizer = gdtuo.Adam(two_groups(), lr=0.01, horizon=3, optimizer=gdtuo.Adam(optimizer=gdtuo.SGD()))
    run(optimizer, range(5))
    optimizer.learning = False
    before = optimizer.hyperparameters()
    weights = optimizer.param_groups[0]["params"][0].detach().clone()
    run(optimizer, range(5, 10))
    assert optimizer.hyperparameters() == before
    assert not torch.equal(weights, optimizer.param_groups[0]["params"][0])
    assert optimizer.state_dict()["param_groups"][0]["learning"] is False
    with pytest.raises(RuntimeError, match="learning = True"):
        optimizer.hyperstep()
    optimizer.learning = True
    run(optimizer, range(10, 11))
    assert optimizer.hyperparameters() == before  # the frozen updates are not pulled back
    run(optimizer, range(11, 13))
    assert optimizer.hyperparameters() != before


def test_hyperstep_moves_hyperparameters_alone_and_once():
    optimizer = gdtuo.SGD(two_groups(), lr=0.01, optimizer=gdtuo.Adam(optimizer=gdtuo.SGD()))
    optimizer.hyperstep()  # nothing to pull back yet
    start = optimizer.hyperparameters()
    run(optimizer, range(3))
    weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    before = optimizer.hyperparameters()
    assert before != start
    fill(optimizer, 3)
    optimizer.hyperstep()
    once = optimizer.hyperparameters()
    assert once != before
    assert all(torch.equal(p, w) for p, w in zip((p for g in optimizer.param_groups for p in g["params"]), weights, strict=True))
    optimizer.hyperstep()
    assert optimizer.hyperparameters() == once  # an update is pulled back at most once
    fill(optimizer, 4)
    optimizer.step()
    assert optimizer.hyperparameters() == once
    run(optimizer, range(5, 6))
    assert optimizer.hyperparameters() != once
