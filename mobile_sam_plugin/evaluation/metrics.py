"""Metrics of predicted masks, and the confidence interval of their means."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds, over which recall is averaged."""


def mask_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the intersection over union of masks (..., H, W) with others; 1 if both are empty."""
    intersection = np.count_nonzero(masks & others, axis=(-2, -1))
    union = np.count_nonzero(masks | others, axis=(-2, -1))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def average_recall(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the fraction of COCO's ten IoU thresholds at which each true mask is found.

    The mean over all true masks of a data set is COCO's average recall. As in COCO, a mask counts
    for the best true mask that is left, and masks with a higher score choose first.

    Args:
        ious: (D, G), of D masks, by descending score, with G true ones.

    Returns:
        (G,), in [0, 1].
    """
    found = np.zeros(ious.shape[1])
    near = ious[(ious >= IOU_THRESHOLDS[0]).any(axis=1)]
    for threshold in IOU_THRESHOLDS:
        left = np.ones(ious.shape[1], dtype=bool)
        for row in near:
            best = int(np.argmax(np.where(left, row, -1)))
            left[best] &= row[best] < threshold
        found += ~left
    return found / len(IOU_THRESHOLDS)


def bootstrap(
    values: Sequence[Sequence[float]], seed: int, resamples: int = 1000
) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean of all values, by the percentile method.

    Images, not masks, are drawn with replacement, because the masks of an image are alike.

    Args:
        values: any number of values per image.
        seed: random seed of the draws.
        resamples: number of draws of all images.

    Returns:
        Low and high; NaN if there is no value.
    """
    sums = np.array([sum(image) for image in values], dtype=np.float64)
    counts = np.array([len(image) for image in values], dtype=np.float64)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(sums) == 0:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = random.integers(len(sums), size=len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
