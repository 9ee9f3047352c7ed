"""The benchmark of robustness scores what it says; its contenders and problems are what they are called."""

import math
import re

import pytest
import torch

from benchmarks import contenders, problems, robustness
from gdtuo.lab.journal import read

ALONE = ("digits MLP", "noisy quadratic", "Rosenbrock", "scaled logistic", "factorisation")  # need no folder of data


def row(problem, contender, lr, loss, seed=0, start=10.0):
    return {"problem": problem, "contender": contender, "lr": lr, "seed": seed, "start": start, "loss": loss}


ROWS = [
    row("a", "Adam", 0.1, 4.0),
    row("a", "SGD", 0.1, 2.5),
    row("a", "SGD", 1.0, math.nan),
    row("a", "tower", 0.1, 2.0),
    row("a", "tower", 1.0, 1e30),
    row("a", "Adam", 0.1, 3.0, seed=1, start=11.0),
    row("a", "tower", 0.1, 3.4, seed=1, start=11.0),
]


def test_scores_run_from_the_best_to_the_start():
    found = robustness.scores(ROWS)
    assert found["a", "tower", 0.1, 0] == 0
    assert found["a", "SGD", 0.1, 0] == pytest.approx(0.5 / 8)
    assert found["a", "Adam", 0.1, 0] == pytest.approx(2 / 8)
    assert found["a", "SGD", 1.0, 0] == found["a", "tower", 1.0, 0] == robustness.NOTHING
    assert found["a", "tower", 0.1, 1] == pytest.approx(0.4 / 8)
    assert robustness.tuned(found) == {("a", 0): pytest.approx(0.5 / 8), ("a", 1): 0}


def test_the_table_counts_cells_near_tuned():
    lines = {line.split("  ")[0]: line.split()[1:] for line in robustness.table(ROWS).splitlines()[1:]}
    assert lines["tower"] == ["67", "%", "-", "67", "%", "0.050", ">", "1.8", "0", "-"]  # gaps -1/16, 1.94, 0.05
    assert lines["Adam"] == ["50", "%", "-", "100", "%", "0.094", "0.19", "0", "-"]
    usual = robustness.table([*ROWS, row("a", "Adam", 1e-3, 2.1), row("a", "auto", robustness.OWN, 9.9)]).splitlines()
    assert usual[1].split()[3:5] == ["100", "%"]
    assert usual[-1].split()[1:5] == ["0", "%", "0", "%"]
    assert usual[-1].split()[-1] == "2"  # the one cell, of each start: behind the best of Adam alone
    assert lines["SGD"][-2:] == ["1", "-"]


def test_a_tower_is_compared_with_its_bottom_at_the_same_start():
    mine = [row("a", "Adam / SGD / SGD", 0.1, 4.3), row("a", "Adam / SGD / SGD", 1.0, 5.0)]
    rows = [*ROWS, row("a", "Adam", 1.0, 4.0), *mine]  # in parts of 8: 0.04 and 0.13 behind
    (line,) = (line for line in robustness.table(rows).splitlines() if line.startswith("Adam / SGD / SGD"))
    assert line.split()[-1] == "1"


@pytest.mark.parametrize("name", ALONE)
def test_problems_can_be_solved_and_are_the_same_for_equal_seeds(name):
    """Adam at a good rate gets far below the start."""
    rate = {"scaled logistic": 1e-3, "digits MLP": 1e-2}.get(name, 3e-2)
    one, two = (robustness.train(name, "Adam", rate, 0) for _ in range(2))
    assert one == two
    assert one["loss"] < (0.75 if name == "scaled logistic" else 0.1) * one["start"]


def test_the_quadratic_s_noise_has_mean_zero_and_its_optimum_is_zero():
    task = problems.noisy_quadratic(None)
    model = task.model()
    noise = torch.randn(20_000, 100, generator=torch.Generator().manual_seed(0))
    (weights,) = model()
    curvatures = torch.logspace(-2, 0, 100)
    losses = torch.stack([task.loss(model, sample) for sample in noise[:200]])
    exact = 0.5 * (curvatures * weights**2).sum()
    torch.testing.assert_close(losses, exact + (noise[:200] * 0.3 * curvatures.sqrt() * weights).sum(1))
    assert task.evaluate(model) == pytest.approx(exact.item(), rel=1e-5)


def test_rosenbrock_is_zero_at_ones():
    task = problems.rosenbrock(None)
    model = task.model()
    with torch.no_grad():
        model.weights[0].fill_(1.0)
    assert task.evaluate(model) == 0
    with torch.no_grad():
        model.weights[0].zero_()
    assert task.evaluate(model) == 1


@pytest.mark.parametrize("name", [*contenders.CONTENDERS, "adam(horizon=100)/sgd(lr=0.05)"])
def test_every_contender_trains(name):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 5, generator=generator), torch.randn(64, 1, generator=generator)
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)

    def loss(network):
        return (network(inputs) - targets).square().mean()

    before, running = loss(model).item(), contenders.enter(name, model, 1e-2)
    for _ in range(60):
        running.zero_grad()
        loss(model).backward()
        running.step()
    with torch.no_grad():
        assert loss(running.evaluated()).item() < 0.98 * before


@pytest.mark.parametrize("name", [name for name in contenders.CONTENDERS if name not in contenders.STARTLESS])
def test_the_first_move_grows_with_the_initial_rate(name):
    generator = torch.Generator().manual_seed(1)
    inputs, moves = torch.randn(16, 5, generator=generator, dtype=torch.float64), []
    for lr in (1e-7, 4e-7):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 1, dtype=torch.float64)
        start, running = model.weight.detach().clone(), contenders.enter(name, model, lr)
        for _ in range(2):  # Mechanic's first move is none
            running.zero_grad()
            model(inputs).square().mean().backward()
            running.step()
            if not torch.equal(model.weight, start):
                break
        moves.append((model.weight - start).norm().item())
    assert moves[1] / moves[0] == pytest.approx(4, rel=1e-3)


def test_the_command_goes_on_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(robustness, "QUICK", ("noisy quadratic",))
    monkeypatch.setattr(robustness, "RATES", (1e-6, 1e-2))
    arguments = ["--quick", "--only", "--contender", "adam/sgd", "--out", str(tmp_path), "--processes", "1"]
    robustness.main(arguments)
    printed = capsys.readouterr().out
    assert re.search(r"^adam/sgd +\d+ % +- +\d+ %", printed, re.M)
    rows = read(tmp_path / "results.csv")
    assert [(r["contender"], r["lr"]) for r in rows] == [("Adam", 1e-6), ("SGD", 1e-6), ("adam/sgd", 1e-6)]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    robustness.main(arguments)
    assert read(tmp_path / "results.csv") == rows


def test_one_problem_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "RATES", (1e-2,))
    chosen = ["--problem", "Rosenbrock", "--only", "--contender", "auto", "--contender", "SGD", "--seeds", "2"]
    robustness.main([*chosen, "--out", str(tmp_path), "--processes", "1"])
    expected = {("Rosenbrock", name, lr, seed) for name, lr in (("Adam", 1e-2), ("SGD", 1e-2), ("auto", 0.0)) for seed in (0, 1)}
    assert {(r["problem"], r["contender"], r["lr"], r["seed"]) for r in read(tmp_path / "results.csv")} == expected
