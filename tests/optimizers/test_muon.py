"""Muon: the derivative of an iteration in 16 bits, and what an iteration does."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import F64

import gdtuo

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 1)]


def parameters() -> list[torch.nn.Parameter]:
    make = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=make, dtype=F64)) for shape in SHAPES]


def backward(params, t: int) -> float:
    """A smooth loss, another at each step."""
    make = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = None
    targets = [torch.randn(p.shape, generator=make, dtype=F64) for p in params]
    loss = sum(((p - c) ** 2).sum() + p.sin().sum() for p, c in zip(params, targets, strict=True))
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("nesterov", [True, False])
def test_exact_against_central_differences_without_rounding(nesterov, monkeypatch):
    """The iteration in 64 bits, of which alone there are differences."""
    monkeypatch.setattr(gdtuo.optimizers.muon, "PRECISION", F64)
    numbers = {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.7}
    params = parameters()
    optimizer = gdtuo.Muon(params, **numbers, nesterov=nesterov, learn="all", hypergradient="exact", optimizer=gdtuo.SGD(lr=0.0))
    for t in range(4):
        backward(params, t)
        last = copy.deepcopy(params), gdtuo.Muon(params, **numbers, nesterov=nesterov), optimizer.state_dict()["state"]
        gradients = [p.grad.clone() for p in params]
        optimizer.step()
    backward(params, 4)
    found = optimizer.hypergradients()

    def loss_after(changed: dict[str, float]) -> float:
        again = [torch.nn.Parameter(p.detach().clone()) for p in last[0]]
        plain = gdtuo.Muon(again, **changed, nesterov=nesterov)
        for p, q, gradient, i in zip(again, last[0], gradients, range(len(again)), strict=True):
            p.grad = gradient
            plain.state[p]["momentum_buffer"].copy_(last[2][i]["momentum_buffer"])
            assert torch.equal(p, q)
        plain.step()
        return backward(again, 4)

    for name, value in numbers.items():
        h = 1e-4 * min(value, 1 - value)
        ends = [loss_after({**numbers, name: value + sign * h}) for sign in (1, -1)]
        assert found[f"L0/g0/{name}"] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6), name


def test_learning_momentum_moves_no_bit_of_an_update():
    """The smooth iteration lends its derivative, not its value."""
    weights = []
    for tower in ({"learn": "all", "optimizer": gdtuo.SGD(lr=0.0)}, {}):
        params = parameters()
        optimizer = gdtuo.Muon(params, lr=0.05, **tower)
        for t in range(5):
            backward(params, t)
            optimizer.step()
        weights.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_derivative_is_near_that_of_the_values(monkeypatch):
    """16 bits against 64: the cosines of momentum differ by what the values do."""
    found = []
    for precision in (torch.bfloat16, F64):
        monkeypatch.setattr(gdtuo.optimizers.muon, "PRECISION", precision)
        params = parameters()
        optimizer = gdtuo.Muon(params, lr=0.05, learn="momentum", per="tensor", horizon=1, optimizer=gdtuo.SGD(lr=0.0))
        for t in range(5):
            backward(params, t)
            optimizer.step()
        found.append(list(optimizer.hypergradients().values()))
    assert found[0] == pytest.approx(found[1], abs=0.04)
    assert min(map(abs, found[0][:3])) > 0.1  # that of a single number is 0: its sign is all that is left of it


def test_parameters_of_a_group_from_a_generator():
    params = parameters()
    optimizer = gdtuo.Muon([{"params": (p for p in params[:2])}])
    optimizer.add_param_group({"params": (p for p in params[2:])})
    assert [p for group in optimizer.param_groups for p in group["params"]] == params


def test_singular_values_become_about_one():
    """Whatever the gradient's."""
    make = torch.Generator().manual_seed(1)
    w = torch.nn.Parameter(torch.zeros(6, 4, dtype=F64))
    optimizer = gdtuo.Muon([w], lr=1.0, weight_decay=0.0)
    u, _, v = torch.linalg.svd(torch.randn(6, 4, generator=make, dtype=F64), full_matrices=False)
    w.grad = u @ torch.diag(torch.tensor([100.0, 30.0, 10.0, 3.0], dtype=F64)) @ v
    optimizer.step()
    values = torch.linalg.svdvals(w.detach()) / 1.5**0.5
    assert 0.6 < values.min() < values.max() < 1.3
    assert (torch.trace(u.T @ w.detach() @ v.T) < 0).item()  # downhill
