"""A Lightning module trained twice from a learning rate that is far too low: by Adam, and by a tower in its place.

The module differs in one line of `configure_optimizers`; a callback logs the learning rates that both use.

    python examples/lightning_digits.py   # the logs: runs/lightning/*/metrics.csv
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gdtuo
from gdtuo.integrations.lightning import HyperparameterMonitor
from gdtuo.lab import data, options

START = 1e-5  # the learning rate of both, far too low


class Classifier(LightningModule):
    """One hidden layer."""

    def __init__(self, features: int, tower: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(features, 48), nn.Tanh(), nn.Linear(48, 10))
        self.tower = tower

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, labels = batch
        self.log("error", 100 * (self.network(inputs).argmax(1) != labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.tower:
            return gdtuo.Adam(self.parameters(), lr=START, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
        return torch.optim.Adam(self.parameters(), lr=START)


def loader(examples: data.Examples, batch: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(examples.inputs, examples.labels), batch, shuffle=shuffle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", default="runs/lightning", help="where the logs go (default: runs/lightning)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs")
    task = options.load_task(parser, arguments)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # about workers, which 1,437 examples in memory do not need
    print(f"{arguments.task}, {arguments.epochs} epochs from a learning rate of {START:g}\n")
    print(f"{'optimizer':>16}  {'test error, %':>13}  {'final lr':>8}")
    for tower in (False, True):
        seed_everything(0, verbose=False)
        model = Classifier(task.train.inputs.shape[1], tower)
        trainer = Trainer(
            max_epochs=arguments.epochs,
            accelerator="cpu",
            logger=CSVLogger(arguments.out, name="tower" if tower else "plain"),
            log_every_n_steps=10,
            callbacks=[HyperparameterMonitor()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader(task.train, 64, shuffle=True))
        (optimizer,) = trainer.optimizers
        (result,) = trainer.test(model, loader(task.test, len(task.test)), verbose=False)
        name = str(optimizer) if tower else "adam"
        print(f"{name:>16}  {result['error']:13.2f}  {gdtuo.hyperparameters(optimizer)['L0/g0/lr']:8.1e}")


if __name__ == "__main__":
    main()
