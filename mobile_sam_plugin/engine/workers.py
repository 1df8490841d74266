"""Threads that work through a queue of bounded length, and are replaced when they die."""

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Unavailable(RuntimeError):
    """A request that cannot be answered now, through no fault of its own: try it again."""


class QueueFull(Unavailable):
    """As many requests are waiting as may wait."""


class WorkerDied(Unavailable):
    """The worker that had this request has died; another one has taken its place."""


class TimedOut(RuntimeError):
    """A request took longer than it may."""


class Deadline:
    """The moment at which a request has to be answered."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; 0 if none are."""
        return max(0.0, self._end - time.monotonic())

    @property
    def exceeded(self) -> TimedOut:
        """The error for a request that is not answered by then."""
        return TimedOut(f"this took more than {self._seconds:g} seconds, the limit here")

    def check(self) -> None:
        """Raises TimedOut after the deadline."""
        if not self.left:
            raise self.exceeded


class Job(Generic[Result]):
    """A piece of work in the queue of some :class:`Workers`, or in the hands of one."""

    def __init__(self, workers: "Workers", work: Callable[[], Result]) -> None:
        self._workers = workers
        self._work = work
        # The progress of a page, among others, is known by the context of its event.
        self._context = contextvars.copy_context()
        self._future: futures.Future[Result] = futures.Future()
        self.worker: threading.Thread | None = None

    def start(self) -> bool:
        """Whether someone still waits for this job, which is then to be run."""
        return self._future.set_running_or_notify_cancel()

    def run(self) -> None:
        """Does the work. What ends a thread, such as SystemExit, is raised again."""
        try:
            result = self._context.run(self._work)
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)

    def fail(self) -> None:
        """Tells whoever waits that the worker has died."""
        if not self._future.done():
            self._future.set_exception(
                WorkerDied("the worker of this request has died and was replaced: try again")
            )

    def result(self, deadline: Deadline) -> Result:
        """Waits for the result.

        Raises:
            TimedOut: after the deadline; a worker that still has the job is replaced.
            Unavailable: as its subclasses.
            Exception: that the work raised.
        """
        done, _ = futures.wait([self._future], deadline.left)
        if not done:
            self._give_up()
            raise deadline.exceeded
        return self._future.result()

    async def wait(self, deadline: Deadline) -> Result:
        """As :meth:`result`, for coroutines."""
        future = asyncio.wrap_future(self._future)
        done, _ = await asyncio.wait({future}, timeout=deadline.left)
        if not done:
            self._give_up()
            raise deadline.exceeded
        return await future

    def _give_up(self) -> None:
        if not self._future.cancel():  # it waits no more
            self._workers.replace(self)


class Queue:
    """How many jobs may wait, and how many do, in all of the :class:`Workers` that share it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.waiting = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Raises QueueFull if no place is left."""
        with self._lock:
            if self.waiting >= self.length:
                raise QueueFull(f"{self.length} requests are waiting already: try again later")
            self.waiting += 1

    def leave(self) -> None:
        with self._lock:
            self.waiting -= 1


class Workers:
    """A number of threads with one queue.

    A worker dies of whatever ends a thread, such as SystemExit. One that is still busy after the
    deadline of its job is given up: it ends when its work does, as no thread can be stopped from
    outside. In both cases another one takes its place.

    Attributes:
        replaced: number of workers that have been replaced.
    """

    def __init__(self, name: str, number: int, places: Queue) -> None:
        self._name = name
        self._places = places
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self.replaced = 0
        with self._lock:
            for _ in range(number):
                self._start()

    @property
    def threads(self) -> list[threading.Thread]:
        """The workers, without those that were given up."""
        with self._lock:
            return list(self._threads)

    def submit(self, work: Callable[[], Result]) -> Job[Result]:
        """Puts work into the queue.

        Raises:
            QueueFull: if there is no place.
            Unavailable: if the workers were closed.
        """
        if self._closed:
            raise Unavailable("this server is stopping")
        self._places.enter()
        job = Job(self, work)
        self._jobs.put(job)
        return job

    def replace(self, job: Job) -> None:
        """Gives up the worker that has a job, if it still has it."""
        with self._lock:
            if job.worker in self._threads:
                self._threads.discard(job.worker)
                self.replaced += 1
                self._start()

    def close(self) -> None:
        """Ends the workers, each after the job that it has."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve(self) -> None:
        me = threading.current_thread()
        job: Job | None = None
        died = True
        try:
            while (job := self._jobs.get()) is not None:
                self._places.leave()
                job.worker = me
                if job.start():
                    job.run()
                job = None
                if me not in self._threads:  # given up
                    break
            died = False
        finally:
            with self._lock:
                mine = me in self._threads
                self._threads.discard(me)
                if died and mine and not self._closed:
                    self.replaced += 1
                    self._start()
            if job is not None:
                job.fail()
