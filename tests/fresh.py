"""Processes that have imported torch, and nothing that stands on it.

To import torch takes seconds, so where that is possible they are forked from one that has.
"""

import multiprocessing
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any


def fresh_context() -> Any:
    """A context of ``multiprocessing`` whose processes know only torch and torchvision."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context


def run_code(code: str) -> str:
    """Runs a program in a process of its own, and returns what it prints."""
    with fresh_context().Pool(1) as pool:
        printed: str = pool.apply(_print, (code,))
        return printed


def _print(code: str) -> str:
    with redirect_stdout(StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue().strip()
