"""gdtuo.lab.plots: what is drawn is what was recorded."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from cases import TOWERS, Awkward, backward, two_groups

import gdtuo
from gdtuo.lab.plots import panels


def recorded(tower, groups=None, schedule=True, steps=12):
    model = Awkward()
    optimizer = tower.bind(groups(model) if groups else two_groups(model, 0.02))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4 if step < 4 else 0.8**step)
    history = gdtuo.History(optimizer)
    for step in range(steps):
        loss = backward(model, step)
        optimizer.step()
        history.record(loss=loss)
        if schedule:
            scheduler.step()
    return history


def lines(axes, label):
    """Step -> value of the line with a label."""
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return dict(zip(*line.get_data(), strict=True))


def as_dict(series):
    return dict(zip(*series, strict=True))


def test_a_panel_for_each_rate_whatever_is_learned_or_moves_and_each_column():
    history = recorded(gdtuo.SGD(lr=0.02, momentum=0.8, learn="momentum", optimizer=gdtuo.Adam(optimizer=gdtuo.SGD())))
    assert [(panel.level, panel.name) for panel in panels(history)] == [(0, "lr"), (0, "momentum"), (1, "lr"), (2, "lr")]
    figure = history.plot()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "Level 0, sgd: learning rate",
        "Level 0, sgd: momentum",
        "Level 1, adam: learning rate",
        "Level 2, sgd: learning rate",
        "loss",
    ]
    assert figure.get_suptitle() == "sgd / adam / sgd"
    assert [axes.get_ylabel() for axes in figure.axes] == ["lr", "momentum", "lr", "lr", "loss"]
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, False, False, True, True]


def test_the_lines_are_the_numbers():
    history = recorded(TOWERS["adam/sgd/sgd"]())
    rates, upper, _, loss = history.plot().axes
    for g in (0, 1):
        assert lines(rates, f"group {g}") == as_dict(history[f"L0/g{g}/lr"])
        assert lines(upper, f"group {g}") == as_dict(history[f"L1/g{g}/lr"])
    assert [dict(zip(*line.get_data(), strict=True)) for line in rates.lines if line.get_linestyle() == "--"][:2] == [
        as_dict(history[f"written/L0/g{g}/lr"]) for g in (0, 1)
    ]
    assert as_dict(history["loss"]) == dict(zip(*loss.lines[0].get_data(), strict=True))
    legend = [text.get_text() for text in rates.get_legend().get_texts()]
    assert legend == ["group 0", "group 1", "as written (by you or a scheduler)"]


def test_rates_stand_on_a_logarithmic_axis_without_the_zero_of_a_warm_up():
    history = recorded(TOWERS["adam/sgd/sgd"](), steps=30)
    assert history["L0/g0/lr"].values[0] == 0
    rates, _, top, _ = history.plot().axes
    assert rates.get_yscale() == "log"
    assert rates.yaxis.get_transform().transform([0.0])[0] == -float("inf")  # a gap, not a line to the bottom
    assert 0 < rates.get_ylim()[0] <= min(history["written/L0/g1/lr"].values[1:])
    assert top.get_yscale() == "linear"  # a constant


def test_momenta_that_near_one_are_drawn_by_their_distance_from_it():
    history = gdtuo.History(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], momentum=0.5))
    for momentum in (0.5, 0.8, 0.9, 0.95, 0.99, 0.998):
        history.optimizer.param_groups[0]["momentum"] = momentum
        history.record()
    axes = history.plot().axes[1]
    assert [text.get_text() for text in axes.get_yticklabels()][:4] == ["0.5", "0.8", "0.9", "0.95"]
    heights = axes.transData.transform([(0, 0.8), (0, 0.9), (0, 0.95)])[:, 1]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0])  # each halves the distance


def test_of_few_tensors_each_has_a_name_of_many_a_median():
    few = recorded(gdtuo.Adam(lr=0.01, per="tensor", optimizer=gdtuo.SGD()), lambda model: list(model.named_parameters()))
    names = [text.get_text() for text in few.plot().axes[0].get_legend().get_texts()]
    assert names == ["tied", "bias", "frozen", "unused", "scale", "as written (by you or a scheduler)"]

    def many(model):
        return [model.tied, model.bias, model.scale, *(torch.nn.Parameter(torch.ones(1)) for _ in range(6))]

    history = recorded(gdtuo.Adam(lr=0.01, per="tensor", optimizer=gdtuo.SGD()), many)
    middle = lines(history.plot().axes[0], "effective, median of 9 (thin: each)")
    rates = [as_dict(history[f"L0/g0/lr/{i}"]) for i in range(9)]
    assert middle == {step: sorted(rate[step] for rate in rates)[4] for step in history.steps}


def test_of_many_groups_a_median_too():
    history = recorded(
        gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD()),
        lambda model: [{"params": [p]} for p in (model.tied, model.bias, *(torch.nn.Parameter(torch.ones(1)) for _ in range(7)))],
    )
    middle = lines(history.plot().axes[0], "effective, median of 9 (thin: each)")
    rates = [as_dict(history[f"L0/g{g}/lr"]) for g in range(9)]
    assert middle == {step: sorted(rate[step] for rate in rates)[4] for step in history.steps}


def test_where_groups_have_towers_of_their_own_no_level_has_a_name():
    def groups(model):
        return [{"params": [model.tied]}, {"params": [model.bias, model.scale], "optimizer": gdtuo.Adam(lr=0.02)}]

    figure = recorded(gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD()), groups).plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Level 0: learning rate", "Level 1: learning rate", "loss"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["group 0", "group 1"]


def test_of_weights_mean_and_range():
    history = recorded(gdtuo.SGD(lr=0.05, per="element", optimizer=gdtuo.SGD()), lambda model: model.parameters())
    axes = history.plot().axes[0]
    assert lines(axes, "effective, mean and range of its weights") == as_dict(history["L0/g0/lr/mean"])
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners >= set(as_dict(history["L0/g0/lr/min"]).items()) | set(as_dict(history["L0/g0/lr/max"]).items())


def test_a_picture_is_saved_and_nobody_elses_style_is_touched(tmp_path):
    before = dict(mpl.rcParams)
    history = recorded(TOWERS["adam/sgd/sgd"]())
    history.save(tmp_path / "history.csv")
    figure = gdtuo.History.load(tmp_path / "history.csv").plot(tmp_path / "new" / "picture.png", title="A run")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "A run"
    assert figure.axes[0].get_title(loc="left") == "Level 0: learning rate"  # a file does not know the optimizer
    assert dict(mpl.rcParams) == before


def test_skips_are_drawn_if_there_are_any():
    history = recorded(TOWERS["adam/sgd/sgd"]())
    assert not any("skipped" in axes.get_title(loc="left") for axes in history.plot().axes)
    history.optimizer.param_groups[0]["params"][0].grad.fill_(torch.nan)
    history.optimizer.step()
    history.record()
    assert any("skipped" in axes.get_title(loc="left") for axes in history.plot().axes)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match=r"Call record\(\) after each step first"):
        gdtuo.History(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])).plot()
