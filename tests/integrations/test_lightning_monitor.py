"""HyperparameterMonitor logs what updates use, where and when Lightning logs."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning_trainees import TOWER, Manual, Module, fit, linear, logged
from trainees import EPOCH, Network, batches, by_hand

from gdtuo.integrations.lightning import HyperparameterMonitor

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")


def test_monitor_logs_at_the_trainer_s_steps_what_a_step_begins_with(tmp_path):
    module = Module(schedule=linear)
    fit(module, tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=5, callbacks=[HyperparameterMonitor()])
    rows = [row for row in logged(tmp_path) if "skipped" in row]
    assert [row["step"] for row in rows] == [4, 9, 14, 19, 24]
    network = Network()
    optimizer = TOWER.bind(network.groups())
    scheduler, begins = linear(optimizer), []
    for batch in [*batches(2), None]:
        written = {f"written/L0/g{g}/lr": group["lr"] for g, group in enumerate(optimizer.param_groups)}
        written |= {f"written/L1/g{g}/lr": 0.01 for g in range(2)}
        begins.append({**optimizer.hyperparameters(), **written, "skipped": 0.0})
        by_hand(network, optimizer, [batch] if batch else [], scheduler=scheduler)
    for row in rows:
        assert begins[int(row.pop("step"))] == row
    factors = {begin["L0/g0/lr"] / begin["written/L0/g0/lr"] for begin in begins}
    assert len(factors) == len(begins) - 1  # the first update teaches nothing


def test_monitor_logs_at_the_start_of_epochs_and_at_the_end(tmp_path):
    module = Module()
    fit(module, tmp_path, logger=CSVLogger(tmp_path), callbacks=[HyperparameterMonitor("epoch")], log_every_n_steps=1)
    rows = [row for row in logged(tmp_path) if "skipped" in row]
    assert [row["step"] for row in rows] == [0, EPOCH, 2 * EPOCH]
    assert [row["L0/g1/lr"] for row in rows[1:]] == [module.used[i]["L0/g1/lr"] for i in (EPOCH - 1, 2 * EPOCH - 1)]


def test_monitor_logs_an_accumulated_step_once(tmp_path):
    class Seen(CSVLogger):
        steps = []

        def log_metrics(self, metrics, step=None):
            if "skipped" in metrics:
                self.steps.append(step)

    settings = {"logger": Seen(tmp_path), "log_every_n_steps": 1, "accumulate_grad_batches": 4}
    fit(Module(), tmp_path, callbacks=[HyperparameterMonitor()], **settings)
    assert Seen.steps == [0, 1, 2, 3, 4, 5, 6]


def test_monitor_counts_what_was_skipped(tmp_path):
    class Broken(Module):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 20:
                self.network.first.weight.grad.fill_(float("nan"))

    trainer = fit(Broken(), tmp_path, logger=CSVLogger(tmp_path), callbacks=[HyperparameterMonitor()], log_every_n_steps=1)
    counts = [row["skipped"] for row in logged(tmp_path) if "skipped" in row]
    assert counts[:21] == [0.0] * 21  # the last of them before the step in question
    assert counts[21] == 1.0  # of two groups, one is not finite
    assert counts[-1] == trainer.optimizers[0].skipped > 1


def test_monitor_tells_several_optimizers_apart(tmp_path):
    settings = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "max_epochs": 1}
    module = Manual(TOWER.bind, partial(torch.optim.SGD, lr=0.1))
    trainer = fit(module, tmp_path, callbacks=[HyperparameterMonitor()], **settings)
    last = logged(tmp_path)[-1]
    assert last["step"] == EPOCH  # not the count of both optimizers' steps
    for key, value in trainer.optimizers[0].hyperparameters().items():
        assert last[f"optimizer0/{key}"] == value
    assert last["optimizer0/skipped"] == 0
    assert last["optimizer1/L0/g0/lr"] == 0.1
    assert "optimizer1/skipped" not in last  # it is torch's


@pytest.mark.parametrize(
    ("arguments", "settings", "remedy"),
    [(["never"], {}, 'give "step" or "epoch"'), ([], {"logger": False}, "Give the Trainer a logger")],
)
def test_monitor_says_what_is_wrong(arguments, settings, remedy, tmp_path):
    with pytest.raises(MisconfigurationException, match=remedy):
        fit(Module(), tmp_path, callbacks=[HyperparameterMonitor(*arguments)], **settings)


def test_without_lightning_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "gdtuo.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "lightning.fabric.utilities.exceptions", None)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        import gdtuo.integrations.lightning  # noqa: F401
