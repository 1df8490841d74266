"""What a tracker finds in a video: one frame of it, and a folder of it to resume from."""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from typing_extensions import Self

from mobile_sam_plugin.drawing import palette
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.files import digest_source, encode_image, write_file
from mobile_sam_plugin.images import open_image

from .instances import Instances

if TYPE_CHECKING:
    import supervision
from .video import Frame, Video, VideoWriter

_COLUMNS = ("frame", "id", "label", "state", "x0", "y0", "x1", "y1", "area", "score")


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
