"""COCO's segmentations, checked: polygons, RLE, and compressed RLE."""

from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ..errors import UserError
from .unreadable import OtherSize


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Returns the compressed RLE of polygons, RLE or compressed RLE, as COCO defines them.

    Args:
        segmentation: of one annotation.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: if `segmentation` is none of these, or of another size.
    """
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, height, width)
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        extent = np.array((width, height), dtype=np.float64)
        for polygon in polygons:
            if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2:
                raise UserError("at least three XY pairs were expected")
            # pycocotools walks along the edges, which takes forever if they lead far away.
            points = polygon.reshape(-1, 2)
            if not ((points >= -extent) & (points <= 2 * extent)).all():
                raise UserError(f"a corner is far outside of the {width} x {height} pixels")
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"a polygon cannot be read: {error}") from error
    pieces = pycocotools.mask.frPyObjects([p.tolist() for p in polygons], height, width)
    merged: dict[str, Any] = pycocotools.mask.merge(pieces)
    return merged


def _encode_rle(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise OtherSize(f"the RLE's size is {size}, but the image's {[height, width]}")
    try:
        if isinstance(counts, str):
            lengths = run_lengths(counts)
        else:
            lengths = np.asarray(counts, dtype=np.int64).reshape(-1)
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"the RLE's counts cannot be read: {error}") from error
    # pycocotools accepts too few, and then leaves the other pixels undefined.
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise UserError(
            f"the RLE's counts cover {lengths.sum()} pixels instead of {height * width}"
        )
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    encoded: dict[str, Any] = pycocotools.mask.frPyObjects(
        {"size": [height, width], "counts": lengths.tolist()}, height, width
    )
    return encoded


def run_lengths(counts: str) -> NDArray[np.int64]:
    """Undoes COCO's compression: 5 bits per character, differences to the last but one length.

    Raises:
        ValueError: if `counts` is something else.
    """
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)
    if not codes.size or (codes < 0).any() or (codes > 63).any() or last[-1:] != codes.size - 1:
        raise UserError(f"{counts[:20]!r} is not compressed RLE")
    first = np.concatenate([[0], last[:-1] + 1])
    digit = np.arange(codes.size) - np.repeat(first, last - first + 1)
    if digit.max() > 8:
        raise UserError(f"{counts[:20]!r} holds a number larger than any image")
    values = np.add.reduceat((codes & 31) << (5 * digit), first)
    negative = (codes[last] & 16) != 0
    lengths = values - (negative.astype(np.int64) << (5 * (last - first + 1)))
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
