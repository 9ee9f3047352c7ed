"""accelerate prepares, drives, saves and loads a tower as a hand-written loop does."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from cases import TOWERS, differences
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainees import BATCH, EPOCH, Network, assert_learned, batches, by_hand, data, everything

import gdtuo

TOWER = gdtuo.AdamW(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
CHOSEN = pytest.mark.parametrize("tower", ["adam/sgd/sgd", "adamw/torch", "adam/momentum/adam, horizon"])


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps its settings for as long as the process lives."""

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


def linear(optimizer):
    """A schedule that moves at every step."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, total_iters=2 * EPOCH)


class Loop:
    """A training loop as accelerate's users write it; it notes what every update used."""

    def __init__(self, template=TOWER, seed=0, dtype=torch.float64, clip=None, **settings):
        self.accelerator = Accelerator(cpu=True, **settings)
        self.bare, self.clip = Network(seed).to(dtype), clip
        optimizer = template.bind(self.bare.groups())
        loader = DataLoader(TensorDataset(*(x.to(dtype) for x in data())), BATCH)
        prepared = self.accelerator.prepare(self.bare, optimizer, loader, linear(optimizer))
        self.network, self.optimizer, self.loader, self.scheduler = prepared
        self.used = []

    def epoch(self):
        for inputs, labels in self.loader:
            with self.accelerator.accumulate(self.network):
                self.accelerator.backward(self.network(inputs, labels)["loss"])
                if self.clip and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), self.clip)
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.used.append(gdtuo.hyperparameters(self.optimizer))
                self.scheduler.step()
                self.optimizer.zero_grad()

    @property
    def everything(self):
        return everything(self.bare, self.optimizer.optimizer)


def replay(template=TOWER, network=None, seen=None, clip=None, accumulate=1):
    """The same by hand: everything at the end, the optimizer, what the updates used."""
    network = network or Network()
    optimizer = template.bind(network.groups())
    loop = {"clip": lambda _: nn.utils.clip_grad_norm_(network.parameters(), clip)} if clip else {}
    used = by_hand(network, optimizer, seen or batches(2), accumulate=accumulate, scheduler=linear(optimizer), **loop)
    return everything(network, optimizer), optimizer, used


# ---------------------------------------------------------------- item 20: prepare, train


#: what is asked of accelerate, and of the loop by hand
LOOPS = {
    "plain": ({}, {}),
    "clipped": ({"clip": 0.05}, {"clip": 0.05}),
    "accumulated": ({"gradient_accumulation_steps": 4}, {"accumulate": 4}),
}


@CHOSEN
@pytest.mark.parametrize("loop", LOOPS)
def test_item_20_a_prepared_tower_learns_as_in_a_hand_written_loop(tower, loop):
    theirs, ours = LOOPS[loop]
    trained = Loop(TOWERS[tower](), **theirs)
    for _ in range(2):
        trained.epoch()
    expected, optimizer, used = replay(TOWERS[tower](), **ours)
    assert trained.used == used
    assert not differences(trained.everything, expected)
    assert_learned(used, optimizer, 0.0025)


def test_item_20_preparing_a_tower_that_has_learned_keeps_what_it_knows():
    network = Network()
    optimizer = TOWER.bind(network.groups())
    used = by_hand(network, optimizer, batches())
    before = everything(network, optimizer)
    accelerator = Accelerator(cpu=True)
    wrapped = accelerator.prepare(optimizer)
    assert not differences(everything(network, wrapped.optimizer), before)
    used += by_hand(network, wrapped.optimizer, batches())
    twin = Network()
    assert used == by_hand(twin, TOWER.bind(twin.groups()), batches(2))


def test_item_20_mixed_precision_leaves_the_levels_above_in_double():
    loop = Loop(dtype=torch.float32, mixed_precision="bf16")
    loop.epoch()
    network = Network().float()
    network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
    expected, optimizer, used = replay(network=network, seen=[(x.float(), y.float()) for x, y in batches()])
    assert loop.used == used
    assert not differences(loop.everything, expected)
    assert optimizer.param_groups[0]["L0/shift"].dtype == torch.float64


def test_item_20_a_step_that_overflows_is_no_step():
    """As with mixed_precision="fp16" on a GPU: the scaler leaves out the step, and nothing at any level moves."""
    network = Network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(TOWER.bind(network.groups()), scaler=scaler)
    for step, (inputs, labels) in enumerate(batches()):
        scaler.scale(network(inputs, labels)["loss"]).backward()
        if step == 5:
            network.first.weight.grad[0, 0] = float("inf")
        before = everything(network, optimizer.optimizer)
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == (step == 5)
        assert bool(differences(before, everything(network, optimizer.optimizer))) == (step != 5)
    assert optimizer.optimizer.skipped == 0
    twin = Network()
    level = TOWER.bind(twin.groups())
    by_hand(twin, level, [batch for step, batch in enumerate(batches()) if step != 5])
    assert not differences(everything(network, optimizer.optimizer), everything(twin, level))


# ---------------------------------------------------------------- item 20: save_state, load_state


@CHOSEN
def test_item_20_a_loaded_state_continues_bit_for_bit(tower, tmp_path):
    loop = Loop(TOWERS[tower](), clip=0.05)
    loop.epoch()
    loop.accelerator.save_state(tmp_path)
    loop.epoch()
    again = Loop(TOWERS[tower](), clip=0.05, seed=1)
    again.accelerator.load_state(tmp_path)
    again.epoch()
    assert again.used == loop.used[EPOCH:]
    assert again.used[-1] != again.used[0]  # a standstill would be equal as well
    assert not differences(again.everything, loop.everything)


# ---------------------------------------------------------------- what users see


def test_trackers_log_hyperparameters_through_the_wrapper():
    class Memory(GeneralTracker):
        name, requires_logging_directory, tracker = "memory", False, None

        def __init__(self):
            super().__init__()
            self.logs = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step):
            self.logs.append((step, values))

    memory = Memory()
    loop = Loop(log_with=memory)
    loop.accelerator.init_trackers("towers")
    for epoch in range(2):
        loop.epoch()
        loop.accelerator.log(gdtuo.hyperparameters(loop.optimizer), step=epoch)
    loop.accelerator.end_training()
    (_, first), (_, last) = memory.logs
    assert last == loop.optimizer.optimizer.hyperparameters()
    assert first["L1/g0/lr"] == loop.used[EPOCH - 1]["L1/g0/lr"] != last["L1/g0/lr"]
