"""COCO's JSON: annotations and data sets; and the conventions of boxes, named in one place.

- COCO, here: XYWH, whose width and height count pixels.
- SAM's records (:mod:`.records`): XYWH, whose width and height are the distances of the outermost
  pixels, and so 1 less.
- Prompts and ``Instances``: XYXY, where right and bottom are the edges after the last pixel.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from .polygons import Losses
from .records import Record, Rle, decode_mask, encode_mask

_SCORES = ("predicted_iou", "stability_score", "score")


def coco_annotation(
    mask: Rle | NDArray[np.bool_],
    image_id: int,
    annotation_id: int,
    category_id: int = 1,
    losses: Losses | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """Returns COCO's annotation of a mask.

    Args:
        mask: run lengths, or (H, W) bool.
        image_id, annotation_id, category_id: numbers in the data set.
        losses: if given, the mask becomes polygons, and it counts what is lost in them.
        more: fields to add, or to put in the place of these.

    Returns:
        The annotation; None for a mask without a pixel that is to become polygons.
    """
    rle = encode_mask(mask) if isinstance(mask, np.ndarray) else mask
    segmentation: Any = rle
    if losses is not None:
        segmentation = losses.coco_polygons(decode_mask({"segmentation": mask}))
        if not segmentation:
            return None
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "area": int(pycocotools.mask.area(rle)),
        "bbox": coco_box(rle),
        "iscrowd": 0,
        **more,
    }


def record_annotation(
    record: Record, image_id: int, annotation_id: int, losses: Losses | None = None
) -> dict[str, Any] | None:
    """Returns the annotation of a record with run lengths, and its scores, as above."""
    scores = {name: value for name, value in record.items() if name in _SCORES}
    category_id = record.get("category_id", 1)
    rle = record["segmentation"]
    return coco_annotation(rle, image_id, annotation_id, category_id, losses, **scores)


def coco_box(segmentation: Rle) -> list[float]:
    """Returns the box around a mask as COCO has it."""
    box: list[float] = pycocotools.mask.toBbox(segmentation).tolist()
    return box


def coco_dataset(
    image_size: tuple[int, int],
    file_name: str,
    categories: Mapping[int, str],
    annotations: Iterable[dict[str, Any] | None],
    image_id: int = 1,
) -> dict[str, Any]:
    """Returns a COCO data set of one image, which ``json`` can write.

    Args:
        image_size: (H, W).
        file_name: the image's.
        categories: id to name.
        annotations: of the image; None is left out.
        image_id: the image's number.
    """
    height, width = image_size
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [annotation for annotation in annotations if annotation is not None],
    }


def records_dataset(
    records: Sequence[Record],
    image_size: tuple[int, int],
    file_name: str,
    losses: Losses | None = None,
) -> dict[str, Any]:
    """Returns the data set of the records of one image, all of the category "object"."""
    annotations = (record_annotation(record, 1, n, losses) for n, record in enumerate(records, 1))
    return coco_dataset(image_size, file_name, {1: "object"}, annotations)
