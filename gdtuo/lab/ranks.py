"""What distributed examples share: joining the ranks that torchrun has started, and where this one computes."""

from __future__ import annotations

import argparse
import os
import sys

import torch

__all__ = ["device_of_this_rank", "join_ranks", "say"]


def join_ranks(parser: argparse.ArgumentParser) -> None:
    """Join the ranks that torchrun has started; exits with a line that says so where it has not."""
    if "RANK" not in os.environ:
        parser.error("there is one rank only: start this script with torchrun --nproc-per-node 2 SCRIPT")
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of_this_rank())
    else:
        torch.set_num_threads(1)  # ranks share the cores
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def device_of_this_rank() -> torch.device:
    """A GPU of its own, or the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def say(line: str) -> None:
    """Print a line at once, which another rank's does not run into."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
