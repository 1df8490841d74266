"""Comparing the records of two mask generators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from numpy.typing import NDArray
from segment_anything.utils.amg import rle_to_mask


def as_mask(segmentation: Any) -> NDArray[np.bool_]:
    if isinstance(segmentation, np.ndarray):
        return segmentation
    if isinstance(segmentation["counts"], list):
        mask: NDArray[np.bool_] = rle_to_mask(segmentation)
        return mask
    decoded: NDArray[np.bool_] = pycocotools.mask.decode(segmentation).astype(bool)
    return decoded


def assert_same_records(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    """Same count, order, keys and types; scores within 1e-3, masks equal but for rounding.

    That is 1 pixel, or 0.1 % of those of either: another number of threads rounds otherwise.
    """
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert list(ours) == list(theirs)
        assert ours["point_coords"] == theirs["point_coords"]
        assert ours["crop_box"] == theirs["crop_box"]
        for score in ("predicted_iou", "stability_score"):
            assert type(ours[score]) is float
            assert ours[score] == pytest.approx(theirs[score], abs=1e-3)
        assert type(ours["segmentation"]) is type(theirs["segmentation"])
        mine, other = as_mask(ours["segmentation"]), as_mask(theirs["segmentation"])
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert (mine ^ other).sum() <= max(1, 0.001 * (mine | other).sum())
        assert ours["area"] == mine.sum() and type(ours["area"]) is type(theirs["area"])
        x, y, width, height = ours["bbox"]
        assert [type(number) for number in ours["bbox"]] == [int] * 4
        rows, columns = np.nonzero(mine)
        if len(rows):
            corners = [columns.min(), rows.min(), columns.max(), rows.max()]
            assert corners == [x, y, x + width, y + height]
