"""Saving and loading with torch.distributed.checkpoint; each function runs on every rank of the pool, or alone."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from scenarios import Found, cut, full, mesh_of, mine, tower
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from training import TOWERS, Model, groups_of, train

import gdtuo

Trained = tuple[torch.nn.Module, torch.optim.Optimizer]


def build(shape: str, sharded: bool) -> Trained:
    """A model, cut among the ranks if told, and its tower."""
    model = Model()
    if sharded:
        cut(model, mesh_of((dist.get_world_size(),)))
    return model, tower(groups_of(model), shape)


def rows() -> slice:
    return mine() if dist.is_initialized() else slice(None)


def save(pair: Trained, path: Path, flatten: bool) -> None:
    model_state, optimizer_state = get_state_dict(*pair, options=StateDictOptions(flatten_optimizer_state_dict=flatten))
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path, no_dist=not dist.is_initialized())


def load(pair: Trained, path: Path, flatten: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model_state, optimizer_state = get_state_dict(*pair, options=options)
    states = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(states, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(*pair, model_state_dict=states["model"], optim_state_dict=states["optimizer"], options=options)


def found(pair: Trained) -> Found:
    return full(pair[0]), pair[1].hyperparameters()


def train_and_save(shape: str, path: Path, steps: range, more: range, flatten: bool) -> Found:
    """Trained over `steps`, saved, and trained on over `more` as if nothing had been."""
    pair = build(shape, dist.is_initialized())
    train(*pair, steps, rows())
    save(pair, path, flatten)
    train(*pair, more, rows())
    return found(pair)


def load_and_train(shape: str, path: Path, steps: range, flatten: bool, saved_as: Path | None = None) -> Found:
    """Loaded into a new model and tower that have trained on something else, trained on, and saved if told where."""
    pair = build(shape, dist.is_initialized())
    train(*pair, range(100, 102), rows())
    load(pair, path, flatten)
    train(*pair, steps, rows())
    if saved_as:
        save(pair, saved_as, flatten)
    return found(pair)


def full_state(shape: str, steps: range, more: range, broadcast: bool) -> tuple[Found, Found]:
    """The whole state gathered, and put into a new tower, from rank 0 alone if `broadcast`; (uninterrupted, resumed)."""
    pair = build(shape, sharded=True)
    train(*pair, steps, mine())
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=broadcast)  # with cpu_offload on rank 0 alone
    model_state, optimizer_state = get_state_dict(*pair, options=gathered)
    train(*pair, more, mine())
    other = build(shape, sharded=True)
    train(*other, range(100, 102), mine())
    sent = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    if broadcast and dist.get_rank():
        model_state, optimizer_state = {}, {}
    set_model_state_dict(other[0], model_state, options=sent)
    set_optimizer_state_dict(*other, optimizer_state, options=sent)
    train(*other, more, mine())
    return found(pair), found(other)


def fresh(shape: str, sharded: bool) -> tuple[bool, Any]:
    """Whether asking a new optimizer for its state changed anything, and whether what came can be loaded back."""
    model, optimizer = build(shape, sharded)
    before = found((model, optimizer))
    state = get_optimizer_state_dict(model, optimizer)
    after = found((model, optimizer))
    same = all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1] == after[1]
    set_optimizer_state_dict(model, optimizer, state)
    train(model, optimizer, range(4), rows())
    return same, found((model, optimizer))


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """As `torch.save` and `torch.load` return it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def zero1(shape: str, steps: range, more: range) -> tuple[Found, Found]:
    """ZeroRedundancyOptimizer's consolidated state, loaded into another; (uninterrupted, resumed)."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def pair() -> tuple[torch.nn.Module, ZeroRedundancyOptimizer]:
        model = torch.nn.parallel.DistributedDataParallel(Model())
        return model, ZeroRedundancyOptimizer(model.parameters(), partial(gdtuo.AdamW, **TOWERS[shape], sharded=True), lr=1e-2)

    def result(model: torch.nn.Module, optimizer: ZeroRedundancyOptimizer) -> Found:
        return full(model), optimizer.optim.hyperparameters()

    first, second = pair(), pair()
    train(*first, steps, mine())
    train(*second, range(100, 102), mine())
    first[1].consolidate_state_dict(to=0)
    sent = [saved(first[1].state_dict()) if dist.get_rank() == 0 else None]  # its numbers are alive until they are saved
    dist.broadcast_object_list(sent, src=0)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(sent[0])
    for each in (first, second):
        train(*each, more, mine())
    return result(*first), result(*second)


def fsdp1(shape: str, original: bool, steps: range, more: range) -> tuple[Found, Found]:
    """FSDP1's own full state of the optimizer, loaded into another; (uninterrupted, resumed)."""
    from torch.distributed.fsdp import FullyShardedDataParallel as Sharded

    def pair() -> Trained:
        model = Sharded(Model(), device_id=torch.device("cpu"), use_orig_params=original)
        return model, tower(groups_of(model) if original else model.parameters(), shape, sharded=True)

    def result(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Found:
        with Sharded.summon_full_params(model):
            return full(model), optimizer.hyperparameters()

    first, second = pair(), pair()
    train(*first, steps, mine())
    train(*second, range(100, 102), mine())
    state = saved(Sharded.optim_state_dict(*first))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(Sharded.optim_state_dict_to_load(second[0], second[1], state))
    for each in (first, second):
        train(*each, more, mine())
    return result(*first), result(*second)
