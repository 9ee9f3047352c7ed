"""Jobs in parallel processes, one thread each; results as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

import torch

__all__ = ["in_processes"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    """`function(job)` for each job, in processes of one thread each; pairs of a job and its result, in the order they end.

    The processes are started anew (`spawn`), so that `function` and jobs must be picklable: a function that stands in a
    module. They end with this process, however it ends. With one process everything happens in this one.

    Args:
        function: what is called, with one job.
        jobs: its arguments, in the order in which they start.
        processes: how many at a time, at least 1.

    Raises:
        Exception: what `function` raises; the jobs that run are stopped, the others never start.
        RuntimeError: if a process dies: as a rule it was out of memory.
    """
    if processes == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((job, function(job)) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context("spawn"), _begin)
    pending: dict[Future[Result], Job] = {}
    try:
        with _uninterrupted():
            for job in jobs:
                pending[pool.submit(function, job)] = job
        for future in as_completed(pending):
            yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise RuntimeError("A process has died; as a rule there was too little memory. Use fewer processes.") from None
    finally:
        if pending:
            pool.shutdown(wait=False, cancel_futures=True)
            children = set(multiprocessing.active_children()) - before
            for child in children:
                child.terminate()
            for child in children:
                while child.is_alive():  # a join that the pool's own thread has forestalled returns at once
                    child.join()
        else:
            pool.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of this; processes that start here never get it: they end with this one, without a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has none
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A pool's processes would wait for ever for a parent that was killed."""
    wait([sentinel])
    os._exit(1)
