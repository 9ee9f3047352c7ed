"""What ranks do; each function runs on every rank of the pool and returns plain numbers and tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from training import BATCH, STEPS, TOWERS, Model, Pair, backward, groups_of, train

import gdtuo

Found = tuple[dict[str, torch.Tensor], dict[str, float]]


def mine() -> slice:
    """This rank's rows of a batch."""
    share = BATCH // dist.get_world_size()
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def full(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights, whatever has been done to the model."""
    named = {name.removeprefix("module.").removeprefix("_fsdp_wrapped_module."): p for name, p in model.named_parameters()}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in named.items()}


def tower(params: Any, shape: str, **options: Any) -> gdtuo.AdamW:
    return gdtuo.AdamW(params, lr=1e-2, **TOWERS[shape], **options)


class Counter:
    """Counts the collectives that are called inside, and the numbers that they carry."""

    def __init__(self) -> None:
        self.calls = self.numbers = 0

    def __enter__(self) -> Counter:
        self._original = original = dist.all_reduce

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls, self.numbers = self.calls + 1, self.numbers + tensor.numel()
            return original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._original


def ddp(shape: str, bucket_view: bool) -> tuple[Found, Counter]:
    model = Model()
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    optimizer, counter = tower(groups_of(model), shape), Counter()
    for step in STEPS:
        optimizer.zero_grad(set_to_none=not bucket_view)
        backward(wrapped, step, mine())
        with counter:
            optimizer.step()
    return (full(model), optimizer.hyperparameters()), counter


def cut(model: nn.Module, mesh: Any) -> nn.Module:
    """Sharded by FSDP2, its last layer as a unit of its own."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.outer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def mesh_of(shape: tuple[int, ...], names: tuple[str, ...] | None = None) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def fsdp2(shape: str, hybrid: bool = False) -> tuple[Found, Counter]:
    """`hybrid`: on a mesh of two dimensions, the first of which, of one rank, replicates."""
    model = cut(Model(), mesh_of((1, 2), ("replicated", "sharded")) if hybrid else mesh_of((2,)))
    optimizer, counter = tower(groups_of(model), shape), Counter()
    for step in STEPS:
        optimizer.zero_grad()
        backward(model, step, mine())
        with counter:
            optimizer.step()
    return (full(model), optimizer.hyperparameters()), counter


def fsdp1(shape: str, original: bool) -> Found:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(Model(), device_id=torch.device("cpu"), use_orig_params=original)
    optimizer = tower(model.parameters(), shape, sharded=True)
    train(model, optimizer, rows=mine())
    with FullyShardedDataParallel.summon_full_params(model):
        return full(model), optimizer.hyperparameters()


def zero1(shape: str, sharded: bool = True) -> Found:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(Model())
    build = partial(gdtuo.AdamW, **TOWERS[shape], sharded=sharded)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), build, lr=1e-2)
    train(model, optimizer, rows=mine())
    return full(model), optimizer.optim.hyperparameters()


def tensor_parallel(shape: str, and_fsdp: bool) -> tuple[Found, Counter]:
    """Every rank sees the whole batch. `and_fsdp`: its parts are cut once more, over a dimension of one rank."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = Pair(), mesh_of((1, 2), ("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"inner": ColwiseParallel(), "outer": RowwiseParallel()})
    if and_fsdp:
        fully_shard(model, mesh=mesh["data"])
    optimizer, counter = tower(model.parameters(), shape), Counter()
    for step in STEPS:
        optimizer.zero_grad()
        backward(model, step)
        with counter:
            optimizer.step()
    return (full(model), optimizer.hyperparameters()), counter


def poisoned() -> tuple[int, Found]:
    """A gradient that is not finite, once, in a row that only the first rank has; in one process if there are no ranks."""
    ranks = dist.is_initialized()
    model = cut(Model(), mesh_of((2,))) if ranks else Model()
    optimizer = tower(groups_of(model), "lr")
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step, mine() if ranks else slice(None))
        if step == 2 and not (ranks and dist.get_rank()):
            gradient = model.inner.weight.grad
            (gradient.to_local() if ranks else gradient)[0, 0] = torch.nan
        optimizer.step()
    return optimizer.skipped, ({}, optimizer.hyperparameters())


def refused(kind: str) -> str:
    """What a level says to parameters that it cannot work on in parts."""
    model = cut(Model(), mesh_of((2,)))
    try:
        if kind == "element":
            gdtuo.Adam(model.parameters(), optimizer=gdtuo.SGD(), per="element")
        elif kind == "tensor":
            gdtuo.Adam(Model().parameters(), optimizer=gdtuo.SGD(), per="tensor", sharded=True)
        else:
            from cases import Normalised

            Normalised(model.parameters())
    except ValueError as error:
        return str(error)
    return ""


def zero1_hypergradients() -> tuple[dict[str, float], dict[str, float]]:
    """One parameter for two ranks; before and after a step, asked on both."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(nn.Linear(5, 3, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model.module.weight.fill_(0.1)
    build = partial(gdtuo.AdamW, **TOWERS["lr"], sharded=True)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), build, lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step, mine())
        between = optimizer.optim.hypergradients()
        optimizer.step()
    return between, optimizer.optim.hypergradients()


def alone_in_a_tower() -> Found:
    """A weight of one element, of which one rank has nothing, in a group with a tower and a horizon of its own kind."""
    model = cut(Model(), mesh_of((2,))) if dist.is_initialized() else Model()
    rest = [p for name, p in model.named_parameters() if name != "scale"]
    groups = [{"params": rest}, {"params": [model.scale], "optimizer": gdtuo.Adam(lr=0.02)}]
    optimizer = gdtuo.Adam(groups, lr=1e-2, horizon=3, learn=("lr", "betas"), optimizer=gdtuo.SGD(lr=0.05))
    train(model, optimizer, rows=mine() if dist.is_initialized() else slice(None))
    return full(model), optimizer.hyperparameters()
