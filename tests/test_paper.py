"""The paper's experiments in their small versions: packages agree, tables say what the cells say, a cut run is completed."""

import math
import statistics
import subprocess
import sys
from pathlib import Path

import char_rnn
import cost
import last_values
import mnist
import pytest
import sensitivity
import stacks
import table1
import torch
from published import TABLE, Figure

import gdtuo
from gdtuo.lab.journal import read
from gdtuo.lab.recurrent import Characters

PAPER = Path(__file__).parent.parent / "examples" / "paper"

pytestmark = pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def run(script, monkeypatch, *arguments):
    """As a user would, but in this process: importing torch takes longer than the small versions."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def rows_of(markdown):
    """The cells of a table's rows, without its head."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in markdown.splitlines()[2:]]


def assert_picture(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000  # empty axes take less


# ---------------------------------------------------------------- stacks


def trained(package, stack, make, batches, loss):
    """Losses of some steps, and the lowest level's numbers after them."""
    torch.manual_seed(0)
    model = make()
    trainer = stacks.Trainer(package, stack, model)
    losses = [trainer.step(lambda batch=batch: loss(model, batch)).item() for batch in batches]
    return losses, {name: value for name, value in trainer.learned().items() if value != ""}


def points(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=generator), torch.randint(10, (16,), generator=generator)) for _ in range(count)]


def likelihood(model, batch):
    return torch.nn.functional.nll_loss(model(batch[0]), batch[1])


def next_character(model, chunks):
    return torch.nn.functional.cross_entropy(model(chunks[:, :-1]).flatten(0, 1), chunks[:, 1:].flatten())


def assert_close(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-9)
    assert found[1] == pytest.approx(wanted[1], rel=1e-9)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.title)
def test_the_published_package_and_ours_train_alike(float64, row):
    arguments = row.stack, lambda: mnist.classifier(6), points(8), likelihood
    found = trained("compat", *arguments)
    assert_close(found, trained("published", *arguments))
    if " / " in row.stack:
        assert found[1]["lr"] != stacks.levels(row.stack)[0][1][0]


def test_the_published_package_trains_an_lstm_as_ours_does(float64):
    generator = torch.Generator().manual_seed(1)
    chunks = [torch.randint(5, (3, 8), generator=generator) for _ in range(6)]
    arguments = "AdamBaydin(0.01) / SGD(0.001)", lambda: Characters(5, 4), chunks, next_character
    found = trained("compat", *arguments)
    assert_close(found, trained("published", *arguments))
    assert len(set(found[0])) == 6


@pytest.mark.parametrize(
    ("stack", "tower", "keys"),
    [
        ("SGD(0.1) / Adam", lambda params: gdtuo.SGD(params, lr=0.1, optimizer=gdtuo.Adam()), {"lr": "lr"}),
        (
            "Adam(0.01) / SGD / SGD(0.02)",
            lambda params: gdtuo.Adam(
                params, lr=0.01, learn=("lr", "betas"), optimizer=gdtuo.SGD(learn="lr", optimizer=gdtuo.SGD(lr=0.02))
            ),
            {"lr": "lr", "beta1": "beta1", "beta2": "beta2"},
        ),
        (
            "RMSProp(0.01) / RMSProp",
            lambda params: gdtuo.RMSProp(params, lr=0.01, learn=("lr", "alpha"), optimizer=gdtuo.RMSProp()),
            {"lr": "lr", "gamma": "alpha"},
        ),
    ],
)
def test_own_stacks_are_towers_with_their_defaults(float64, stack, tower, keys):
    losses, learned = trained("gdtuo", stack, lambda: mnist.classifier(6), points(8), likelihood)
    torch.manual_seed(0)
    model = mnist.classifier(6)
    optimizer = tower(model.parameters())
    wanted = []
    for batch in points(8):
        optimizer.zero_grad()
        loss = likelihood(model, batch)
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())
    assert losses == wanted
    numbers = optimizer.hyperparameters()
    assert learned == {name: numbers[f"L0/g0/{key}"] for name, key in keys.items()}


def test_a_plain_stack_is_torchs_optimizer(float64):
    losses, _ = trained("gdtuo", "Adam(0.01)", lambda: mnist.classifier(6), points(8), likelihood)
    torch.manual_seed(0)
    model = mnist.classifier(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch, value in zip(points(8), losses, strict=True):
        optimizer.zero_grad()
        loss = likelihood(model, batch)
        loss.backward()
        optimizer.step()
        assert value == pytest.approx(loss.item(), rel=1e-12)


def test_what_is_no_stack_is_named():
    with pytest.raises(ValueError, match=r"'Adagrad' is no level.*Write one of SGD, AdaGrad"):
        stacks.levels("SGD(0.1) / Adagrad")


# ---------------------------------------------------------------- table 1


def test_rows_agree_within_three_deviations_or_four_tenths():
    published = Figure(5.0, 0.3)
    assert published.agrees(Figure(5.39, 0.0))
    assert published.agrees(Figure(6.49, 0.4))  # 3 × 0.5 = 1.5
    assert not published.agrees(Figure(6.51, 0.4))
    assert not Figure(5.0, 0.0).agrees(Figure(5.41, 0.1))
    assert not published.agrees(Figure(math.nan, math.nan))


def test_table_1_says_what_its_cells_say(tmp_path, monkeypatch):
    run(table1, monkeypatch, "--quick", "--referee", "--processes", 1, "--out", tmp_path)
    cells = read(tmp_path / "table1.csv")
    table, reruns = map(rows_of, (tmp_path / "table1.md").read_text().split("\n\n"))
    assert [line[0] for line in table] == [row.title for row in TABLE]
    assert [line[0] for line in reruns] == [row.title for row in TABLE if row.rerun]

    def shown(package, stack):
        errors = [cell["error"] for cell in cells if (cell["package"], cell["stack"]) == (package, stack)]
        assert len(errors) == table1.QUICK.seeds
        return f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"

    for line, row in zip(table, TABLE, strict=True):
        assert line[1] == str(row.error)
        assert line[2] == shown("compat", row.stack)
        assert line[4] == shown("published", row.stack)
        assert line[5] == shown("gdtuo", table1.own(row.stack))
    for line, row in zip(reruns, [row for row in TABLE if row.rerun], strict=True):
        for package, place in (("compat", 2), ("published", 3)):
            learned = [cell["lr"] for cell in cells if (cell["package"], cell["stack"]) == (package, row.stack)]
            assert line[place].split(", ")[0] == f"{statistics.mean(learned):.4f}"
        assert line[5] == shown("compat", table1.rerun(row.stack, row.learned))
    ours, theirs = (
        [cell["loss"] for row in TABLE for cell in cells if (cell["package"], cell["stack"]) == (package, row.stack)]
        for package in ("compat", "published")
    )
    assert ours == pytest.approx(theirs, rel=1e-3)  # in single precision; theirs keeps hyperparameters in it, too
    assert_picture(tmp_path / "paper-table1.png")


def test_an_own_stack_and_a_rerun_keep_the_right_numbers():
    assert table1.own("RMSPropAlpha(0.01) / RMSProp(0.0001)") == "RMSPropAlpha(0.01) / RMSProp"
    assert table1.rerun("AdamBaydin(0.001) / SGD(1e-05)", (0.0021,)) == "Adam(0.0021)"
    assert table1.rerun("RMSProp(0.01) / SGD(0.0001)", (0.0032, 0.9899)) == "RMSProp(0.0032, 0.9899)"


# ---------------------------------------------------------------- the others


def test_sensitivity_that_is_cut_off_is_completed(tmp_path, monkeypatch, capsys):
    arguments = "--quick", "--processes", 1, "--out"
    run(sensitivity, monkeypatch, *arguments, tmp_path)
    whole = (tmp_path / "sensitivity.csv").read_text()
    table = (tmp_path / "sensitivity.md").read_text()
    cells = read(tmp_path / "sensitivity.csv")
    assert len(cells) == len(sensitivity.cells(sensitivity.QUICK)) == 33  # 4 kinds × 3 heights × 3 starts, 3 of them equal
    errors = {(cell["package"], cell["stack"]): cell["error"] for cell in cells}
    shown = {(row[0], row[1]): row[2:] for row in rows_of(table)}
    kind = sensitivity.KINDS[0]
    assert shown[kind.title, "2"] == [
        f"{errors['compat', f'SGD({lr}) / SGD(0.01) / SGD(0.01)']:.1f}" for lr in ("1e-08", "0.0001", "1")
    ]
    assert_picture(tmp_path / "paper-sensitivity.png")

    cut = tmp_path / "cut" / "sensitivity.csv"
    cut.parent.mkdir()
    cut.write_text(whole[: len(whole) // 2])  # within a line
    run(sensitivity, monkeypatch, *arguments, cut.parent)
    assert cut.read_text() == whole
    assert cut.with_suffix(".md").read_text() == table


def test_char_rnn_says_what_its_cells_say(tmp_path):
    command = [sys.executable, PAPER / "char_rnn.py", "--quick", "--processes", "1", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    cells = {(cell["package"], cell["stack"]): cell for cell in read(tmp_path / "char_rnn.csv")}
    last = char_rnn.QUICK.steps
    for row, (lr, kind) in zip(
        rows_of((tmp_path / "char_rnn.md").read_text()),
        [(lr, kind) for lr in char_rnn.STARTS for kind in char_rnn.KINDS],
        strict=True,
    ):
        cell = cells[kind.package, kind.stack(lr)]
        assert row[0] == kind.title
        assert row[3] == f"{cell[f'loss {last}']:.3f}"
        assert cell["lr 0"] == pytest.approx(lr)
        assert (cell[f"lr {last}"] == cell["lr 0"]) == (kind.title == "Adam")
        assert cell[f"loss {last}"] < cell["loss 0"]
    assert_picture(tmp_path / "paper-char-rnn.png")


def test_cost_says_what_was_timed(tmp_path, monkeypatch):
    run(cost, monkeypatch, "--quick", "--out", tmp_path)
    cells = {(cell["network"], str(cell["height"])): cell for cell in read(tmp_path / "cost.csv")}
    table = rows_of((tmp_path / "cost.md").read_text())
    assert [tuple(row[:2]) for row in table] == [(name, height) for name in ("MLP", "CNN") for height in "01"]
    for row in table:
        cell = cells[row[0], row[1]]
        assert row[2] == f"{cell['torch median']:.2f}"
        assert row[3:6] == [f"{cell[f'{of} median'] / cell['torch median']:.2f}" for of in ("gdtuo", "compat", "published")]
    assert_picture(tmp_path / "paper-cost.png")


@pytest.mark.parametrize(
    ("script", "arguments", "remedy"),
    [
        (table1, ["--data", "nowhere"], "--data DIR or GDTUO_DATA=DIR"),
        (sensitivity, ["--quick", "--processes", 0], "--processes is 0: give at least 1"),
        (char_rnn, [], "Give --text FILE, or --quick"),
        (char_rnn, ["--text", "nowhere"], "Give the path of a text in UTF-8"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(script, arguments, remedy, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(script, monkeypatch, *arguments, "--out", tmp_path)
    assert exit.value.code == 2
    assert remedy in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_last_values_are_those_of_the_table(tmp_path, monkeypatch):
    run(last_values, monkeypatch, "--quick", "--processes", 1, "--out", tmp_path)
    row = last_values.chosen()[0]
    cells = read(tmp_path / "last_values.csv")
    of_stack = [cell for cell in cells if cell["stack"] == row.stack]
    for cell in of_stack:
        keys = "package", "stack", "task", "epochs", "seed"
        assert mnist.classify(**{key: cell[key] for key in keys})["lr"] == cell["last"]
        assert cell["lowest"] <= cell["tenth"] <= cell["median"] <= cell["ninetieth"] <= cell["highest"]
    line = rows_of((tmp_path / "last_values.md").read_text())[0]
    assert line[3] == ", ".join(f"{cell['last']:.3g}" for cell in of_stack)
    assert line[5] == f"{last_values.median(of_stack):g}"
    assert sum(cell["stack"] == f"SGD({line[5]})" for cell in cells) == 2
