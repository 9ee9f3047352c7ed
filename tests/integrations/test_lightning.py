"""Lightning drives a tower as a hand-written loop does."""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch
from cases import TOWERS, differences
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from lightning_trainees import SGDS, TOWER, Manual, Module, fit, linear, logged
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainees import BATCH, EPOCH, Network, assert_learned, batches, by_hand, data, everything

import gdtuo

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")

CHOSEN = pytest.mark.parametrize("tower", ["adam/sgd/sgd", "adamw/torch", "adam/momentum/adam, horizon"])


# ---------------------------------------------------------------- item 19: fit, clip, accumulate


#: what is asked of Lightning, and of the loop by hand
LOOPS = {
    "plain": ({}, {}),
    "clipped by norm": (
        {"gradient_clip_val": 0.1},
        {"clip": partial(nn.utils.clip_grad_norm_, max_norm=0.1)},
    ),
    "clipped by value": (
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"clip": partial(nn.utils.clip_grad_value_, clip_value=0.01)},
    ),
    "accumulated": ({"accumulate_grad_batches": 4}, {"accumulate": 4}),
}


@CHOSEN
@pytest.mark.parametrize("loop", LOOPS)
def test_item_19_fit_equals_a_hand_written_loop(tower, loop, tmp_path):
    theirs, ours = LOOPS[loop]
    module = Module(TOWERS[tower](), linear)
    trainer = fit(module, tmp_path, **theirs)
    network = Network()
    optimizer = module.template.bind(network.groups())
    used = by_hand(network, optimizer, batches(2), scheduler=linear(optimizer), **ours)
    assert len(used) == trainer.global_step == 2 * EPOCH // ours.get("accumulate", 1)
    assert module.used == used
    assert not differences(everything(module.network, trainer.optimizers[0]), everything(network, optimizer))
    assert_learned(used, optimizer, 0.0025)  # where the schedule starts


def test_item_19_accumulation_may_change_between_epochs(tmp_path):
    module = Module()
    fit(module, tmp_path, callbacks=[callbacks.GradientAccumulationScheduler({0: 1, 1: 4})])
    network = Network()
    optimizer = TOWER.bind(network.groups())
    used = by_hand(network, optimizer, batches()) + by_hand(network, optimizer, batches(), accumulate=4)
    assert module.used == used
    assert len(used) == EPOCH + EPOCH // 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_item_19_precisions_leave_the_levels_above_in_double(precision, tmp_path):
    network = Network().float()
    if precision == "bf16-true":
        network.bfloat16()
    network.forward = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")(network.forward)
    optimizer = TOWER.bind(network.groups())
    dtype = next(network.parameters()).dtype
    used = by_hand(network, optimizer, [(x.to(dtype), y.to(dtype)) for x, y in batches(2)])
    module = Module().float()
    module.train_dataloader = lambda: DataLoader(TensorDataset(*(x.float() for x in data())), BATCH)
    trainer = fit(module, tmp_path, precision=precision)
    assert not differences(everything(module.network, trainer.optimizers[0]), everything(network, optimizer))
    assert module.used == used
    assert trainer.optimizers[0].param_groups[0]["L0/shift"].dtype == torch.float64
    assert_learned(used, optimizer, 0.01)


# ---------------------------------------------------------------- item 19: resume


class ByStep(Module):
    """Its batches follow from the step: Lightning starts an epoch that was interrupted with its first batch again."""

    def training_step(self, batch, index):
        return super().training_step(batches()[self.trainer.global_step % EPOCH], index)


@CHOSEN
@pytest.mark.parametrize("step", [EPOCH, EPOCH + 5], ids=["between epochs", "within an epoch"])
def test_item_19_a_resumed_fit_continues_bit_for_bit(tower, step, tmp_path):
    settings = {"max_epochs": 3, "gradient_clip_val": 0.1}
    keep = callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    module = ByStep(TOWERS[tower](), linear)
    trainer = fit(module, tmp_path, callbacks=[keep], enable_checkpointing=True, **settings)
    checkpoint = tmp_path / f"step={step}.ckpt"
    torch.load(checkpoint, weights_only=True)  # nothing but tensors and numbers
    again = ByStep(TOWERS[tower](), linear, seed=1)
    resumed = fit(again, tmp_path, ckpt_path=checkpoint, **settings)
    assert again.used == module.used[step:]
    assert len(module.used) == 3 * EPOCH
    assert module.used[-1] != module.used[step]  # a standstill would be equal as well
    assert not differences(everything(module.network, trainer.optimizers[0]), everything(again.network, resumed.optimizers[0]))


# ---------------------------------------------------------------- item 19: callbacks that read and write groups


def test_item_19_learning_rate_monitor_reads_the_schedule_as_plain_floats(tmp_path):
    monitor = callbacks.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    module = Module(schedule=linear)
    fit(module, tmp_path, callbacks=[monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    twin = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    scheduler, expected = linear(twin), []
    for _ in range(2 * EPOCH):
        expected.append(scheduler.get_last_lr()[0])
        twin.step()
        scheduler.step()
    for group in ("pg1", "pg2"):
        assert monitor.lrs[f"lr-AdamW/{group}"] == expected
        assert all(type(value) is float for value in monitor.lrs[f"lr-AdamW/{group}"])
    assert monitor.last_momentum_values == {f"lr-AdamW/{group}-momentum": 0.9 for group in ("pg1", "pg2")}
    assert list(monitor.last_weight_decay_values.values()) == [0.1, 0.0]
    assert [row["lr-AdamW/pg1"] for row in logged(tmp_path) if "lr-AdamW/pg1" in row] == expected
    assert [used["L0/g0/lr"] for used in module.used] != expected


def test_item_19_lr_find_leaves_an_optimizer_that_learns(tmp_path):
    module = Module()
    trainer = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_model_summary=False)
    finder = Tuner(trainer).lr_find(module, min_lr=1e-4, max_lr=1.0, num_training=20)
    swept, suggestion = finder.results["lr"], finder.suggestion()
    assert len(swept) == 20
    assert all(type(value) is float for value in swept)
    assert module.lr == suggestion
    assert 1e-4 < suggestion < 1.0
    module.used.clear()
    trainer.fit(module)
    network = Network()
    optimizer = gdtuo.AdamW(network.groups(), lr=suggestion, optimizer=SGDS)
    used = by_hand(network, optimizer, batches(2))
    assert module.used == used
    assert_learned(used, optimizer, suggestion)


def test_item_19_weight_averaging_writes_a_schedule_and_what_is_learned_stays(tmp_path):
    averaging = callbacks.StochasticWeightAveraging(0.04, swa_epoch_start=2, annealing_epochs=2, annealing_strategy="linear")
    module = Module()
    fit(module, tmp_path, max_epochs=5, callbacks=[averaging])
    network = Network()
    optimizer = TOWER.bind(network.groups())
    used, averaged = by_hand(network, optimizer, batches()), torch.optim.swa_utils.AveragedModel(network)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, 0.04, anneal_epochs=2, anneal_strategy="linear")
    for _ in range(4):
        averaged.update_parameters(network)
        used += by_hand(network, optimizer, batches())
        scheduler.step()
    assert module.used == used
    factor = optimizer.param_groups[0]["L0/shift"].exp().item()
    assert module.written[-1][0] == 0.04
    assert used[-1]["L0/g0/lr"] == pytest.approx(0.04 * factor, rel=1e-12)
    assert abs(factor - 1) > 0.05
    for p, mean in zip(module.network.parameters(), averaged.module.parameters(), strict=True):
        torch.testing.assert_close(p, mean, rtol=1e-12, atol=0)


def test_item_19_finetuning_adds_a_group_that_learns_by_itself(tmp_path):
    class Finetuned(Module):
        @property
        def backbone(self):
            return self.network.first

        def configure_optimizers(self):
            return TOWER.bind([p for p in self.parameters() if p.requires_grad])

    module = Finetuned()
    thaw = callbacks.BackboneFinetuning(1, lambda epoch: 2.0, backbone_initial_ratio_lr=0.1)
    trainer = fit(module, tmp_path, max_epochs=4, callbacks=[thaw])
    network = Network()
    optimizer, used = TOWER.bind(network.second.parameters()), []
    for step, (batch, written) in enumerate(zip(batches(4), module.written, strict=True)):
        if step == EPOCH:
            optimizer.add_param_group({"params": list(network.first.parameters())})
        for group, lr in zip(optimizer.param_groups, written, strict=True):
            group["lr"] = lr
        network.first.requires_grad_(step >= EPOCH)
        used += by_hand(network, optimizer, [batch])
    assert [written[1:] for written in module.written[::EPOCH]] == [[], [0.001], [0.002], [0.004]]
    assert module.used == used
    assert not differences(everything(module.network, trainer.optimizers[0]), everything(network, optimizer))
    assert used[EPOCH]["L0/g1/lr"] == 0.001
    assert used[EPOCH]["L0/g0/lr"] != 0.01  # the first group keeps what it has learned
    assert used[-1]["L0/g1/lr"] not in (0.001, 0.004)


# ---------------------------------------------------------------- manual optimization, Fabric


def test_item_19_manual_optimization_with_two_optimizers(tmp_path):
    module = Manual(TOWER.bind, partial(torch.optim.SGD, lr=0.1))
    trainer = fit(module, tmp_path)
    network = Network()
    pairs = [(network.first, TOWER.bind(network.first.parameters()))]
    pairs += [(network.second, torch.optim.SGD(network.second.parameters(), lr=0.1))]
    for batch in batches(2):
        for layer, optimizer in pairs:
            network.zero_grad()
            network(*batch)["loss"].backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
            optimizer.step()
    assert not differences(everything(module.network, trainer.optimizers[0]), everything(network, pairs[0][1]))


def test_the_wrapper_of_manual_optimization_shows_and_freezes_the_tower(tmp_path):
    class Watched(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.network(*batch)["loss"])
            optimizer.step()
            self.used.append((optimizer.hyperparameters(), gdtuo.hyperparameters(optimizer), optimizer.skipped))
            if index == 5:
                optimizer.learning = False

    module = Watched()
    trainer = fit(module, tmp_path, max_epochs=1)
    network = Network()
    optimizer = TOWER.bind(network.groups())
    used = by_hand(network, optimizer, batches()[:6])
    optimizer.learning = False
    used += by_hand(network, optimizer, batches()[6:])
    assert module.used == [(values, values, 0) for values in used]
    assert not trainer.optimizers[0].learning
    assert used[6] == used[-1]


def test_fabric_saves_and_loads_a_tower(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    bare = Network()
    inner = TOWER.bind(bare.groups())
    network, optimizer = fabric.setup(bare, inner)

    def train(part):
        for batch in part:
            fabric.backward(network(*batch)["loss"])
            fabric.clip_gradients(network, optimizer, max_norm=0.1)
            optimizer.step()
            optimizer.zero_grad()
        return everything(bare, inner)

    train(batches())
    fabric.save(tmp_path / "saved.ckpt", {"network": network, "optimizer": optimizer})
    first = train(batches())
    fabric.load(tmp_path / "saved.ckpt", {"network": network, "optimizer": optimizer})
    assert not differences(train(batches()), first)
    assert gdtuo.hyperparameters(optimizer) == inner.hyperparameters()
    other = Network()
    twin = TOWER.bind(other.groups())
    by_hand(other, twin, batches(2), clip=partial(nn.utils.clip_grad_norm_, max_norm=0.1))
    assert not differences(everything(other, twin), first)
