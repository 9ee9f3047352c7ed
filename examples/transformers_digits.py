"""Hugging Face's Trainer, twice from a learning rate that is far too low: with its AdamW, and with a tower in its place.

The tower is one argument, `optimizer_cls_and_kwargs`. The Trainer's linear schedule goes on as ever: what the tower
learns is a factor beside it, which a callback adds to the Trainer's logs.

    python examples/transformers_digits.py   # the logs: runs/transformers/trainer_state.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

import gdtuo
from gdtuo.integrations.transformers import HyperparameterCallback
from gdtuo.lab import data, options

START = 1e-5  # the learning rate of both, far too low


class Classifier(nn.Module):
    """A model as the Trainer wants it: the loss among its outputs."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(features, 48), nn.Tanh(), nn.Linear(48, 10))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(examples: data.Examples) -> list[dict[str, Tensor]]:
    """A data set as the Trainer wants it: anything with a length whose items are dictionaries."""
    return [{"inputs": inputs, "labels": label} for inputs, label in zip(examples.inputs, examples.labels, strict=True)]


def error(prediction: Any) -> dict[str, float]:
    return {"error": 100 * float(np.mean(prediction.predictions.argmax(1) != prediction.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", default="runs/transformers", help="where the logs go (default: runs/transformers)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    training = TrainingArguments(
        arguments.out,
        learning_rate=START,
        lr_scheduler_type="linear",
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=len(task.test),
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    tower = (gdtuo.AdamW, {"lr": START, "optimizer": gdtuo.SGD(optimizer=gdtuo.SGD())})
    print(f"{arguments.task}, {arguments.epochs} epochs from a learning rate of {START:g}\n")
    print(f"{'optimizer':>17}  {'test error, %':>13}  {'highest lr':>10}")
    for name, optimizer in (("adamw", None), ("adamw / sgd / sgd", tower)):
        set_seed(0)
        trainer = Trainer(
            Classifier(task.train.inputs.shape[1]),
            training,
            train_dataset=rows(task.train),
            eval_dataset=rows(task.test),
            compute_metrics=error,
            optimizer_cls_and_kwargs=optimizer,
            callbacks=[HyperparameterCallback()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        rates = [entry["L0/g0/lr"] for entry in trainer.state.log_history if "L0/g0/lr" in entry]
        print(f"{name:>17}  {trainer.evaluate()['eval_error']:13.2f}  {max(rates):10.1e}")
    trainer.state.save_to_json(str(Path(arguments.out) / "trainer_state.json"))


if __name__ == "__main__":
    main()
