"""gdtuo.lab.plots: what is drawn is what was recorded."""

from __future__ import annotations

from array import array

import matplotlib as mpl
import numpy as np
import pytest
import torch
from cases import TOWERS, Awkward, backward, two_groups
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb

import gdtuo
from gdtuo.history import Series
from gdtuo.lab.curves import panels, strokes

WRITTEN = "as written\n(by you or a scheduler)"


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
    assert legend == ["group 0", "group 1", WRITTEN]


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
    assert names == ["tied", "bias", "frozen", "unused", "scale", WRITTEN]

    def many(model):
        return [model.tied, model.bias, model.scale, *(torch.nn.Parameter(torch.ones(1)) for _ in range(6))]

    history = recorded(gdtuo.Adam(lr=0.01, per="tensor", optimizer=gdtuo.SGD()), many)
    middle = lines(history.plot().axes[0], "effective, median of 9 (thin: each)")
    rates = [as_dict(history[f"L0/g0/lr/{i}"]) for i in range(9)]
    assert middle == {step: sorted(rate[step] for rate in rates)[4] for step in history.steps}


def separate(count):
    """A network's parameters and others, each a group."""
    return lambda model: [
        {"params": [p]} for p in (model.tied, model.bias, *(torch.nn.Parameter(torch.ones(1)) for _ in range(count - 2)))
    ]


def test_of_many_groups_a_median_too():
    history = recorded(gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD()), separate(21))
    middle = lines(history.plot().axes[0], "effective, median of 21 (thin: each)")
    rates = [as_dict(history[f"L0/g{g}/lr"]) for g in range(21)]
    assert middle == {step: sorted(rate[step] for rate in rates)[10] for step in history.steps}


def test_twenty_groups_have_names_and_colours_of_their_own():
    rates = recorded(gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD()), separate(20)).plot().axes[0]
    samples = rates.get_legend().get_lines()
    assert [text.get_text() for text in rates.get_legend().get_texts()] == [*(f"group {g}" for g in range(20)), WRITTEN]
    assert len({to_hex(sample.get_color()) for sample in samples}) == 21


def uneven(model):
    """The first group is not learned, the last has a tower of its own, less high."""
    return [
        {"params": [model.tied], "learn": (), "lr": 1e-4},
        {"params": [model.bias], "lr": 1e-3},
        {"params": [model.scale], "lr": 1e-2, "optimizer": gdtuo.Adam(lr=0.05)},
    ]


def test_a_group_has_one_colour_in_all_panels_dashes_and_legends_included():
    history = recorded(gdtuo.Adam(optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD())), uneven, schedule=False)
    figure = history.plot()
    found = {g: set() for g in range(3)}
    for level, axes in enumerate(figure.axes[:3]):
        for g in range(3):
            for key, width in ((f"L{level}/g{g}/lr", 2), (f"written/L{level}/g{g}/lr", 1.3)):
                if key in history:
                    drawn = [
                        line.get_color()
                        for line in axes.lines
                        if line.get_linewidth() == width and dict(zip(*line.get_data(), strict=True)) == as_dict(history[key])
                    ]
                    equal = [other for other in range(3) if history.get(key.replace(f"g{g}", f"g{other}")) == history[key]]
                    assert len(drawn) == len(equal)
                    found[g].add(drawn[equal.index(g)])
        legend = axes.get_legend()
        for sample, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
            if text.get_text() != WRITTEN:
                found[int(text.get_text().removeprefix("group "))].add(sample.get_color())
    assert "written/L0/g0/lr" not in history
    assert "L2/g2/lr" not in history
    assert [len(colors) for colors in found.values()] == [1, 1, 1]
    assert len(set.union(*found.values())) == 3


def test_equal_lines_are_all_seen():
    """In the picture itself: pixels of each group's colour, though all rates above are the same number."""
    figure = recorded(gdtuo.Adam(optimizer=gdtuo.SGD(lr=0.05)), separate(4), schedule=False, steps=30).plot()
    upper = figure.axes[1]
    assert {tuple(line.get_ydata()) for line in upper.lines} == {(0.05,) * 30}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    box = upper.get_window_extent()
    inside = pixels[int(pixels.shape[0] - box.y1) : int(pixels.shape[0] - box.y0), int(box.x0) : int(box.x1)]
    counts = [(inside == np.round(255 * np.array(to_rgb(line.get_color())))).all(-1).sum() for line in upper.lines]
    assert min(counts) > 0.5 * max(counts) > 0


def test_a_line_that_joins_another_in_mid_run_hides_neither():
    long, late = Series(array("q", [1, 2, 3]), array("d", [0.5, 0.1, 0.1])), Series(array("q", [2, 3]), array("d", [0.1, 0.1]))
    other = Series(array("q", [2, 3]), array("d", [0.1, 0.2]))
    assert strokes([late, long, other, long]) == [(-6, (6, 12)), "-", "-", (-12, (6, 12))]
    assert strokes([late, long, other], 4, 2) == [(-6, (4, 8)), (0, (4, 8)), (0, (4, 2))]


def test_no_legend_covers_data():
    history = recorded(TOWERS["adam/sgd/sgd"]())
    figure = history.plot()
    figure.draw_without_rendering()
    for axes in figure.axes[:3]:
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
        assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_a_single_step_is_seen():
    figure = recorded(TOWERS["adam/sgd/sgd"](), steps=1).plot()
    for axes in figure.axes:
        assert {line.get_marker() for line in axes.lines} == {"o"}
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels() if text.get_text()].count("1") == 1
    history = gdtuo.History(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))
    history.record(loss=float("nan"))
    assert [text.get_text() for text in history.plot().axes[1].texts] == ["no finite number"]


def test_where_groups_have_towers_of_their_own_the_headline_lists_them_and_no_level_has_a_name():
    history = recorded(gdtuo.Adam(optimizer=gdtuo.SGD(lr=0.05, optimizer=gdtuo.SGD())), uneven)
    figure = history.plot()
    assert figure.get_suptitle() == "adam / sgd / sgd  (groups 0, 1)\nadam / adam  (group 2)"
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["Level 0: learning rate", "Level 1: learning rate"]

    def many(model):
        groups = separate(6)(model)
        return [group if g in (0, 4) else group | {"optimizer": gdtuo.Adam(lr=0.02)} for g, group in enumerate(groups)]

    names = recorded(gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD()), many).plot().get_suptitle()
    assert names == "adam / sgd  (groups 0, 4)\nadam / adam  (groups 1 to 3, 5)"


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
