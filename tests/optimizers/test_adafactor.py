"""Adafactor: stacks of matrices, and what matters when."""

from __future__ import annotations

import pytest
import torch
from cases import F64

import gdtuo


def test_stacks_of_matrices():
    """As torch's, over the last two dimensions."""
    shapes = [(2, 3, 4), (2, 1, 3, 2), (1, 5), (5, 1), ()]
    make = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=make, dtype=F64) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    optimizers = gdtuo.Adafactor(ours, lr=0.1), torch.optim.Adafactor(theirs, lr=0.1)
    for _ in range(10):
        gradients = [torch.randn(shape, generator=make, dtype=F64) for shape in shapes]
        for some, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p, gradient in zip(some, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
            for name, value in optimizers[1].state[q].items():
                torch.testing.assert_close(optimizers[0].state[p][name], value, rtol=1e-12, atol=0)


#: what is learned, the settings and the size of the weights with which it matters, and those with which it does not
MATTERS = {
    "lr": (({"lr": 0.1}, 1.0), ({"lr": 2.0}, 1.0)),  # above 1 / √t
    "eps2": (({"eps": (None, 0.1)}, 0.0), ({"eps": (None, 0.1)}, 1.0)),  # below the weights
    "d": (({"d": 1.01}, 1.0), ({"d": 5.0}, 1.0)),  # nothing is as large
    "beta2_decay": (({"beta2_decay": -0.5}, 1.0), ({"eps": (1e3, 1e-3)}, 1.0)),  # the floor is higher
}


@pytest.mark.parametrize("name", MATTERS)
@pytest.mark.parametrize("matters", [True, False])
def test_the_other_side_of_a_maximum_has_no_slope(name, matters):
    settings, size = MATTERS[name][not matters]
    w = torch.nn.Parameter(torch.full((4, 3), size, dtype=F64))
    optimizer = gdtuo.Adafactor([w], **settings, learn=name, hypergradient="exact", optimizer=gdtuo.SGD(lr=0.0))
    make = torch.Generator().manual_seed(0)
    found = []
    for t in range(5):
        w.grad = (1 + t) * torch.randn(4, 3, generator=make, dtype=F64)
        optimizer.step()
        found.append(optimizer.hypergradients()[f"L0/g0/{name}"])
    assert [slope != 0 for slope in found[2:]] == [matters] * 3


def test_eps_means_the_one_that_can_be_learned():
    w = torch.nn.Parameter(torch.zeros(4, 3))
    optimizer = gdtuo.Adafactor([w], eps=(1e-3, 0.1), learn="eps", optimizer=gdtuo.SGD())
    assert list(optimizer.hypergradients()) == ["L0/g0/eps2"]
    optimizer.param_groups[0]["eps"] = (None, 0.2)
    w.grad = torch.ones(4, 3)
    optimizer.step()
    assert optimizer.hyperparameters()["L0/g0/eps2"] == 0.2


def test_averages_of_rows_lengthen_together():
    training = gdtuo.Training(lambda p, h, b: p["w"].square().sum(), gdtuo.Adafactor(), steps=3)
    hyper = {"optimizer": {"beta2_decay": torch.full((1, 4, 3), -0.8)}}
    with pytest.raises(ValueError, match=r"beta2_decay.*one number.*\[\] or \[steps\]"):
        gdtuo.hypergradient(training, lambda p, h: p["w"].sum(), {"w": torch.ones(4, 3)}, hyper)
