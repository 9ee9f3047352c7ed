"""`auto` is the tower that it says, leaves alone what a user writes, and finds its way from where it starts."""

import pytest
import torch

import gdtuo
from gdtuo.lab.tasks import Named
from gdtuo.lab.training import Start, train


def problem(seed=0, start=3.0):
    """Weights and a noisy loss whose optimum is 0."""
    generator = torch.Generator().manual_seed(seed)
    curvatures = torch.logspace(-1, 1, 20, dtype=torch.float64)
    weights = torch.nn.Parameter(start * torch.ones(20, dtype=torch.float64))

    def loss():
        noise = torch.randn(20, generator=generator, dtype=torch.float64)
        return (0.5 * curvatures * weights**2 + 0.1 * noise * weights).sum()

    return weights, loss


def trajectory(make, steps=60):
    weights, loss = problem()
    optimizer, path = make([weights]), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        path.append(weights.detach().clone())
    return torch.stack(path), optimizer


@pytest.mark.parametrize(
    ("made", "written"),
    [
        (gdtuo.auto, lambda p: gdtuo.AdamW(p, lr=1000, horizon=100, trust=0.05, optimizer=gdtuo.SGD(lr=0.1))),
        (
            lambda p: gdtuo.auto(p, gdtuo.SGD, momentum=0.9),
            lambda p: gdtuo.SGD(p, lr=1000, momentum=0.9, horizon=100, trust=0.05, optimizer=gdtuo.SGD(lr=0.1)),
        ),
        (
            lambda p: gdtuo.auto(p, lr=0.1, horizon=7, trust=0.5, betas=(0.5, 0.9), optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
            lambda p: gdtuo.AdamW(p, lr=0.1, horizon=7, trust=0.5, betas=(0.5, 0.9), optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
        ),
    ],
    ids=["nothing written", "another bottom", "what a user writes"],
)
def test_it_is_the_tower_that_it_says(made, written):
    torch.testing.assert_close(trajectory(made)[0], trajectory(written)[0], rtol=0, atol=0)


@pytest.mark.parametrize("bottom", [gdtuo.AdamW, gdtuo.Adam, gdtuo.SGD, gdtuo.Lion, gdtuo.RMSProp, gdtuo.NAdam])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_bottom_finds_its_rate_in_any_units(bottom, scale):
    weights, loss = problem(start=3.0)
    optimizer = gdtuo.auto([weights], bottom)
    before = (0.5 * weights.detach() ** 2).sum().item()
    for _ in range(600):
        optimizer.zero_grad()
        (scale * loss()).backward()
        optimizer.step()
    assert (0.5 * weights.detach() ** 2).sum().item() < 0.02 * before
    assert optimizer.skipped == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "remedy"),
    [
        (("sgd",), {}, TypeError, r"gdtuo\.auto\(params, gdtuo\.SGD\)"),
        ((gdtuo.SGD(),), {}, TypeError, "a class"),
        ((gdtuo.SGD,), {"per": "element"}, ValueError, r"gdtuo\.SGD\(params, lr=1e-3"),
        ((), {"learn": "betas"}, ValueError, "Name it in learn="),
    ],
)
def test_what_it_cannot_do_is_said(arguments, options, error, remedy):
    with pytest.raises(error, match=remedy):
        gdtuo.auto([torch.nn.Parameter(torch.ones(2))], *arguments, **options)


@pytest.mark.parametrize("lr", [1e-6, 1e-3])
def test_the_rate_is_found_from_far_below(lr):
    weights, loss = problem()
    optimizer = gdtuo.auto([weights], lr=lr)
    before = (0.5 * weights.detach() ** 2).sum().item()
    for _ in range(800):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert (0.5 * weights.detach() ** 2).sum().item() < 0.02 * before
    assert optimizer.skipped == 0


def test_groups_keep_their_own_numbers():
    one, two = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = gdtuo.auto([{"params": [one], "lr": 0.5}, {"params": [two], "weight_decay": 0.0}])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1000.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_the_rate_stays_alive_over_a_long_run():
    """A one-step hypergradient lets it decay without end: 1e-22 after 200 epochs of digits."""
    task = Named("digits").load()
    (long,) = train(task, "adamw(horizon=200)/sgd(lr=0.1)", [Start(1e-3, 0)], epochs=60)
    (short,) = train(task, "adamw(horizon=1)/sgd/sgd", [Start(1e-3, 0)], epochs=60)
    assert long.learned_lr > 1e-3
    assert short.learned_lr < 2e-4
    assert long.loss < 0.1 * short.loss
