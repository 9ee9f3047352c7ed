"""AveragingSGD: the published algorithm's updates, and how it stands to torch's SGD."""

from __future__ import annotations

import pytest
import torch
from cases import F64, Awkward, backward, train

import gdtuo


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates(weight_decay, maximize):
    """v = γ v - (1 - γ) g; w = w + α v, with the published names."""
    ours, twin = Awkward(), Awkward()
    optimizer = gdtuo.AveragingSGD(ours.parameters(), lr=0.1, momentum=0.8, weight_decay=weight_decay, maximize=maximize)
    v = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(20):
        backward(ours, step)
        optimizer.step()
        backward(twin, step)
        with torch.no_grad():
            for i, w in enumerate(twin.parameters()):
                if w.grad is not None:
                    g = (-w.grad if maximize else w.grad) + weight_decay * w
                    v[i] = 0.8 * v[i] - (1 - 0.8) * g
                    w += 0.1 * v[i]
        for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_is_sgd_with_a_dampened_first_step():
    """torch's SGD with dampening = momentum averages as well, but starts at the first gradient."""
    first, second = Awkward(), Awkward()
    ours = gdtuo.AveragingSGD(first.parameters(), lr=0.1, momentum=0.8)
    theirs = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.8, dampening=0.8)
    train(second, theirs, range(1))
    train(first, ours, range(1))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        if p in ours.state and q in theirs.state and theirs.state[q].get("momentum_buffer") is not None:
            with torch.no_grad():
                ours.state[p]["velocity"].copy_(-theirs.state[q]["momentum_buffer"])
                p.copy_(q)
    train(first, ours, range(1, 10))
    train(second, theirs, range(1, 10))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", [gdtuo.SGD, gdtuo.AveragingSGD])
def test_momentum_form_is_the_update(rule):
    """What `Reversible` runs is what `update` does."""
    make = torch.Generator().manual_seed(0)
    w, g, b = (torch.randn(9, generator=make, dtype=F64) for _ in range(3))
    hyper = {
        "lr": torch.tensor(0.1, dtype=F64),
        "momentum": torch.tensor(0.7, dtype=F64),
        "weight_decay": torch.tensor(0.2, dtype=F64),
    }
    if rule is gdtuo.SGD:
        hyper["dampening"] = torch.tensor(0.3, dtype=F64)
    for maximize in (False, True):
        algorithm = rule.rule(maximize=maximize)
        for step in (1, 2):
            form = algorithm.momentum_form(w, g, hyper, step)
            delta, after = algorithm.update(w, g, {form.buffer: b}, hyper, step)
            buffer = hyper[form.decay] * b + form.injection
            torch.testing.assert_close(after[form.buffer], buffer, rtol=1e-14, atol=0)
            torch.testing.assert_close(delta, form.rate * buffer, rtol=1e-14, atol=0)
    assert list(after) == [form.buffer]
