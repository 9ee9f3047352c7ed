"""A tower under DistributedDataParallel: nothing changes but the one line.

DistributedDataParallel averages gradients over the ranks. A tower computes all that it learns from these gradients, so every
rank learns the same, to the bit, and no message of its own is sent. Each rank prints what it learned.

    torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gdtuo
from gdtuo.lab import options, ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="default: 15")
    parser.add_argument("--lr", type=float, default=1e-5, help="where Adam starts (default: 1e-5, far too low)")
    options.add_task(parser)
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs")
    task = options.load_task(parser, arguments)
    ranks.join_ranks(parser)
    rank, device = dist.get_rank(), ranks.device_of_this_rank()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(task.train.inputs.shape[1], 48), nn.Tanh(), nn.Linear(48, 10)).to(device)
    wrapped = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = gdtuo.Adam(model.parameters(), lr=arguments.lr, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
    examples = TensorDataset(task.train.inputs, task.train.labels)
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(examples)  # each rank sees its share
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        for inputs, labels in DataLoader(examples, batch_size=32, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(inputs.to(device)), labels.to(device)).backward()
            optimizer.step()

    with torch.no_grad():
        wrong = model(task.test.inputs.to(device)).argmax(1).cpu() != task.test.labels
    learned = optimizer.hyperparameters()["L0/g0/lr"]
    error = 100 * wrong.double().mean().item()
    ranks.say(f"rank {rank}: learning rate {arguments.lr:g} became {learned!r}, test error {error:.1f} %")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
