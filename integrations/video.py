"""Videos in, frame by frame, and what a tracker found in them out, in files to go on from.

Nothing here holds more than one frame.
"""

import csv
import io
import json
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from typing_extensions import Self

from mobile_sam_plugin.drawing import palette
from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.files import digest_source, encode_image, write_file
from mobile_sam_plugin.images import list_images, load_mask, open_image
from mobile_sam_plugin.inputs import as_pixels

from .instances import Instances, load_image

if TYPE_CHECKING:
    import supervision

Frame = NDArray[np.uint8]
VideoSource = str | os.PathLike[str] | Iterable[Frame]
"""A video file, an animation, a folder of images, or an iterable of frames, as a camera's."""

_FRAME_RATE = 25.0  # where the source does not tell
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # what other formats hold several of are pages, views
_HIGHEST_TERM = 65535  # of a frame rate in MPEG-4, as a fraction
_COLUMNS = ("frame", "id", "label", "state", "x0", "y0", "x1", "y1", "area", "score")


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


@dataclass(frozen=True)
class TrackedFrame:
    """What a tracker found in a frame.

    Attributes:
        index: the number of the frame, from 0.
        objects: those that are seen, with their ``ids``. Their masks do not overlap.
        lost: the ids of those that are not seen, be it that they are hidden, or out of the picture,
            or that the tracker has lost them.
        lost_labels: what those are, in their order; empty where it is not known.
    """

    index: int
    objects: Instances
    lost: tuple[int, ...] = ()
    lost_labels: tuple[str, ...] = ()

    def overlay(self) -> NDArray[np.uint8]:
        """Returns the frame with the objects drawn over it, (H, W, 3) RGB."""
        return self.objects.overlay()

    def to_supervision(self) -> "supervision.Detections":
        """Returns the objects, see :meth:`Instances.to_supervision`."""
        return self.objects.to_supervision()

    def to_coco(self) -> dict[str, Any]:
        """Returns the objects, see :meth:`Instances.to_coco`; the image's id is ``index`` + 1."""
        return self.objects.to_coco(image_id=self.index + 1)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the objects; a folder for each frame, see :meth:`Instances.save`."""
        return self.objects.save(folder)

    def id_map(self) -> NDArray[np.uint8]:
        """Returns (H, W) uint8: each pixel's object id, 0 for none."""
        ids = np.zeros(self.objects.image_size, dtype=np.uint8)
        for number, mask in zip(_ids(self.objects), self.objects.masks, strict=True):
            ids[mask] = number
        return ids


class TrackWriter:
    """Writes a folder of results frame by frame, and takes up what an interrupted run has written.

    - ``masks/00000.png`` and so on, a PNG of object ids a frame, in the colours of DAVIS;
    - ``tracks.csv``, a line for each object and frame: its state (``seen`` or ``lost``), its box
      (XYXY, pixels), its area in pixels and its score;
    - ``overlay.mp4``, the video with masks, boxes and ids drawn over it;
    - ``tracks.json``, in the format of YouTube-VIS, with COCO RLE;
    - ``run.json``, what was asked for and a digest of the video, by which a run is known when it
      is taken up.

    The first two are written as the video goes on; the overlay and the JSON appear when the writer
    is closed, also by an error or an interruption, and hold what was done so far. An overlay of
    more frames, which an earlier run has written, stays. Nothing is written before the first frame
    is.

    Attributes:
        folder: where.
        done: the numbers of the frames that an earlier run has written.

    Example:
        >>> with TrackWriter("out", Video("street.mp4")) as writer:
        ...     for frame in Video("street.mp4"):
        ...         writer.write(frame, tracker.track(frame))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        video: Video,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Looks at the folder, which may hold the results of an interrupted run on the same video.

        Args:
            folder: made if need be.
            video: what is tracked in; its contents are what it is known by.
            settings: what else makes two runs the same, such as the prompts; ``json`` must be able
                to write it.

        Raises:
            MissingExtra: PyAV is not installed.
            UserError: the folder holds results of another video or other settings, or of any
                stream, which cannot be taken up.
        """
        self.folder = Path(folder)
        self.done: set[int] = set()
        self._masks = self.folder / "masks"
        self._rows: dict[int, list[dict[str, str]]] = {}
        self._overlay = VideoWriter(self.folder / "overlay.mp4", video.frame_rate)
        self._table: io.TextIOWrapper | None = None
        # As JSON gives it back.
        contents = None if video.path is None else digest_source(video.path)
        self._run = json.loads(json.dumps({"video": contents, **(settings or {})}))
        if (self.folder / "run.json").exists():
            self._take_up(video)
        elif self._masks.is_dir() and any(self._masks.iterdir()):
            raise UserError(
                f"the folder {str(self._masks)!r} holds files of another origin: "
                "name another folder"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, index: int) -> TrackedFrame:
        """Returns what an earlier run has written of a frame that is ``done``.

        Raises:
            FileNotFoundError: nothing.
            UserError: its PNG is damaged.
        """
        ids = _read_ids(self._masks / f"{index:05}.png")
        rows = self._rows.get(index, [])
        seen = [row for row in rows if row["state"] == "seen"]
        masks = np.array([ids == int(row["id"]) for row in seen], bool).reshape(-1, *ids.shape)
        boxes = [[float(row[side]) for side in _COLUMNS[4:8]] for row in seen]
        objects = Instances(
            ids.shape,
            np.array(boxes, np.float32).reshape(-1, 4),
            masks,
            np.array([float(row["score"]) for row in seen], np.float32),
            [row["label"] for row in seen],
            ids=np.array([int(row["id"]) for row in seen], np.int64),
        )
        lost = [row for row in rows if row["state"] == "lost"]
        return TrackedFrame(
            index,
            objects,
            tuple(int(row["id"]) for row in lost),
            tuple(row["label"] for row in lost),
        )

    def write(self, frame: Frame, tracked: TrackedFrame) -> None:
        """Writes what was found in a frame; of one that is ``done``, draws the overlay only.

        Args:
            frame: (H, W, 3) uint8 RGB.
            tracked: what was found in it.

        Raises:
            OSError: the folder or the video cannot be written.
        """
        if self._table is None:
            self._table = self._begin()
        self._overlay.write(tracked.objects.overlay(frame))
        if tracked.index in self.done:
            return
        table = csv.DictWriter(self._table, _COLUMNS)
        ids = _ids(tracked.objects)
        for place in np.argsort(ids):
            mask = tracked.objects.masks[place]
            table.writerow(
                {
                    "frame": tracked.index,
                    "id": ids[place],
                    "label": tracked.objects.labels[place],
                    "state": "seen",
                    **dict(zip(_COLUMNS[4:8], tracked.objects.boxes[place].tolist(), strict=True)),
                    "area": np.count_nonzero(mask),
                    "score": f"{tracked.objects.scores[place]:.4f}",
                }
            )
        labels = dict(zip(tracked.lost, tracked.lost_labels, strict=False))
        for number in tracked.lost:
            table.writerow(
                {
                    "frame": tracked.index,
                    "id": number,
                    "label": labels.get(number, ""),
                    "state": "lost",
                    "area": 0,
                }
            )
        self._table.flush()
        # Last, since a frame with a PNG is taken for done.
        png = encode_image(".png", tracked.id_map(), palette=palette())
        write_file(self._masks / f"{tracked.index:05}.png", png)

    def close(self) -> None:
        """Completes the overlay and the JSON, if any frame was written.

        Raises:
            OSError: they cannot be written. What was done of the masks and the table is there.
        """
        if self._table is None:
            return
        self._table.close()
        self._table = None
        try:
            if self._overlay.length < len(self.done) and self._overlay.path.exists():
                self._overlay.discard()
            else:
                self._overlay.close()
        finally:
            content = json.dumps(self._to_youtube_vis(), allow_nan=False)
            write_file(self.folder / "tracks.json", content.encode())

    def _take_up(self, video: Video) -> None:
        path = self.folder / "run.json"
        earlier = json.loads(path.read_text())
        differing = [
            key for key in {**self._run, **earlier} if self._run.get(key) != earlier.get(key)
        ]
        if differing or video.path is None:
            what = f"another {' and '.join(differing)}" if differing else "frames gone by"
            raise UserError(
                f"the folder {str(self.folder)!r} holds results of another run, with {what}: "
                "name another folder, or delete this one"
            )
        for row in self._read_table():
            # A line that was cut off lacks columns.
            if row["score"] is not None:
                self._rows.setdefault(int(row["frame"]), []).append(row)
        if (self.folder / "tracks.csv").exists():
            self.done = {*self._list_masks()}

    def _list_masks(self) -> dict[int, Path]:
        """The PNGs that are there, by their frames' numbers, in their order."""
        paths = self._masks.iterdir() if self._masks.is_dir() else ()
        found = {int(path.stem): path for path in paths if re.fullmatch(r"[0-9]+\.png", path.name)}
        return {index: found[index] for index in sorted(found)}

    def _begin(self) -> io.TextIOWrapper:
        """Writes what is known before the first frame, and opens the table for more."""
        self._masks.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "run.json", json.dumps(self._run).encode())
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _COLUMNS)
        writer.writeheader()
        for index in sorted(self.done):
            writer.writerows(self._rows.get(index, []))
        path = self.folder / "tracks.csv"
        write_file(path, table.getvalue().encode())
        return open(path, "a", newline="", encoding="utf-8")

    def _read_table(self) -> list[dict[str, str]]:
        path = self.folder / "tracks.csv"
        if not path.exists():
            return []
        with open(path, newline="", encoding="utf-8") as table:
            return [*csv.DictReader(table)]

    def _to_youtube_vis(self) -> dict[str, Any]:
        """All that was written, as YouTube-VIS has it: an annotation for each object."""
        paths = [*self._list_masks().values()]
        labels: dict[int, str] = {}
        for row in self._read_table():
            if row["state"] == "seen":
                labels.setdefault(int(row["id"]), row["label"])
        names = list(dict.fromkeys(labels.values()))
        tracks: dict[int, dict[str, Any]] = {
            number: {
                "id": number,
                "video_id": 1,
                "category_id": 1 + names.index(label),
                "iscrowd": 0,
                "segmentations": [],
                "bboxes": [],
                "areas": [],
            }
            for number, label in sorted(labels.items())
        }
        height = width = 0
        for path in paths:
            ids = _read_ids(path)
            height, width = ids.shape
            masks = _encode_ids(ids)
            for number, track in tracks.items():
                mask, box, area = masks.get(number, (None, None, None))
                track["segmentations"].append(mask)
                track["bboxes"].append(box)
                track["areas"].append(area)
        return {
            "videos": [
                {
                    "id": 1,
                    "height": height,
                    "width": width,
                    "length": len(paths),
                    "file_names": [path.name for path in paths],
                }
            ],
            "categories": [{"id": 1 + place, "name": name} for place, name in enumerate(names)],
            "annotations": [
                {**track, "height": height, "width": width, "length": len(paths)}
                for track in tracks.values()
            ],
        }


def _read_ids(path: Path) -> NDArray[np.uint8]:
    """(H, W), of a PNG that a :class:`TrackWriter` wrote."""
    with open_image(path, str(path)) as png:
        return np.asarray(png)


def _encode_ids(ids: NDArray[np.uint8]) -> dict[int, tuple[dict[str, Any], list[int], int]]:
    """COCO RLE, XYWH and area of each object in a map of ids, (H, W).

    The runs of all objects are found in one pass, since there may be many.
    """
    pixels = ids.ravel(order="F")  # COCO counts down the columns
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] ^ 1))
    lengths = np.diff(starts, append=pixels.size)
    owners = pixels[starts]
    found = {}
    for number in np.unique(owners[owners > 0]).tolist():
        own = owners == number
        firsts, ends = starts[own], starts[own] + lengths[own]
        gaps = firsts - np.concatenate([[0], ends[:-1]])
        # Pixels outside and inside by turns, the first of them outside, if only 0.
        counts = np.stack([gaps, lengths[own]], axis=1).ravel().tolist()
        if ends[-1] < pixels.size:
            counts.append(int(pixels.size - ends[-1]))
        rle = pycocotools.mask.frPyObjects({"size": [*ids.shape], "counts": counts}, *ids.shape)
        box = pycocotools.mask.toBbox(rle).astype(int).tolist()
        segmentation = {"size": [*ids.shape], "counts": rle["counts"].decode("ascii")}
        found[number] = segmentation, box, int(lengths[own].sum())
    return found


def _ids(objects: Instances) -> list[int]:
    if objects.ids is None:
        raise UserError("the objects have no ids: they do not come from a tracker")
    ids: list[int] = objects.ids.tolist()
    return ids


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
