"""The paper's MNIST network and what the experiments' command lines share."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from stacks import Trainer
from torch import Tensor, nn

from gdtuo.lab import data, options

__all__ = ["add_output", "add_processes", "check", "classifier", "classify", "finish"]

BATCH = 256


def classifier(features: int) -> nn.Module:
    """One hidden layer of 128, tanh after both layers, log-softmax."""
    return nn.Sequential(nn.Linear(features, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh(), nn.LogSoftmax(dim=1))


@functools.cache
def _load(task: str, folder: str | Path | None) -> data.Data:
    return data.load(task, folder)


def _loss(model: nn.Module, examples: data.Examples) -> Tensor:
    return nn.functional.nll_loss(model(examples.inputs), examples.labels)


def classify(
    package: str,
    stack: str,
    task: str,
    epochs: int,
    seed: int,
    folder: str | Path | None = None,
    watch: Callable[[Trainer], object] = lambda trainer: None,
) -> Mapping[str, float | str]:
    """Train the network: initial weights and the order of the batches depend on the seed alone.

    Args:
        package, stack: what trains it.
        task: "mnist" or "digits".
        epochs: of training.
        seed: of everything.
        folder: where the data are.
        watch: called after each step of the last epoch.

    Returns:
        `error` on the test set in percent (100 if a weight is not finite); the last epoch's mean training `loss`; what has been
        learned.
    """
    examples, test = _load(task, folder)
    torch.manual_seed(seed)
    model = classifier(examples.inputs.shape[1])
    trainer = Trainer(package, stack, model)
    losses: list[Tensor] = []
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(examples)).split(BATCH):
            losses.append(trainer.step(functools.partial(_loss, model, examples[batch])))
            if epoch == epochs - 1:
                watch(trainer)
    with torch.no_grad():
        outputs = model(test.inputs)
        wrong = outputs.argmax(1) != test.labels
    error = 100 * wrong.double().mean().item() if outputs.isfinite().all() else 100.0
    return {"error": error, "loss": torch.stack(losses).mean().item(), **trainer.learned()}


# ---------------------------------------------------------------- their command lines


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go, and how large they are."""
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of results (default: runs/paper)")
    parser.add_argument("--quick", action="store_true", help="a small version without any data: seconds")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """How many cells at a time."""
    parser.add_argument("--processes", type=int, help="at a time (default: one a core)")


def finish(text: str, path: Path, picture: Path) -> None:
    """Show a table, write it beside its cells, and say where everything is."""
    print(text)
    path.with_suffix(".md").write_text(text + "\n")
    print(f"\nCells: {path}\nThe picture: {picture}")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, task: str) -> None:
    """Exit with a line that says what is wrong."""
    options.at_least_1(parser, arguments, "processes")
    try:
        _load(task, arguments.data)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
