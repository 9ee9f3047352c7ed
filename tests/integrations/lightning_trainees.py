"""What Lightning is given: modules that note what every update used, and a silent trainer."""

from __future__ import annotations

import csv
import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from trainees import BATCH, EPOCH, Network, data

import gdtuo

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

SGDS = gdtuo.SGD(optimizer=gdtuo.SGD())
TOWER = gdtuo.AdamW(lr=0.01, optimizer=SGDS)


def linear(optimizer):
    """A schedule that moves at every step."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, total_iters=2 * EPOCH)


class Module(LightningModule):
    """Notes what every update used."""

    def __init__(self, template=TOWER, schedule=None, seed=0):
        super().__init__()
        self.network, self.template, self.schedule = Network(seed), template, schedule
        self.lr = None  # for lr_find
        self.used, self.written = [], []

    def training_step(self, batch, index):
        loss = self.network(*batch)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = self.template.bind(self.network.groups())
        for group in optimizer.param_groups if self.lr else ():
            group["lr"] = self.lr
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.used.append(optimizer.hyperparameters())
        self.written.append([group["lr"] for group in optimizer.param_groups])

    def train_dataloader(self):
        return DataLoader(TensorDataset(*data()), BATCH)


class Manual(Module):
    """A tower for the first layer, torch's SGD for the second, in turns."""

    def __init__(self, *optimizers):
        super().__init__()
        self.automatic_optimization = False
        self.make = optimizers

    def configure_optimizers(self):
        layers = (self.network.first, self.network.second)
        return [make(layer.parameters()) for make, layer in zip(self.make, layers, strict=True)]

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.network(*batch)["loss"])
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def fit(module, folder, ckpt_path=None, **settings):
    """A trainer that is silent unless told otherwise, after `fit`."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(**{"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder, **quiet, **settings})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def logged(folder):
    """The rows of a CSVLogger's file, without empty cells, as numbers."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
