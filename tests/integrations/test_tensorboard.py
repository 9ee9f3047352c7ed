"""gdtuo.integrations.tensorboard: the event file holds what the optimizer said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import TOWERS, Awkward, backward, two_groups

import gdtuo
from gdtuo.integrations.tensorboard import log_hyperparameters


def read(folder):
    """Tag -> [(step, value)], from the event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_effective_value_and_the_skips_are_in_the_event_file(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    model = Awkward()
    optimizer = TOWERS["momentum/adam, per tensor"]().bind(two_groups(model, 0.02))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    expected: dict[str, list[tuple[int, float]]] = {}
    with SummaryWriter(tmp_path) as writer:
        for step in range(5):
            backward(model, step)
            if step == 2:
                model.tied.grad[0, 0] = math.nan
            optimizer.step()
            log_hyperparameters(writer, optimizer, step)
            values = {f"hyperparameters/{name}": value for name, value in optimizer.hyperparameters().items()}
            for g, group in enumerate(optimizer.param_groups):
                values[f"hyperparameters/written/L0/g{g}/lr"] = group["lr"]
                values[f"hyperparameters/written/L0/g{g}/momentum"] = 0.8
            values["hyperparameters/skipped"] = optimizer.skipped
            for tag, value in values.items():
                expected.setdefault(tag, []).append((step, float(np.float32(value))))
            scheduler.step()
    found = read(tmp_path)
    assert found.keys() == expected.keys()
    for tag, events in expected.items():
        assert found[tag] == events, tag
    assert 0 < found["hyperparameters/skipped"][-1][1] == optimizer.skipped
    assert len(set(found["hyperparameters/L0/g1/lr/0"])) == 5


def test_of_two_optimizers_each_has_its_section(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    tower = gdtuo.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5, optimizer=gdtuo.SGD(lr=0.25))
    plain = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=0.125)
    with SummaryWriter(tmp_path) as writer:
        log_hyperparameters(writer, tower, 0, section="generator")
        log_hyperparameters(writer, plain, 7, section="critic")
    found = read(tmp_path)
    assert found["generator/L0/g0/lr"] == [(0, 0.5)]
    assert found["generator/L1/g0/lr"] == [(0, 0.25)]
    assert found["critic/L0/g0/lr"] == [(7, 0.125)]
    assert {tag.split("/")[0] for tag in found} == {"generator", "critic"}


def test_what_writes_no_scalars_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(TypeError, match=r"Lightning's logger has one as logger\.experiment"):
        log_hyperparameters(object(), optimizer, 0)
