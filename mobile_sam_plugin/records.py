"""Records: a mask and what is known of it, as upstream's ``SamAutomaticMaskGenerator`` has them."""

from collections.abc import Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import ArrayLike, NDArray
from typing_extensions import NotRequired


class Rle(TypedDict):
    """A mask as COCO's run lengths, column by column, which ``pycocotools`` reads."""

    size: list[int]
    """(H, W)."""
    counts: str


class Record(TypedDict):
    """What ``SamAutomaticMaskGenerator`` tells of a mask, and ``scripts/amg.py`` writes."""

    segmentation: Any
    """:class:`Rle`; (H, W) bool in output mode ``binary_mask``."""
    area: int
    """Pixels."""
    bbox: Sequence[float]
    """XYWH as SAM has it: distances of the outermost pixels, 1 less than COCO's sides."""
    predicted_iou: float
    point_coords: list[list[float]]
    """(N, 2), XY in pixels of the image."""
    stability_score: float
    crop_box: list[int]
    """XYWH of the crop that the mask was found in."""
    id: NotRequired[int]
    """Of the mask, in a data set."""
    category_id: NotRequired[int]
    category: NotRequired[str]
    score: NotRequired[float]
    """The detector's."""


def make_record(
    logits: NDArray[np.float32],
    predicted_iou: float,
    point_coords: ArrayLike = (),
    mask_threshold: float = 0.0,
    stability_score_offset: float = 1.0,
) -> Record:
    """Returns the record of a mask that ``SamPredictor.predict`` returned.

    Args:
        logits: (H, W), as ``return_logits=True`` gives them.
        predicted_iou: the mask's score.
        point_coords: (N, 2), the points that it comes from.
        mask_threshold: pixels with logits above it belong to the mask.
        stability_score_offset: as in upstream's generator.
    """
    mask = logits > mask_threshold
    height, width = mask.shape
    x, y, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
    surely = np.count_nonzero(logits > mask_threshold + stability_score_offset)
    perhaps = np.count_nonzero(logits > mask_threshold - stability_score_offset)
    return {
        "segmentation": encode_mask(mask),
        "area": int(np.count_nonzero(mask)),
        "bbox": [x, y, max(box_width - 1, 0), max(box_height - 1, 0)],
        "predicted_iou": float(predicted_iou),
        "point_coords": np.asarray(point_coords, dtype=float).reshape(-1, 2).tolist(),
        "stability_score": surely / perhaps if perhaps else 0.0,
        "crop_box": [0, 0, width, height],
    }


def encode_mask(mask: NDArray[np.bool_]) -> Rle:
    """Returns a (H, W) mask as COCO's run lengths, which ``json`` can write."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(record: Any) -> NDArray[np.bool_]:
    """Returns the mask, (H, W) bool, of a record or of an annotation.

    Args:
        record: whose ``segmentation`` holds run lengths, compressed as in :class:`Rle`, or an
            array (H, W).
    """
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(bool)
    return np.asarray(pycocotools.mask.decode(segmentation), dtype=bool)


def decode_masks(records: Sequence[Any], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns the masks of N records of an image of (H, W) pixels: (N, H, W) bool."""
    masks = np.zeros((len(records), *image_size), dtype=bool)
    for mask, record in zip(masks, records, strict=True):
        mask[:] = decode_mask(record)
    return masks
