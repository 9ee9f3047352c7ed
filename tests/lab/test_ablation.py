"""`gdtuo ablate` as users start it: whole, killed, wrong; and what its table and pictures show."""

import csv
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import own_tasks
import pytest

from gdtuo.lab import ablation, cli, figures, picture_errors, picture_learned, summary
from gdtuo.lab.ablation import Ablation, Results, open_folder
from gdtuo.lab.journal import alone
from gdtuo.lab.tasks import Named
from gdtuo.lab.training import Start, train

HERE = Path(__file__).parent
GRID = ["--tower", "adam/sgd", "--heights", "0:2", "--lr", "1e-4:1e-1:4", "--seeds", "2"]
SLOW = ["--task", "own_tasks:slow_blobs", *GRID]


#: `python -m gdtuo`, and Ctrl-C is heard: a shell's background job ignores it, and so does whatever it starts.
AS_A_MODULE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('gdtuo', run_name='__main__', alter_sys=True)"
)


def start(*arguments, **environment):
    command = [sys.executable, "-c", AS_A_MODULE, *map(str, arguments)]
    path = f"{HERE}{os.pathsep}{HERE.parent.parent}"
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def table(path):
    with path.open() as file:
        return sorted(tuple(row.values()) for row in csv.DictReader(file))


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def ablate(out, *arguments):
    """In this process."""
    cli.main(["ablate", "--processes", "1", "--out", str(out), *arguments])
    return open_folder(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An ablation that nothing has interrupted, and what it printed."""
    folder, printed, said = tmp_path_factory.mktemp("whole") / "deep" / "run", StringIO(), StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        ablate(folder, *SLOW)
    return folder, printed.getvalue(), said.getvalue()


def test_every_cell_has_its_row(whole):
    rows = open_folder(whole[0]).rows
    grid = set(product(["adam", "adam/sgd", "adam/sgd/sgd"], (1e-4, 1e-3, 1e-2, 0.1), (0, 1)))
    assert len(rows) == len(grid) == 24
    assert {(row["tower"], row["lr"], row["seed"]) for row in rows} == grid
    assert all(row["height"] == row["tower"].count("/") for row in rows)
    for row in rows[::5]:
        (alone,) = train(own_tasks.slow_blobs(), row["tower"], [Start(row["lr"], row["seed"])])
        assert row["error"] == pytest.approx(alone.error, abs=1e-9)
        assert row["loss"] == pytest.approx(alone.loss, rel=1e-9)
        assert row["learned_lr"] == pytest.approx(alone.learned_lr, rel=1e-9)
        assert row["diverged"] == row["skipped"] == 0


def test_progress_and_place_are_said(whole):
    folder, printed, said = whole
    assert "24/24" in said
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", said)  # time passed, and time left
    assert printed.rstrip().endswith("results.csv, learned.csv, errors.png, learned.png")
    assert json.loads((folder / "ablation.json").read_text())["epochs"] == 4


def test_the_table_has_the_medians(whole):
    folder, printed, _ = whole
    errors = {}
    for row in open_folder(folder).rows:
        errors.setdefault(row["tower"], {}).setdefault(row["lr"], []).append(row["error"])
    for text, name in (("adam", "adam"), ("adam/sgd", "adam / sgd"), ("adam/sgd/sgd", "adam / sgd x 2")):
        (line,) = re.findall(rf"^{name}((?: +[\d.]+)+) *$", printed, re.M)
        assert [float(number) for number in line.split()] == pytest.approx(
            [statistics.median(errors[text][lr]) for lr in sorted(errors[text])], rel=1e-3
        )


def stopped(process, path, rows, how):
    """What it said, and the rows that it left, after a signal that comes once there are more than so many rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") > rows + 1):
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    return said, set(table(path))


def test_interrupted_and_killed_and_started_again_it_is_as_if_nothing_had_been(whole, tmp_path):
    arguments, path = ["ablate", *SLOW, "--processes", 2, "--out", tmp_path], tmp_path / "results.csv"
    process = start(*arguments, SLEEP="0.15")
    said, first = stopped(process, path, 1, signal.SIGINT)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    said, second = stopped(start(*arguments, SLEEP="0.15"), path, len(first) + 3, signal.SIGKILL)
    assert 1 < len(first) < len(second) < 24
    assert first < second
    with (tmp_path / "learned.csv").open("a") as file:
        file.write("adam/sgd,1,0.1,1,0,L0/lr,0.1\nadam/sgd,1,0.1,1,1,L0/l")  # of a cell that was not finished
    process = start(*arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"| {len(second)}/24" in said  # it begins where it was
    for name in ("results.csv", "learned.csv"):
        found, expected = table(tmp_path / name), table(whole[0] / name)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):  # one alone and many at once are not multiplied by the same code
            assert list(map(number, a)) == [pytest.approx(y, rel=1e-9) if isinstance(y, float) else y for y in map(number, b)]


def test_nothing_is_trained_again(whole, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    small = ["--task", "own_tasks:blobs", "--tower", "sgd/sgd", "--lr", "0.1,0.2"]
    first = ablate(tmp_path, *small)
    trained = []
    monkeypatch.setattr(
        ablation, "train", lambda task, text, starts, epochs: trained.extend(starts) or train(task, text, starts, epochs)
    )
    assert ablate(tmp_path, *small).rows == first.rows
    assert trained == []
    more = ablate(tmp_path, *small, "--seeds", "2")
    assert trained == [Start(0.1, 1), Start(0.2, 1)]
    assert more.rows[:2] == first.rows


def test_another_ablation_s_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HERE)
    ablate(tmp_path, "--task", "own_tasks:blobs", "--tower", "sgd")
    before = table(tmp_path / "results.csv")
    for other in (["--task", "own_tasks:square"], ["--task", "own_tasks:blobs", "--epochs", "2"]):
        with pytest.raises(SystemExit) as error:
            ablate(tmp_path, *other, "--tower", "sgd")
        assert error.value.code == 2
        assert "Name another --out" in capsys.readouterr().err
    assert table(tmp_path / "results.csv") == before


def test_without_rates_each_tower_starts_from_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    towers = ["--tower", "adam(lr=0.03)/sgd", "--tower", "sgd/sgd", "--tower", "adam"]
    found = ablate(tmp_path, "--task", "own_tasks:blobs", *towers)
    assert [row["lr"] for row in found.rows] == [0.03, 0.01, 0.001]
    (alone,) = train(own_tasks.blobs(), "adam/sgd", [Start(0.03, 0)])
    assert found.rows[0]["loss"] == pytest.approx(alone.loss, rel=1e-12)


def test_divergence_is_a_result(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HERE)
    found = ablate(tmp_path, "--task", "own_tasks:square", "--tower", "sgd/sgd", "--heights", "0:1", "--lr", "0.1,1e200")
    assert [row["diverged"] for row in found.rows] == [0, 1, 0, 0]  # the tower is limited
    printed = capsys.readouterr().out
    assert re.search(r"^sgd +[\d.e-]+ +inf\*$", printed, re.M)
    assert "* some or all of its runs diverged" in printed
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_towers_may_be_compared_as_they_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    found = ablate(
        tmp_path,
        "--task",
        "own_tasks:blobs",
        "--tower",
        "adam(per='tensor')/sgd",
        "--tower",
        "sgd(momentum=0.9, learn='all')/adam/sgd",
    )
    assert [(row["tower"], row["height"]) for row in found.rows] == [
        ("adam(per='tensor')/sgd", 1),
        ("sgd(momentum=0.9, learn='all')/adam/sgd", 2),
    ]
    names = {(row["height"], row["name"]) for row in found.traces}
    assert {(1, "L0/lr/0"), (1, "L0/lr/3"), (2, "L0/momentum"), (2, "L1/lr")} <= names
    final = [row["value"] for row in found.traces if row["height"] == 1 and row["name"].startswith("L0/lr") and row["step"] == 12]
    assert found.rows[0]["learned_lr"] == statistics.median(final)


# ---------------------------------------------------------------- pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures_saved = []

    def keep(figure, path, headline):
        figures_saved.append(figure)
        figures.save(figure, path, headline)

    monkeypatch.setattr(picture_errors, "save", keep)
    monkeypatch.setattr(picture_learned, "save", keep)
    return figures_saved


def test_the_picture_of_errors_shows_the_rows(whole, drawn, tmp_path):
    results = open_folder(whole[0])
    picture_errors.draw_errors(results, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    errors = {
        text: {lr: [row["error"] for row in rows] for lr, rows in cells.items()}
        for text, cells in summary.by_tower(results.rows).items()
    }
    labels = {"adam": "height 0: adam", "adam/sgd": "height 1: adam / sgd", "adam/sgd/sgd": "height 2: adam / sgd x 2"}
    lines = {line.get_label(): line for line in axes.lines}
    for text, band in zip(labels, axes.collections, strict=True):
        cells = errors[text]
        x, y = lines[labels[text]].get_data()
        np.testing.assert_array_equal(x, sorted(cells))
        np.testing.assert_array_equal(y, [statistics.median(cells[lr]) for lr in sorted(cells)])
        corners = band.get_paths()[0].vertices
        for lr, values in cells.items():
            assert {min(values), max(values)} == set(corners[corners[:, 0] == lr, 1])
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == results.metric


def test_runs_that_diverge_have_a_cross(drawn, tmp_path):
    row = {"tower": "adam", "height": 0, "seed": 0, "loss": 1.0, "skipped": 0, "learned_lr": 1.0}
    rows = [
        {**row, "lr": lr, "error": error, "diverged": int(lr > 0.1)} for lr, error in ((0.1, 5.0), (1.0, 90.0), (10.0, math.nan))
    ]
    picture_errors.draw_errors(Results("t", "error, %", rows, []), tmp_path / "a.png")
    crosses = [
        line.get_xydata()[0].tolist() for line in drawn[0].axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())
    ]
    assert crosses == [[1.0, 90.0], [10.0, picture_errors.TOP]]


def results_of(errors, towers=("adam",), title="t"):
    """Of each tower the errors at rates of 1, 10, 100, ..."""
    row = {"seed": 0, "loss": 1.0, "skipped": 0, "learned_lr": 1.0}
    rows = [
        {
            **row,
            "tower": text,
            "height": text.count("/"),
            "lr": 10.0**k,
            "error": error,
            "diverged": int(not math.isfinite(error)),
        }
        for text in towers
        for k, error in enumerate(errors)
    ]
    return Results(title, "error, %", rows, [])


def test_an_error_of_zero_is_seen(drawn, tmp_path):
    picture_errors.draw_errors(results_of([30.0, 3.0, 0.0]), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == "log"
    labels = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert axes.lines[0].get_ydata().tolist() == [30, 3, labels["0"]]
    assert axes.get_ylim()[0] < labels["0"] < 3


@pytest.mark.parametrize("errors", [[1e-9, 1e30], [5e-324, 1.7e308], [-1e30, 1.0], [0.0, 0.0], [1e-300, 0.0]])
def test_any_error_can_be_drawn(errors, drawn, tmp_path):
    picture_errors.draw_errors(results_of(errors), tmp_path / "a.png")
    figure, (axes,) = drawn[0], drawn[0].axes
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
    ordered = sorted(boxes, key=lambda box: box.y0)
    assert len(ordered) >= 2
    assert all(below.y1 <= above.y0 for below, above in pairwise(ordered))


def test_where_all_diverge_there_is_a_cross_for_each_and_no_number(drawn, tmp_path):
    picture_errors.draw_errors(results_of([math.nan], ["sgd", "sgd/sgd", "sgd/sgd/sgd"]), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert not len(axes.get_yticks())
    crosses = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x" and len(line.get_ydata())]
    assert len(set(crosses)) == 3


def test_of_many_towers_each_line_differs_and_has_room(drawn, tmp_path):
    texts = [f"adam(betas=(0.9, 0.{k}), eps=1e-12, learn='all')/sgd(lr=0.0{k})" for k in range(1, 10)] + ["sgd", "adam", "lion"]
    picture_errors.draw_errors(results_of([3.0, 30.0], texts), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    styles = {(tuple(line.get_color()), line.get_marker()) for line in axes.lines}
    assert len(styles) == 12
    assert len({marker for _, marker in styles}) > 4
    assert axes.bbox.width > 0.4 * drawn[0].bbox.width


def test_headline_titles_and_legend_of_what_was_learned_do_not_collide(drawn, tmp_path):
    texts = ["adam(betas=(0.9, 0.99), eps=1e-12, learn=('lr', 'betas'))/sgd", "adam/sgd"]
    for towers in (texts[1:], texts):
        results = results_of([1.0], towers, "somebody.s_module:function, 100 epochs")
        row = {"height": 1, "lr": 1.0, "seed": 0, "name": "L0/lr"}
        traces = [{**row, "tower": text, "step": step, "value": 1.0 + step} for text in towers for step in (0, 1)]
        picture_learned.draw_learned(results._replace(traces=traces), tmp_path / "a.png")
        figure = drawn.pop()
        figure.draw_without_rendering()
        (legend,), headline = figure.legends, figure._suptitle
        assert headline.get_window_extent().x1 < legend.get_window_extent().x0
        titles = [axes._left_title.get_window_extent() for axes in figure.axes]
        assert all(one.x1 < other.x0 for one, other in pairwise(titles))
        assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_the_table_s_columns_stay_apart():
    lines = summary.format_table(results_of([-1.234e300, 1.5e30, math.inf], ["adam", "adam/sgd"])).splitlines()
    assert lines[3].split() == ["adam", "-1.234e+300", "1.5e+30", "inf*"]
    ends = [[match.end() for match in re.finditer(r"[^ *]+(?=[ *]|$)", line)][-3:] for line in lines[2:5]]
    assert ends[0] == ends[1] == ends[2]


def test_the_picture_of_what_was_learned_shows_the_traces(whole, drawn, tmp_path):
    results = open_folder(whole[0])
    assert picture_learned.draw_learned(results, tmp_path / "a.png")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes if axes.axison]
    assert titles == ["adam / sgd\nlevel 0: learning rate", "adam / sgd x 2\nlevel 0: learning rate", "level 1: learning rate"]
    values = {}
    for row in results.traces:
        if (row["tower"], row["name"]) == ("adam/sgd/sgd", "L1/lr"):
            values.setdefault(row["lr"], {}).setdefault(row["step"], []).append(row["value"])
    shown = [axes for axes in drawn[0].axes if axes.axison][2].lines
    assert len(shown) == 4
    for line, lr in zip(shown, sorted(values), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), sorted(values[lr]))
        np.testing.assert_array_equal(line.get_ydata(), [statistics.median(values[lr][step]) for step in sorted(values[lr])])


def test_panels_are_in_order_on_scales_of_their_own_and_without_bounds(drawn, tmp_path):
    values = {"L10/lr": 3.0, "L2/lr": 2.0, "L0/lr/mean": 1.0, "L0/lr/max": 1e9, "L0/beta1": 0.9}
    row = {"tower": "adam", "height": 0, "lr": 1.0, "seed": 0}
    traces = [
        {**row, "step": step, "name": name, "value": 1 - (1 - value) / 5**step if name == "L0/beta1" else value * 5**step}
        for name, value in values.items()
        for step in (0, 1, 2)
    ]
    assert picture_learned.draw_learned(results_of([1.0])._replace(traces=traces), tmp_path / "a.png")
    figure = drawn[0].axes
    titles = ["adam\nlevel 0: learning rate", "level 0: beta1", "level 2: learning rate", "level 10: learning rate"]
    assert [axes.get_title(loc="left") for axes in figure] == titles
    assert [axes.get_yscale() for axes in figure] == ["log", "function", "log", "log"]
    for axes, lowest in zip((figure[0], *figure[2:]), (1, 2, 3), strict=True):
        assert axes.get_ylim() == pytest.approx((lowest / picture_learned.MARGIN, 25 * lowest * picture_learned.MARGIN))
        assert len(axes.lines) == 1


def test_any_learned_rate_can_be_drawn(drawn, tmp_path):
    row = {"tower": "adam", "height": 0, "lr": 1.0, "seed": 0, "name": "L0/lr"}
    traces = [{**row, "step": step, "value": value} for step, value in enumerate((5e-324, 1e-3, 0.0, 1.7e308, math.nan))]
    assert picture_learned.draw_learned(results_of([1.0])._replace(traces=traces), tmp_path / "a.png")
    assert drawn[0].axes[0].get_yscale() == "log"


def test_where_nothing_is_learned_nothing_is_drawn(whole, tmp_path):
    results = open_folder(whole[0])
    plain = [row for row in results.traces if row["tower"] == "adam"]
    assert plain
    assert not picture_learned.draw_learned(results._replace(traces=plain), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_show_draws_an_unfinished_folder(whole, tmp_path, capsys):
    for name in ("ablation.json", "learned.csv"):
        (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
    lines = (whole[0] / "results.csv").read_text().splitlines(keepends=True)
    (tmp_path / "results.csv").write_text("".join([*lines[:4], lines[4][:7]]))
    cli.main(["show", str(tmp_path)])
    assert "errors.png" in capsys.readouterr().out
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    assert (tmp_path / "results.csv").read_text().endswith(lines[4][:7])  # showing changes nothing


# ---------------------------------------------------------------- mistakes

GOOD = {"--task": "digits", "--tower": "adam/sgd", "--out": "never"}


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"--task": "digit"}, "Use digits, mnist"),
        ({"--task": "own_tasks:one_network"}, "Make a new one at each call"),
        ({"--tower": "adam(betas=(0.5, 0.9), lr=0.1)/sgd", "--lr": "0.2"}, "and --lr another one. Leave out one"),
        ({"--tower": "adam(lr=0)/sgd"}, "Start above 0"),
        ({"--task": "own_tasks:nope"}, "Name a function of own_tasks"),
        ({"--tower": "adm"}, "There are adafactor, adagrad, adam"),
        ({"--tower": "adam/"}, "Write levels bottom first"),
        ({"--tower": ""}, "Write levels bottom first"),
        ({"--tower": "sgd(lr=-1)/sgd"}, "a learning rate is a number >= 0"),
        ({"--tower": "adam/adafactor(foo=1)"}, "foo"),
        ({"--heights": "4:0"}, "FIRST:LAST"),
        ({"--lr": "1e-3:1"}, "LOWEST:HIGHEST:HOW MANY"),
        ({"--lr": "-1"}, "LOWEST:HIGHEST:HOW MANY"),
        ({"--seeds": "0"}, "from 1 on"),
        ({"--epochs": "1.5"}, "from 1 on"),
        ({"--task": "mnist", "--data": "/no/such/folder"}, "--data DIR"),
        ({"--task": "char-rnn"}, "Give --text FILE"),
        ({"--task": "char-rnn", "--text": "/no/such/file"}, "Give the path of a text"),
        ({"--task": None}, "required: --task"),
        ({"--out": str(Path(__file__) / "run")}, "Not a directory"),
    ],
)
def test_bad_arguments_get_one_line_and_code_2(change, remedy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        cli.main(["ablate", *(part for name, value in {**GOOD, **change}.items() if value is not None for part in (name, value))])
    said = capsys.readouterr().err
    assert error.value.code == 2
    assert said.startswith("gdtuo ablate: ")
    assert said.count("\n") == 1
    assert remedy in said
    assert not list(tmp_path.iterdir())  # before anything has changed


@pytest.mark.parametrize("arguments", [[], ["nope"], ["show"], ["show", "/no/such/folder"], ["tasks", "more"]])
def test_other_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("package", ["tqdm", "matplotlib"])
def test_a_package_that_is_missing_is_named_with_the_remedy(package, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE.parent.parent}"}
    command = [sys.executable, "-m", "gdtuo", "ablate", "--task", "digits", "--tower", "adam", "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "pip install 'gdtuo[lab]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_task_that_fails_says_which_cell_and_shows_where(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HERE)
    with pytest.raises(SystemExit) as error:
        ablate(tmp_path, "--task", "own_tasks:broken", "--tower", "adam", "--lr", "0.5")
    said = capsys.readouterr().err
    assert error.value.code == 1
    assert "training adam from lr 0.5, seed 0 failed: KeyError: 'no such key'" in said
    assert "own_tasks.py" in said


@pytest.mark.parametrize(("name", "said"), [("fails", "ValueError: not enough values"), ("network_fails", "TypeError: Linear")])
def test_a_mistake_in_a_task_is_shown_with_its_place(name, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        ablate(tmp_path / "run", "--task", f"own_tasks:{name}", "--tower", "adam")
    printed = capsys.readouterr().err
    assert error.value.code == 1
    assert said in printed
    assert "own_tasks.py" in printed
    assert not (tmp_path / "run").exists()


def test_cells_together_that_fail_are_told_of_the_option(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablate(tmp_path, "--task", "own_tasks:dropout", "--tower", "adam", "--lr", "0.1,0.2")
    assert "If --together 1 works, vmap cannot take its loss" in capsys.readouterr().err


def test_a_level_of_the_task_s_module_is_known(tmp_path, monkeypatch):
    lines = ["import gdtuo", "from own_tasks import square", "class OfLateDefined(gdtuo.SGD): pass"]
    (tmp_path / "levels_and_task.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    Ablation(Named("levels_and_task:square"), ("oflatedefined/sgd",), None, (0.1,), 1).check()


def test_a_folder_at_work_is_refused(tmp_path, capsys):
    with alone(tmp_path / "results.csv"), pytest.raises(SystemExit) as error:
        ablate(tmp_path, "--task", "own_tasks:square", "--tower", "sgd")
    assert error.value.code == 2
    assert "Wait until it ends" in capsys.readouterr().err
    assert not (tmp_path / "ablation.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"task": "digits"}', '{"task'])
def test_a_damaged_folder_is_named_with_the_remedy(content, whole, tmp_path, capsys):
    (tmp_path / "ablation.json").write_text(content)
    (tmp_path / "results.csv").write_bytes((whole[0] / "results.csv").read_bytes())
    for arguments in (["show", tmp_path], ["ablate", *SLOW, "--out", tmp_path]):
        with pytest.raises(SystemExit) as error:
            cli.main([str(argument) for argument in arguments])
        assert error.value.code == 2
        assert "Delete it and call gdtuo ablate as before" in capsys.readouterr().err


def test_a_folder_without_a_row_says_so(tmp_path, capsys):
    (tmp_path / "ablation.json").write_text('{"task": "digits", "epochs": 1, "metric": "error"}')
    with pytest.raises(SystemExit):
        cli.main(["show", str(tmp_path)])
    assert "Run gdtuo ablate first" in capsys.readouterr().err


def test_tasks_are_listed(capsys):
    cli.main(["tasks"])
    listed = capsys.readouterr().out
    for name in ("digits", "mnist", "fashion", "char-rnn", "module:function"):
        assert re.search(rf"^{name}\b", listed, re.M)


def test_text_is_part_of_what_an_ablation_is(tmp_path):
    one, two = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("abc" * 400)
    two.write_text("abd" * 400)
    assert Named("char-rnn", text=str(one)).identity() != Named("char-rnn", text=str(two)).identity()


def test_jobs_hold_every_cell_once():
    grid = Ablation(Named("digits"), ("adam/sgd", "adam/adam"), (0, 1), (0.1, 0.2, 0.3), 2, together=4)
    jobs = grid.jobs()
    cells = [cell for job in jobs for cell in job]
    assert len(cells) == len(set(cells)) == 3 * 6  # adam alone counts once
    assert [len(job) for job in jobs] == [4, 2] * 3
    assert all(len({cell.tower for cell in job}) == 1 for job in jobs)
