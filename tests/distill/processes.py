"""Processes that embed or train, and the environment that a launcher gives them."""

import multiprocessing
import multiprocessing.process
import socket
import sys
from collections.abc import Callable

import pytest

StartProcess = Callable[..., multiprocessing.process.BaseProcess]

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="no forkserver, no SIGKILL")


def wait(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def launched(process: int, processes: int) -> dict[str, str]:
    """The environment that a launcher gives a process, here one that computes on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "RANK": str(process),
        "LOCAL_RANK": str(process),
    }
