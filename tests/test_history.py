"""gdtuo.history: what was recorded is what was there, in memory and in files, to the bit."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from cases import TOWERS, Awkward, backward, two_groups

import gdtuo
from gdtuo import history as module

ENDINGS = pytest.mark.parametrize("ending", ["csv", "json"])
#: floats that print badly
ODD = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3, 1e-7, math.pi, 123456789.123456789]


def recorded(shape="adam/sgd/sgd", steps=6, every=1, hook=False):
    """A history, and what the optimizer said after each step."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    history, said = gdtuo.History(optimizer, every), []
    if hook:
        optimizer.register_step_post_hook(history)
    for step in range(steps):
        loss = backward(model, step)
        optimizer.step()
        if not hook:
            history.record(loss=loss)
        said.append(optimizer.hyperparameters() | {"loss": loss})
    return history, said


def hexed(history):
    """Names, steps and the bits of all values."""
    return {name: (list(steps), [value.hex() for value in values]) for name, (steps, values) in history.items()}


# ---------------------------------------------------------------- recording


@pytest.mark.parametrize("shape", TOWERS)
def test_every_step_is_what_the_optimizer_said(shape):
    history, said = recorded(shape)
    for name in said[0]:
        assert history[name] == module.Series(history.steps, module.array("d", [row[name] for row in said])), name
    assert list(history.steps) == [1, 2, 3, 4, 5, 6]
    assert set(history) - set(said[0]) == {"skipped"} | {name for name in history if name.startswith("written/")}
    assert list(history["written/L0/g0/lr"].values) == [history.optimizer.param_groups[0]["lr"]] * 6


def test_every_third_step_is_kept_and_the_others_are_not_even_looked_at(monkeypatch):
    looks = []
    monkeypatch.setattr(module, "snapshot", lambda *args: looks.append(args) or {"loss": float(len(looks))})
    history, _ = recorded(steps=8, every=3)
    assert list(history.steps) == [1, 4, 7]
    assert list(history["loss"].values) == [1.0, 2.0, 3.0]
    assert len(looks) == 3


def test_steps_may_be_told():
    history, _ = recorded(steps=0, every=10)
    for step in (0, 5, 10, 19, 30):
        history.record(step=step)
    assert list(history.steps) == [0, 10, 30]


def test_as_a_hook_it_records_the_same():
    by_hand, by_hook = recorded()[0], recorded(hook=True)[0]
    assert {name: by_hand[name] for name in by_hand if name != "loss"} == dict(by_hook)


def test_columns_come_when_they_come():
    history, _ = recorded(steps=0)
    history.record(loss=1.0)
    history.record(loss=torch.tensor([0.5]), **{"val/loss": 2})
    history.record()
    assert history["loss"] == (module.array("q", [1, 2]), module.array("d", [1.0, 0.5]))
    assert history["val/loss"] == (module.array("q", [2]), module.array("d", [2.0]))
    assert list(history["L0/g0/lr"].steps) == [1, 2, 3]


def test_a_group_that_is_added_has_columns_from_then_on():
    history, _ = recorded(steps=2)
    history.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1, dtype=torch.float64))], "lr": 0.5})
    history.record()
    assert history["L0/g2/lr"] == (module.array("q", [3]), module.array("d", [0.5]))


def test_a_plain_torch_optimizer_has_a_history_too():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    history = gdtuo.History(optimizer)
    for _ in range(2):
        history.record()
        optimizer.param_groups[0]["lr"] /= 2
    assert list(history["L0/g0/lr"].values) == [0.1, 0.05]
    assert "skipped" not in history


# ---------------------------------------------------------------- files


@ENDINGS
def test_what_is_saved_is_what_is_loaded_to_the_bit(ending, tmp_path):
    history, _ = recorded("momentum/adam, per tensor")
    for i, value in enumerate([*ODD, math.inf, -math.inf]):
        history.record(odd=value, **({'a "name", quoted': i} if i % 3 == 1 else {}))
    path = tmp_path / "new folder" / f"history.{ending}"
    history.save(path)
    loaded = gdtuo.History.load(path)
    assert hexed(loaded) == hexed(history)
    assert list(loaded) == list(history)  # in the same order
    assert loaded == history
    assert loaded.steps == history.steps


@ENDINGS
def test_a_number_that_is_none_is_not_one_that_is_missing(ending, tmp_path):
    history, _ = recorded(steps=0)
    history.record(loss=math.nan)
    history.record()
    history.record(loss=1.0)
    history.save(tmp_path / f"history.{ending}")
    steps, values = gdtuo.History.load(tmp_path / f"history.{ending}")["loss"]
    assert list(steps) == [1, 3]
    assert math.isnan(values[0])
    assert values[1] == 1.0


def test_other_programs_read_the_files(tmp_path):
    history, said = recorded()
    history.record(loss=math.inf)
    history.save(tmp_path / "history.csv")
    history.save(tmp_path / "history.json")
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [float(row["L0/g1/lr"]) for row in rows[:6]] == [row["L0/g1/lr"] for row in said]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    columns = json.loads((tmp_path / "history.json").read_text(), parse_constant=refuse)
    assert columns["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert columns["L0/g1/lr"][:6] == [row["L0/g1/lr"] for row in said]
    assert columns["loss"][-1] == "inf"


@ENDINGS
def test_a_history_that_is_loaded_goes_on(ending, tmp_path):
    whole, _ = recorded(steps=9, every=2)
    model = Awkward()
    optimizer = TOWERS["adam/sgd/sgd"]().bind(two_groups(model, 0.02))
    history = gdtuo.History(optimizer, every=2)
    for step in range(9):
        loss = backward(model, step)
        optimizer.step()
        history.record(loss=loss)
        if step == 4:
            history.save(tmp_path / f"history.{ending}")
            history = gdtuo.History.load(tmp_path / f"history.{ending}", optimizer, every=2)
    assert history == whole


@ENDINGS
def test_an_empty_history_is_saved_and_loaded(ending, tmp_path):
    history, _ = recorded(steps=0)
    history.save(tmp_path / f"empty.{ending}")
    loaded = gdtuo.History.load(tmp_path / f"empty.{ending}", history.optimizer)
    assert len(loaded) == 0
    loaded.record()
    assert list(loaded.steps) == [1]


# ---------------------------------------------------------------- mistakes


def test_what_cannot_be_recorded_says_so_and_leaves_the_history_as_it_was():
    history, _ = recorded(steps=2)
    before = hexed(history)
    with pytest.raises(ValueError, match=r"step=2 after step 2: steps rise\. Start a new History"):
        history.record(step=2)
    for name in ("skipped", "L0/g0/lr", "written/L0/g0/lr"):
        with pytest.raises(ValueError, match=r"a name of its own\. Choose another"):
            history.record(**{name: 1.0})
    with pytest.raises(ValueError, match=r"loss of shape \(3,\)\. Give one number, as loss=loss\.mean\(\)"):
        history.record(loss=torch.ones(3))
    for step in (torch.tensor(0.3), 1.5, "3"):
        with pytest.raises(TypeError, match=r"give numbers of your own by name, as record\(loss=loss\)"):
            history.record(step)
    for value in (None, "3", torch.tensor(1j), [1.0]):
        with pytest.raises(TypeError, match="Give a float or a tensor of one real number; where there is none, leave loss out"):
            history.record(loss=value)
    assert hexed(history) == before
    history.record()
    assert list(history.steps) == [1, 2, 3]


def test_a_history_needs_an_optimizer_to_record():
    with pytest.raises(RuntimeError, match=r"Make one with gdtuo\.History\(optimizer\)"):
        gdtuo.History().record()
    with pytest.raises(TypeError, match=r"Give a torch\.optim\.Optimizer"):
        gdtuo.History(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Use 1 to keep all of them"):
        recorded(every=0)
    for every in ("2", 2.5, None):
        with pytest.raises(TypeError, match="Give a whole number of steps, 1 to keep all of them"):
            recorded(every=every)
    with pytest.raises(RuntimeError, match=r"template without parameters\. Bind it first"):
        gdtuo.History(gdtuo.Adam(optimizer=gdtuo.SGD()))


def test_numbers_of_numpy_are_numbers():
    history, _ = recorded(steps=0)
    history.record(np.int64(4), loss=np.float32(0.5), right=True)
    assert history["loss"] == (module.array("q", [4]), module.array("d", [0.5]))
    assert list(history["right"].values) == [1.0]


def test_a_file_that_is_no_history(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.csv or \.json"):
        gdtuo.History().save(tmp_path / "history.txt")
    with pytest.raises(ValueError, match=r"ends in \.csv or \.json"):
        gdtuo.History.load(tmp_path / "history")
    texts = {
        "no.csv": ("a,b\n1,2\n", "no column is called 'step'"),
        "short.csv": ("step,a\n1,2\n2\n", "line 2 of numbers has 1 places, and there are 2 names"),
        "word.csv": ("step,a\n1,many\n", "could not convert string to float: 'many'"),
        "half.csv": ("step,a\n1.5,2\n", "invalid literal for int"),
        "empty.csv": ("", "no column is called 'step'"),
        "falling.csv": ("step,a\n2,2\n1,3\n", "step 1 comes after step 2, and steps rise"),
        "twice.csv": ("step,a\n1,2\n1,3\n", "step 1 comes after step 1, and steps rise"),
        "names.csv": ("step,a,b,a\n1,2,3,4\n", "two columns are called 'a'"),
        "steps.csv": ("step,step\n1,1\n", "two columns are called 'step'"),
        "no.json": ("{}", "no column is called 'step'"),
        "list.json": ("[1, 2]", "no object with a list for each column"),
        "half.json": ('{"step": [1', "delimiter"),
        "part.json": ('{"step": [1.5], "a": [2]}', "cannot be interpreted as an integer"),
        "short.json": ('{"step": [1, 2], "a": [1]}', "'a' has 1 places, and 'step' has 2"),
        "long.json": ('{"step": [1], "a": [1, 2]}', "'a' has 2 places, and 'step' has 1"),
        "text.json": ('{"step": "12", "a": "34"}', "'step' is no list of numbers"),
        "falling.json": ('{"step": [2, 1], "a": [1, 2]}', "step 1 comes after step 2, and steps rise"),
        "names.json": ('{"step": [1], "a": [1], "a": [2]}', "two columns are called 'a'"),
    }
    for name, (text, reason) in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} holds no history \(.*{reason}.*Save one with History\.save"):
            gdtuo.History.load(tmp_path / name)
