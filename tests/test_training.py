"""Towers train what people train: awkward parameters, norms, recurrences, low precision; clipping, accumulation, EMA, scalers."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from cases import F64, ONE_UPDATE, TOWERS, Awkward, backward, batch, differences, learned_values, tower_values, train, two_groups
from torch import Tensor, nn

import gdtuo

# drift stands for all that has no closed form
SHAPES = pytest.mark.parametrize("shape", [shape for shape in TOWERS if not shape.startswith("nadam")])


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> list[float]:
    """Full-batch training; the losses."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def finite(optimizer: gdtuo.Level) -> bool:
    return all(map(math.isfinite, optimizer.hyperparameters().values())) and optimizer.skipped == 0


# ---------------------------------------------------------------- what is trained


@SHAPES
def test_tied_frozen_and_unused_parameters(shape):
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model, optimizer, range(150))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert torch.equal(start["frozen"], model.frozen)
    assert torch.equal(start["unused"], model.unused)
    assert all(not torch.equal(start[name], getattr(model, name)) for name in ("tied", "bias", "scale"))
    assert finite(optimizer)
    assert all(p.is_leaf and p.requires_grad == (name != "frozen") for name, p in model.named_parameters())


def test_a_tied_weight_is_one_parameter():
    """A weight used twice in the model equals one used once in a model that spells the sum of both paths out."""
    w = nn.Parameter(0.3 * randn(3, 3))
    v = nn.Parameter(w.detach().clone())
    x = randn(10, 3, seed=1)
    tied, spelled = (gdtuo.Adam([p], lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())) for p in (w, v))
    for _ in range(20):
        tied.zero_grad()
        ((x @ w.T).tanh() @ w - x).square().mean().backward()
        tied.step()
        a, b = (v.detach().clone().requires_grad_(True) for _ in range(2))
        ((x @ a.T).tanh() @ b - x).square().mean().backward()
        v.grad = a.grad + b.grad
        spelled.step()
        torch.testing.assert_close(w, v, rtol=1e-10, atol=1e-12)
    for key, value in tied.hyperparameters().items():
        assert value == pytest.approx(spelled.hyperparameters()[key], rel=1e-10)


@SHAPES
def test_batch_norm(shape):
    """BatchNorm's weights learn, its statistics follow the data, evaluation mode agrees with training mode."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = 3 + 2 * randn(64, 4)
    y = (x[:, :1] * x[:, 1:2] / 10).tanh()
    optimizer = TOWERS[shape]().bind(model.parameters())
    losses = fit(model, optimizer, lambda: (model(x) - y).square().mean(), 200)
    assert losses[-1] < 0.5 * losses[0]
    assert finite(optimizer)
    model.eval()
    assert (model(x) - y).square().mean().item() < 0.6 * losses[0]


@SHAPES
def test_lstm(shape):
    """Whether the first or the last of six numbers is larger."""
    torch.manual_seed(2)
    net, head = nn.LSTM(1, 6, batch_first=True).double(), nn.Linear(6, 1).double()
    model = nn.ModuleList([net, head])
    x = randn(48, 6, 1, seed=3)
    y = (x[:, -1, 0] > x[:, 0, 0]).double()
    optimizer = TOWERS[shape]().bind(model.named_parameters())

    def loss() -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(head(net(x)[0][:, -1])[:, 0], y)

    losses = fit(model, optimizer, loss, 300)
    assert losses[-1] < 0.75 * losses[0]
    assert finite(optimizer)


@SHAPES
def test_experts_whose_gradient_is_none_at_times(shape):
    """Each batch uses one of three experts; the others' gradients are None."""
    experts = nn.ModuleList([nn.Linear(4, 1).double() for _ in range(3)])
    with torch.no_grad():
        for i, expert in enumerate(experts):
            expert.weight.copy_(0.5 * randn(1, 4, seed=30 + i))
            expert.bias.zero_()
    targets = [randn(4, 1, seed=10 + i) for i in range(3)]
    optimizer = TOWERS[shape]().bind(experts.parameters())
    make, losses = torch.Generator().manual_seed(4), []
    for step in range(300):
        i = int(torch.randint(3, (), generator=make))
        x = randn(16, 4, seed=100 + step)
        others = [p.detach().clone() for j, e in enumerate(experts) if j != i for p in e.parameters()]
        optimizer.zero_grad()
        loss = (experts[i](x) - (x @ targets[i]).tanh()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(map(torch.equal, others, [p for j, e in enumerate(experts) if j != i for p in e.parameters()]))
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])
    assert finite(optimizer)


def test_each_absent_parameter_keeps_its_last_update():
    """Per tensor: two weights trained in turns learn what each would have learned alone."""

    def loss(p: Tensor, step: int) -> Tensor:
        return ((p - 3) * (1 + randn(3, seed=step))).square().sum()

    def make(params):
        return gdtuo.SGD(params, lr=0.01, momentum=0.5, per="tensor", optimizer=gdtuo.SGD(lr=0.05), **ONE_UPDATE)

    weights = [nn.Parameter(randn(3, seed=i)) for i in range(2)]
    together = make(weights)
    alone = [nn.Parameter(w.detach().clone()) for w in weights]
    apart = [make([w]) for w in alone]
    pattern = torch.rand(30, generator=torch.Generator().manual_seed(5)) < 0.5
    for step, first in enumerate(pattern.tolist()):
        i = int(first)
        together.zero_grad()
        loss(weights[i], step).backward()
        together.step()
        apart[i].zero_grad()
        loss(alone[i], step).backward()
        apart[i].step()
    for i in range(2):
        torch.testing.assert_close(weights[i], alone[i], rtol=1e-12, atol=1e-12)
        assert together.hyperparameters()[f"L0/g0/lr/{i}"] == pytest.approx(apart[i].hyperparameters()["L0/g0/lr/0"], rel=1e-12)
        assert together.hyperparameters()[f"L0/g0/lr/{i}"] > 0.0105


def test_weights_of_an_absent_parameter_learn_nothing_per_element():
    """What was found at an earlier step is not found again: each weight's rate is what the parameter alone would have learned."""

    def make(params):
        above = gdtuo.SGD(lr=0.05, hypergradient="exact")
        return gdtuo.SGD(params, lr=0.01, per="element", hypergradient="exact", optimizer=above)

    weights = [nn.Parameter(randn(3, seed=i)) for i in range(2)]
    together, apart = make(weights), [make([nn.Parameter(w.detach().clone())]) for w in weights]
    for step in range(6):
        for i, alone in enumerate(apart):
            absent = i == step % 2 and step > 1
            (p,) = alone.param_groups[0]["params"]
            for q in (p, weights[i]):
                q.grad = None if absent else (q.detach() - 3) * (1 + randn(3, seed=step))
            if not absent:
                alone.step()
        together.step()
    shifts = torch.cat([alone.param_groups[0]["L0/shift"] for alone in apart])
    torch.testing.assert_close(together.param_groups[0]["L0/shift"], shifts, rtol=1e-12, atol=1e-12)
    assert shifts.abs().min() > 1e-4


def test_updates_of_different_steps_are_pulled_back_with_their_own_rates():
    """a moved at lr 0.1, b a step later at lr 0.4; the tangent of both together is (-0.1 g_a, -0.4 g_b)."""
    a, b = (nn.Parameter(torch.ones(3, dtype=F64)) for _ in range(2))
    optimizer = gdtuo.SGD([a, b], lr=0.1, optimizer=gdtuo.SGD(lr=1e-2), **ONE_UPDATE)
    first, now = [randn(3, seed=i) for i in range(2)], randn(6, seed=2)
    for p, gradient, rate in ((a, first[0], 0.1), (b, first[1], 0.4)):
        optimizer.zero_grad()
        p.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    a.grad, b.grad = now[:3].clone(), now[3:].clone()
    assert optimizer.hyperparameters()["L0/g0/lr"] == pytest.approx(0.4, rel=1e-12)  # nothing was pulled back yet
    tangent = torch.cat((-0.1 * first[0], -0.4 * first[1]))
    expected = (now @ tangent / (now.norm() * tangent.norm())).item()
    assert optimizer.hypergradients()["L0/g0/lr"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@SHAPES
def test_item_7_weights_of_16_bits(shape, dtype):
    """They and their state stay so; everything that is learned stays in full precision, and saves and loads exactly."""
    model = Awkward(dtype)
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    losses = []
    for step in range(150):
        losses.append(backward(model, step, dtype))
        optimizer.step()
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert all(p.dtype == dtype for p in model.parameters())
    assert finite(optimizer)
    learned = learned_values(optimizer)
    assert all(value.dtype == F64 for value in learned.values())
    before = learned_values(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert not differences(before, learned_values(optimizer))
    assert all(value.any() for value in before.values())


@pytest.mark.parametrize("kind", ["exact", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1000, 1 << 18, 1 << 20])
def test_sums_are_taken_in_32_bits_at_least(n, dtype, kind):
    """Many products that would round away in bf16 add up: the sum is that of float64 to 1e-7 of |g| |z|, at any length."""
    w = nn.Parameter(torch.zeros(n, dtype=dtype))
    optimizer = gdtuo.SGD([w], lr=1e-3, hypergradient=kind, domains={"lr": gdtuo.Real()}, optimizer=gdtuo.SGD(lr=0.0))
    first, second = (randn(n, seed=i).to(dtype) for i in range(2))
    w.grad = first.clone()
    optimizer.step()
    w.grad = second.clone()
    norms = (first.double().norm() * second.double().norm()).item()
    expected = -(first.double() @ second.double()).item()
    scale = 1.0 if kind == "cosine" else norms
    found = optimizer.hypergradients()["L0/g0/lr"]
    assert found == pytest.approx(expected / norms * scale, rel=0, abs=1e-7 * scale)


# ---------------------------------------------------------------- between backward and step


@SHAPES
def test_item_14_clipping_is_what_the_step_sees(shape):
    """Clipped gradients equal gradients that were small from the start; only params are clipped, never a shift."""
    runs = []
    for by_hand in (False, True):
        model = Awkward()
        optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
        for step in range(15):
            backward(model, step)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            if by_hand:
                norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
                for p in params:
                    p.grad = None if p.grad is None else p.grad * (0.1 / (norm + 1e-6)).clamp(max=1.0)
            else:
                nn.utils.clip_grad_norm_(params, 0.1)
            optimizer.step()
        runs.append((model, optimizer))
    (a, first), (b, second) = runs
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    for key, value in first.hyperparameters().items():
        assert value == pytest.approx(second.hyperparameters()[key], rel=1e-9)


@SHAPES
def test_item_14_four_micro_batches_are_one_batch(shape):
    whole, parts = Awkward(), Awkward()
    one = TOWERS[shape]().bind(two_groups(whole, 0.02))
    four = TOWERS[shape]().bind(two_groups(parts, 0.02))
    for step in range(15):
        backward(whole, step)
        one.step()
        parts.zero_grad()
        for x in batch(step).chunk(4):
            ((parts(x) - x).square().mean() / 4).backward()
        four.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    assert one.hyperparameters() == pytest.approx(four.hyperparameters(), rel=1e-8)
    assert all(value.any() for value in learned_values(four).values())


@SHAPES
def test_an_ema_swap_does_not_disturb(shape):
    """Weights swapped for their average between steps, evaluated with gradients, and swapped back."""
    results = []
    for swap in (False, True):
        model = Awkward()
        optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
        average = model.weights()
        seen = []
        for step in range(20):
            backward(model, step)
            seen.append(optimizer.hypergradients())
            optimizer.step()
            with torch.no_grad():
                for a, p in zip(average, model.parameters(), strict=True):
                    a.lerp_(p, 0.1)
            if swap:
                kept = model.weights()
                with torch.no_grad():
                    for a, p in zip(average, model.parameters(), strict=True):
                        p.copy_(a)
                (model(batch(900 + step)) - batch(900 + step)).square().mean().backward()  # an evaluation
                with torch.no_grad():
                    for old, p in zip(kept, model.parameters(), strict=True):
                        p.copy_(old)
        results.append((seen, dict(model.named_parameters()) | tower_values(optimizer)))
    assert results[0][0] == results[1][0]
    assert not differences(results[0][1], results[1][1])


def test_a_swap_between_backward_and_step_does_not_disturb_the_hypergradient():
    """SAM, pruning: the weights that stand when step() is called are not those of the gradient; the pull-back does not look."""
    values = []
    for disturb in (False, True):
        model = Awkward()
        optimizer = gdtuo.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, learn="all", optimizer=gdtuo.SGD())
        train(model, optimizer, range(5))
        backward(model, 5)
        if disturb:
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(3.0)
        values.append(optimizer.hypergradients())
    assert values[0] == values[1]
    assert all(values[0].values())


def test_two_towers_interleaved():
    """Nothing is shared between optimizers, not even the template that both were made from."""
    for shape, build in TOWERS.items():
        template = build()
        models = [Awkward(), Awkward()]
        with torch.no_grad():
            models[1].tied.mul_(1.3)
        alone = copy.deepcopy(models)
        together = [template.bind(two_groups(m, 0.02)) for m in models]
        for step in range(12):
            for i, model in enumerate(models):
                backward(model, 50 * i + step)
            for optimizer in reversed(together):
                optimizer.step()
        for i, model in enumerate(alone):
            optimizer = build().bind(two_groups(model, 0.02))
            train(model, optimizer, range(50 * i, 50 * i + 12))
            assert not differences(tower_values(optimizer), tower_values(together[i])), shape
            assert not differences(dict(model.named_parameters()), dict(models[i].named_parameters())), shape
        assert differences(tower_values(together[0]), tower_values(together[1])), shape


# ---------------------------------------------------------------- loss scaling


@SHAPES
def test_item_13_a_step_that_the_scaler_skips(shape):
    """An injected inf: nothing moves; the next good step pairs with the last update that was applied."""
    runs = []
    for inject in (False, True):
        model = Awkward(torch.float32)
        optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        for step in range(14):
            if inject and step == 7:
                before = dict(model.named_parameters()) | tower_values(optimizer)
                before = {key: value.detach().clone() for key, value in before.items()}
                model.zero_grad()
                x = batch(500, dtype=torch.float32)
                scaler.scale((model(x) - x).square().mean()).backward()
                model.tied.grad[0, 0] = math.inf
                scaler.step(optimizer)
                scaler.update()
                assert scaler.get_scale() == 2.0**9
                assert not differences(before, dict(model.named_parameters()) | tower_values(optimizer))
            model.zero_grad()
            x = batch(step, dtype=torch.float32)
            scaler.scale((model(x) - x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.skipped == 0  # the tower was never asked
        runs.append(dict(model.named_parameters()) | tower_values(optimizer))
    assert not differences(*runs)  # powers of two scale without rounding
    assert all(value.any() for key, value in runs[0].items() if key.endswith("/shift"))


@SHAPES
def test_item_13_autocast_and_clipping_of_unscaled_gradients(shape):
    """The usual loop of mixed precision; without a scaler the same, to the bit."""
    runs = []
    for scale in (None, 2.0**12):
        model = Awkward(torch.float32)
        optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=1000, enabled=scale is not None)
        for step in range(12):
            model.zero_grad()
            x = batch(step, dtype=torch.float32)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (model(x) - x).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.5)
            scaler.step(optimizer)
            scaler.update()
        runs.append(dict(model.named_parameters()) | tower_values(optimizer))
    assert not differences(*runs)
    assert all(value.any() for key, value in runs[0].items() if key.endswith("/shift"))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("shape", [shape for shape in TOWERS if "exact" not in shape])
def test_item_13_the_cosine_does_not_depend_on_the_scale_of_the_loss(shape, scale):
    """Whatever the units of the last gradient, upward goes the same number; to a rounding, powers of two or not."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    train(model, optimizer, range(6))
    backward(model, 6)
    plain = optimizer.hypergradients()
    for factor in (scale, 1e-12, 1e12):
        backward(model, 6)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(factor)
        assert optimizer.hypergradients() == pytest.approx(plain, rel=1e-9)
    assert any(plain.values())
