"""Videos in, frame by frame, and what a tracker found in them out, in files to go on from.

Nothing here holds more than one frame.
"""

import csv
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Self

from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.predictor import as_pixels
from mobile_sam_plugin.results import encode_mask, write_file

from .instances import Instances, encode_png, load_image, voc_colors

if TYPE_CHECKING:
    import supervision

Frame = NDArray[np.uint8]
VideoSource = str | os.PathLike[str] | Iterable[Frame]
"""A video file, a folder of images, or an iterable of frames, such as a camera's."""

_FRAME_RATE = 25.0  # where the source does not tell
_PARTIAL_OVERLAY = ".overlay.partial.mp4"
_COLUMNS = ("frame", "id", "label", "state", "x0", "y0", "x1", "y1", "area", "score")


class Video:
    """The frames of a video file, of a folder of images or of an iterable, read one at a time.

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
        """Looks at the source, without reading frames.

        Args:
            source: the path of a file that OpenCV can decode; or of a folder of images, taken in
                the order of the numbers in their names; or an iterable of (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be decoded, or there is no image in the folder.
        """
        self.name = "stream"
        self.length: int | None = None
        self.frame_rate = _FRAME_RATE
        self.path: Path | None = None
        self._images: list[Path] = []
        self._stream: Iterable[Frame] = ()
        if not isinstance(source, str | os.PathLike):
            self._stream = source
            return
        self.path = Path(source)
        self.name = self.path.stem
        if self.path.is_dir():
            self.name = self.path.resolve().name
            self._images = _list_images(self.path)
            self.length = len(self._images)
            return
        capture = _open(self.path)
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.frame_rate = rate if 0 < rate < 1000 else _FRAME_RATE
        capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Reads the frames, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: a frame cannot be read or has another size than the first, or there is none.
            TypeError, ValueError: a frame of the iterable is no image, see
                :func:`~mobile_sam_plugin.predictor.as_pixels`.
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


@dataclass(frozen=True)
class TrackedFrame:
    """What a tracker found in a frame.

    Attributes:
        index: the number of the frame, from 0.
        objects: those that are seen, with their ``ids``. Their masks do not overlap.
        lost: the ids of those that are not seen, be it that they are hidden, or out of the picture,
            or that the tracker has lost them.
    """

    index: int
    objects: Instances
    lost: tuple[int, ...] = ()

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
    - ``run.json``, what was asked for, by which a run is known when it is taken up.

    The first two are written as the video goes on; the overlay and the JSON appear when the writer
    is closed, also by an error or an interruption, and hold what was done so far. Nothing is
    written before the first frame is.

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
            video: what is tracked in; its name, length and frame rate are used.
            settings: what else makes two runs the same, such as the prompts; ``json`` must be able
                to write it.

        Raises:
            ValueError: the folder holds results of another video or other settings, or of any
                stream, which cannot be taken up.
        """
        self.folder = Path(folder)
        self.done: set[int] = set()
        self._frame_rate = video.frame_rate
        self._masks = self.folder / "masks"
        self._rows: dict[int, list[dict[str, str]]] = {}
        self._overlay: cv2.VideoWriter | None = None
        # As JSON gives it back.
        self._run = json.loads(
            json.dumps({"video": video.name, "length": video.length, **(settings or {})})
        )
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
        """
        ids = np.asarray(Image.open(self._masks / f"{index:05}.png"))
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
        lost = tuple(int(row["id"]) for row in rows if row["state"] == "lost")
        return TrackedFrame(index, objects, lost)

    def write(self, frame: Frame, tracked: TrackedFrame) -> None:
        """Writes what was found in a frame; of one that is ``done``, draws the overlay only.

        Args:
            frame: (H, W, 3) uint8 RGB.
            tracked: what was found in it.

        Raises:
            OSError: the folder or the video cannot be written.
        """
        picture = tracked.objects.overlay(frame)
        overlay = self._overlay or self._begin((picture.shape[1], picture.shape[0]))
        overlay.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if tracked.index in self.done:
            return
        ids = _ids(tracked.objects)
        for place in np.argsort(ids):
            mask = tracked.objects.masks[place]
            self._csv.writerow(
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
        for number in tracked.lost:
            self._csv.writerow({"frame": tracked.index, "id": number, "state": "lost", "area": 0})
        self._table.flush()
        # Last, since a frame with a PNG is taken for done.
        png = encode_png(tracked.id_map(), voc_colors(256))
        write_file(self._masks / f"{tracked.index:05}.png", png)

    def close(self) -> None:
        """Completes the overlay and the JSON, if any frame was written."""
        if self._overlay is None:
            return
        self._table.close()
        self._overlay.release()
        self._overlay = None
        os.replace(self.folder / _PARTIAL_OVERLAY, self.folder / "overlay.mp4")
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
            self.done = {int(path.stem) for path in self._masks.glob("*.png")}

    def _begin(self, size: tuple[int, int]) -> cv2.VideoWriter:
        """Opens the files, for frames of a (width, height)."""
        self._masks.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "run.json", json.dumps(self._run).encode())
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _COLUMNS)
        writer.writeheader()
        for index in sorted(self.done):
            writer.writerows(self._rows.get(index, []))
        path = self.folder / "tracks.csv"
        write_file(path, table.getvalue().encode())
        overlay = create_video(self.folder / _PARTIAL_OVERLAY, self._frame_rate, size)
        self._table = open(path, "a", newline="", encoding="utf-8")
        self._csv = csv.DictWriter(self._table, _COLUMNS)
        self._overlay = overlay
        return overlay

    def _read_table(self) -> list[dict[str, str]]:
        path = self.folder / "tracks.csv"
        if not path.exists():
            return []
        with open(path, newline="", encoding="utf-8") as table:
            return [*csv.DictReader(table)]

    def _to_youtube_vis(self) -> dict[str, Any]:
        """All that was written, as YouTube-VIS has it: an annotation for each object."""
        paths = sorted(self._masks.glob("*.png"), key=lambda path: int(path.stem))
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
            ids = np.asarray(Image.open(path))
            height, width = ids.shape
            for number, track in tracks.items():
                mask = ids == number
                seen = bool(mask.any())
                track["segmentations"].append(encode_mask(mask) if seen else None)
                track["bboxes"].append([*cv2.boundingRect(mask.astype(np.uint8))] if seen else None)
                track["areas"].append(int(np.count_nonzero(mask)) if seen else None)
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


def image_suffixes() -> set[str]:
    """Returns the suffixes of the files that Pillow takes for images, in small letters."""
    kinds = Image.registered_extensions().items()
    # Of MPEG it reads the size only.
    return {suffix for suffix, kind in kinds if kind in Image.OPEN and kind != "MPEG"}


def create_video(path: Path, frame_rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Opens a video file for writing, in MPEG-4, which OpenCV's wheels can encode.

    Args:
        path: ending in ``.mp4``.
        frame_rate: frames a second.
        size: (width, height).

    Raises:
        OSError: this OpenCV cannot write there.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frame_rate, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write the video {str(path)!r}")
    return writer


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
        raise UserError(f"{str(path)!r} is no video that OpenCV can decode")
    return capture


def _list_images(folder: Path) -> list[Path]:
    """In the order of the numbers in their names."""
    suffixes = image_suffixes()
    paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not paths:
        raise UserError(f"there is no image in the folder {str(folder)!r}")

    def order(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(paths, key=order)
