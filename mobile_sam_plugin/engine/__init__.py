"""One model for many requests: what ``mobile-sam app`` and ``mobile-sam serve`` share.

:class:`Engine` encodes images one at a time, decodes prompts on several threads (:mod:`.workers`),
keeps embeddings (:mod:`.cache`), and refuses what exceeds its :class:`Limits`. The model is in
torch, or in another runtime without torch (:mod:`.backends`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..errors import UserError
from ..images import open_image, opened_pixels
from ..inputs import input_size
from .backends import Backend as Backend
from .backends import OnnxBackend as OnnxBackend
from .backends import Pixels, Predictor
from .backends import Prompt as Prompt
from .backends import TorchBackend as TorchBackend
from .backends import backend_of as backend_of
from .backends import decode_prompts as decode_prompts
from .cache import DiskCache, EmbeddingCache
from .cache import digest_image as digest_image
from .workers import Deadline as Deadline
from .workers import Job, Queue, Workers
from .workers import QueueFull as QueueFull
from .workers import TimedOut as TimedOut
from .workers import Unavailable as Unavailable
from .workers import WorkerDied as WorkerDied

Result = TypeVar("Result")

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_bytes: of a request, and of a file.
        max_pixels: of an image.
        max_prompts: on one image, and points in one prompt.
        seconds: from the request to its answer.
    """

    max_bytes: int = 32 * MEBIBYTE
    max_pixels: int = 25_000_000
    max_prompts: int = 64
    seconds: float = 60.0


class Engine:
    """A model, its embeddings, its workers and their queue.

    Attributes:
        backend: the model.
        limits: of a request.
        cache: the embeddings.
        queue: how many requests may wait, and do.
        decoders: the workers that decode prompts.
        encoder: the worker that encodes images, one at a time.

    Examples:
        >>> engine = Engine(TorchBackend(build_sam_vit_t()))
        >>> predictor = engine.predictor(digest_image(pixels), pixels)
        >>> masks, scores, _ = engine.run(lambda: predictor.predict([[320, 240]], [1]))
    """

    def __init__(
        self,
        backend: Backend,
        limits: Limits | None = None,
        workers: int = 2,
        queue_length: int = 64,
        cache_bytes: int = 256 * MEBIBYTE,
        cache_folder: str | os.PathLike[str] | None = None,
        cache_folder_bytes: int = 4096 * MEBIBYTE,
    ) -> None:
        """Starts the workers.

        Args:
            backend: the model.
            limits: of a request.
            workers: number of threads that decode prompts.
            queue_length: number of requests that may wait.
            cache_bytes: of the embeddings in memory.
            cache_folder: for the embeddings on disk; None keeps none there.
            cache_folder_bytes: of the embeddings on disk.
        """
        self.backend = backend
        self.limits = limits or Limits()
        folder = None if cache_folder is None else Path(cache_folder)
        disk = None if folder is None else DiskCache(folder, backend, cache_folder_bytes)
        self.cache = EmbeddingCache(cache_bytes, disk)
        self.queue = Queue(queue_length)
        self.decoders = Workers("decoder", workers, self.queue)
        self.encoder = Workers("encoder", 1, self.queue)

    def run(self, work: Callable[[], Result], deadline: Deadline | None = None) -> Result:
        """Lets a worker do some work, and waits for it.

        Args:
            work: called in a thread of its own.
            deadline: of the request; a new one if None.

        Raises:
            Unavailable: if too many requests are waiting, or the worker dies.
            TimedOut: after the deadline.
            Exception: that the work raises.
        """
        return self.decoders.submit(work).result(deadline or self.deadline())

    def predictor(self, key: str, pixels: Pixels, deadline: Deadline | None = None) -> Predictor:
        """Returns a predictor with an image set, which is encoded if nobody has done it yet.

        Requests for the same image share it: predicting changes nothing.

        Args:
            key: what :func:`digest_image` returns for the image.
            pixels: (H, W, 3) uint8 RGB.
            deadline: of the request; a new one if None.

        Raises:
            Unavailable, TimedOut: as :meth:`run`.
        """
        found = self.cache.find(key)  # does not wait for others' images
        if found is not None:
            return found
        return self.submit_encoding(key, pixels).result(deadline or self.deadline())

    def submit_encoding(self, key: str, pixels: Pixels) -> Job[Predictor]:
        """Puts the encoding of an image into the queue; arguments as :meth:`predictor`."""
        return self.encoder.submit(partial(self._encode, key, pixels))

    def _encode(self, key: str, pixels: Pixels) -> Predictor:
        predictor = self.cache.find(key)  # by another request in the meantime
        if predictor is None:
            predictor = self.backend.encode(pixels)
            self.cache.add(key, predictor)
        return predictor

    def deadline(self) -> Deadline:
        """Returns the deadline of a request that comes now."""
        return Deadline(self.limits.seconds)

    def read_image(self, file: BinaryIO | str | os.PathLike[str], name: str) -> Pixels:
        """Decodes a file that a client has sent, which may hold anything.

        Args:
            file: a path, or a file that is open for reading.
            name: its name in messages.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            UserError: if it is not an image, damaged, too large or too thin.
        """
        with open_image(file, name) as opened:
            check_size(*opened.size, name, self.limits.max_pixels)
            pixels = opened_pixels(opened)
        input_size(pixels.shape[0], pixels.shape[1], 1024)  # refuses images that are too thin
        return pixels

    def check_prompts(self, points: Sequence[int]) -> None:
        """Checks the number of points in each prompt, and the number of prompts.

        Raises:
            UserError: if there are more than allowed.
        """
        most = self.limits.max_prompts
        if len(points) > most:
            raise UserError(f"{len(points)} prompts are too many: give up to {most} at a time")
        if max(points, default=0) > most:
            raise UserError(f"{max(points)} points are too many for a prompt: give up to {most}")

    def close(self) -> None:
        """Ends the workers, after the work that they have."""
        self.encoder.close()
        self.decoders.close()


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raises a UserError if there are too many pixels."""
    if width * height > max_pixels:
        raise UserError(
            f"{name} is too large: it has {width:,} x {height:,} pixels, the limit here is "
            f"{max_pixels:,}; make it smaller and try again"
        )
