"""The results of tracking: the objects in one frame, and a folder that a run can resume from."""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from typing_extensions import Self

from mobile_sam_plugin.drawing import palette
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.files import (
    digest_source,
    encode_image,
    remove_partials,
    write_file,
)
from mobile_sam_plugin.images import open_image
from mobile_sam_plugin.runs import WAY_OUT, alone_in, claim, find_run

from .instances import Instances
from .video import Frame, Video, VideoWriter

if TYPE_CHECKING:
    import supervision

_COLUMNS = ("frame", "id", "label", "state", "x0", "y0", "x1", "y1", "area", "score")


@dataclass(frozen=True)
class TrackedFrame:
    """The objects that a tracker follows in a frame.

    Attributes:
        index: number of the frame, from 0.
        objects: the visible objects, with their ``tracker_id``. Their masks do not overlap.
        lost: ids of the others: hidden, outside the frame, or lost by the tracker.
        lost_labels: labels of the lost objects, in the same order; empty if unknown.
    """

    index: int
    objects: Instances
    lost: tuple[int, ...] = ()
    lost_labels: tuple[str, ...] = ()

    def overlay(self) -> NDArray[np.uint8]:
        """Returns the frame with the objects drawn over it, (H, W, 3) RGB."""
        return self.objects.overlay()

    def to_supervision(self) -> "supervision.Detections":
        """Returns the visible objects, see :meth:`Instances.to_supervision`."""
        return self.objects.to_supervision()

    def to_coco(self) -> dict[str, Any]:
        """Returns the visible objects as COCO, with the image id ``index + 1``."""
        return self.objects.to_coco(image_id=self.index + 1)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the visible objects; each frame needs a folder of its own."""
        return self.objects.save(folder)

    def id_map(self) -> NDArray[np.uint8]:
        """Returns the object id of each pixel, (H, W) uint8, 0 for none.

        Raises:
            UserError: if the objects have no ``tracker_id``.
        """
        ids = np.zeros(self.objects.image_size, dtype=np.uint8)
        for number, mask in zip(ids_of(self.objects), self.objects.masks, strict=True):
            ids[mask] = number
        return ids


class TrackWriter:
    """Writes a folder of results frame by frame, and resumes an interrupted run.

    - ``masks/00000.png`` and so on: one PNG of object ids per frame, with a palette;
    - ``tracks.csv``: one line per object and frame with its state (``seen`` or ``lost``), its box
      (XYXY, pixels), its area in pixels and its score;
    - ``overlay.mp4``: the video with masks, boxes and ids drawn over it;
    - ``tracks.json``: YouTube-VIS format, with COCO RLE;
    - ``run.json``: the settings and a digest of the video, by which a run is recognised.

    Masks and table grow with every frame. The overlay and the JSON file appear when the writer is
    closed, also after an error or an interruption, and hold the frames so far; a longer overlay of
    an earlier run stays. Nothing is written before the first frame.

    Attributes:
        folder: the folder.
        done: numbers of the frames that an earlier run has written.

    Examples:
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
        """Reads what an interrupted run on the same video has written to the folder.

        Args:
            folder: created if missing.
            video: the video, which is recognised by its contents.
            settings: everything else that decides the results, such as prompts, as ``json`` takes
                it.

        Raises:
            MissingExtra: if PyAV is not installed.
            UserError: if the folder holds another run, or one on a stream, which cannot be resumed.
        """
        self.folder = Path(folder)
        self.done: set[int] = set()
        self._masks = self.folder / "masks"
        self._rows: dict[int, list[dict[str, str]]] = {}
        self._overlay = VideoWriter(self.folder / "overlay.mp4", video.frame_rate)
        self._table: io.TextIOWrapper | None = None
        self._alone = ExitStack()
        contents = None if video.path is None else digest_source(video.path)
        self._run = {"video": contents, **(settings or {})}
        if find_run(self.folder, self._run) is not None:
            if video.path is None:
                raise UserError(
                    f"the folder {str(self.folder)!r} holds a run on a stream, which cannot be "
                    f"resumed: {WAY_OUT}"
                )
            self._resume()
        elif self._masks.is_dir() and any(self._masks.iterdir()):
            raise UserError(
                f"the folder {str(self._masks)!r} holds files of another origin: "
                "choose another folder"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, index: int) -> TrackedFrame:
        """Returns what an earlier run has written of a frame that is ``done``.

        Raises:
            FileNotFoundError: if the frame has no PNG.
            UserError: if its PNG is damaged.
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
            tracker_id=np.array([int(row["id"]) for row in seen], np.int64),
        )
        lost = [row for row in rows if row["state"] == "lost"]
        return TrackedFrame(
            index,
            objects,
            tuple(int(row["id"]) for row in lost),
            tuple(row["label"] for row in lost),
        )

    def write(self, frame: Frame, tracked: TrackedFrame) -> None:
        """Writes the objects in a frame; for a frame that is ``done``, the overlay only.

        Args:
            frame: (H, W, 3) uint8 RGB.
            tracked: the objects in it.

        Raises:
            UserError: if another run is writing to the folder.
            OSError: if the folder or the video cannot be written.
        """
        if self._table is None:
            self._table = self._begin()
        self._overlay.write(tracked.objects.overlay(frame))
        if tracked.index in self.done:
            return
        table = csv.DictWriter(self._table, _COLUMNS)
        ids = ids_of(tracked.objects)
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
        # Last, since a frame with a PNG counts as done.
        png = encode_image(".png", tracked.id_map(), palette=palette())
        write_file(self._masks / f"{tracked.index:05}.png", png)

    def close(self) -> None:
        """Completes the overlay and the JSON, if any frame was written.

        Raises:
            OSError: if they cannot be written. The masks and the table stay.
        """
        with self._alone:  # which ends here
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

    def _resume(self) -> None:
        for row in self._read_table():
            if row["score"] is not None:  # a line that was cut off lacks columns
                self._rows.setdefault(int(row["frame"]), []).append(row)
        if (self.folder / "tracks.csv").exists():
            self.done = {*self._list_masks()}

    def _list_masks(self) -> dict[int, Path]:
        """The PNGs in the folder by frame number, sorted."""
        paths = self._masks.iterdir() if self._masks.is_dir() else ()
        found = {int(path.stem): path for path in paths if re.fullmatch(r"[0-9]+\.png", path.name)}
        return {index: found[index] for index in sorted(found)}

    def _begin(self) -> io.TextIOWrapper:
        """Claims the folder, and opens the table, which starts with the rows of an earlier run."""
        self._alone.enter_context(alone_in(self.folder))
        claim(self.folder, self._run)
        remove_partials(self.folder)
        self._masks.mkdir(exist_ok=True)
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
        """Everything that was written in YouTube-VIS format: one annotation per object."""
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
    """Reads the object ids, (H, W), in a PNG of :class:`TrackWriter`."""
    with open_image(path, str(path)) as png:
        return np.asarray(png)


def _encode_ids(ids: NDArray[np.uint8]) -> dict[int, tuple[dict[str, Any], list[int], int]]:
    """Returns COCO RLE, XYWH and area of each object in a map of ids, (H, W).

    One pass finds the runs of all objects, since there may be many.
    """
    pixels = ids.ravel(order="F")  # COCO's order: column by column
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] ^ 1))
    lengths = np.diff(starts, append=pixels.size)
    owners = pixels[starts]
    found = {}
    for number in np.unique(owners[owners > 0]).tolist():
        own = owners == number
        firsts, ends = starts[own], starts[own] + lengths[own]
        gaps = firsts - np.concatenate([[0], ends[:-1]])
        # Lengths of runs outside and inside, alternating; the first is outside, even if it is 0.
        counts = np.stack([gaps, lengths[own]], axis=1).ravel().tolist()
        if ends[-1] < pixels.size:
            counts.append(int(pixels.size - ends[-1]))
        rle = pycocotools.mask.frPyObjects({"size": [*ids.shape], "counts": counts}, *ids.shape)
        box = pycocotools.mask.toBbox(rle).astype(int).tolist()
        segmentation = {"size": [*ids.shape], "counts": rle["counts"].decode("ascii")}
        found[number] = segmentation, box, int(lengths[own].sum())
    return found


def ids_of(objects: Instances) -> list[int]:
    """Returns the ids of tracked objects; UserError if they have none."""
    if objects.tracker_id is None:
        raise UserError("the objects have no tracker_id: they do not come from a tracker")
    ids: list[int] = objects.tracker_id.tolist()
    return ids
