"""The stages on this machine: threads, so that they overlap, and bounded queues between them."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch

from . import stages
from .items import Item
from .options import ImageResult, Options
from .storage import Folder

Given = TypeVar("Given")
Made = TypeVar("Made")


def ordered_map(
    function: Callable[[Given], Made], items: Iterable[Given], pool: Executor, ahead: int
) -> Iterator[Made]:
    """``map`` in a pool, in order, that takes no more than so many items ahead of its results."""
    queue: deque[Future[Made]] = deque()
    for item in items:
        queue.append(pool.submit(function, item))
        while queue and (len(queue) > ahead or queue[0].done()):
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


def run_local(
    items: Iterable[Item],
    segmenter: stages.Segmenter,
    long_side: int,
    folder: Folder | None,
    options: Options,
    workers: int,
    batch_size: int,
) -> Generator[ImageResult, None, None]:
    """Takes images through all stages.

    Args:
        items: the images.
        segmenter: the model.
        long_side: of its input.
        folder: where results go; nowhere if None.
        options: of the run.
        workers: threads that compute with the model; on a CPU its threads are shared out to them.
        batch_size: images that are encoded together.

    Yields:
        The results, in order, once their files are written.
    """
    readers = min(4 * workers, os.cpu_count() or 1)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)

        def start_pool(size: int, threads_of_torch: int) -> ThreadPoolExecutor:
            pool = ThreadPoolExecutor(
                size, initializer=_set_threads_of_torch, initargs=(threads_of_torch,)
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            return pool

        reading = start_pool(readers, 1)
        computing = start_pool(workers, max(1, threads // workers))
        writing = start_pool(2, 1)
        stack.callback(segmenter.stop.set)  # called first, so that no one waits for an image

        loaded = ordered_map(
            lambda item: stages.load(item, long_side), items, reading, readers + batch_size
        )
        segmented = ordered_map(segmenter, _batches(loaded, batch_size), computing, workers)
        yield from ordered_map(
            lambda pair: stages.write(pair[0], pair[1], folder, options),
            itertools.chain.from_iterable(segmented),
            writing,
            2,
        )


def _set_threads_of_torch(count: int) -> None:
    """Sets how many threads torch computes with in this one."""
    # A thread's first look at the number takes over what any thread has set last: look first.
    torch.get_num_threads()
    torch.set_num_threads(count)


def _batches(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
