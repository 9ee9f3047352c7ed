"""Ranks that share a training: their towers learn the same, and the same as one process that sees all data."""

from __future__ import annotations

import math

import pytest
import scenarios
import torch
from training import STEPS, TOWERS, Pair, alone

SHAPES = pytest.mark.parametrize("shape", TOWERS)
#: plain tensors do not say which tensor they are a part of
PLAIN = pytest.mark.parametrize("shape", [shape for shape in TOWERS if shape != "tensor"])


def assert_same(found, expected, rtol: float = 1e-10) -> None:
    """Weights and hyperparameters."""
    assert found[0].keys() == expected[0].keys()
    for name, weights in expected[0].items():
        torch.testing.assert_close(found[0][name], weights, rtol=rtol, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
    assert found[1] == pytest.approx(expected[1], rel=rtol)


def assert_ranks_agree(*found) -> None:
    """To the bit."""
    assert len({tuple(hyperparameters.items()) for _, hyperparameters in found}) == 1


@SHAPES
@pytest.mark.parametrize("bucket_view", [False, True])
def test_item_18_ddp_without_communication_of_ours(pool, shape, bucket_view):
    (one, messages), (other, _) = pool(scenarios.ddp, shape, bucket_view)
    assert_ranks_agree(one, other)
    assert_same(one, alone(shape))
    assert messages.calls == 0


@SHAPES
def test_item_18_fsdp2_with_one_small_message_a_step(pool, shape):
    (one, messages), (other, _) = pool(scenarios.fsdp2, shape)
    assert_ranks_agree(one, other)
    assert_same(one, alone(shape))
    assert messages.calls == len(STEPS)
    assert messages.numbers / messages.calls <= 32


def test_item_18_fsdp2_hybrid(pool):
    (one, messages), (other, _) = pool(scenarios.fsdp2, "all", hybrid=True)
    assert_ranks_agree(one, other)
    assert_same(one, alone("all"))
    assert messages.calls == len(STEPS)


@PLAIN
@pytest.mark.parametrize("original", [True, False])
def test_item_18_fsdp1_sharded(pool, shape, original):
    one, other = pool(scenarios.fsdp1, shape, original)
    assert_ranks_agree(one, other)
    expected = alone(shape, grouped=False)
    assert_same(one if original else ({}, one[1]), expected if original else ({}, expected[1]))


@PLAIN
def test_item_18_zero1_sharded(pool, shape):
    one, other = pool(scenarios.zero1, shape)
    assert_ranks_agree(one, other)
    assert_same(one, alone(shape, grouped=False))


def test_without_sharded_the_ranks_of_zero1_learn_differently(pool):
    """What the sum over ranks is for."""
    one, other = pool(scenarios.zero1, "lr", sharded=False)
    assert not math.isclose(one[1]["L0/g0/lr"], other[1]["L0/g0/lr"], rel_tol=1e-4)


@SHAPES
@pytest.mark.parametrize("and_fsdp", [False, True])
def test_item_18_tensor_parallel(pool, shape, and_fsdp):
    (one, messages), (other, _) = pool(scenarios.tensor_parallel, shape, and_fsdp)
    assert_ranks_agree(one, other)
    assert_same(one, alone(shape, Pair, grouped=False))
    assert messages.calls == len(STEPS) * (2 if and_fsdp else 1)  # one for each dimension of the mesh


def test_item_18_one_rank_that_is_not_finite_freezes_all(pool):
    (skipped, one), (skipped_too, other) = pool(scenarios.poisoned)
    expected, whole = scenarios.poisoned()
    assert skipped == skipped_too == expected > 0
    assert_ranks_agree(one, other)
    assert_same(one, whole)
    assert all(math.isfinite(number) for number in one[1].values())


@pytest.mark.parametrize(("kind", "remedy"), [("element", "per='tensor'"), ("tensor", "per='group'"), ("whole", "elementwise")])
def test_what_cannot_be_done_in_parts_is_refused(pool, kind, remedy):
    for message in pool(scenarios.refused, kind):
        assert remedy in message


def test_hypergradients_where_a_rank_has_no_parameters(pool):
    """Both take part in what is added up, whatever they have."""
    (between, after), other = pool(scenarios.zero1_hypergradients)
    assert (between, after) == other
    assert between == pytest.approx(after, rel=1e-12)
    assert between["L0/g0/lr"] != 0


def test_a_rank_that_has_nothing_of_a_tower(pool):
    one, other = pool(scenarios.alone_in_a_tower)
    assert_ranks_agree(one, other)
    assert_same(one, scenarios.alone_in_a_tower())
