"""Runs the stages in threads on this machine, so that they overlap, with bounded queues between."""

import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from ..engine import TorchBackend
from ..threads import ordered_map, torch_pool
from . import stages
from .options import ImageResult

Given = TypeVar("Given")


def run_local(
    job: stages.Job, workers: int | None = None, batch_size: int | None = None
) -> Generator[ImageResult, None, None]:
    """Returns a generator that takes the images of a job through all stages.

    ``workers`` and ``batch_size`` are those of :meth:`.run.AnnotationRun.run`. The model's errors
    are raised here, before the first result. On a CPU the workers divide torch's threads.
    """
    on_gpu = job.backend.device != "cpu"
    segmenter = stages.Segmenter(job.backend, job.options, job.categories)
    return _run_stages(
        job, segmenter, workers or (2 if on_gpu else 1), batch_size or (8 if on_gpu else 1)
    )


def _run_stages(
    job: stages.Job, segmenter: stages.Segmenter, workers: int, batch_size: int
) -> Generator[ImageResult, None, None]:
    readers = min(4 * workers, os.cpu_count() or 1)
    with ExitStack() as stack:
        threads = 0
        if isinstance(job.backend, TorchBackend):
            import torch

            threads = torch.get_num_threads()

        def start_pool(size: int, torch_threads: int) -> ThreadPoolExecutor:
            if threads:
                return stack.enter_context(torch_pool(size, torch_threads))
            pool = ThreadPoolExecutor(size)  # other runtimes have threads of their own
            stack.callback(pool.shutdown, cancel_futures=True)
            return pool

        reading = start_pool(readers, 1)
        computing = start_pool(workers, max(1, threads // workers))
        writing = start_pool(2, 1)
        stack.callback(segmenter.stop.set)  # runs first, so that shutdown waits for no image

        img_size = job.backend.img_size
        loaded = ordered_map(
            lambda item: stages.load(item, img_size), job.items, reading, readers + batch_size
        )
        segmented = ordered_map(segmenter, batches(loaded, batch_size), computing, workers)
        yield from ordered_map(
            lambda pair: stages.write(*pair, job.folder, job.options),
            itertools.chain.from_iterable(segmented),
            writing,
            2,
        )


def batches(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """Yields the items in lists of that size; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
