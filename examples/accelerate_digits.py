"""A training loop on accelerate, twice from a learning rate that is far too low: with Adam, and with a tower in its place.

`prepare` wraps a tower as any other optimizer; `gdtuo.hyperparameters` looks through the wrapper, and gives what
`accelerator.log` takes.

    python examples/accelerate_digits.py   # the logs: tensorboard --logdir runs/accelerate
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gdtuo
from gdtuo.lab import data, options

START = 1e-5  # the learning rate of both, far too low


def train(accelerator: Accelerator, tower: bool, task: data.Data, epochs: int) -> tuple[float, float]:
    """Returns the test error in percent and the final learning rate."""
    set_seed(0)
    model = nn.Sequential(nn.Linear(task.train.inputs.shape[1], 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer: torch.optim.Optimizer
    if tower:
        optimizer = gdtuo.Adam(model.parameters(), lr=START, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=START)
    batches = DataLoader(TensorDataset(task.train.inputs, task.train.labels), 64, shuffle=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for epoch in range(epochs):
        for inputs, labels in batches:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        accelerator.log(gdtuo.hyperparameters(optimizer), step=epoch)
    with torch.no_grad():
        test = task.test.inputs.to(accelerator.device)
        wrong = model(test).argmax(1).cpu() != task.test.labels
    return 100 * wrong.double().mean().item(), gdtuo.hyperparameters(optimizer)["L0/g0/lr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", default="runs/accelerate", help="where the logs go (default: runs/accelerate)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=arguments.out)
    accelerator.print(f"{arguments.task}, {arguments.epochs} epochs from a learning rate of {START:g}\n")
    accelerator.print(f"{'optimizer':>16}  {'test error, %':>13}  {'final lr':>8}")
    for name, tower in (("adam", False), ("adam / sgd / sgd", True)):
        accelerator.init_trackers("tower" if tower else "plain")
        error, rate = train(accelerator, tower, task, arguments.epochs)
        accelerator.end_training()
        accelerator.print(f"{name:>16}  {error:13.2f}  {rate:8.1e}")


if __name__ == "__main__":
    main()
