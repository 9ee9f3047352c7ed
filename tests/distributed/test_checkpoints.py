"""torch.distributed.checkpoint, FSDP1's and ZeroRedundancyOptimizer's state dicts: training goes on as if nothing had been."""

from __future__ import annotations

import checkpoints
import pytest
import torch
from training import TOWERS

SHAPES = pytest.mark.parametrize("shape", TOWERS)
FLATTEN = pytest.mark.parametrize("flatten", [False, True])
BEFORE, AFTER = range(6), range(6, 10)


def assert_equal(found, expected, atol: float = 0.0) -> None:
    """To the bit, if nothing else is said."""
    assert found[0].keys() == expected[0].keys()
    for name, weights in expected[0].items():
        torch.testing.assert_close(found[0][name], weights, rtol=0.0, atol=atol)
    assert found[1] == pytest.approx(expected[1], rel=0.0, abs=atol)


@SHAPES
@pytest.mark.parametrize("sharded", [False, True])
def test_item_16_asking_a_fresh_optimizer_for_its_state_changes_nothing(pool, shape, sharded):
    for same, _ in pool(checkpoints.fresh, shape, sharded):
        assert same


@SHAPES
@FLATTEN
def test_item_17_two_ranks_save_and_load(pool, shape, flatten, tmp_path):
    uninterrupted = pool(checkpoints.train_and_save, shape, tmp_path, BEFORE, AFTER, flatten)
    resumed = pool(checkpoints.load_and_train, shape, tmp_path, AFTER, flatten)
    for one, other in zip(resumed, uninterrupted, strict=True):
        assert_equal(one, other)


@SHAPES
@FLATTEN
def test_item_17_two_ranks_to_one_and_back(pool, shape, flatten, tmp_path):
    uninterrupted = pool(checkpoints.train_and_save, shape, tmp_path / "two", BEFORE, AFTER, flatten)
    checkpoints.load_and_train(shape, tmp_path / "two", AFTER[:2], flatten, saved_as=tmp_path / "one")
    resumed = pool(checkpoints.load_and_train, shape, tmp_path / "one", AFTER[2:], flatten)
    for one, other in zip(resumed, uninterrupted, strict=True):
        assert_equal(one, other, atol=1e-14)  # one process adds gradients up in another order


@SHAPES
@pytest.mark.parametrize("broadcast", [False, True])
def test_item_17_full_state_and_broadcast(pool, shape, broadcast):
    for uninterrupted, resumed in pool(checkpoints.full_state, shape, BEFORE, AFTER, broadcast):
        assert_equal(resumed, uninterrupted)


@pytest.mark.parametrize("shape", ["lr", "horizon", "torch"])
def test_zero1_consolidated(pool, shape):
    for uninterrupted, resumed in pool(checkpoints.zero1, shape, BEFORE, AFTER):
        assert_equal(resumed, uninterrupted)


@pytest.mark.parametrize("shape", ["lr", "horizon", "torch"])
def test_fsdp1_full_state(pool, shape):
    """With flat parameters: torch 2.13 mixes up the states of its own AdamW with use_orig_params=True."""
    for uninterrupted, resumed in pool(checkpoints.fsdp1, shape, False, BEFORE, AFTER):
        assert_equal(resumed, uninterrupted)
