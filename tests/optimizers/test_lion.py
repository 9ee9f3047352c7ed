"""Lion: what does not follow from a sign."""

from __future__ import annotations

import pytest
import torch
from cases import F64

import gdtuo


def test_all_is_what_has_a_derivative():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = gdtuo.Lion([w], weight_decay=0.1, learn="all", optimizer=gdtuo.SGD())
    w.grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.hypergradients()) == ["L0/g0/lr", "L0/g0/weight_decay"]


@pytest.mark.parametrize("name", ["beta1", "beta2", "l2"])
def test_a_run_does_not_follow_betas_or_its_loss(name):
    """Its hypergradient is 0, and so it is: nearby numbers end at the same weights, to the bit."""
    make = torch.Generator().manual_seed(0)
    target = torch.randn(40, 5, generator=make, dtype=F64)

    def inner(params, hyper, row):
        return (params["w"] - row).square().sum() + hyper["l2"] * params["w"].square().sum()

    training = gdtuo.Training(inner, gdtuo.Lion(lr=0.1), batches=target, steps=40)
    numbers = {"beta1": 0.9, "beta2": 0.99, "l2": 0.1}

    def run(values):
        tensors = {key: torch.tensor(value, dtype=F64) for key, value in values.items()}
        hyper = {"l2": tensors.pop("l2"), "optimizer": tensors}
        with pytest.warns(RuntimeWarning, match="has no effect"):
            result = gdtuo.hypergradient(training, lambda p, h: p["w"].sin().sum(), {"w": torch.zeros(5, dtype=F64)}, hyper)
        return result.final["w"], result.hyper["l2"] if name == "l2" else result.hyper["optimizer"][name]

    final, slope = run(numbers)
    assert slope == 0
    for change in (1e-6, -1e-6):
        assert torch.equal(run({**numbers, name: numbers[name] + change})[0], final)
