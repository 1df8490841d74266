"""Prompts for a true mask, and measures of a predicted one: functions of masks alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAIR_DISTANCES = {f"pair_{distance}": distance for distance in (100, 200, 300, 400, 500)}
"""In pixels of the image, of the pairs of points in the paper's Table 7."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's, over which recall is averaged."""


@dataclass(frozen=True)
class Prompt:
    """A prompt in pixels of the image: points, or a box.

    Attributes:
        points: (P, 2), XY.
        labels: (P,), 1 for the object, 0 for the background, -1 for no point.
        box: (4,), XYXY.
    """

    points: NDArray[np.int64]
    labels: NDArray[np.int64]
    box: NDArray[np.int64] | None = None


def make_prompt(kind: str, mask: NDArray[np.bool_], seed: Sequence[int]) -> Prompt | None:
    """The prompt for a mask, the same for the same seed whatever else is measured.

    Args:
        kind: ``"click"``, ``"box"`` or ``"pair_100"`` to ``"pair_500"``.
        mask: (H, W), not empty.
        seed: numbers that tell this mask from others.

    Returns:
        The prompt, or None if there is no background point at that distance.
    """
    if kind == "box":
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box = np.array([x, y, x + width - 1, y + height - 1])
        return Prompt(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), box)
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(np.random.default_rng(seed).choice(pixels)), mask.shape[1])
    click = Prompt(np.array([[x, y]]), np.array([1]))
    if kind == "click":
        return click
    background = find_background((x, y), mask, PAIR_DISTANCES[kind])
    if len(background) == 0:
        return None
    return add_click(
        click, np.random.default_rng((*seed, PAIR_DISTANCES[kind])).choice(background), 0
    )


def find_background(
    point: tuple[int, int], mask: NDArray[np.bool_], distance: int
) -> NDArray[np.int64]:
    """The pixels on a circle around a point that lie in the image and outside of a mask.

    Args:
        point: XY.
        mask: (H, W).
        distance: the circle's radius in pixels; a pixel's centre is within 0.71 pixels of it.

    Returns:
        (N, 2), XY, each once.
    """
    angles = np.linspace(0, 2 * np.pi, 8 * distance, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * distance
    pixels = np.unique(np.rint(circle + point).astype(np.int64), axis=0)
    height, width = mask.shape
    x, y = pixels.T
    pixels = pixels[(x >= 0) & (x < width) & (y >= 0) & (y < height)]
    background: NDArray[np.int64] = pixels[~mask[pixels[:, 1], pixels[:, 0]]]
    return background


def corrective_click(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], int]:
    """The next click of someone who corrects a mask, as interactive segmentation simulates it.

    It is in the largest connected region that is missing or too much, at the pixel farthest from
    the region's border, which the image's border is part of.

    Args:
        predicted: (H, W).
        truth: (H, W).

    Returns:
        The click (2,), XY, and its label: 1 where the region is missing, 0 where it is too much,
        -1, for no point, where the masks are equal.
    """
    largest, click, label = 0, np.zeros(2, np.int64), -1
    for value, wrong in ((1, truth & ~predicted), (0, predicted & ~truth)):
        _, regions, sizes, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
        region = 1 + int(np.argmax(sizes[1:, cv2.CC_STAT_AREA])) if len(sizes) > 1 else 0
        if region == 0 or sizes[region, cv2.CC_STAT_AREA] <= largest:
            continue
        x, y, width, height, largest = sizes[region].tolist()
        inside = regions[y : y + height, x : x + width] == region
        depth = cv2.distanceTransform(
            np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )[1:-1, 1:-1]
        row, column = divmod(int(depth.argmax()), width)
        click, label = np.array([x + column, y + row]), value
    return click, label


def add_click(prompt: Prompt, point: NDArray[np.int64], label: int) -> Prompt:
    """The prompt with one more point, XY."""
    return Prompt(np.vstack([prompt.points, point]), np.append(prompt.labels, label))


def intersection_over_union(
    masks: NDArray[np.bool_], others: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The IoU of masks (..., H, W) with others; 1 where both are empty."""
    intersection = np.count_nonzero(masks & others, axis=(-2, -1))
    union = np.count_nonzero(masks | others, axis=(-2, -1))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def find_recalled(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """At how many of COCO's ten IoU thresholds each true mask is found, as a fraction.

    The mean over all true masks of a data set is COCO's average recall. As there, a mask counts
    for the best true mask that is left, and masks with a higher score choose first.

    Args:
        ious: (D, G), of D masks, ordered by falling score, with G true ones.

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
    """The 95 % confidence interval of the mean of all values, by the percentile method.

    Images, not masks, are drawn with replacement, since the masks of an image are alike.

    Args:
        values: of each image, any number each.
        seed: of the draws.
        resamples: how many.

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
