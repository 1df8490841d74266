"""COCO's mask AP with the boxes of a detector as prompts, as papers on small SAMs report it."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from segment_anything.modeling import Sam

from ..datasets.reading import read_pixels
from ..errors import UserError
from ..files import remove_partials, write_file
from ..predictor import SamPredictor
from ..records import encode_mask
from ..runs import alone_in, claim
from .evaluation import fingerprint_of
from .examiner import predict
from .predictors import Predictor, predictor_of
from .prompts import Prompt

MASKS = {"single": False, "best_of_three": True}
"""The two masks that papers take: SAM's single mask for unambiguous prompts, and of its three masks
the one with the highest predicted IoU. Their values are ``multimask_output``."""

_LINES = "boxes.jsonl"
_MALFORMED = (KeyError, OverflowError, TypeError, ValueError)  # JSON of another content
_BOXES_AT_ONCE = 8  # bounds the memory for masks


@dataclass(frozen=True)
class AveragePrecision:
    """What COCO's evaluation gives, each in [0, 1]; -1 if there is no such object.

    Attributes:
        all: mean over the IoU thresholds 0.5 to 0.95.
        at_50, at_75: at these thresholds.
        small, medium, large: ``all``, of objects of up to 32^2 pixels, of up to 96^2, and of more.
    """

    all: float
    at_50: float
    at_75: float
    small: float
    medium: float
    large: float


class BoxPrompts:
    """A COCO data set, and the boxes that a detector found in it."""

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        detections: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Reads both files.

        Args:
            annotations: COCO's ``instances_*.json``.
            detections: COCO's results: a list of ``image_id``, ``category_id``, ``bbox`` (XYWH in
                pixels) and ``score``.
            images: the folder of the images; that of `annotations` if None.
            limit: only the first images count, this many; all if None.

        Raises:
            FileNotFoundError: if a file is missing.
            UserError: if a file is something else, or has a box in an image that is not in the
                other.
        """
        self._folder = Path(annotations).parent if images is None else Path(images)
        try:
            with _quiet():
                self.coco = COCO(os.fspath(annotations))
            self.image_ids: list[Any] = list(self.coco.imgs)[:limit]
            self.coco.getCatIds()
        except (
            AssertionError,
            AttributeError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise UserError(
                f"--boxes needs COCO's instances JSON as DATA, which {os.fspath(annotations)!r} "
                f"is not: {error!r}"
            ) from error
        self.boxes: dict[Any, list[dict[str, Any]]] = {key: [] for key in self.image_ids}
        where = os.fspath(detections)
        try:
            for found in json.loads(Path(detections).read_bytes()):
                x, y, width, height = map(float, found["bbox"])
                if found["image_id"] not in self.coco.imgs:
                    raise UserError(
                        f"{where!r} has a box in the image {found['image_id']!r}, which "
                        f"{os.fspath(annotations)!r} does not list"
                    )
                if found["image_id"] in self.boxes:
                    self.boxes[found["image_id"]].append(
                        {
                            "image_id": found["image_id"],
                            "category_id": found["category_id"],
                            "bbox": [x, y, width, height],
                            "score": float(found["score"]),
                        }
                    )
        except _MALFORMED as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where!r} is not a list of COCO's results, which have 'image_id', "
                f"'category_id', 'bbox' and 'score': {error!r}"
            ) from error
        if not any(self.boxes.values()):
            raise UserError(f"{where!r} has no box in the first {len(self.image_ids)} images")

    def load_image(self, image_id: Any) -> NDArray[np.uint8]:
        """Returns the pixels of an image, (H, W, 3) RGB, as its annotations have it.

        Raises:
            OSError: if the file cannot be read.
            UserError: if the entry is incomplete, or the image has another size.
        """
        image = self.coco.imgs[image_id]
        try:
            size = int(image["height"]), int(image["width"])
            return read_pixels(self._folder / image["file_name"], size, upright=False)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"the image {image_id!r} of a COCO data set must have 'file_name', 'height' and "
                f"'width': {error!r}"
            ) from error

    def average_precision(self, results: list[dict[str, Any]], kind: str) -> AveragePrecision:
        """Returns pycocotools' figures for results of a kind, ``"bbox"`` or ``"segm"``."""
        with _quiet():
            copies = [dict(each) for each in results]  # to which pycocotools adds more
            evaluation = COCOeval(self.coco, self.coco.loadRes(copies), kind)
            evaluation.params.imgIds = self.image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return AveragePrecision(*map(float, evaluation.stats[:6]))


def evaluate_boxes(
    model: Sam | Predictor,
    prompts: BoxPrompts,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, AveragePrecision]:
    """Segments the boxes of a detector, and evaluates the masks as COCO does.

    Args:
        model: any SAM, or another predictor.
        prompts: the data set and the boxes. A mask has the score of its box.
        folder: if given, the masks of each image are added to ``boxes.jsonl`` in it. Those of an
            interrupted run are taken from there.
        progress: called with the number of images done and of all images.

    Returns:
        The figures of both kinds of :data:`MASKS`.

    Raises:
        UserError: if the folder holds another run; or as :func:`~.examiner.predict`.
        OSError: if an image cannot be read.

    Examples:
        >>> prompts = BoxPrompts("instances_val2017.json", "vitdet.json", "val2017")
        >>> evaluate_boxes(sam, prompts)["single"].all
    """
    journal = None if folder is None else Path(folder) / _LINES
    with contextlib.ExitStack() as stack:
        if journal is not None:
            stack.enter_context(alone_in(journal.parent))
            boxes = json.dumps([prompts.boxes[key] for key in prompts.image_ids]).encode()
            settings = {"model": fingerprint_of(model), "boxes": hashlib.sha256(boxes).hexdigest()}
            claim(journal.parent, settings)
            remove_partials(journal.parent)
        known = {} if journal is None else _read(journal)
        predictor = predictor_of(model)
        masks: dict[str, list[Any]] = {kind: [] for kind in MASKS}
        for done, image_id in enumerate(prompts.image_ids, 1):
            found = prompts.boxes[image_id]
            if found:
                encoded = known.get(json.dumps(image_id))
                if encoded is None:
                    encoded = _segment(predictor, prompts.load_image(image_id), found)
                    if journal is not None:
                        with open(journal, "a") as file:
                            file.write(json.dumps({"image_id": image_id, **encoded}) + "\n")
                for kind in MASKS:
                    masks[kind] += [
                        {
                            "image_id": image_id,
                            "category_id": box["category_id"],
                            "segmentation": mask,
                            "score": box["score"],
                        }
                        for box, mask in zip(found, encoded[kind], strict=True)
                    ]
            if progress is not None:
                progress(done, len(prompts.image_ids))
    return {kind: prompts.average_precision(masks[kind], "segm") for kind in MASKS}


def _segment(
    predictor: SamPredictor | Predictor, image: NDArray[np.uint8], found: list[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Returns the masks of boxes in an image, of both kinds, as COCO's RLE."""
    predictor.set_image(image)
    nothing = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    boxes = [np.array([x, y, x + w, y + h]) for x, y, w, h in (each["bbox"] for each in found)]
    encoded: dict[str, list[Any]] = {kind: [] for kind in MASKS}
    for start in range(0, len(boxes), _BOXES_AT_ONCE):
        few = [Prompt(*nothing, box) for box in boxes[start : start + _BOXES_AT_ONCE]]
        for kind, multimask_output in MASKS.items():
            predicted = predict(predictor, few, multimask_output=multimask_output)
            encoded[kind] += map(encode_mask, predicted.best_masks)
    return encoded


def _read(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Reads the masks of an earlier run, by image; drops a last line that is incomplete."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    write_file(path, b"".join(lines))
    return {json.dumps((entry := json.loads(line))["image_id"]): entry for line in lines}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pycocotools from printing what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def format_boxes(figures: dict[str, AveragePrecision]) -> str:
    """Returns figures by name as Markdown."""
    lines = [
        "| masks | AP | AP50 | AP75 | small | medium | large |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, precision in figures.items():
        values = [
            f"{100 * value:.1f}" if value >= 0 else "" for value in asdict(precision).values()
        ]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)
