"""Every cell once, whatever interrupts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
import torch

from gdtuo.lab.journal import alone, read
from gdtuo.lab.sweep import sweep

CELLS = [{"seed": seed, "lr": lr} for seed in range(4) for lr in (0.5, 0.25)]


def expected(cells):
    draws = {seed: torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).item() for seed in range(4)}
    return [{**cell, "error": cell["lr"] * draws[cell["seed"]]} for cell in cells]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Where the cells count how often they are made."""
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setenv("MADE", str(folder))
    return folder


def test_rows_are_in_the_order_of_the_cells(tmp_path, made):
    assert sweep(jobs.cell, CELLS, tmp_path / "a.csv", ["error"], processes=1) == expected(CELLS)
    assert read(tmp_path / "a.csv") == expected(CELLS)


def test_what_is_there_is_not_made_again(tmp_path, made):
    sweep(jobs.cell, CELLS[2:5], tmp_path / "a.csv", ["error"], processes=1)
    assert sweep(jobs.cell, CELLS, tmp_path / "a.csv", ["error"], processes=1) == expected(CELLS)
    assert sweep(jobs.cell, CELLS[:1], tmp_path / "a.csv", ["error"], processes=1) == expected(CELLS[:1])
    assert {path.read_text() for path in made.iterdir()} == {"."}
    assert len(read(tmp_path / "a.csv")) == len(CELLS)


def test_killed_in_the_middle_it_goes_on(tmp_path, made, monkeypatch):
    path = tmp_path / "a.csv"
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport jobs\nfrom gdtuo.lab.sweep import sweep\n"
        f"if __name__ == '__main__':\n    sweep(jobs.cell, {CELLS}, {str(path)!r}, ['error'], processes=1)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "SLEEP": "0.2"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = read(path)
    assert 3 <= len(kept) < len(CELLS)
    assert sweep(jobs.cell, CELLS, path, ["error"], processes=1) == expected(CELLS)
    for row in kept:
        assert (made / f"{row['seed']} {row['lr']}").read_text() == "."


def test_equal_cells_are_refused(tmp_path, made):
    with pytest.raises(ValueError, match="each cell once"):
        sweep(jobs.cell, [CELLS[0], CELLS[0]], tmp_path / "a.csv", ["error"])
    assert not (tmp_path / "a.csv").exists()


def test_a_file_that_another_process_writes_is_refused(tmp_path, made):
    with alone(tmp_path / "a.csv"), pytest.raises(BlockingIOError, match="Wait until it ends"):
        sweep(jobs.cell, CELLS, tmp_path / "a.csv", ["error"], processes=1)
