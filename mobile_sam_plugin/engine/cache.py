"""Embeddings of images by their digests: in memory, and on disk if asked, bounded in bytes."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .backends import Backend, Predictor


def digest_image(pixels: NDArray[np.uint8]) -> str:
    """Returns the SHA-256 by which an image, (H, W, 3) uint8 RGB, is known to the cache."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class DiskCache:
    """A folder of embeddings; those that were not used for longest are deleted first.

    Each image encoder has a folder of its own in it.
    """

    def __init__(self, folder: Path, backend: Backend, max_bytes: int) -> None:
        self._folder = folder / backend.encoder
        self._backend = backend
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> Predictor | None:
        """Returns a predictor with an image set; None if there is none, or its file is damaged."""
        path = self._path(key)
        try:
            predictor = self._backend.load(path)
            os.utime(path)  # it was used
        except FileNotFoundError:
            return None
        except UserError:
            path.unlink(missing_ok=True)
            return None
        return predictor

    def save(self, key: str, predictor: Predictor) -> None:
        """Writes an embedding, unless it is there, and deletes others beyond the bound."""
        path = self._path(key)
        if path.exists():
            return
        self._backend.save(predictor, path)
        with self._lock:
            files = [(each, each.stat()) for each in self._folder.glob(f"*{self._backend.suffix}")]
            excess = sum(about.st_size for _, about in files) - self._max_bytes
            for each, about in sorted(files, key=lambda file: file[1].st_mtime_ns):
                if excess <= 0:
                    break
                each.unlink(missing_ok=True)
                excess -= about.st_size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{self._backend.suffix}"


class EmbeddingCache:
    """Predictors with an image set; those that were not used for longest are forgotten first.

    Attributes:
        max_bytes: of the embeddings in memory; one larger embedding is kept nevertheless.
        nbytes: that they take.
        hits, misses: how often an image was found, and was not.
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = self.misses = 0
        self._disk = disk
        self._predictors: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._predictors)

    def __contains__(self, key: str) -> bool:
        return key in self._predictors

    def find(self, key: str) -> Predictor | None:
        """Returns the predictor of an image, from memory or from disk, or None."""
        with self._lock:
            predictor = self._predictors.get(key)
            if predictor is not None:
                self._predictors.move_to_end(key)
        if predictor is None and self._disk is not None:
            predictor = self._disk.load(key)
            if predictor is not None:
                self._keep(key, predictor)
        with self._lock:
            self.hits += predictor is not None
            self.misses += predictor is None
        return predictor

    def add(self, key: str, predictor: Predictor) -> None:
        """Keeps the predictor of an image."""
        if self._disk is not None:
            self._disk.save(key, predictor)
        self._keep(key, predictor)

    def forget(self, keys: Iterable[str]) -> None:
        """Forgets images, in memory alone."""
        with self._lock:
            for key in keys:
                predictor = self._predictors.pop(key, None)
                if predictor is not None:
                    self.nbytes -= predictor.nbytes

    def _keep(self, key: str, predictor: Predictor) -> None:
        with self._lock:
            earlier = self._predictors.pop(key, None)
            self.nbytes += predictor.nbytes - (0 if earlier is None else earlier.nbytes)
            self._predictors[key] = predictor
            while self.nbytes > self.max_bytes and len(self._predictors) > 1:
                _, oldest = self._predictors.popitem(last=False)
                self.nbytes -= oldest.nbytes
