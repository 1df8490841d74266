"""Videos in, frame by frame, and what a tracker found in them out, in files to go on from.

Nothing here holds more than one frame.
"""

import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from typing_extensions import Self

from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.images import list_images, load_mask, open_image
from mobile_sam_plugin.inputs import as_pixels

from .instances import load_image

if TYPE_CHECKING:
    pass

Frame = NDArray[np.uint8]
VideoSource = str | os.PathLike[str] | Iterable[Frame]
"""A video file, an animation, a folder of images, or an iterable of frames, as a camera's."""
_FRAME_RATE = 25.0  # where the source does not tell
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # what other formats hold several of are pages, views
_HIGHEST_TERM = 65535  # of a frame rate in MPEG-4, as a fraction


class Video:
    """The frames of a video, of a folder of images or of an iterable, read one at a time.

    Attributes:
        name: the file's name without suffix, or the folder's; "stream" for an iterable.
        length: the number of frames as far as it is known beforehand, else None.
        frame_rate: frames a second; 25 where the source does not tell.
        path: of the file or the folder; None for an iterable.

    Example:
        >>> for frame in Video("street.mp4"):
        ...     print(frame.shape, frame.dtype)
        (720, 1280, 3) uint8
    """

    def __init__(self, source: VideoSource) -> None:
        """Looks at the source, without keeping frames.

        Args:
            source: the path of a file that OpenCV can decode, or of an animated GIF, WebP, PNG or
                AVIF; or of a folder of images, taken in the order of the numbers in their names; or
                an iterable of (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it cannot be decoded, or there is no image in the folder.
        """
        self.name = "stream"
        self.length: int | None = None
        self.frame_rate = _FRAME_RATE
        self.path: Path | None = None
        self._images: list[Path] = []
        self._stream: Iterable[Frame] = ()
        self._animated = False
        if not isinstance(source, str | os.PathLike):
            self._stream = source
            return
        self.path = Path(source)
        self.name = self.path.stem
        if self.path.is_dir():
            self.name = self.path.resolve().name
            self._images = sorted(list_images(self.path), key=_natural_order)
            self.length = len(self._images)
        elif count := _count_images(self.path):
            self._animated = True
            self.length = count
            self.frame_rate = _animation_rate(self.path, count)
        else:
            capture = _open(self.path)
            self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None
            rate = capture.get(cv2.CAP_PROP_FPS)
            capture.release()
            if 0 < rate < 1000:
                self.frame_rate = rate
            else:  # such as the ticks of a clock a second
                warnings.warn(
                    f"{self.name!r} has no frame rate that makes sense ({rate:g}): it is taken for "
                    f"{_FRAME_RATE:g} frames a second",
                    stacklevel=2,
                )

    def __iter__(self) -> Iterator[Frame]:
        """Reads the frames, (H, W, 3) uint8 RGB.

        Raises:
            UserError: a frame cannot be read or has another size than the first, or there is none.
            TypeError, UserError: a frame of the iterable is no image, see
                :func:`~mobile_sam_plugin.inputs.as_pixels`.
        """
        size = None
        index = -1
        for index, frame in enumerate(self._read()):
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise UserError(
                    f"frame {index} of {self.name!r} has {frame.shape[1]} x {frame.shape[0]} "
                    f"pixels, those before have {size[1]} x {size[0]}: "
                    "cut the video where its size changes"
                )
            yield frame
        if index < 0:
            raise UserError(f"there is no frame in {self.name!r}")
        if self.length and index + 1 < 0.95 * self.length - 1:
            warnings.warn(
                f"{self.name!r} could be read up to frame {index + 1} only, though its header "
                f"tells of {self.length}: it may be damaged",
                stacklevel=2,
            )

    def _read(self) -> Iterator[Frame]:
        if self._images:
            yield from map(load_image, self._images)
        elif self._animated:
            assert self.path is not None
            with open_image(self.path, str(self.path)) as opened:
                for index in range(self.length or 0):
                    opened.seek(index)
                    yield as_pixels(opened)
        elif self.path is not None:
            capture = _open(self.path)
            try:
                while True:
                    read, frame = capture.read()
                    if not read:
                        return
                    yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            finally:
                capture.release()
        else:
            yield from map(as_pixels, self._stream)


class MaskFolder(Mapping[int, NDArray[np.bool_]]):
    """The masks in a folder by the numbers of their frames, each read when it is asked for.

    A mask belongs to the frame whose number, from 0, is the last one in the mask's name, as
    :class:`TrackWriter` numbers them. Where the video is a folder of images and each mask is called
    as one of them, it belongs to that one, unless a tracker wrote the masks.

    Attributes:
        paths: by the frames' numbers. A frame without a mask is not among them.

    Example:
        >>> video = Video("street.mp4")
        >>> masks = MaskFolder("out/street/masks", video)
        >>> frames = InpaintAnything(None).remove_video(video, masks)
    """

    def __init__(self, folder: str | os.PathLike[str], video: Video) -> None:
        """Looks at the names.

        Args:
            folder: with images of masks, as :func:`~mobile_sam_plugin.images.load_mask` takes them.
            video: whose frames they belong to.

        Raises:
            UserError: there is no image, a name without a number, two masks of one frame, or masks
                of frames that the video does not have.
        """
        found = list_images(folder)
        names = {path.stem: index for index, path in enumerate(video._images)}
        tracked = (Path(folder).resolve().parent / "run.json").exists()
        by_name = not tracked and all(path.stem in names for path in found)
        self.paths: dict[int, Path] = {}
        self._doubtful = False
        for path in found:
            numbers = re.findall(r"[0-9]+", path.stem)
            if not numbers and not by_name:
                raise UserError(
                    f"the mask {str(path)!r} has no number in its name, so it is not known which "
                    "frame it belongs to: the first frame's is 00000.png"
                )
            index = names[path.stem] if by_name else int(numbers[-1])
            other = self.paths.setdefault(index, path)
            if other is not path:
                raise UserError(f"{other.name!r} and {path.name!r} are both masks of frame {index}")
        last = max(self.paths)
        # The header of a video file may be off by some frames.
        slack = 0 if video._images or video._animated else 1 + (video.length or 0) // 20
        if video.length and last >= video.length + slack:
            raise UserError(
                f"the mask {self.paths[last].name!r} is of frame {last}, and {video.name!r} has "
                f"{video.length} frames, counted from 0: the masks are of another video"
            )

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        """Reads the mask of a frame, (H, W); KeyError if it has none, else as ``load_mask``."""
        path = self.paths[index]
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            mask = load_mask(path)
        if doubts and not self._doubtful:  # the others are likely to be of its kind
            self._doubtful = True
            warnings.warn(f"{doubts[0].message}; others of the folder may be so, too", stacklevel=2)
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.paths))

    def __len__(self) -> int:
        return len(self.paths)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether something at a path is to be read as a video, by what is there, not by its name.

    Returns:
        True for a folder, for an animation of several frames, and for a file that is no image.

    Raises:
        FileNotFoundError, PermissionError: the path cannot be opened.
        UserError: it is an image that is damaged, or too large to be safe.
    """
    return Path(path).is_dir() or _count_images(Path(path)) != 1


class VideoWriter:
    """Writes a video frame by frame, which appears whole when it is closed, or not at all.

    It is MPEG-4 in MP4, which holds frames of every size to the pixel. PyAV writes it, which tells
    of a disk that is full, as OpenCV does not; OpenCV also drops a row or column of odd sizes, and
    refuses frame rates without a decimal fraction of few digits.

    Attributes:
        path: of the file.
        length: the number of frames so far.

    Example:
        >>> with VideoWriter("out.mp4", 25) as video:
        ...     for frame in frames:
        ...         video.write(frame)
    """

    def __init__(self, path: str | os.PathLike[str], frame_rate: float) -> None:
        """Takes where to write, without writing.

        Args:
            path: ending in ``.mp4``; its folder is made if need be.
            frame_rate: frames a second. MPEG-4 holds fractions of numbers up to 65535; a warning
                tells where another rate is the nearest.

        Raises:
            MissingExtra: PyAV is not installed.
            UserError: the path ends in something else, or the rate is no positive number.
        """
        try:
            import av
        except ImportError as error:
            raise MissingExtra.of("av", "video") from error
        self.path = Path(path)
        self.length = 0
        if self.path.suffix.lower() != ".mp4":
            raise UserError(f"{str(self.path)!r} must end in .mp4")
        self._rate = _nearest_rate(frame_rate)
        # Two runs may write the same file at once.
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._partial = self.path.with_name(f".{self.path.stem}.{token}.partial.mp4")
        self._av = av
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: Frame) -> None:
        """Writes a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, of the size of those before.

        Raises:
            UserError: it has another size.
            OSError: it cannot be written.
        """
        height, width = frame.shape[:2]
        with self._naming_errors():
            if self._container is None:
                self._open(width, height)
            if (width, height) != (self._stream.width, self._stream.height):
                raise UserError(
                    f"frame {self.length} has {width} x {height} pixels, those before have "
                    f"{self._stream.width} x {self._stream.height}: a video has one size"
                )
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
        self.length += 1

    def close(self) -> None:
        """Completes the file, counts what can be read of it, and puts it in its place.

        Raises:
            UserError: no frame was written.
            OSError: it cannot be written; what was there before stays.
        """
        if self._container is None:
            raise UserError(f"there is no frame to write to {str(self.path)!r}")
        try:
            with self._naming_errors():
                self._container.mux(self._stream.encode())
                self._container.close()
                with self._av.open(f"file:{self._partial}") as written:
                    (stream,) = written.streams
                    readable = sum(packet.size > 0 for packet in written.demux(stream))
                    same_size = (stream.width, stream.height) == (
                        self._stream.width,
                        self._stream.height,
                    )
            if readable != self.length or not same_size:
                raise OSError(
                    f"the video {str(self.path)!r} could not be written: of {self.length} frames "
                    f"of {self._stream.width} x {self._stream.height} pixels {readable} of "
                    f"{stream.width} x {stream.height} can be read back"
                )
            os.replace(self._partial, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Ends without a file; what was there before stays."""
        if self._container is not None:
            with suppress(self._av.FFmpegError):  # of the disk that is full
                self._container.close()
            self._partial.unlink(missing_ok=True)

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Named as a file, since FFmpeg takes what stands before a colon for a protocol.
        self._container = self._av.open(f"file:{self._partial}", "w", format="mp4")
        # A quantizer of 3, of 1 to 31, whatever the bits: hardly any loss is seen.
        options = {"qmin": "3", "qmax": "3"}
        self._stream = self._container.add_stream("mpeg4", rate=self._rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """FFmpeg's errors by the name of the file that was asked for."""
        try:
            yield
        except self._av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], frame_rate: float) -> None:
    """Writes a video in MPEG-4, which appears whole or not at all.

    Args:
        path: ending in ``.mp4``.
        frames: (H, W, 3) uint8 RGB, all of one size.
        frame_rate: frames a second; where MPEG-4 cannot hold it, a warning tells of the nearest.

    Raises:
        MissingExtra: PyAV is not installed.
        UserError: there is no frame, one has another size, or the path ends in something else.
        OSError: it cannot be written, as on a full disk; what was there before stays.
    """
    with VideoWriter(path, frame_rate) as video:
        for frame in frames:
            video.write(frame)


def _open(path: Path) -> cv2.VideoCapture:
    if not path.exists():
        raise FileNotFoundError(f"there is no video {str(path)!r}")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UserError(f"{str(path)!r} is no video that OpenCV can decode, and no image")
    return capture


def _count_images(path: Path) -> int:
    """How many frames an animation has, 1 for another image; 0 for what is no image, if a file."""
    try:
        with open_image(path, str(path)) as opened:
            return getattr(opened, "n_frames", 1) if opened.format in _ANIMATIONS else 1
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no video {str(path)!r}") from None
    except UserError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return 0
        raise


def _animation_rate(path: Path, count: int) -> float:
    """Frames a second, of frames that may be shown for different times."""
    durations = []
    with open_image(path, str(path)) as opened:
        for index in range(count):
            opened.seek(index)
            if opened.format in ("AVIF", "WEBP"):  # which tell when a frame is decoded
                opened.load()
            # As browsers take those that say nothing, or next to nothing.
            duration = float(opened.info.get("duration", 0))
            durations.append(duration if duration > 10 else 100.0)
    if min(durations) != max(durations):
        warnings.warn(
            f"the frames of {path.name!r} are shown for {min(durations):g} to {max(durations):g} "
            "ms: each is taken for as long as the mean",
            stacklevel=3,
        )
    return 1000 * count / sum(durations)


def _nearest_rate(rate: float) -> Fraction:
    """The frame rate next to one that MPEG-4 can hold; a warning tells if it is another."""
    if not rate > 0 or rate == float("inf"):
        raise UserError(f"the frame rate must be a positive number, not {rate}")
    exact = min(max(Fraction(rate), Fraction(1, _HIGHEST_TERM)), Fraction(_HIGHEST_TERM))
    if exact < 1:
        nearest = exact.limit_denominator(_HIGHEST_TERM)
    else:
        nearest = 1 / (1 / exact).limit_denominator(_HIGHEST_TERM)
    if abs(nearest - Fraction(rate)) > 1e-9 * Fraction(rate):  # more than a float's rounding
        warnings.warn(
            f"MPEG-4 cannot hold {rate:.10g} frames a second: the video gets {float(nearest):.10g}",
            stacklevel=3,
        )
    return nearest


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """By the numbers in a name, where it has some."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
