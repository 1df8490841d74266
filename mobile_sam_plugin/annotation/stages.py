"""The stages of an image: load, segment, write. Engines run them on many images at once.

``load`` and ``write`` are cheap and take one image; ``Segmenter`` has the model and takes a batch.
"""

import errno
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags

from ..engine import Backend, TorchBackend
from ..engine.backends import Predictor
from ..errors import is_out_of_memory
from ..everything import drop_empty
from ..images import open_image, read_image
from ..inputs import resize
from ..polygons import relative_path
from ..records import Record, decode_mask
from . import writers
from .coco import place_boxes
from .items import BoxPrompt, Item
from .options import AnnotationOptions, ImageResult
from .proposals import open_proposals
from .storage import Folder, is_url

MASKS_PER_IMAGE = 1_000_000  # mask id = this times the image id, plus the mask's number
_BOXES_PER_BATCH = 16
_NAME_ERRORS = (FileExistsError, IsADirectoryError, NotADirectoryError)  # of a file, not the disk
_LONGEST_NAME = 255 - len(".json")  # bytes without the suffix, the limit of most file systems


class Stopped(Exception):
    """The run ends before this image is done."""


@dataclass(frozen=True)
class Job:
    """What a run hands to an engine.

    Attributes:
        items: the images that are to be done.
        backend: the model.
        options: of the run.
        categories: id to name, of the run.
        folder: where results are written; nowhere if None.
    """

    items: Iterable[Item]
    backend: Backend
    options: AnnotationOptions
    categories: Mapping[int, str]
    folder: Folder | None


@dataclass
class Loaded:
    """An image between reading and segmenting.

    Attributes:
        item: the image.
        pixels: (H, W, 3) uint8 RGB.
        resized: (h, w, 3) uint8, the same at the size of the model's input.
        prompts: the boxes that can be used.
        boxes: the same boxes, (N, 4) float32 XYXY in pixels.
        skipped_boxes: the other boxes, see :class:`ImageResult`.
        error: why there are no pixels.
    """

    item: Item
    pixels: NDArray[np.uint8] | None = None
    resized: NDArray[np.uint8] | None = None
    prompts: Sequence[BoxPrompt] = ()
    boxes: NDArray[np.float32] | None = None
    skipped_boxes: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def load(item: Item, img_size: int) -> Loaded:
    """Reads and resizes an image; a problem with the image becomes its error.

    Args:
        item: the image.
        img_size: side of the model's input, in pixels.
    """
    if len(os.fsencode(os.path.basename(item.name))) > _LONGEST_NAME:
        return Loaded(item, error=f"{item.path!r}: the name is too long for those of its results")
    try:
        if item.boxes:
            with item.open() as file:
                loaded = Loaded(item, read_image(file, item.path))
                _place_boxes(loaded, file)
        else:
            loaded = Loaded(item, item.load())
        assert loaded.pixels is not None
        loaded.resized = resize(loaded.pixels, img_size)  # refuses images that are too thin
        return loaded
    except (ImportError, OSError, ValueError, TypeError) as error:
        named = item.path in str(error)
        return Loaded(item, error=str(error) if named else f"{item.path!r}: {error}")
    except MemoryError:
        return Loaded(item, error=f"{item.path!r} does not fit into memory")


def _place_boxes(loaded: Loaded, file: BinaryIO) -> None:
    """Converts the boxes of the data set to pixels of the image, whose file is open."""
    item, pixels = loaded.item, loaded.pixels
    assert pixels is not None

    def read_orientation() -> int:
        file.seek(0)
        with open_image(file, item.path) as image:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))

    height, width = pixels.shape[:2]
    loaded.prompts, loaded.boxes, loaded.skipped_boxes = place_boxes(
        item.boxes, item.size, (height, width), read_orientation
    )


class Segmenter:
    """The model with its prompts. Several threads may share one.

    Attributes:
        stop: set it to make calls raise :class:`Stopped`.
    """

    def __init__(
        self, backend: Backend, options: AnnotationOptions, categories: Mapping[int, str]
    ) -> None:
        """Prepares the mask generator or the detector that the mode needs.

        Args:
            backend: the model.
            options: of the run.
            categories: id to name, of the run.

        Raises:
            UserError, TypeError: if the mask generator refuses its options.
            Other errors of :class:`~mobile_sam_plugin.integrations.grounded_sam.GroundedMobileSam`
                and :func:`~.proposals.open_proposals`, if a detector cannot be loaded.
        """
        self.stop = threading.Event()
        self._backend = backend
        self._options = options
        self._categories = categories
        self._lock = threading.Lock()
        if options.mode == "everything":
            self._generator = backend.generator(output_mode="coco_rle", **options.generator_options)
            self._propose = None
            if options.proposals is not None:
                self._propose = open_proposals(options.proposals, backend.device)
        elif options.mode == "text":
            assert isinstance(backend, TorchBackend)
            from mobile_sam_plugin.integrations.detectors import DEFAULT_DETECTOR
            from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam

            self._grounded = GroundedMobileSam(backend.model, options.detector or DEFAULT_DETECTOR)

    def __call__(self, batch: Sequence[Loaded]) -> list[tuple[Loaded, ImageResult]]:
        """Segments images, encoded together; a problem with an image becomes its error.

        Raises:
            Stopped: if ``stop`` has been set.
        """
        images = [loaded for loaded in batch if loaded.resized is not None]
        predictors: Sequence[Predictor] = ()
        if images:
            predictors = self._backend.encode_resized(
                [image.resized for image in images if image.resized is not None],
                [image.pixels.shape[:2] for image in images if image.pixels is not None],
            )
        encoded = iter(predictors)
        return [
            (loaded, self._segment(loaded, None if loaded.resized is None else next(encoded)))
            for loaded in batch
        ]

    def _segment(self, loaded: Loaded, predictor: Predictor | None) -> ImageResult:
        item = loaded.item
        result = ImageResult(
            item.key,
            item.image_id,
            error=loaded.error,
            skipped_boxes=loaded.skipped_boxes,
            categories=self._categories,
        )
        if loaded.pixels is None or predictor is None:
            return result
        self._check_stop()
        result.height, result.width = loaded.pixels.shape[:2]
        try:
            if self._options.mode == "everything":
                proposals = self._find_proposals(loaded.pixels, item.path)
                records = drop_empty(
                    self._generator.generate(loaded.pixels, self._check_stop, predictor, proposals)
                )
            elif self._options.mode == "boxes":
                records = self._segment_prompts(loaded, predictor)
            else:
                records = self._segment_text(loaded.pixels, predictor, result)
        except (ValueError, TypeError) as error:
            result.error = f"{item.path!r}: {error}"
            return result
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            result.error = f"{item.path!r}: its masks do not fit into memory"
            return result
        for number, record in enumerate(records, 1):
            record.setdefault("id", item.image_id * MASKS_PER_IMAGE + number)
            if math.isnan(record["stability_score"]):  # of an empty mask
                record["stability_score"] = 0.0
        result.records = records
        return result

    def _find_proposals(self, pixels: NDArray[np.uint8], path: str) -> ArrayLike | None:
        if self._propose is None:
            return None
        with self._lock:  # detectors need not be thread-safe
            return self._propose(pixels, path)

    def _check_stop(self, *_: int) -> None:
        if self.stop.is_set():
            raise Stopped

    def _segment_prompts(self, loaded: Loaded, predictor: Predictor) -> list[Record]:
        if loaded.boxes is None:
            return []
        records = self._segment_boxes(loaded.boxes, predictor)
        for record, prompt in zip(records, loaded.prompts, strict=True):
            if prompt.number is not None:
                record["id"] = prompt.number
            record["category_id"] = prompt.category_id
            record["category"] = self._categories[prompt.category_id]
        return records

    def _segment_text(
        self, pixels: NDArray[np.uint8], predictor: Predictor, result: ImageResult
    ) -> list[Record]:
        options = self._options
        with self._lock:  # tokenizers are not thread-safe
            found = self._grounded.detect(
                pixels,
                options.text,
                options.box_threshold,
                options.text_threshold,
                options.nms_thresh,
            )
        assert found.class_ids is not None
        named = found.class_ids >= 0
        result.unnamed = int(np.count_nonzero(~named))
        records = self._segment_boxes(found.boxes[named], predictor)
        class_ids, scores = found.class_ids[named], found.scores[named]
        for record, class_id, score in zip(records, class_ids, scores, strict=True):
            record["category_id"] = 1 + int(class_id)
            record["category"] = options.text[class_id]
            record["score"] = float(score)
        return records

    def _segment_boxes(self, boxes: NDArray[np.float32], predictor: Predictor) -> list[Record]:
        """Returns a record per box, (N, 4) XYXY in pixels."""
        backend, prompts = self._backend, boxes.astype(float)
        height, width = predictor.original_size
        records: list[Record] = []
        for start in range(0, len(boxes), _BOXES_PER_BATCH):
            self._check_stop()
            some = prompts[start : start + _BOXES_PER_BATCH]
            logits, scores = backend.decode(predictor, None, None, some, None, multimask=False)
            for score, low_res in zip(scores[:, 0].tolist(), logits[:, 0], strict=True):
                mask = predictor.upscaler.extract_mask(low_res, backend.mask_threshold)
                assert mask is not None
                x0, y0, x1, y1 = mask.box
                records.append(
                    {
                        "segmentation": mask.to_coco_rle([0, 0, width, height], (height, width)),
                        "area": mask.area,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "predicted_iou": score,
                        "point_coords": [],
                        "stability_score": mask.stability_score,
                        "crop_box": [0, 0, width, height],
                    }
                )
        return records


def write(
    loaded: Loaded, result: ImageResult, folder: Folder | None, options: AnnotationOptions
) -> ImageResult:
    """Writes the files of an image; the record, which marks it as done, comes last.

    If a requested format cannot hold the result, that becomes the image's error.

    Raises:
        OSError: if the disk is full or the folder is not writable.
    """
    if folder is None or result.error is not None or loaded.pixels is None:
        return result
    try:
        _write(loaded.item, loaded.pixels, result, folder, options)
    except (MemoryError, ValueError, *_NAME_ERRORS) as error:
        result.error = f"{loaded.item.path!r}: {error}"
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        result.error = f"{loaded.item.path!r}: {error}"
    return result


def _write(
    item: Item,
    pixels: NDArray[np.uint8],
    result: ImageResult,
    folder: Folder,
    options: AnnotationOptions,
) -> None:
    if "ids" in options.formats:
        folder.write(f"ids/{item.name}.png", writers.encode_ids(result))
    if "yolo" in options.formats:
        folder.write(f"labels/{item.name}.txt", writers.encode_yolo(result))
    if "labelme" in options.formats:
        content = writers.encode_labelme(result, _image_path(item, folder))
        folder.write(f"labelme/{item.name}.json", content)
    if not {"yolo", "labelme"}.isdisjoint(options.formats):
        for record in result.records:
            result.losses.outer_polygons(decode_mask(record))
    if "overlay" in options.formats and item.index % options.overlay_every == 0:
        overlay = f"overlays/{item.name}{writers.overlay_suffix(result)}"
        folder.write(overlay, writers.encode_overlay(pixels, result))
    folder.write(writers.record_file(item.name), writers.encode_record(result))


def _image_path(item: Item, folder: Folder) -> str:
    """Returns the image's path for labelme: relative to its JSON if both are on this machine."""
    if folder.local is None or is_url(item.path):
        return item.path
    return relative_path(item.path, (folder.local / "labelme" / item.name).parent)
