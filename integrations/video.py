"""Videos, read and written one frame at a time, and masks by frame."""

import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from typing_extensions import Self

from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.images import list_images, load_mask, open_image
from mobile_sam_plugin.inputs import as_pixels
from mobile_sam_plugin.videos import VideoFile

from .instances import load_image

if TYPE_CHECKING:
    pass

Frame = NDArray[np.uint8]
VideoSource = str | os.PathLike[str] | Iterable[Frame]
"""A video file, an animation, a folder of images, or an iterable of frames, as of a camera."""
_FRAME_RATE = 25.0  # if the source has none
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # several images in other formats are pages or views
_HIGHEST_TERM = 65535  # of a frame rate in MPEG-4, as a fraction


class Video:
    """The frames of a video, of a folder of images or of an iterable, read one at a time.

    Attributes:
        name: name of the file without suffix, or of the folder; "stream" for an iterable.
        length: number of frames; None if unknown. The header of a video file may be wrong.
        frame_rate: frames per second; 25 if unknown.
        image_size: (height, width) of the frames; None if unknown before one is read.
        path: path of the file or folder; None for an iterable.

    Examples:
        >>> for frame in Video("street.mp4"):
        ...     print(frame.shape, frame.dtype)
        (720, 1280, 3) uint8
    """

    def __init__(self, source: VideoSource) -> None:
        """Reads the header of a source.

        Args:
            source: path of a file that OpenCV can decode, of an animated GIF, WebP, PNG or AVIF, or
                of a folder of images, which are sorted by the numbers in their names; or an
                iterable of (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: if there is no such file.
            UserError: if it cannot be decoded, or the folder holds no image.
        """
        self.name = "stream"
        self.length: int | None = None
        self.frame_rate = _FRAME_RATE
        self.image_size: tuple[int, int] | None = None
        self.path: Path | None = None
        self._images: list[Path] = []
        self._file: VideoFile | None = None
        self._stream: Iterable[Frame] = ()
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
            self.length = count
            self.frame_rate, self.image_size = _read_animation(self.path, count)
        else:
            self._file = VideoFile(self.path)
            self.length = self._file.length or None
            self.image_size = self._file.image_size
            rate = self._file.frame_rate
            if 0 < rate < 1000:
                self.frame_rate = rate
            else:  # for example ticks of a clock per second
                warnings.warn(
                    f"{self.name!r} has the frame rate {rate:g}, which makes no sense: using "
                    f"{_FRAME_RATE:g} frames per second",
                    stacklevel=2,
                )

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames, (H, W, 3) uint8 RGB.

        Raises:
            UserError: if a frame cannot be read or has another size than the first, or there is
                none.
            TypeError: if a frame of the iterable is not an image, see
                :func:`~mobile_sam_plugin.inputs.as_pixels`.
        """
        size = None
        for index, frame in enumerate(self._read()):
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise UserError(
                    f"frame {index} of {self.name!r} has {frame.shape[1]} x {frame.shape[0]} "
                    f"pixels, the frames before have {size[1]} x {size[0]}: "
                    "cut the video where its size changes"
                )
            yield frame
        if size is None:
            raise UserError(f"there is no frame in {self.name!r}")

    def _read(self) -> Iterator[Frame]:
        if self._images:
            yield from map(load_image, self._images)
        elif self._file is not None:
            for _, frame in self._file.read():
                if frame is None:
                    return
                yield frame
        elif self.path is not None:  # an animation
            with open_image(self.path, str(self.path)) as opened:
                for index in range(self.length or 0):
                    opened.seek(index)
                    yield as_pixels(opened)
        else:
            yield from map(as_pixels, self._stream)


class MaskFolder(Mapping[int, NDArray[np.bool_]]):
    """The masks in a folder by frame number, read when they are requested.

    The last number in a mask's name is the number of its frame, from 0, as
    :class:`~mobile_sam_plugin.integrations.tracks.TrackWriter` numbers them. If the video is a
    folder of images and all masks have names of images, the names decide, unless a tracker has
    written the masks.

    Attributes:
        paths: paths of the masks by frame number, without the frames that have no mask.

    Examples:
        >>> video = Video("street.mp4")
        >>> masks = MaskFolder("out/street/masks", video)
        >>> frames = InpaintAnything(None).remove_video(video, masks)
    """

    def __init__(self, folder: str | os.PathLike[str], video: Video) -> None:
        """Reads the names of the masks.

        Args:
            folder: folder of masks, as :func:`~mobile_sam_plugin.images.load_mask` takes them.
            video: the video that they belong to.

        Raises:
            UserError: if there is no image, a name has no number, two masks belong to one frame, or
                a mask to a frame that the video lacks.
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
                    f"the mask {str(path)!r} has no number in its name, so its frame is unknown: "
                    "the mask of the first frame is 00000.png"
                )
            index = names[path.stem] if by_name else int(numbers[-1])
            other = self.paths.setdefault(index, path)
            if other is not path:
                raise UserError(f"{other.name!r} and {path.name!r} are both masks of frame {index}")
        last = max(self.paths)
        # The header of a video file may be off by some frames.
        slack = 0 if video._file is None else 1 + (video.length or 0) // 20
        if video.length and last >= video.length + slack:
            raise UserError(
                f"the mask {self.paths[last].name!r} belongs to frame {last}, but {video.name!r} "
                f"has {video.length} frames, counted from 0: the masks are of another video"
            )

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        """Reads the mask of a frame, (H, W) bool; KeyError if it has none."""
        path = self.paths[index]
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            mask = load_mask(path)
        if doubts and not self._doubtful:  # the other masks are likely to be similar
            self._doubtful = True
            warnings.warn(f"{doubts[0].message}; this may hold for other masks", stacklevel=2)
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.paths))

    def __len__(self) -> int:
        return len(self.paths)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is to be read as a video, by the contents, not the name.

    Returns:
        True for a folder, an animation of several frames, and a file that is not an image.

    Raises:
        FileNotFoundError, PermissionError: if the path cannot be opened.
        UserError: if it is an image that is damaged, or too large to be safe.
    """
    return Path(path).is_dir() or _count_images(Path(path)) != 1


class VideoWriter:
    """Writes a video frame by frame; the file appears whole when it is closed, or not at all.

    The format is MPEG-4 in MP4, which keeps every frame size. PyAV writes it: OpenCV does not
    report a full disk, drops a row or column of odd sizes, and refuses many frame rates.

    Attributes:
        path: path of the file.
        length: number of frames so far.

    Examples:
        >>> with VideoWriter("out.mp4", 25) as video:
        ...     for frame in frames:
        ...         video.write(frame)
    """

    def __init__(self, path: str | os.PathLike[str], frame_rate: float) -> None:
        """Checks path and frame rate, without writing.

        Args:
            path: path that ends in ``.mp4``; its folder is created if missing.
            frame_rate: frames per second. MPEG-4 takes fractions of numbers up to 65535; a warning
                reports if the nearest rate differs.

        Raises:
            MissingExtra: if PyAV is not installed.
            UserError: if the path ends otherwise, or the rate is not a positive number.
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
        # Two runs may write the same file at the same time.
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._partial = self.path.with_name(f".{self.path.stem}.{token}.partial.mp4")
        self._av = av
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: Frame) -> None:
        """Writes a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, all of one size.

        Raises:
            UserError: if it has another size than the first.
            OSError: if it cannot be written.
        """
        height, width = frame.shape[:2]
        with self._naming_errors():
            if self._container is None:
                self._open(width, height)
            if (width, height) != (self._stream.width, self._stream.height):
                raise UserError(
                    f"frame {self.length} has {width} x {height} pixels, the frames before have "
                    f"{self._stream.width} x {self._stream.height}: a video has one size"
                )
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
        self.length += 1

    def close(self) -> None:
        """Completes the file, counts the frames that can be read back, and moves it to its path.

        Raises:
            UserError: if no frame was written.
            OSError: if it cannot be written; an earlier file stays.
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
        """Ends without a file; an earlier file stays."""
        if self._container is not None:
            with suppress(self._av.FFmpegError):  # of the disk that is full
                self._container.close()
            self._partial.unlink(missing_ok=True)

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # With "file:", since FFmpeg takes the part of a path before a colon for a protocol.
        self._container = self._av.open(f"file:{self._partial}", "w", format="mp4")
        # A fixed quantizer of 3, of 1 to 31: hardly any loss is visible, whatever the bit rate.
        options = {"qmin": "3", "qmax": "3"}
        self._stream = self._container.add_stream("mpeg4", rate=self._rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Raises FFmpeg's errors with the path of the file."""
        try:
            yield
        except self._av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], frame_rate: float) -> None:
    """Writes a video with :class:`VideoWriter`.

    Args:
        path, frame_rate: as in :class:`VideoWriter`.
        frames: (H, W, 3) uint8 RGB, all of one size.

    Raises:
        MissingExtra: if PyAV is not installed.
        UserError: if there is no frame, one has another size, or the path does not end in ``.mp4``.
        OSError: if it cannot be written, for example on a full disk; an earlier file stays.
    """
    with VideoWriter(path, frame_rate) as video:
        for frame in frames:
            video.write(frame)


def _count_images(path: Path) -> int:
    """The number of frames of an animation, 1 for another image, 0 for a file without images."""
    try:
        with open_image(path, str(path)) as opened:
            return getattr(opened, "n_frames", 1) if opened.format in _ANIMATIONS else 1
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no video {str(path)!r}") from None
    except UserError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return 0
        raise


def _read_animation(path: Path, count: int) -> tuple[float, tuple[int, int]]:
    """The mean frame rate of an animation, and its (height, width)."""
    durations = []
    with open_image(path, str(path)) as opened:
        for index in range(count):
            opened.seek(index)
            if opened.format in ("AVIF", "WEBP"):  # their durations are known after decoding
                opened.load()
            # Like browsers, replaces durations that are missing or close to 0.
            duration = float(opened.info.get("duration", 0))
            durations.append(duration if duration > 10 else 100.0)
        image_size = opened.height, opened.width
    if min(durations) != max(durations):
        warnings.warn(
            f"the frames of {path.name!r} last {min(durations):g} to {max(durations):g} ms: using "
            "their mean for all of them",
            stacklevel=3,
        )
    return 1000 * count / sum(durations), image_size


def _nearest_rate(rate: float) -> Fraction:
    """The nearest frame rate that MPEG-4 can hold; a warning reports if it differs."""
    if not rate > 0 or rate == float("inf"):
        raise UserError(f"the frame rate must be a positive number, not {rate}")
    exact = min(max(Fraction(rate), Fraction(1, _HIGHEST_TERM)), Fraction(_HIGHEST_TERM))
    if exact < 1:
        nearest = exact.limit_denominator(_HIGHEST_TERM)
    else:
        nearest = 1 / (1 / exact).limit_denominator(_HIGHEST_TERM)
    if abs(nearest - Fraction(rate)) > 1e-9 * Fraction(rate):  # more than a float's rounding
        warnings.warn(
            f"MPEG-4 cannot hold {rate:.10g} frames per second: using {float(nearest):.10g}",
            stacklevel=3,
        )
    return nearest


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
