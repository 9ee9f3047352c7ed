"""Two processes that train together over gloo, started once and asked often."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import multiprocessing

RANKS = 2
SECONDS = 60  # a collective that one rank never reaches is an error, not a hang


def _serve(rank: int, port: int, pipe: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ["LOCAL_RANK"] = str(rank)
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(seconds=SECONDS))
    while (task := pipe.recv()) is not None:
        function, arguments, options = task
        try:
            pipe.send((function(*arguments, **options), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    torch.distributed.destroy_process_group()


class Pool:
    """Calls functions of importable modules on every rank."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(RANKS):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """What the function returns on each rank. Raises what any of them raised, as text."""
        for pipe in self._pipes:
            pipe.send((function, arguments, options))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(SECONDS + 60):
                raise TimeoutError(f"{function.__name__} does not return on rank {rank}")
            answers.append(pipe.recv())
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(answers) if error]
        if errors:
            raise RuntimeError("\n".join(errors))
        return [answer for answer, _ in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)
            process.terminate()
