"""The guides' Python runs as printed, and what they point at exists."""

from __future__ import annotations

import importlib.util
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import robustness
from gdtuo.lab import ablation, cli, tasks
from gdtuo.lab.journal import read

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "whole-training.md"
SCHEDULERS = ROOT / "docs" / "schedulers.md"
LAB = ROOT / "docs" / "lab.md"
RESULTS = ROOT / "docs" / "results.md"
ROBUST = ROOT / "docs" / "robust-default.md"


def tensors(tree):
    """The leaves of a nested dict."""
    return [leaf for branch in tree.values() for leaf in tensors(branch)] if isinstance(tree, dict) else [tree]


def run(guide, count):
    """What is left when a guide's blocks have run one after the other."""
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    assert len(blocks) == count
    with torch.random.fork_rng():
        for block in blocks:
            exec(block, namespace)
    return namespace


@pytest.fixture(scope="module")
def session():
    return run(GUIDE, 12)


def test_the_outer_loop_learns(session):
    values = session["values"]
    assert len(values) == 10
    assert values[-1] < 0.6 * values[0]
    rates = torch.stack(list(session["log_lr"].values())).exp()
    assert rates.shape == (2, 50)
    assert (rates > 0.01).all()  # it started there, far too low


def test_everything_is_finite_and_has_its_shape(session):
    for name in ("result", "modular_result", "two", "three", "careful", "implicit", "exact", "lean"):
        assert all(x.isfinite().all() for x in tensors(session[name].hyper)), name
        assert any(x.abs().max() > 0 for x in tensors(session[name].hyper)), name
    result, params = session["result"], session["params"]
    assert result.hyper["optimizer"]["lr"]["hidden"].shape == (50,)
    assert [x.shape for x in tensors(result.params)] == [x.shape for x in tensors(params)]
    slopes = session["slopes"]
    assert slopes["weight_decay"]["hidden"]["weight"].shape == (1, 32, 64)
    assert slopes["state"]["momentum_buffer"]["hidden"]["weight"].shape == (32, 64)
    assert slopes["momentum"].shape == slopes["lr"]["output"].shape == ()


def test_the_plan_fits(session):
    forecast = session["forecast"]
    (best,) = (row for row in forecast.rows if row.method == forecast.best)
    assert best.exact
    assert best.memory <= 500_000
    text = GUIDE.read_text()
    for row in forecast.rows:  # bytes depend on torch, counts do not
        method = re.sub(r"memory=\d+", r"memory=\\d+", re.escape(repr(row.method)).replace(r"\=", "="))
        assert re.search(rf"^{method} +{row.gradients:,} +{row.products:,} ", text, re.M), row.method


def test_what_the_guide_says_of_methods(session):
    assert session["careful"].cost.states == pytest.approx(4.0, abs=0.01)
    assert float(session["implicit"].hyper["l2"]) == pytest.approx(float(session["exact"].hyper["l2"]), rel=1e-5)
    training, losses, params, hyper = (session[name] for name in ("training", "outer_loss", "params", "hyper"))
    plain = session["gdtuo"].hypergradient(training, losses, params, hyper)
    for name in ("careful", "lean"):
        for a, b in zip(tensors(session[name].hyper), tensors(plain.hyper), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_several_losses_and_several_runs(session):
    assert set(session["two"].value) == {"l2", "optimizer"}
    assert session["two"].value["l2"] != session["two"].value["optimizer"]
    assert len(session["three"].final) == 3


def test_real_time_learns(session):
    records = session["records"]
    assert [record.step for record in records] == list(range(10, 101, 10))
    assert records[-1].value < 0.8 * records[0].value
    assert records[-1].hyper["optimizer"]["lr"] > 0.01
    assert all(record.hyper["l2"] >= 0 for record in records)


def test_the_check_passes(session):
    assert session["checked"].worst < 1e-6
    assert {row.name.partition(",")[0] for row in session["checked"].rows} == {"hyper['l2']", "hyper['optimizer']['beta1']"}


@pytest.mark.parametrize(
    ("guide", "least"),
    [(GUIDE, 16), (SCHEDULERS, 1), (LAB, 2), (RESULTS, 25), (ROBUST, 3)],
    ids=lambda guide: getattr(guide, "stem", ""),
)
def test_what_the_guide_points_at_exists(guide, least):
    text = guide.read_text()
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^##+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= least
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("https://"):
            assert (guide.parent / link).exists(), link
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert importlib.util.find_spec(module), module


def test_schedulers_compose_as_the_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = run(SCHEDULERS, 4)
    history, optimizer, plain = session["history"], session["optimizer"], session["plain"]
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    written, effective = history["written/L0/g0/lr"].values, history["L0/g0/lr"].values
    assert max(written) == pytest.approx(2e-3)
    assert effective[-1] > 2 * written[-1]  # learned
    assert history["loss"].values[-1] < 0.8 * history["loss"].values[0]
    assert optimizer.hyperparameters()["L1/g0/lr"] < 0.01
    followed = [group["lr"] for group in session["exported"].param_groups]
    assert followed == pytest.approx([optimizer.hyperparameters()["L0/g0/lr"]], abs=1e-12)
    assert session["following"].last_epoch == session["cosine"].last_epoch == 100
    model, inputs, targets = session["model"], session["inputs"], session["targets"]
    for expected in history["loss"].values:  # the run once more, without the tower
        plain.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        plain.step()
        session["scheduler"].step()
        assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert plain.param_groups[0]["lr"] == effective[-1]


def test_the_lab_does_what_its_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = run(LAB, 3)
    low, good = session["outcomes"]
    assert 3e-5 < low.learned_lr < good.learned_lr
    assert good.error < 0.05
    assert session["rows"] == [{"width": 8, "parameters": 25}, {"width": 16, "parameters": 49}]
    (tmp_path / "my_tasks.py").write_text(re.findall(r"```python\n(.*?)```", LAB.read_text(), re.DOTALL)[0])
    command = [
        "ablate",
        "--task",
        "my_tasks:parabola",
        "--tower",
        "adam/sgd",
        "--epochs",
        "1",
        "--out",
        "run",
        "--processes",
        "1",
    ]
    monkeypatch.syspath_prepend(tmp_path)
    cli.main([*command, "--processes", "1"])
    monkeypatch.delitem(sys.modules, "my_tasks")
    assert len(read(tmp_path / "run" / "results.csv")) == 1


def test_the_lab_s_table_lists_its_tasks():
    text = LAB.read_text()
    listed = {name for line in re.findall(r"^\| (`[^|]*`) \|", text, re.M) for name in re.findall(r"`([\w-]+)`", line)}
    assert listed >= set(tasks.TASKS)
    for name in ("tower", "height", "lr", "seed", *ablation.FOUND):
        assert re.search(rf"[`, ]{name}[`, ]", text), name


def test_every_result_is_committed_with_its_command():
    text = RESULTS.read_text() + ROBUST.read_text()
    for path in re.findall(r"python (examples/[\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path
    named = set(re.findall(r"results/(\w+\.csv)", text))
    assert named == {path.name for path in (ROOT / "docs" / "results").iterdir()}
    assert len(named) == 12
    pictures = set(re.findall(r"pictures/(paper-[\w-]+\.png)", text))
    assert pictures == {path.name for path in (ROOT / "docs" / "pictures").glob("paper-*.png")}
    assert all(len(read(ROOT / "docs" / "results" / name)) > 5 for name in named)


def test_the_printed_table_1_is_that_of_its_rows():
    """Means and deviations, from the raw rows."""
    rows = [row for row in read(ROOT / "docs" / "results" / "table1.csv") if row["package"] == "compat"]
    errors = {}
    for row in rows:
        errors.setdefault(row["stack"], []).append(row["error"])
    section = RESULTS.read_text().split("## The towers paper: height")[0]
    for title, stack in (("SGD", "SGD(0.01)"), ("Adam / Adam", "Adam(0.001) / Adam(0.001)"), ("RMSProp", "RMSProp(0.01)")):
        printed = re.search(rf"^\| {re.escape(title)} \| [^|]* \| ([^|]*) \| yes", section, re.M)[1]
        assert printed == f"{statistics.mean(errors[stack]):.2f} ± {statistics.stdev(errors[stack]):.2f}"


def test_the_robust_default_s_table_is_that_of_its_rows():
    """Printed by the benchmark from the rows that are committed."""
    text = ROBUST.read_text()
    for name in ("robustness", "robustness_aside"):
        printed = robustness.table(read(ROOT / "docs" / "results" / f"{name}.csv"))
        assert printed in text
    assert str(run(ROBUST, 1)["optimizer"]) == "adamw / sgd"
