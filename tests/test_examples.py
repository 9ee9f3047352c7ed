"""The examples run, and what they print and draw shows what they claim. Small versions, as a user would start them."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from idx_files import write_small_mnist

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def torchrun(name, *arguments):
    """On two ranks."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def rows(text, first):
    """The numbers of the table's rows, by what `first` matches at their start."""
    return {
        match[1]: [float(number) for number in match[2].split()[:3]] for match in re.finditer(rf"^ *({first})  (.*)$", text, re.M)
    }


def read_csv(path):
    """The rows of a CSV file, numbers as floats."""
    with path.open(encoding="utf-8") as file:
        return [{name: number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def assert_printed(printed, measured, decimals):
    """What is printed is what the CSV file says, rounded."""
    for value, exact, places in zip(printed, measured, decimals, strict=True):
        assert abs(value - exact) <= 0.51 * 10**-places + 1e-5 * abs(exact)


def assert_picture(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000  # empty axes take less


def test_quickstart(tmp_path):
    result = run("quickstart.py", "--epochs", 15, "--seeds", 1, "--out", tmp_path / "a.png")
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, r"1e-\d\d")
    assert list(table) == ["1e-06", "1e-05", "1e-04", "1e-03", "1e-02", "1e-01"]
    for start in ("1e-06", "1e-05", "1e-04"):
        plain, tower, learned = table[start]
        assert tower < 8
        assert plain > 20  # it has barely moved
        assert 1e-3 < learned < 1e-1
    for plain, tower, _ in table.values():
        assert tower < plain + 2
    assert_picture(tmp_path / "a.png")


def test_quickstart_at_another_height(tmp_path):
    result = run("quickstart.py", "--epochs", 1, "--seeds", 1, "--height", 1, "--out", tmp_path / "a.png")
    assert result.returncode == 0, result.stderr
    assert len(rows(result.stdout, r"1e-\d\d")) == 6
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--task", "mnist", "--data", "nowhere"], "--data DIR or GDTUO_DATA=DIR"),
        (["--height", "0"], "--height is 0: give at least 1"),
    ],
)
def test_quickstart_says_what_is_wrong(arguments, remedy):
    result = run("quickstart.py", *arguments)
    assert result.returncode == 2
    assert remedy in result.stderr
    assert "Traceback" not in result.stderr


def test_weight_decay(tmp_path):
    result = run("weight_decay.py", "--epochs", 75, "--seeds", 1, "--out", tmp_path / "a.png")
    assert result.returncode == 0, result.stderr
    fixed = rows(result.stdout, r"0|0\.\d+")
    assert len(fixed) == 7
    ((name, (validation, test, _)),) = rows(result.stdout, r"learned, \S+").items()
    best = min(fixed.values())
    assert 1e-3 < float(name.split()[1]) < 3e-2  # it started at 1e-4
    assert validation < 1.15 * best[0]
    assert test < 1.15 * best[1]
    assert validation < 0.75 * fixed["0"][0]
    assert_picture(tmp_path / "a.png")


def test_hyper_cleaning(tmp_path):
    result = run("hyper_cleaning.py", "--iterations", 15, "--seeds", 1, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, r"all labels.*?|cleaned, R = \d+|right labels.*?")
    (_, _, baseline), *cleaned, (_, _, oracle) = table.values()
    assert len(cleaned) == 3
    for flagged, f1, accuracy in cleaned:
        assert 280 < flagged < 400  # 359 labels are wrong
        assert f1 > 0.9
        assert accuracy > baseline + 0.6 * (oracle - baseline)
    measured = read_csv(tmp_path / "a.csv")
    for name, line in table.items():
        *before, last = [row for row in measured if row["trained_on"] == name]
        assert_printed(line, (last["flagged"], last["f1"], last["accuracy_alone"]), (0, 3, 2))
        if name.startswith("cleaned"):
            assert [row["iteration"] for row in before] == list(range(15))
            assert before[-1]["validation_loss"] < 0.8 * before[0]["validation_loss"]
    assert_picture(tmp_path / "a.png")


def test_task_relations(tmp_path):
    result = run("task_relations.py", "--iterations", 10, "--seeds", 1, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, "separate|all tied equally|learned|groups known")
    inside, between, loss = table["learned"]
    assert inside > 0.05
    assert between < 0.1 * inside
    assert loss < 0.7 * min(table["separate"][2], table["all tied equally"][2])
    assert loss < 1.1 * table["groups known"][2]
    assert table["separate"][:2] == [0, 0]
    for row in read_csv(tmp_path / "a.csv"):
        assert_printed(table[row["tasks"]], [row[name] for name in list(row)[2:5]], (4, 4, 3))
    assert_picture(tmp_path / "a.png")


def test_realtime(tmp_path):
    result = run("realtime.py", "--steps", 400, "--seeds", 1, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, "at the.*?|learned.*?|random.*?")
    plain, short, learned, whole = table.values()
    assert [row[2] for row in (plain, short, learned, whole)] == [400, 400, 400, 4000]
    assert plain[0] > 2  # at its starting values training gets nowhere
    assert learned[0] < 0.2
    assert learned[0] < 0.5 * short[0]
    assert learned[0] < 2 * whole[0]
    measured = read_csv(tmp_path / "a.csv")
    for name, line in table.items():
        last = [row for row in measured if row["method"] == name][-1]
        assert_printed(line, (last["validation_loss"], last["test_error"], last["steps"]), (3, 1, 0))
    moved = [(row["lr"], row["momentum"]) for row in measured if row["method"] == "learned in real time"]
    assert len(set(moved)) == 40  # every ten steps
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["hyper_cleaning.py", "task_relations.py", "realtime.py"])
def test_arguments_are_checked(name):
    result = run(name, "--seeds", 0)
    assert result.returncode == 2
    assert "--seeds is 0: give at least 1" in result.stderr
    assert "Traceback" not in result.stderr
    result = run(name, "--task", "mnist", "--data", "nowhere")
    assert result.returncode == 2
    assert "--data DIR or GDTUO_DATA=DIR" in result.stderr
    assert "Traceback" not in result.stderr


def test_learned_schedule(tmp_path):
    result = run(
        "learned_schedule.py", "--steps", 25, "--iterations", 16, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv"
    )
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, r"start: .+?|best of grid: .+?|learned|layer \d|first run.+?|last run.+?")
    (start, start_error), (best, _), (loss, error), first, last = (table[name] for name in table if not name.startswith("layer"))
    assert loss < start / 5
    assert error < start_error / 3
    assert loss < 1.7 * best  # at the default size it is below
    for layer in range(1, 5):
        rate, _, scale = table[f"layer {layer}"]
        assert rate > 0.6  # it started at 0.3
        assert scale > 0.15  # it started at 0.1
    rate, late, _ = table["layer 1"]
    assert late < 0.97 * rate  # it falls at the end
    measured = read_csv(tmp_path / "a.csv")
    assert [row["iteration"] for row in measured] == list(range(16))
    for line, row in ((first, measured[0]), (last, measured[-1])):
        assert_printed(line, (row["training_loss"], row["test_error"]), (4, 2))
    assert_picture(tmp_path / "a.png")


def test_weight_penalties(tmp_path):
    result = run("weight_penalties.py", "--iterations", 25, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert result.returncode == 0, result.stderr
    single = rows(result.stdout, r"\d[.\de-]*")
    assert len(single) == 8
    (learned,) = rows(result.stdout, "learned, by weight").values()
    best = min(single.values(), key=lambda losses: losses[1])
    assert learned[1] < 0.5 * best[1]  # validation loss
    assert learned[2] < 0.7 * best[2]  # test loss
    assert learned[0] > best[0]  # training loss: it overfits less
    measured = read_csv(tmp_path / "a.csv")
    lines = {f"{row['penalty']:g}" if row["penalty"] != "learned" else "learned": list(row.values())[2:5] for row in measured}
    for name, line in {**single, "learned": learned}.items():
        assert_printed(line, lines[f"{float(name):g}" if name != "learned" else name], (3, 3, 3))
    assert [row["iteration"] for row in measured if row["penalty"] == "learned"] == list(range(26))
    assert_picture(tmp_path / "a.png")


def test_learned_data(tmp_path):
    result = run("learned_data.py", "--iterations", 40, "--out", tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, r"a real one of each class|the mean of each class|all 1,437 real ones|ten learned ones")
    ten, means, every, learned = table.values()
    assert learned[0] < 0.1 * 2.3026  # the validation loss of blank images is log 10
    assert learned[1] < 0.8 * means[1] < 0.5 * ten[1]  # test loss
    assert learned[2] < 3 * every[2]  # test error
    assert learned[2] < 0.8 * means[2]
    measured = read_csv(tmp_path / "a.csv")
    for name, line in table.items():
        last = [row for row in measured if row["trained_on"] == name][-1]
        assert_printed(line, (last["validation_loss"], last["test_loss"], last["test_error"]), (3, 3, 1))
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        ("learned_schedule.py", ["--steps", 0], "--steps is 0: give at least 1"),
        ("weight_penalties.py", ["--task", "mnist", "--data", "nowhere"], "--data DIR or GDTUO_DATA=DIR"),
        ("learned_data.py", ["--iterations", 0], "--iterations is 0: give at least 1"),
    ],
)
def test_whole_training_examples_say_what_is_wrong(name, arguments, remedy):
    result = run(name, *arguments)
    assert result.returncode == 2
    assert remedy in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "counts", "sizes", "column"),
    [
        ("learned_schedule.py", ["--iterations", 1, "--steps", 3], "trained for 3 steps, learned from 1", "training_loss"),
        ("weight_penalties.py", ["--iterations", 2], "on 300 examples, validated on 300", "validation_loss"),
        ("learned_data.py", ["--iterations", 2, "--steps", 5], "5 training steps", "validation_loss"),
        ("hyper_cleaning.py", ["--iterations", 1, "--steps", 5], "200 training labels, 100 of them wrong", "f1"),
        ("realtime.py", ["--steps", 3], "momentum 0, 3 steps", "lr"),
    ],
)
def test_published_sizes_run_on_mnist(name, counts, sizes, column, tmp_path):
    write_small_mnist(tmp_path)
    files = ["--out", tmp_path / "a.png", "--csv", tmp_path / "runs" / "a.csv"]
    result = run(name, "--paper", "--data", tmp_path, *counts, *files)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^mnist: .*{sizes}", result.stdout, re.M)
    measured = read_csv(tmp_path / "runs" / "a.csv")
    assert measured
    assert all(isinstance(row[column], float) for row in measured)
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["ddp.py", "fsdp2.py"])
def test_both_ranks_learn_the_same(name):
    result = torchrun(name, "--epochs", 6, "--lr", 1e-3)
    assert result.returncode == 0, result.stderr
    found = re.findall(r"rank (\d): learning rate 0.001 became (\S+), test error (\S+) %", result.stdout)
    assert sorted(rank for rank, _, _ in found) == ["0", "1"]
    (_, rate, error), other = found
    assert (rate, error) == other[1:]
    assert 1.5e-3 < float(rate) < 1e-1
    assert float(error) < 10
    saved = re.findall(r"saved at (\S+), loaded at (\S+)", result.stdout)
    assert len(saved) == (2 if name == "fsdp2.py" else 0)
    assert all(before == after for before, after in saved)


def test_one_rank_alone_is_told_how_to_start():
    result = run("ddp.py")
    assert result.returncode == 2
    assert "torchrun --nproc-per-node 2" in result.stderr


def lightning_rates(folder):
    """The learning rates that Lightning logged."""
    (path,) = folder.glob("tower/version_0/metrics.csv")
    with path.open() as file:
        return [float(row["L0/g0/lr"]) for row in csv.DictReader(file) if row["L0/g0/lr"]]


def transformers_rates(folder):
    """The learning rates that Hugging Face's Trainer logged, each over what its schedule said."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [1e-5 * entry["L0/g0/lr"] / entry["learning_rate"] for entry in log if "learning_rate" in entry]


def accelerate_rates(folder):
    """The learning rates that accelerate logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    (path,) = folder.glob("tower/events*")
    events = EventAccumulator(str(path))
    events.Reload()
    return [event.value for event in events.Scalars("L0/g0/lr")]


@pytest.mark.parametrize(
    ("name", "rates"), [("lightning", lightning_rates), ("transformers", transformers_rates), ("accelerate", accelerate_rates)]
)
def test_trainers(name, rates, tmp_path):
    result = run(f"{name}_digits.py", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (plain, _), (tower, learned) = rows(result.stdout, "adamw?|adamw? / sgd / sgd").values()
    assert plain > 80  # it has barely moved
    assert tower < 6
    assert 3e-3 < learned < 1e-1
    logged = rates(tmp_path)
    assert len(logged) >= 15
    assert logged[0] < 1.2e-5
    assert logged[-1] > 3e-3
