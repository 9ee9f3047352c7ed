"""gdtuo.lab.experiment: a command line chooses data and sizes, and finish() writes what was measured."""

from typing import NamedTuple

import pytest
from idx_files import write_small_mnist

from gdtuo.lab.experiment import Sizes, experiment, write_rows


class Size(NamedTuple):
    steps: int
    rate: float


SIZES = Sizes(Size(5, 0.1), Size(7, 0.2), Size(100, 0.3), "a hundred steps")


def chosen(monkeypatch, *arguments, sizes=SIZES):
    monkeypatch.setattr("sys.argv", ["script.py", *map(str, arguments)])
    return experiment("examples/script.py", "A script.", sizes, steps="of training")


@pytest.mark.parametrize(
    ("arguments", "name", "size"),
    [
        ([], "digits", Size(5, 0.1)),
        (["--steps", 3], "digits", Size(3, 0.1)),
        (["--task", "mnist"], "mnist", Size(7, 0.2)),
        (["--paper"], "mnist", Size(100, 0.3)),
        (["--paper", "--steps", 9], "mnist", Size(9, 0.3)),
        (["--paper", "--task", "digits"], "digits", Size(100, 0.3)),
    ],
)
def test_the_command_line_chooses_task_and_size(arguments, name, size, tmp_path, monkeypatch):
    write_small_mnist(tmp_path, train=20, test=10)
    found = chosen(monkeypatch, "--data", tmp_path, *arguments)
    assert (found.name, found.size) == (name, size)
    assert len(found.task.train) == (20 if name == "mnist" else 1437)
    assert (str(found.out), found.csv) == ("script.png", None)


def test_help_names_all_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        chosen(monkeypatch, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "of training (default: 5 on digits, 7 on others, 100 with --paper)" in said
    assert "the published sizes, on MNIST unless --task says else: a hundred steps" in said


def test_without_published_sizes_there_is_no_flag(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        chosen(monkeypatch, "--paper", sizes=Sizes(Size(5, 0.1), Size(5, 0.1)))
    assert "unrecognized arguments: --paper" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [(["--steps", 0], "--steps is 0: give at least 1"), (["--paper", "--data", "nowhere"], "--data DIR or GDTUO_DATA=DIR")],
)
def test_mistakes_end_with_a_line(arguments, remedy, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        chosen(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert remedy in capsys.readouterr().err


def test_finish_writes_rows_where_a_file_is_named(tmp_path, monkeypatch, capsys):
    chosen(monkeypatch).finish([Size(1, 0.5)])
    assert capsys.readouterr().out == "\nThe picture: script.png\n"
    path = tmp_path / "new" / "a.csv"
    chosen(monkeypatch, "--csv", path).finish([Size(1, 0.5), Size(2, 1e-9 / 3)])
    assert f"The numbers: {path}" in capsys.readouterr().out
    assert path.read_text() == "steps,rate\n1,0.5\n2,3.33333e-10\n"


def test_names_with_commas_are_quoted(tmp_path):
    class Row(NamedTuple):
        name: str
        loss: float

    write_rows(tmp_path / "a.csv", [Row("cleaned, R = 5", float("inf"))])
    assert (tmp_path / "a.csv").read_text() == 'name,loss\n"cleaned, R = 5",inf\n'
