"""NAdam's product of momenta: one number a parameter, whatever its history, in all ways of working on parameters."""

from __future__ import annotations

import pytest
import torch
from cases import F64

import gdtuo

SHAPES = [(3,), (2, 2), (), (4,)]
#: gdtuo.small.LARGEST, gdtuo.tape.TENSORS
WAYS = {"small": (10**6, False), "large": (0, False), "small, as on a device": (10**6, True), "large, as on a device": (0, True)}


@pytest.fixture(params=WAYS)
def _way(request, monkeypatch):
    largest, tensors = WAYS[request.param]
    monkeypatch.setattr("gdtuo.small.LARGEST", largest)
    monkeypatch.setattr("gdtuo.tape.TENSORS", tensors)


def parameters(dtype: torch.dtype = F64) -> list[torch.nn.Parameter]:
    make = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=make, dtype=F64).to(dtype)) for shape in SHAPES]


def step(optimizer: torch.optim.Optimizer, t: int, missing: bool = True) -> None:
    """One step with numbers that change from step to step, and gradients that are missing at times."""
    make = torch.Generator().manual_seed(100 + t)
    for group in optimizer.param_groups:
        group["betas"], group["momentum_decay"] = (0.5 + 0.4 * (t % 3) / 2, 0.9), 0.05 * (1 + t % 4)
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        gradient = torch.randn(p.shape, generator=make, dtype=F64).to(p.dtype)
        p.grad = None if missing and torch.rand((), generator=make) < 0.4 else gradient
    optimizer.step()


def compare(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, tolerance: float = 1e-12) -> None:
    pairs = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    for p, q in pairs:
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        if "mu_product" in theirs.state[q]:
            product = theirs.state[q]["mu_product"].to(p.dtype)
            torch.testing.assert_close(ours.state[p]["mu_product"], product, rtol=tolerance, atol=0)


@pytest.mark.usefixtures("numbers_of_64_bits", "_way")
def test_parameters_with_as_many_updates_but_not_the_same():
    ours, theirs = gdtuo.NAdam(parameters(), lr=0.05), torch.optim.NAdam(parameters(), lr=0.05)
    for t in range(30):
        step(ours, t)
        step(theirs, t)
        compare(ours, theirs)
    products = {float(state["mu_product"]) for state in ours.state.values()}
    assert len(products) == len(SHAPES)


@pytest.mark.usefixtures("numbers_of_64_bits", "_way")
def test_a_checkpoint_of_torch_with_other_products_at_equal_counts():
    theirs = torch.optim.NAdam(parameters(), lr=0.05)
    for t in range(3):
        step(theirs, t, missing=False)
    saved = theirs.state_dict()
    for i, state in saved["state"].items():
        state["mu_product"] = torch.tensor(0.1 * (1 + i // 2), dtype=F64)  # two and two alike
    ours = gdtuo.NAdam([torch.nn.Parameter(p.detach().clone()) for p in theirs.param_groups[0]["params"]])
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(saved)
    for t in range(3, 8):
        step(ours, t, missing=False)
        step(theirs, t, missing=False)
        compare(ours, theirs)


def test_in_torchs_own_precision():
    """torch keeps the product in 32 bits beside weights of 64; ours is as precise as the weights."""
    ours, theirs = gdtuo.NAdam(parameters(), lr=0.05), torch.optim.NAdam(parameters(), lr=0.05)
    for t in range(20):
        step(ours, t)
        step(theirs, t)
        compare(ours, theirs, 1e-6)
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert (ours.state[p]["mu_product"].dtype, theirs.state[q]["mu_product"].dtype) == (F64, torch.float32)
        assert ours.state[p]["mu_product"].shape == theirs.state[q]["mu_product"].shape == ()


@pytest.mark.usefixtures("numbers_of_64_bits")
def test_learned_per_element_it_is_a_number_a_weight():
    """And a checkpoint of torch, with one for all weights, loads."""
    theirs = torch.optim.NAdam(parameters(), lr=0.05)
    for t in range(3):
        step(theirs, t, missing=False)
    weights = [torch.nn.Parameter(p.detach().clone()) for p in theirs.param_groups[0]["params"]]
    ours = gdtuo.NAdam(weights, learn="beta1", per="element", optimizer=gdtuo.SGD(lr=0.0))
    ours.load_state_dict(theirs.state_dict())
    for t in range(3, 8):
        step(ours, t, missing=False)
        step(theirs, t, missing=False)
        for p, q in zip(weights, theirs.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
            product = theirs.state[q]["mu_product"].expand(p.shape)
            torch.testing.assert_close(ours.state[p]["mu_product"], product, rtol=1e-12, atol=0)


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_all_is_learned_of_weights_of_16_bits(per):
    """As of weights of 32, to the rounding of 16."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        start = [torch.nn.Parameter(p.detach().to(torch.bfloat16).to(dtype)) for p in parameters()]
        optimizer = gdtuo.NAdam(
            start, lr=0.01, eps=0.1, learn="all", per=per, hypergradient="exact", optimizer=gdtuo.SGD(lr=1e-3)
        )
        for _ in range(6):
            for p in start:
                p.grad = p.detach().clone()
            optimizer.step()
        found.append(optimizer.hypergradients())
    assert found[0] == pytest.approx(found[1], rel=0.03)
    assert len(found[0]) == 5 * (1 if per == "group" else len(SHAPES))
