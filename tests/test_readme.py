"""The README's Python runs as printed."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import torch

import gdtuo

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text()


def test_every_block_runs_and_its_towers_learn(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    monkeypatch.chdir(tmp_path)  # where a block writes files
    halves = {"backbone": model[:2], "head": model[2:]}
    namespace = {
        "model": model,
        "torch": torch,
        "gdtuo": gdtuo,
        "loss": loss,
        "training": data * 5,
        "validation": data[0],
    } | halves
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 8
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
    assert str(optimizer) == "softsign / sgd / sgd"


def test_blocks_that_need_other_packages_are_python():
    """They run in tests/integrations and tests/distributed, with more around them."""
    blocks = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_what_is_called_by_its_full_name_is_there_after_import_gdtuo():
    """`gdtuo.integrations` is not: it takes other packages, and is imported by whoever has them."""
    for block in re.findall(r"```(?:python|py)\n(.*?)```", README, re.DOTALL):
        for name in re.findall(r"(?<![\w.])(?<!from )gdtuo((?:\.\w+)+)", block):
            assert not name.startswith(".integrations"), name
            attrgetter(name[1:])(gdtuo)


def test_the_compatibility_table_names_tests_that_exist():
    """Each row at least one; and each item of the acceptance list has a test somewhere."""
    table = README.split("| works with |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 10
    for row in table:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            assert f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"
    everything = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    items = {int(number) for number in re.findall(r"def test_item_(\d+)_", everything)}
    assert items == set(range(1, 23))
