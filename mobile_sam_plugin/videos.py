"""Video files, decoded by OpenCV one frame after the other."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import UserError

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)


class VideoFile:
    """A video file.

    Attributes:
        path: of the file.
        length: number of frames according to the header, which may be wrong; 0 if unknown.
        frame_rate: frames per second according to the header, which may be nonsense.
        image_size: (height, width) in pixels.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: if there is no such file.
            UserError: if OpenCV cannot decode it.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"there is no video {str(path)!r}")
        capture = self._open()
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.frame_rate = capture.get(cv2.CAP_PROP_FPS)
        width, height = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT
        self.image_size = int(capture.get(height)), int(capture.get(width))
        capture.release()

    def read(
        self, wanted: Callable[[int], bool] = lambda index: True
    ) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """Yields frames with their numbers, from 0: (H, W, 3) uint8 RGB, or None if damaged.

        If the file ends early, a warning reports it.

        Args:
            wanted: whether to decode and yield the frame of a number.

        Raises:
            UserError: if OpenCV cannot decode the file.
        """
        capture, index = self._open(), 0
        try:
            while capture.grab():
                if wanted(index):
                    read, frame = capture.retrieve()
                    yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if read else None
                index += 1
        finally:
            capture.release()
        if index < 0.95 * self.length - 1:
            warnings.warn(
                f"only {index} frames of {str(self.path)!r} could be read, its header promises "
                f"{self.length}: the file may be damaged",
                stacklevel=2,
            )

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise UserError(f"OpenCV cannot decode {str(self.path)!r} as a video")
        return capture
