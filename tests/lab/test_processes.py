"""Jobs in other processes: their results, their errors, and that nothing is left running."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
import torch

from gdtuo.lab.processes import in_processes


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_done_once(processes):
    found = dict(in_processes(jobs.root, list(range(12)), processes))
    assert found == {x: math.sqrt(x) for x in range(12)}


def test_each_has_one_thread_and_this_one_has_its_own_again():
    torch.set_num_threads(2)
    assert [n for _, n in in_processes(jobs.threads, [1, 2], 2)] == [1, 1]
    assert [n for _, n in in_processes(jobs.threads, [1, 2], 1)] == [1, 1]
    assert torch.get_num_threads() == 2


def test_ctrl_c_is_for_this_process_alone():
    assert [found for _, found in in_processes(jobs.interruptible, [1, 2], 2)] == [False, False]
    assert jobs.interruptible(0)


def test_an_error_stops_the_others(tmp_path):
    start = time.monotonic()
    with pytest.raises(ArithmeticError, match="cannot be done"):
        list(in_processes(jobs.sleep_or_fail, [str(tmp_path), "fail", str(tmp_path)], 2))
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="fewer processes"):
        list(in_processes(jobs.die, [1, 2, 3], 2))


def test_interrupted_while_jobs_are_handed_out_it_ends(tmp_path):
    class Jobs(list):
        def __iter__(self):
            yield str(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_processes(jobs.sleep_or_fail, Jobs(["a", "b"]), 2))
    assert not multiprocessing.active_children()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_when_the_parent_is_killed_its_processes_end(tmp_path):
    folder = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport jobs\nfrom gdtuo.lab.processes import in_processes\n"
        f"if __name__ == '__main__':\n    list(in_processes(jobs.sleep_and_tell, [{str(tmp_path)!r}] * 2, 2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    workers, deadline = [], time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]
        time.sleep(0.05)
    assert len(workers) == 2
    assert all(map(alive, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
