"""What runs where numbers stay on a device, run here on the CPU: it equals the host's path and never reads a number."""

from __future__ import annotations

import pytest
import torch
from cases import TOWERS, Awkward, backward, train, two_groups

import gdtuo.small
import gdtuo.tape
from gdtuo.recording import Recorder, UnrecordableError

SHAPES = pytest.mark.parametrize("shape", TOWERS)
BUCKETS = pytest.mark.parametrize("small", [True, False])


def trained(shape: str, steps: int) -> tuple[list[torch.Tensor], dict[str, float], dict[str, float]]:
    """(weights, hyperparameters, hypergradients) after some steps in which a gradient is missing at times."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    for step in range(steps):
        backward(model, step)
        if step % 3 == 2:
            model.bias.grad = None
        optimizer.step()
    optimizer.hyperstep()
    return model.weights(), optimizer.hyperparameters(), optimizer.hypergradients()


@SHAPES
@BUCKETS
def test_equals_the_path_of_the_host(shape, small, monkeypatch):
    if not small:
        monkeypatch.setattr(gdtuo.small, "LARGEST", 0)
    weights, hyperparameters, hypergradients = trained(shape, 12)
    monkeypatch.setattr(gdtuo.tape, "TENSORS", True)
    found = trained(shape, 12)
    for a, b in zip(found[0], weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert found[1] == pytest.approx(hyperparameters, rel=1e-10)
    assert found[2] == pytest.approx(hypergradients, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("shape", [shape for shape in TOWERS if "torch" not in shape])  # torch's own optimizers read
@BUCKETS
def test_a_step_reads_no_number(shape, small, monkeypatch):
    """On a device each `.item()`, each branch on a tensor would wait for all that has been sent there."""
    monkeypatch.setattr(gdtuo.tape, "TENSORS", True)
    if not small:
        monkeypatch.setattr(gdtuo.small, "LARGEST", 0)
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    train(model, optimizer, range(3))
    for step in range(3, 5):
        backward(model, step)
        with Recorder() as recorder:
            optimizer.step()
        assert recorder.calls
    with pytest.raises(UnrecordableError), Recorder():  # and the recorder would have seen it
        model.bias.sum().item()
