"""Pools of threads: work in order, and torch's own threads divided between them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ordered_map(
    function: Callable[[Given], Made], items: Iterable[Given], pool: Executor, ahead: int
) -> Iterator[Made]:
    """Maps in a pool, in order; takes at most ``ahead`` items more than it has yielded results."""
    queue: deque[Future[Made]] = deque()
    for item in items:
        queue.append(pool.submit(function, item))
        while queue and (len(queue) > ahead or queue[0].done()):
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


@contextmanager
def torch_pool(size: int, torch_threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads use so many threads of torch each.

    What waits in the pool at the end is cancelled.
    """
    import torch

    own = torch.get_num_threads()
    started = Barrier(size + 1)

    def start() -> None:
        # A thread copies the count of the process on its first read, so read before setting.
        torch.get_num_threads()
        torch.set_num_threads(torch_threads)
        with suppress(BrokenBarrierError):  # the pool ended before this thread woke up
            started.wait()

    pool = ThreadPoolExecutor(size, initializer=start)
    try:
        for _ in range(size):
            pool.submit(int)  # starts a thread, since none is idle before all have started
        started.wait()
        # The last count that was set is also that of threads which the caller starts later.
        torch.set_num_threads(own)
        yield pool
    finally:
        started.abort()
        pool.shutdown(cancel_futures=True)
