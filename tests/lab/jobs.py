"""What tests let other processes do: functions that these can import."""

import math
import os
import signal
import time
from pathlib import Path

import torch


def root(x):
    return math.sqrt(x)


def threads(_):
    return torch.get_num_threads()


def sleep_and_tell(folder):
    """A file says which process is at work."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def sleep_or_fail(job):
    if job == "fail":
        raise ArithmeticError("this job cannot be done")
    sleep_and_tell(job)


def die(_):
    os._exit(9)


def cell(seed, lr):
    """A row that a cell of this seed and rate always has, and a file that counts how often it was made."""
    with (Path(os.environ["MADE"]) / f"{seed} {lr}").open("a") as file:
        file.write(".")
    time.sleep(float(os.environ.get("SLEEP", "0")))
    generator = torch.Generator().manual_seed(seed)
    return {"error": lr * torch.rand((), generator=generator, dtype=torch.float64).item()}


def interruptible(_):
    """Whether Ctrl-C reaches this process."""
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
