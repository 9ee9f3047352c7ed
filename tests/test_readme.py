"""The README's Python runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import gdtuo

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_block_runs_and_its_towers_learn():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    namespace = {"model": model, "torch": torch, "gdtuo": gdtuo, "loss": loss, "training": data * 5, "validation": data[0]}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, namespace)
        if "hypergradient(" in block:
            result = namespace["result"]
            assert result.hyper["optimizer"]["lr"].shape == (100,)
            assert all(
                bool(x.isfinite().all() and x.any()) for x in (*result.hyper["optimizer"].values(), *result.params.values())
            )
            continue
        optimizer = namespace["optimizer"]
        before = optimizer.hyperparameters()
        optimizer.learning = True
        for batch in data:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        assert optimizer.hyperparameters() != before
        assert optimizer.skipped == 0
    assert str(optimizer) == "lion / sgd / sgd"
