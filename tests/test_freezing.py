"""Bad gradients freeze what is learned and nothing else; `learning` and `hyperstep()` move exactly what they say."""

from __future__ import annotations

import math

import pytest
import torch
from cases import F64, ONE_UPDATE, TOWERS, Awkward, backward, differences, learned_values, tower_values, train, two_groups

import gdtuo

# drift stands for all that has no closed form
SHAPES = pytest.mark.parametrize("shape", [shape for shape in TOWERS if not shape.startswith("nadam")])
#: towers in which a hypergradient of 0 moves nothing, since no level above the first remembers earlier ones
MEMORYLESS = ("adam/sgd/sgd", "sgd/sgd/sgd, per element", "drift/sgd")


def make(shape: str, steps: int = 6) -> tuple[Awkward, gdtuo.Level]:
    """A tower in mid-run over two groups."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    train(model, optimizer, range(steps))
    return model, optimizer


def learned_state(optimizer: gdtuo.Level, group: int) -> dict[str, torch.Tensor]:
    """What a frozen group must keep: all of its tower except the record of the weights' own last update."""
    return {key: value for key, value in tower_values(optimizer, group).items() if not key.endswith(("L0/last", "L0/slope"))}


def weights(model: Awkward) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@SHAPES
def test_a_bad_gradient_freezes_its_group_and_is_counted(shape, bad):
    """Group 1 (bias, scale) gets it. Group 0 has gradients of its own and learns as if nothing had happened."""
    model, optimizer = make(shape)
    twin, undisturbed = make(shape)
    before = learned_state(optimizer, 1)
    for net in (model, twin):
        backward(net, 6)
    model.bias.grad[2] = bad
    optimizer.step()
    undisturbed.step()
    assert not differences(before, learned_state(optimizer, 1))
    assert optimizer.skipped == 1
    assert undisturbed.skipped == 0
    assert differences(before, learned_state(undisturbed, 1))  # it would have learned
    assert not differences(tower_values(optimizer, 0), tower_values(undisturbed, 0))
    assert torch.equal(model.tied, twin.tied)
    assert not model.bias[2].isfinite() or math.isinf(bad)  # the weights do what torch would do
    # and group 0 goes on, bitwise, with gradients given by hand
    make_noise = torch.Generator().manual_seed(3)
    for _ in range(10):
        gradient = torch.randn(5, 4, generator=make_noise, dtype=F64)
        for net, tower in ((model, optimizer), (twin, undisturbed)):
            net.zero_grad()
            net.tied.grad = gradient.clone()
            tower.step()
    assert not differences(tower_values(optimizer, 0), tower_values(undisturbed, 0))
    assert torch.equal(model.tied, twin.tied)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@SHAPES
def test_every_bad_step_is_counted(shape, bad):
    """Three in a row: all frozen, each counted; a group whose tower is poisoned stays frozen for ever, others learn."""
    model, optimizer = make(shape)
    before = learned_state(optimizer, 1)
    others = learned_state(optimizer, 0)
    for i in range(3):
        model.zero_grad()
        model.tied.grad = torch.full_like(model.tied, 0.1 * (i + 1))
        model.bias.grad = torch.full_like(model.bias, bad)
        optimizer.step()
        assert optimizer.skipped == i + 1
        assert not differences(before, learned_state(optimizer, 1))
    assert differences(others, learned_state(optimizer, 0))
    assert all(math.isfinite(v) for v in optimizer.hyperparameters().values())
    assert "skipped" in optimizer.state_dict()["param_groups"][0]
    other = TOWERS[shape]().bind(two_groups(Awkward(), 0.02))
    other.load_state_dict(optimizer.state_dict())
    assert other.skipped == 3


@SHAPES
def test_a_bad_gradient_passes(shape):
    """A NaN whose damage the user repairs (as a restart from a checkpoint does): the group learns again."""
    model, optimizer = make(shape)
    state = {p: {k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)} for p, s in optimizer.state.items()}
    kept = weights(model)
    backward(model, 6)
    model.bias.grad[0] = math.nan
    optimizer.step()
    with torch.no_grad():
        for p, entries in state.items():
            for key, value in entries.items():
                optimizer.state[p][key].copy_(value)
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    before = learned_state(optimizer, 1)
    train(model, optimizer, range(7, 12))
    changed = {key.split("/")[1] for key in differences(before, learned_state(optimizer, 1)) if key.endswith("/shift")}
    assert changed == {key.split("/")[1] for key in before if key.endswith("/shift")}
    assert all(value.isfinite().all() for value in learned_values(optimizer).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_hyperstep_freezes_too(bad):
    model, optimizer = make("adam/sgd/sgd")
    before, others, kept = learned_state(optimizer, 1), learned_state(optimizer, 0), weights(model)
    backward(model, 6)
    model.bias.grad[0] = bad
    optimizer.hyperstep()
    assert not differences(before, learned_state(optimizer, 1))
    assert differences(others, learned_state(optimizer, 0))
    assert optimizer.skipped == 1
    assert not differences(kept, weights(model))


# ---------------------------------------------------------------- gradients of 0


@pytest.mark.parametrize("fresh", [True, False])
@SHAPES
def test_item_16_a_dummy_step_changes_nothing(shape, fresh):
    """Checkpoint tools take one, with gradients 0, lr = 0 and no_grad, to have the state allocated."""
    model, optimizer = make(shape, 0 if fresh else 6)
    kept, before = weights(model), optimizer.hyperparameters()
    shifts = learned_values(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with torch.no_grad():
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    assert not differences(kept, weights(model))
    if fresh or shape in MEMORYLESS:  # in mid-run a momentum above goes on, as any momentum does
        assert not differences(shifts, learned_values(optimizer))
        assert before == optimizer.hyperparameters()
    assert optimizer.skipped == 0


@SHAPES
def test_zero_gradients_for_20_steps(shape):
    """Finite everywhere, and with no momentum above nothing that was learned moves."""
    model, optimizer = make(shape)
    before = learned_values(optimizer)
    for _ in range(20):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(value.isfinite().all() for value in tower_values(optimizer).values())
        assert not any(optimizer.hypergradients().values())
    assert optimizer.skipped == 0
    assert all(p.isfinite().all() for p in model.parameters())
    if shape in MEMORYLESS:
        assert not differences(before, learned_values(optimizer))


@SHAPES
def test_zero_gradients_from_the_start(shape):
    """Dead units: g = 0 and v = 0, where every quotient is 0/0."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02, weight_decay=0.0))
    before = optimizer.hyperparameters()
    for _ in range(20):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        assert not any(optimizer.hypergradients().values())
        optimizer.step()
    assert optimizer.skipped == 0
    assert all(value.isfinite().all() for value in tower_values(optimizer).values())
    assert optimizer.hyperparameters() == before
    losses = train(model, optimizer, range(100))
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    assert all(value.any() for value in learned_values(optimizer).values())


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: gdtuo.SGD(p, lr=1e-3, trust=math.inf, momentum=0.8, learn="all", optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
        lambda p: gdtuo.SGD(p, lr=1e-3, trust=math.inf, per="tensor", optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
        lambda p: gdtuo.SGD(p, lr=1e-3, per="element", optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
        lambda p: gdtuo.SGD(p, lr=1e-3, trust=math.inf, horizon=4, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
        lambda p: gdtuo.Adam(p, eps=0.0, learn=("lr", "betas"), optimizer=gdtuo.Adam(optimizer=gdtuo.SGD())),
        lambda p: gdtuo.RMSProp(p, eps=0.0, centered=True, learn=("lr", "alpha"), optimizer=gdtuo.SGD()),
        lambda p: gdtuo.AdaGrad(p, eps=0.0, optimizer=gdtuo.SGD()),
    ],
    ids=["momentum", "tensor", "element", "horizon", "adam", "rmsprop", "adagrad"],
)
def test_a_whole_run_in_other_units(build, factor):
    """Gradients in other units throughout, 1e-12 to 1e12: the same cosines at every step, the same learned factors."""
    runs = []
    for scale in (1.0, factor):
        w = torch.nn.Parameter(torch.ones(6, dtype=F64))
        v = torch.nn.Parameter(torch.ones(3, 2, dtype=F64))
        optimizer = build([w, v])
        noise, seen = torch.Generator().manual_seed(2), []
        for _ in range(10):
            for p in (w, v):
                p.grad = scale * (torch.randn(p.shape, generator=noise, dtype=F64) + 0.5)
            seen.append(optimizer.hypergradients())
            optimizer.step()
        runs.append((seen, optimizer.hyperparameters()))
    for plain, scaled in zip(runs[0][0], runs[1][0], strict=True):
        assert scaled == pytest.approx(plain, rel=1e-7, abs=1e-9)
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-9)
    assert any(abs(value) > 0.05 for value in runs[0][0][-1].values())


# ---------------------------------------------------------------- on purpose


@SHAPES
def test_learning_switched_off_and_on(shape):
    model, optimizer = make(shape)
    optimizer.learning = False
    assert optimizer.learning is False
    before, kept = tower_values(optimizer), weights(model)
    values = optimizer.hyperparameters()
    train(model, optimizer, range(6, 12))
    frozen = {key: v for key, v in before.items() if not key.endswith(("L0/last", "L0/slope"))}
    after = tower_values(optimizer)
    assert not differences(frozen, {key: after[key] for key in frozen})
    assert values == optimizer.hyperparameters()
    assert differences(kept, weights(model))
    with pytest.raises(RuntimeError, match=r"optimizer\.learning = True"):
        optimizer.hyperstep()
    twin = TOWERS[shape]().bind(two_groups(Awkward(), 0.02))
    twin.load_state_dict(optimizer.state_dict())
    assert twin.learning is False  # it is saved
    optimizer.learning = True
    backward(model, 12)
    optimizer.step()  # nothing from before the pause is pulled back
    assert not differences(learned_values(optimizer), {key: before[key] for key in learned_values(optimizer)})
    train(model, optimizer, range(13, 20))
    changed = {key.split("/")[1] for key in differences(before, learned_values(optimizer)) if key.endswith("/shift")}
    assert changed == {key.split("/")[1] for key in learned_values(optimizer)}


@SHAPES
def test_a_pause_without_a_step_drops_the_waiting_update(shape):
    """After it is switched on again, learning goes on with the next update."""
    model, optimizer = make(shape)
    before = learned_values(optimizer)
    backward(model, 6)
    optimizer.learning = False
    optimizer.learning = True
    optimizer.step()
    assert not differences(before, learned_values(optimizer))
    backward(model, 7)
    optimizer.step()
    assert sorted(differences(before, learned_values(optimizer))) == sorted(before)


def test_a_horizon_does_not_reach_across_a_pause():
    """Exact, linear domain: Z is minus the sum of the discounted gradients since learning went on, none before."""
    w = torch.nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = gdtuo.SGD(
        [w], lr=0.1, horizon=4, hypergradient="exact", domains={"lr": gdtuo.Real()}, optimizer=gdtuo.SGD(lr=1e-3)
    )
    gradients = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for step, gradient in enumerate(gradients):
        if step in (3, 6):
            optimizer.learning = step == 6
        w.grad = gradient.clone()
        if step == 8:
            expected = -(gradients[8] @ (gradients[7] + 0.75 * gradients[6])).item()
            assert optimizer.hypergradients()["L0/g0/lr"] == pytest.approx(expected, rel=1e-12)
        optimizer.step()


def test_learning_off_from_the_start_is_torch():
    model, twin = Awkward(), Awkward()
    ours = gdtuo.Adam(two_groups(model, 0.02), lr=0.01, optimizer=gdtuo.SGD())
    ours.learning = False
    theirs = torch.optim.Adam(two_groups(twin, 0.02), lr=0.01, foreach=False)
    for step in range(20):
        train(model, ours, range(step, step + 1))
        train(twin, theirs, range(step, step + 1))
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert not any(value.any() for value in learned_values(ours).values())


@SHAPES
def test_hyperstep_moves_only_hyperparameters(shape):
    """Every level's shifts move, no weight and no state of a weight does, and an update is pulled back once."""
    model, optimizer = make(shape)
    backward(model, 6)
    kept, before = weights(model), learned_values(optimizer)
    states = {
        f"{i}/{key}": value.clone()
        for i, entries in enumerate(optimizer.state.values())
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    expected = optimizer.hypergradients()
    optimizer.hyperstep()
    assert not differences(kept, weights(model))
    after = {
        f"{i}/{key}": value
        for i, entries in enumerate(optimizer.state.values())
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    assert not differences(states, after)
    assert sorted(differences(before, learned_values(optimizer))) == sorted(before)
    assert optimizer.hypergradients() == expected  # what was used, now shown as such
    once = learned_values(optimizer)
    optimizer.hyperstep()
    assert not differences(once, learned_values(optimizer))
    optimizer.step()  # moves the weights, learns nothing more from the same update
    assert not differences(once, learned_values(optimizer))
    assert differences(kept, weights(model))
    backward(model, 7)
    optimizer.step()
    assert sorted(differences(once, learned_values(optimizer))) == sorted(once)


def test_hyperstep_then_step_is_step():
    """With the same gradients: (2) and (3), then (4), of `design.md`'s one step."""
    for shape in TOWERS:
        model, optimizer = make(shape)
        twin, other = make(shape)
        for step in range(6, 14):
            backward(model, step)
            backward(twin, step)
            optimizer.hyperstep()
            optimizer.step()
            other.step()
        assert not differences(weights(model), weights(twin)), shape
        assert not differences(tower_values(optimizer), tower_values(other)), shape


def test_hyperstep_learns_from_other_data():
    """The sign of a weight decay's hypergradient is the validation loss's, not the training loss's."""
    found = {}
    for target in (0.0, 5.0):
        w = torch.nn.Parameter(torch.full((3,), 2.0, dtype=F64))
        optimizer = gdtuo.SGD([w], lr=0.05, weight_decay=0.1, learn="weight_decay", optimizer=gdtuo.SGD(lr=0.05))
        for _ in range(10):
            w.grad = 2 * (w.detach() - 3)
            optimizer.step()
            w.grad = 2 * (w.detach() - target)
            optimizer.hyperstep()
        found[target] = optimizer.hyperparameters()["L0/g0/weight_decay"]
    assert found[0.0] == pytest.approx(0.1 * math.exp(10 * 0.05), rel=1e-9)  # ten cosines of ±1
    assert found[5.0] == pytest.approx(0.1 * math.exp(-10 * 0.05), rel=1e-9)


def test_the_first_step_lets_the_levels_above_step_with_zero_gradients():
    """As the published algorithm does: an Adam above counts it, so its second step is bias-corrected as the second."""
    w = torch.nn.Parameter(torch.ones(2, dtype=F64))
    optimizer = gdtuo.SGD([w], lr=0.1, optimizer=gdtuo.Adam(lr=0.01, betas=(0.9, 0.99), eps=0.0), **ONE_UPDATE)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        optimizer.step()
    cosine = -1.0
    first, second = 0.1 * cosine / (1 - 0.9**2), 0.01 * cosine**2 / (1 - 0.99**2)
    expected = -0.01 * first / math.sqrt(second)
    assert optimizer.param_groups[0]["L0/shift"].item() == pytest.approx(expected, rel=1e-12)
    assert optimizer.param_groups[0]["L1/step"].item() == 2


# ---------------------------------------------------------------- everything at once


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("set_to_none", [True, False])
def test_item_22_random_absent_and_bad_gradients(seed, set_to_none):
    """Against plain loops: what is pulled back when, what is skipped, what is learned; two groups of three parameters."""
    make = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(4, generator=make, dtype=F64)) for _ in range(6)]
    optimizer = gdtuo.SGD([{"params": params[:3]}, {"params": params[3:]}], lr=0.1, optimizer=gdtuo.SGD(lr=0.05), **ONE_UPDATE)
    waiting: list = [None] * 6  # (gradient, learning rate) of the update that is to be pulled back
    shift, skipped = [0.0, 0.0], 0
    for _ in range(40):
        optimizer.zero_grad(set_to_none=set_to_none)
        gradients: list = []
        for p in params:
            g = torch.randn(4, generator=make, dtype=F64)
            kind = torch.rand((), generator=make).item()
            if kind < 0.05:
                g[1] = math.nan if kind < 0.025 else math.inf
            present = kind < 0.7 or not set_to_none  # what is only set to zero stays a gradient
            gradients.append((g if kind < 0.7 else torch.zeros_like(g)) if present else None)
            p.grad = None if gradients[-1] is None else gradients[-1].clone()
        optimizer.step()
        for group in range(2):
            mine = [i for i in range(3 * group, 3 * group + 3) if gradients[i] is not None]
            pairs = [(gradients[i], -waiting[i][1] * waiting[i][0]) for i in mine if waiting[i] is not None]
            if pairs:
                g, z = (torch.cat(parts) for parts in zip(*pairs, strict=True))
                if g.isfinite().all() and z.isfinite().all():
                    norms = g.norm() * z.norm()
                    shift[group] -= 0.05 * float(g @ z / norms) if norms > 0 else 0.0
                elif z.any():  # else nothing had moved, and there is no direction to judge
                    skipped += 1
            for i in mine:
                waiting[i] = (gradients[i], 0.1 * math.exp(shift[group]))
        found = optimizer.hyperparameters()
        for group in range(2):
            assert found[f"L0/g{group}/lr"] == pytest.approx(0.1 * math.exp(shift[group]), rel=1e-10)
        assert all(math.isfinite(value) for value in found.values())
    assert optimizer.skipped == skipped > 3


@pytest.mark.parametrize("learn", [None, (), ("momentum",)])
@pytest.mark.parametrize("horizon", [1, 3])
def test_each_weight_keeps_its_own_rate(horizon, learn):
    """When learning stops, or a group's `learn` is narrowed, torch's kernels, which take one rate, are no choice."""
    make = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, generator=make, dtype=torch.float64))
    options = {"learn": ("lr", "momentum"), "per": "element", "horizon": horizon}
    optimizer = gdtuo.SGD([p], lr=0.05, momentum=0.5, **options, optimizer=gdtuo.SGD(lr=0.1))
    for _ in range(8):
        p.grad = torch.randn(6, generator=make, dtype=torch.float64)
        optimizer.step()
    if learn is None:
        optimizer.learning = False
    else:
        optimizer.param_groups[0]["learn"] = learn
    before, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.ones_like(p)
    optimizer.step()
    rates, momenta = optimizer._parts.engines[0].ladder.values[:, :2].unbind(1)  # which the update used
    assert rates.max() > 1.1 * rates.min()
    torch.testing.assert_close(p.detach() - before, -rates * (momenta * buffer + 1), rtol=1e-10, atol=1e-14)


def test_a_bad_gradient_of_a_weight_that_then_has_none_is_forgotten():
    make = torch.Generator().manual_seed(0)
    good, bad = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = gdtuo.SGD([good, bad], lr=0.05, optimizer=gdtuo.SGD(lr=0.05))
    rates = []
    for t in range(8):
        good.grad = torch.rand(3, generator=make)
        bad.grad = torch.full((3,), float("nan")) if t == 2 else torch.ones(3) if t < 2 else None
        optimizer.step()
        rates.append(optimizer.hyperparameters()["L0/g0/lr"])
    assert optimizer.skipped == 1
    assert len(set(rates[3:])) == 5


def test_what_a_group_learns_no_more_teaches_the_levels_above_nothing():
    make = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, generator=make))
    optimizer = gdtuo.SGD([p], lr=0.05, per="element", optimizer=gdtuo.SGD(optimizer=gdtuo.Adam(lr=0.02)))
    kept = []
    for t in range(8):
        if t == 4:
            optimizer.param_groups[0]["learn"] = ()
        p.grad = torch.randn(6, generator=make)
        optimizer.step()
        group = optimizer.param_groups[0]
        kept.append({key: value.clone() for key, value in group.items() if key.startswith(("L1/s", "L2/s"))})
    assert any(not torch.equal(kept[2][key], kept[3][key]) for key in kept[0])
    assert all(torch.equal(kept[4][key], kept[7][key]) for key in kept[0])
