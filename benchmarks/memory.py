"""Peak memory of a few training iterations, in a process that does nothing else.

`python -m benchmarks.memory MODEL OPTIMIZER DEVICE` prints the bytes. What an optimizer needs is that beyond BASELINE.
"""

from __future__ import annotations

import functools
import resource
import sys
from pathlib import Path

import torch

from . import children
from .trials import iteration

__all__ = ["BASELINE", "extra", "peak"]

BASELINE = "torch SGD"  # keeps nothing between two steps
ITERATIONS = 5


def extra(model: str, optimizer: str, device: str) -> int:
    """Bytes at the peak beyond those of BASELINE, which is measured once."""
    return peak(model, optimizer, device) - peak(model, BASELINE, device)


@functools.cache
def peak(model: str, optimizer: str, device: str) -> int:
    """Bytes at the peak, measured in a child process."""
    # A fixed threshold: glibc's own grows with what is freed, after which freed arrays stay in the heap and count as used.
    return int(children.call("benchmarks.memory", model, optimizer, device, MALLOC_MMAP_THRESHOLD_=str(1 << 20)))


def resident() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux `ru_maxrss` of a child also counts what its parent held when it was started; VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(model: str, optimizer: str, device: str) -> None:
    """Train a little, print the peak."""
    iterate = iteration(model, optimizer, device)
    for _ in range(ITERATIONS):
        iterate()
    print(torch.cuda.max_memory_allocated() if device == "cuda" else resident())


if __name__ == "__main__":
    main(*sys.argv[1:])
