"""A tower over sharded weights, `fully_shard` (FSDP2), with a checkpoint in the middle.

Each rank holds a part of every weight. What a tower needs of all of them is a handful of sums, which it adds up over the ranks
in one small message a step; the script needs no word about it. Halfway the state is saved with torch.distributed.checkpoint
and loaded into a new model and a new tower, which train on.

    torchrun --nproc-per-node 2 examples/fsdp2.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gdtuo
from gdtuo.lab import data, options, ranks


def build(features: int, lr: float, device: torch.device) -> tuple[nn.Module, gdtuo.Adam]:
    """A sharded network and its tower."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 48), nn.Tanh(), nn.Linear(48, 10)).to(device)
    fully_shard(model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
    return model, gdtuo.Adam(model.parameters(), lr=lr, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))


def train(model: nn.Module, optimizer: gdtuo.Adam, examples: data.Examples, epochs: range, device: torch.device) -> None:
    """On this rank's share of the examples."""
    pairs = TensorDataset(examples.inputs, examples.labels)
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(pairs)
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for inputs, labels in DataLoader(pairs, batch_size=32, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device)).backward()
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16, help="default: 16, half before the checkpoint, half after it")
    parser.add_argument("--lr", type=float, default=1e-5, help="where Adam starts (default: 1e-5, far too low)")
    parser.add_argument("--checkpoint", metavar="DIR", help="where to save (default: a temporary folder, removed at the end)")
    options.add_task(parser)
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs")
    task = options.load_task(parser, arguments)
    ranks.join_ranks(parser)
    rank, device = dist.get_rank(), ranks.device_of_this_rank()
    features, half = task.train.inputs.shape[1], arguments.epochs // 2

    model, optimizer = build(features, arguments.lr, device)
    train(model, optimizer, task.train, range(half), device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = [arguments.checkpoint or temporary]
        dist.broadcast_object_list(folder)  # all ranks save into one folder
        model_state, optimizer_state = get_state_dict(model, optimizer)
        save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=Path(folder[0]))
        saved = optimizer.hyperparameters()["L0/g0/lr"]

        model, optimizer = build(features, arguments.lr, device)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        states: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
        load(states, checkpoint_id=Path(folder[0]))
        set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
        dist.barrier()  # the folder stays until all have read it
    loaded = optimizer.hyperparameters()["L0/g0/lr"]
    train(model, optimizer, task.train, range(half, arguments.epochs), device)

    with torch.no_grad():
        wrong = model(task.test.inputs.to(device)).argmax(1).cpu() != task.test.labels
    learned, error = optimizer.hyperparameters()["L0/g0/lr"], 100 * wrong.double().mean().item()
    ranks.say(f"rank {rank}: saved at {saved!r}, loaded at {loaded!r}")
    ranks.say(f"rank {rank}: learning rate {arguments.lr:g} became {learned!r}, test error {error:.1f} %")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
