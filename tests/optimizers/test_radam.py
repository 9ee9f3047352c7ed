"""RAdam: when it becomes Adam."""

from __future__ import annotations

import pytest
import torch
from cases import F64

import gdtuo


def test_five_steps_of_momentum_then_adaptive_ones():
    """With the default betas; a gradient twice as large makes a step twice as large, then no longer."""
    moved = []
    for size in (1.0, 2.0):
        w = torch.nn.Parameter(torch.zeros(3, dtype=F64))
        optimizer = gdtuo.RAdam([w], lr=0.1)
        make = torch.Generator().manual_seed(0)
        steps = []
        for _ in range(8):
            before = w.detach().clone()
            w.grad = size * torch.randn(3, generator=make, dtype=F64)
            optimizer.step()
            steps.append(w.detach() - before)
        moved.append(torch.stack(steps))
    torch.testing.assert_close(moved[1][:5], 2 * moved[0][:5], rtol=1e-12, atol=0)
    torch.testing.assert_close(moved[1][5:], moved[0][5:], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "early"), [("lr", True), ("beta1", True), ("beta2", False), ("eps", False)])
def test_what_a_step_depends_on(name, early):
    """Until the variance is known, nothing that belongs to it matters."""
    w = torch.nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = gdtuo.RAdam([w], lr=0.01, eps=1e-2, learn=name, hypergradient="exact", optimizer=gdtuo.SGD(lr=0.0))
    found = []
    make = torch.Generator().manual_seed(0)
    for _ in range(9):
        w.grad = torch.randn(3, generator=make, dtype=F64)
        optimizer.step()
        found.append(optimizer.hypergradients()[f"L0/g0/{name}"] != 0)
    # the first step pulls nothing back; at the first update the mean does not depend on beta1
    assert found[2:6] == [early] * 4
    assert found[6:] == [True] * 3
