"""Real processes that work as one, for tests: started, given their places, waited for."""

import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from forked import CONTEXT

from scorekit.runtime.distributed import current_world, process_group
from scorekit.runtime.interruption import Diverged, Stopped


def free_port() -> int:
    """Return a port of the loopback device that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _run(function: Callable[..., Any], grouped: bool, place: dict[str, str], *arguments: Any):
    os.environ.update(place)
    torch.set_num_threads(1)
    world = current_world()
    if not grouped:
        function(world, *arguments)
        return
    with process_group(world, "cpu", together=(Stopped, Diverged)):
        function(world, *arguments)


def start_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, grouped: bool = True
) -> list[BaseProcess]:
    """Start ``function(world, *arguments)`` on every rank, by default within a process group."""
    port = str(free_port())
    processes = []
    for rank in range(size):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = CONTEXT.Process(
            target=_run, args=(function, grouped, place, *arguments), daemon=True
        )
        process.start()
        processes.append(process)
    return processes


def exit_codes(processes: list[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Wait for the processes; None stands for one that is still running after ``timeout``."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Run ``function(world, *arguments)`` on every rank; each must end without an error."""
    assert exit_codes(start_ranks(size, function, *arguments)) == [0] * size
