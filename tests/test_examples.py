"""The examples run, and what they print and draw shows what they claim. Small versions, as a user would start them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def rows(text, first):
    """The numbers of the table's rows, by what `first` matches at their start."""
    return {
        match[1]: [float(number) for number in match[2].split()[:3]] for match in re.finditer(rf"^ *({first})  (.*)$", text, re.M)
    }


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
