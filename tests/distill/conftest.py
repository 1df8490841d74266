"""Fixtures of the tests of distillation."""

import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .processes import StartProcess


@pytest.fixture(scope="package")
def start_process() -> Iterator[StartProcess]:
    """Runs a function in a process of its own, forked from one that has imported torch already."""
    # All contexts share one server; others need other modules in it, or fewer.
    server: Any = multiprocessing.forkserver._forkserver
    server._stop()
    context = multiprocessing.get_context("forkserver")
    parts = ["embed", "training"]
    context.set_forkserver_preload([f"mobile_sam_plugin.distill.{part}" for part in parts])

    def start(
        function: Callable[..., None], *arguments: Any, **options: Any
    ) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=function, args=arguments, kwargs=options)
        process.start()
        return process

    yield start
    server._stop()
