"""The surface of a level: templates, names, what is learned, what stands in the groups."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from cases import ONE_UPDATE

import gdtuo

F64 = torch.float64


def weights(*shapes, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in shapes]


def descend(optimizer, steps, target=0.0):
    for _ in range(steps):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = (p.detach() - target) * (1.0 + torch.arange(p.numel(), dtype=p.dtype).view(p.shape))
        optimizer.step()


def test_template_is_untouched_and_bound_optimizers_are_independent():
    template = gdtuo.Adam(lr=0.02, betas=(0.8, 0.9), optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD()), learn="all")
    text, shown = str(template), repr(template)
    first, second = template.bind(weights((3,))), template.bind(weights((3,)))
    descend(first, 5)
    assert second.hyperparameters() == {**second.hyperparameters(), "L0/g0/lr": 0.02, "L0/g0/beta1": 0.8, "L1/g0/lr": 0.05}
    assert first.hyperparameters()["L0/g0/lr"] != 0.02
    descend(second, 5)
    assert first.hyperparameters() == second.hyperparameters()
    assert (str(template), repr(template)) == (text, shown) == ("adam / sgd / sgd", repr(template))
    assert repr(eval(repr(template), vars(gdtuo))) == repr(template)
    assert template.param_groups == []
    assert first.height == template.height == 2


def test_what_users_read_in_the_groups_is_theirs_and_is_json():
    optimizer = gdtuo.Adam([*weights((3,), (2,))], lr=0.01, optimizer=gdtuo.SGD(momentum=0.5, optimizer=gdtuo.SGD()))
    descend(optimizer, 5)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.01
    assert group["betas"] == (0.9, 0.999)
    assert (group["L1/lr"], group["L1/momentum"], group["L2/lr"]) == (0.01, 0.5, 0.01)
    json.dumps({key: value for key, value in group.items() if key != "params" and not isinstance(value, torch.Tensor)})
    effective = optimizer.hyperparameters()["L0/g0/lr"]
    assert effective == pytest.approx(0.01 * math.exp(group["L0/shift"].item()), rel=1e-15)
    assert effective > 0.01


def test_numbers_of_upper_levels_can_be_given_and_written_per_group():
    a, b = weights((3,), (3,))
    optimizer = gdtuo.SGD(
        [{"params": [a]}, {"params": [b], "lr": 0.03, "L1/lr": 0.0}], lr=0.01, optimizer=gdtuo.SGD(lr=0.1), **ONE_UPDATE
    )
    descend(optimizer, 4)
    values = optimizer.hyperparameters()
    assert values["L0/g0/lr"] != 0.01
    assert values["L0/g1/lr"] == 0.03
    optimizer.param_groups[1]["L1/lr"] = 0.1
    descend(optimizer, 1)
    assert optimizer.hyperparameters()["L0/g1/lr"] != 0.03


def test_names_of_tensors_and_statistics_of_elements():
    model = torch.nn.Linear(2, 3)
    keys = gdtuo.SGD(model.named_parameters(), per="tensor", optimizer=gdtuo.SGD()).hyperparameters()
    assert [key for key in keys if key.startswith("L0/g0/lr")] == ["L0/g0/lr/weight", "L0/g0/lr/bias"]
    optimizer = gdtuo.SGD(model.parameters(), per="element", optimizer=gdtuo.SGD())
    descend(optimizer, 4)
    values = optimizer.hyperparameters()
    shift = optimizer.param_groups[0]["L0/shift"]
    assert shift.shape == (9, 1)
    expected = (0.01 * shift.exp()).flatten()
    assert values["L0/g0/lr/mean"] == pytest.approx(expected.mean().item(), rel=1e-12)
    assert values["L0/g0/lr/min"] == pytest.approx(expected.min().item(), rel=1e-12)
    assert values["L0/g0/lr/max"] == pytest.approx(expected.max().item(), rel=1e-12)


def test_all_means_what_can_move():
    optimizer = gdtuo.SGD(weights((3,)), momentum=0.5, optimizer=gdtuo.SGD(), learn="all")
    descend(optimizer, 3)
    assert set(optimizer.hypergradients()) == {"L0/g0/lr", "L0/g0/momentum"}
    real = dict.fromkeys(("momentum", "lr"), gdtuo.Real())
    optimizer = gdtuo.SGD(weights((3,)), optimizer=gdtuo.SGD(), learn="all", hypergradient="exact", domains=real)
    descend(optimizer, 4)
    assert optimizer.hyperparameters()["L0/g0/momentum"] != 0.0  # a Real one may start at 0


def test_a_group_without_the_penalty_does_not_hinder_the_one_that_has_it():
    a, b = weights((3,), (3,))
    groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}]
    optimizer = gdtuo.AdamW(groups, optimizer=gdtuo.SGD(), learn=("lr", "weight_decay"))
    descend(optimizer, 4)
    values = optimizer.hyperparameters()
    assert values["L0/g0/weight_decay"] != 0.1
    assert values["L0/g1/weight_decay"] == 0.0
    assert values["L0/g1/lr"] != 1e-3


@pytest.mark.parametrize("cls", [gdtuo.SGD, gdtuo.AdamW])
def test_a_tiny_penalty_is_learned_in_float32(cls):
    """Its share of the update is below √eps; that is no rounding noise, and must not be taken for it."""
    (w,) = weights((50,), dtype=torch.float32)
    optimizer = cls([w], weight_decay=1e-5, learn="weight_decay", optimizer=gdtuo.SGD(lr=0.1))
    for _ in range(20):
        optimizer.zero_grad()
        (w - 1.0).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        w.square().sum().backward()  # validation asks for smaller weights
        optimizer.hyperstep()
    assert optimizer.hyperparameters()["L0/g0/weight_decay"] > 3e-5


def test_written_tensors_are_read_at_every_step():
    lr = torch.tensor(0.01, dtype=torch.float64)
    a, b = weights((3,), (3,))
    optimizer = gdtuo.SGD([{"params": [a]}, {"params": [b]}], lr=lr, optimizer=gdtuo.SGD(), **ONE_UPDATE)
    descend(optimizer, 3)
    factor = optimizer.hyperparameters()["L0/g0/lr"] / 0.01
    lr.fill_(0.5)
    assert optimizer.hyperparameters()["L0/g0/lr"] == pytest.approx(0.5 * factor, rel=1e-12)
    before = b.detach().clone()
    descend(optimizer, 1)
    assert (b - before).abs().max() > 0.05


def test_momentum_switched_on_in_mid_run():
    """A scheduler may write momentum into groups that began without: torch makes the buffer then, and so do we."""
    (ours,), (theirs,) = weights((4,)), weights((4,))
    optimizer, reference = gdtuo.SGD([ours], lr=0.01), torch.optim.SGD([theirs], lr=0.01)
    for t in range(8):
        if t == 4:
            optimizer.param_groups[0]["momentum"] = reference.param_groups[0]["momentum"] = 0.9
        for p in (ours, theirs):
            p.grad = p.detach() * 2 + 1
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


def test_upper_step_sizes_stop_at_their_cap():
    optimizer = gdtuo.SGD(weights((3,)), lr=1e-6, optimizer=gdtuo.SGD(lr=0.15, optimizer=gdtuo.SGD(lr=0.2)))
    descend(optimizer, 20)
    assert optimizer.hyperparameters()["L1/g0/lr"] == pytest.approx(0.2, rel=1e-12)
    wide = gdtuo.SGD(lr=0.15, optimizer=gdtuo.SGD(lr=0.2), domains={"lr": gdtuo.Positive()})
    optimizer = gdtuo.SGD(weights((3,)), lr=1e-6, optimizer=wide)
    descend(optimizer, 20)
    assert optimizer.hyperparameters()["L1/g0/lr"] > 0.3


def test_rule_that_is_not_elementwise_keeps_shapes():
    class NormedRule(gdtuo.Rule):
        """w ← w - η g / |g|, a norm over the whole tensor."""

        hyperparameters = {"lr": (0.1, gdtuo.Positive())}
        elementwise = False

        def init(self, weights, hyper):
            assert weights.dim() == 2
            return {}

        def update(self, weights, gradient, state, hyper, step):
            return -hyper["lr"] * gradient / gradient.norm(), state

    class Normed(gdtuo.Level):
        rule = NormedRule

    a, b = weights((2, 3), (3, 1))
    before = a.detach().clone()
    optimizer = Normed([a, b], optimizer=gdtuo.SGD(), per="tensor", **ONE_UPDATE)
    descend(optimizer, 1)
    assert (a - before).norm().item() == pytest.approx(0.1, rel=1e-12)
    descend(optimizer, 3)
    assert optimizer.hyperparameters()["L0/g0/lr/0"] > 0.1
    with pytest.raises(ValueError, match="per='tensor'"):
        Normed([a], optimizer=gdtuo.SGD(), per="element")
    with pytest.raises(ValueError, match=r"gdtuo.SGD\(\)"):
        gdtuo.SGD([a], optimizer=Normed())


def test_empty_groups():
    (a,) = weights((3,))
    for per in ("group", "tensor", "element"):
        optimizer = gdtuo.Adam([{"params": []}, {"params": [a]}], optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()), per=per)
        descend(optimizer, 3)
        assert any(key.startswith("L0/g1/lr") for key in optimizer.hyperparameters())
        assert optimizer.skipped == 0


@pytest.mark.parametrize("per", ["group", "tensor", "element"])
@pytest.mark.parametrize("cls", [gdtuo.Adam, gdtuo.SGD, gdtuo.RMSProp])
def test_a_default_device_of_the_user_changes_nothing(cls, per):
    """The worst of them: whatever lands on "meta" has no numbers."""
    results = []
    for device in ("cpu", "meta"):
        make = torch.Generator().manual_seed(2)
        small, large = (torch.nn.Parameter(torch.randn(n, generator=make, dtype=F64)) for n in (50, 600_000))
        params = [small] if per == "element" else [small, large]
        torch.set_default_device(device)
        try:
            optimizer = cls(params, lr=0.01, per=per, learn="all", optimizer=gdtuo.SGD(optimizer=gdtuo.Adam()))
            for step in range(3):
                for p in params:
                    p.grad = (p.detach() * (1 + step)).cos()
                optimizer.step()
            results.append((optimizer.hyperparameters(), optimizer.hypergradients()))
        finally:
            torch.set_default_device(None)
    assert results[0] == results[1]


def test_switches_must_be_hashable():
    @dataclasses.dataclass(frozen=True)
    class WeightedRule(gdtuo.Rule):
        factors: object = (1.0, 2.0)

        hyperparameters = {"lr": (0.1, gdtuo.Positive())}

        def init(self, weights, hyper):
            return {}

        def update(self, weights, gradient, state, hyper, step):
            return -hyper["lr"] * sum(self.factors) * gradient, state

    class Weighted(gdtuo.Level):
        rule = WeightedRule

    (w,) = weights((3,))
    optimizer = Weighted([w], factors=(2.0, 3.0))
    w.grad, before = torch.ones_like(w), w.detach().clone()
    optimizer.step()
    torch.testing.assert_close(w.detach(), before - 0.5)
    with pytest.raises(TypeError, match="Give a tuple, not a list"):
        Weighted([w], factors=[1.0, 2.0])


def test_a_rule_that_branches_may_stand_above():
    """It cannot be recorded, and steps all the same; its branch-free twin tells where to."""

    class HaltingRule(gdtuo.Rule):
        hyperparameters = {"lr": (0.1, gdtuo.Positive())}

        def init(self, weights, hyper):
            return {}

        def update(self, weights, gradient, state, hyper, step):
            if step > 3:
                return -0.5 * hyper["lr"] * gradient, state
            return -hyper["lr"] * gradient, state

    class SmoothRule(HaltingRule):
        def update(self, weights, gradient, state, hyper, step):
            return -hyper["lr"] * torch.where(step > 3, 0.5, 1.0) * gradient, state

    class Halting(gdtuo.Level):
        rule = HaltingRule

    class Smooth(gdtuo.Level):
        rule = SmoothRule

    found = []
    for above in (Halting(lr=0.05), Smooth(lr=0.05)):
        (w,) = weights((6,))
        optimizer = gdtuo.Adam([w], lr=0.01, optimizer=above)
        descend(optimizer, 8)
        found.append((optimizer.hyperparameters()["L0/g0/lr"], w.detach().clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert found[0][0] != 0.01
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)


def test_hypergradients_of_a_gradient_that_takes_the_place_of_one_that_is_still_there():
    """Told apart by identity: tensors compare by their numbers, and raise where shapes differ."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = gdtuo.SGD([p], lr=0.1, horizon=1, optimizer=gdtuo.SGD())
    p.grad = old = torch.ones(4)
    optimizer.step()
    p.grad = torch.ones(4)
    assert optimizer.hypergradients()["L0/g0/lr"] == pytest.approx(-1.0)
    assert old is not p.grad
