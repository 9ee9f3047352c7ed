"""Hugging Face's Trainer drives a tower as a hand-written loop does, beside its schedules, and logs what is learned."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import transformers
from cases import differences, torch_adam
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from trainees import BATCH, EPOCH, Network, assert_learned, by_hand, data, everything
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

import gdtuo
from gdtuo.integrations.transformers import HyperparameterCallback

STEPS = 2 * EPOCH
SGDS = gdtuo.SGD(optimizer=gdtuo.SGD())
TOWERS = {
    "adamw/sgd/sgd": (gdtuo.AdamW, {"lr": 0.01, "optimizer": SGDS}),
    "adamw/torch, all": (gdtuo.AdamW, {"lr": 0.01, "learn": "all", "optimizer": torch_adam}),
    "momentum/sgd, horizon": (gdtuo.SGD, {"lr": 0.05, "momentum": 0.9, "horizon": 5, "optimizer": gdtuo.SGD(lr=0.03)}),
}
SCHEDULES = {"linear": lambda step: (STEPS - step) / STEPS, "constant": lambda step: 1.0}


class Recorded(Network):
    """Remembers what it was trained on: the Trainer shuffles."""

    def __init__(self, seed=0, bias=True):
        super().__init__(seed, bias)
        self.seen = []

    def forward(self, inputs, labels):
        if self.training:
            self.seen.append((inputs, labels))
        return super().forward(inputs, labels)


def rows(dtype=torch.float64):
    return [{"inputs": x.to(dtype), "labels": y.to(dtype)} for x, y in zip(*data(), strict=True)]


def train(network, folder, tower="adamw/sgd/sgd", schedule="linear", callbacks=(), dtype=torch.float64, resume=None, **settings):
    """A Trainer after two epochs, which has logged every step."""
    defaults = {"num_train_epochs": 2, "per_device_train_batch_size": BATCH, "weight_decay": 0.1, "save_strategy": "no"}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(folder, lr_scheduler_type=schedule, logging_steps=1, **{**defaults, **quiet, **settings})
    trainer = Trainer(
        network,
        arguments,
        train_dataset=rows(dtype),
        eval_dataset=rows(dtype),
        optimizer_cls_and_kwargs=TOWERS[tower],
        callbacks=[HyperparameterCallback(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def level_of(trainer):
    return trainer.optimizer.optimizer


def replay(trainer, seen, tower="adamw/sgd/sgd", schedule="linear", network=None, **loop):
    """The same by hand, from the batches that the trainer drew: network, optimizer, what the updates used, the schedule."""
    network = network or Network()
    cls, arguments = TOWERS[tower]
    optimizer = cls(network.groups(), **arguments)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[schedule])
    loop = {"clip": lambda _: nn.utils.clip_grad_norm_(network.parameters(), 1.0), **loop}
    used = by_hand(network, optimizer, seen, scheduler=scheduler, **loop)
    return network, optimizer, used


def steps_of(trainer):
    """The entries of the log that are of one step each, without what the clock says."""
    return [entry for entry in trainer.state.log_history if "learning_rate" in entry]


# ---------------------------------------------------------------- item 21: learning beside a schedule


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_item_21_learning_happens_beside_a_schedule(tower, schedule, tmp_path):
    network = Recorded()
    trainer = train(network, tmp_path, tower, schedule)
    twin, optimizer, used = replay(trainer, network.seen, tower, schedule)
    assert not differences(everything(network, level_of(trainer)), everything(twin, optimizer))
    logged = steps_of(trainer)
    assert [entry["step"] for entry in logged] == list(range(1, STEPS + 1))
    start = TOWERS[tower][1]["lr"]
    for step, (entry, values) in enumerate(zip(logged, used, strict=True)):
        assert entry["learning_rate"] == start * SCHEDULES[schedule](step)
        assert {key: entry[key] for key in values} == values
        assert entry["written/L0/g0/lr"] == entry["written/L0/g1/lr"] == entry["learning_rate"]
        assert entry["skipped"] == 0
    assert_learned(used, optimizer, start)
    factors = [entry["L0/g0/lr"] / entry["learning_rate"] for entry in logged]
    assert factors[-1] == pytest.approx(optimizer.param_groups[0]["L0/shift"][0, 0].exp().item(), rel=1e-12)
    assert abs(factors[-1] - 1) > 0.05


def test_item_21_gradients_are_clipped_and_accumulated(tmp_path):
    network = Recorded()
    trainer = train(network, tmp_path, schedule="constant", gradient_accumulation_steps=4, max_grad_norm=0.05)
    twin = Network()
    clip = {"clip": lambda _: nn.utils.clip_grad_norm_(twin.parameters(), 0.05)}
    _, optimizer, used = replay(trainer, network.seen, schedule="constant", network=twin, accumulate=4, **clip)
    assert len(used) == STEPS // 4
    assert not differences(everything(network, level_of(trainer)), everything(twin, optimizer))


def test_item_21_a_group_may_be_empty(tmp_path):
    network = Recorded(bias=False)
    trainer = train(network, tmp_path)
    twin, optimizer, used = replay(trainer, network.seen, network=Network(bias=False))
    assert [len(group["params"]) for group in level_of(trainer).param_groups] == [2, 0]
    assert not differences(everything(network, level_of(trainer)), everything(twin, optimizer))
    assert_learned(used, optimizer, 0.01)
    assert used[-1]["L1/g1/lr"] == used[0]["L1/g1/lr"]  # nothing to learn from


@pytest.mark.parametrize("flag", ["bf16", "fp16"])
def test_item_21_precisions_leave_the_levels_above_in_double(flag, tmp_path):
    network = Recorded().float()
    trainer = train(network, tmp_path, dtype=torch.float32, **{flag: True})
    twin = Network().float()
    twin.forward = torch.autocast("cpu", torch.bfloat16, enabled=flag == "bf16")(twin.forward)
    _, optimizer, used = replay(trainer, network.seen, network=twin)
    assert not differences(everything(network, level_of(trainer)), everything(twin, optimizer))
    assert level_of(trainer).param_groups[0]["L0/shift"].dtype == torch.float64
    assert_learned(used, optimizer, 0.01)


def test_item_21_an_optimizer_of_the_user_s_is_taken_as_it_is(tmp_path):
    network = Recorded()
    optimizer = gdtuo.AdamW(network.parameters(), lr=0.01, optimizer=SGDS)
    arguments = TrainingArguments(tmp_path, report_to="none", disable_tqdm=True, use_cpu=True, num_train_epochs=1)
    trainer = Trainer(network, arguments, train_dataset=rows(), optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert gdtuo.hyperparameters(trainer.optimizer) == optimizer.hyperparameters()
    assert optimizer.param_groups[0]["lr"] == 0.0  # where the schedule has ended
    assert optimizer.param_groups[0]["L0/shift"] != 0


# ---------------------------------------------------------------- item 21: state as JSON, resume


def strict(path):
    """JSON without the NaN that Python writes but others cannot read."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_item_21_a_resumed_run_equals_an_uninterrupted_one(tower, schedule, tmp_path):
    step = EPOCH + 5  # within an epoch
    network, again = Recorded(), Recorded(seed=1)
    whole = train(network, tmp_path / "a", tower, schedule, save_strategy="steps", save_steps=step)
    checkpoint = tmp_path / "a" / f"checkpoint-{step}"
    resumed = train(again, tmp_path / "b", tower, schedule, resume=checkpoint)
    assert len(again.seen) == STEPS - step
    assert not differences(everything(network, level_of(whole)), everything(again, level_of(resumed)))
    assert steps_of(resumed) == steps_of(whole)
    saved = strict(checkpoint / "trainer_state.json")
    assert saved["log_history"] == steps_of(whole)[:step]
    assert saved["log_history"][-1]["L0/g0/lr"] != saved["log_history"][-1]["learning_rate"]


def test_item_21_evaluating_and_keeping_the_best_model_change_nothing(tmp_path):
    network, other = Recorded(), Recorded()
    plain = train(network, tmp_path / "a")
    steps = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    watched = train(other, tmp_path / "b", **steps, load_best_model_at_end=True)
    assert steps_of(plain) == steps_of(watched)
    evaluations = [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == STEPS // 6
    assert not any("L0/g0/lr" in entry for entry in evaluations)


# ---------------------------------------------------------------- HyperparameterCallback


def test_callback_shows_later_callbacks_what_it_adds(tmp_path):
    class Later(TrainerCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append(dict(logs))

    later = Later()
    folder = tmp_path / "events"
    trainer = train(Recorded(), tmp_path, callbacks=[later, TensorBoardCallback(SummaryWriter(folder))])
    steps = steps_of(trainer)
    assert [{**logs, "step": i} for i, logs in enumerate(later.logs[:-1], 1)] == steps
    assert "L0/g0/lr" not in later.logs[-1]  # the summary at the end has no learning rate
    events = EventAccumulator(str(folder))
    events.Reload()
    written = [event.value for event in events.Scalars("train/L0/g0/lr")]
    assert written == pytest.approx([entry["L0/g0/lr"] for entry in steps], rel=1e-6)  # TensorBoard keeps single precision


def test_callback_counts_what_was_skipped(tmp_path):
    class Broken(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 20:
                model.first.weight.grad.fill_(float("nan"))

    trainer = train(Recorded(), tmp_path, callbacks=[Broken()])
    counts = [entry["skipped"] for entry in steps_of(trainer)]
    assert counts[:20] == [0] * 20
    assert counts[20] == 1
    assert counts[-1] == level_of(trainer).skipped > 1


def test_without_transformers_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "gdtuo.integrations.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'transformers\[torch\]'"):
        import gdtuo.integrations.transformers  # noqa: F401


def test_hugging_face_is_offline():
    assert transformers.utils.hub.is_offline_mode()
