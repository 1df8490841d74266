"""Prompts for a true mask, which depend on nothing but the mask and a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAIR_DISTANCES = {f"pair_{distance}": distance for distance in (100, 200, 300, 400, 500)}
"""Between the two points of the pairs in the paper's Table 7, in pixels of the image."""


@dataclass(frozen=True)
class Prompt:
    """A prompt in pixels of the image: points, or a box.

    Attributes:
        point_coords: (P, 2), XY.
        point_labels: (P,), 1 for the object, 0 for the background, -1 for no point.
        box: (4,), XYXY, the first and last columns and rows.
    """

    point_coords: NDArray[np.int64]
    point_labels: NDArray[np.int64]
    box: NDArray[np.int64] | None = None


def make_prompt(kind: str, mask: NDArray[np.bool_], seed: Sequence[int]) -> Prompt | None:
    """Makes a prompt for a mask: the same one for the same seed, whatever else is measured.

    Args:
        kind: ``"click"``, ``"box"`` or ``"pair_100"`` to ``"pair_500"``.
        mask: (H, W) bool, not empty.
        seed: numbers that identify this mask.

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
    """Returns the pixels on a circle around a point that are in the image and outside of a mask.

    Args:
        point: XY.
        mask: (H, W) bool.
        distance: radius of the circle in pixels; the pixels' centres are within 0.71 pixels of it.

    Returns:
        (N, 2), XY, without duplicates.
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
    """Returns the next click that corrects a mask, as interactive segmentation simulates it.

    It is in the largest connected region of errors of one kind, missing or excess, at the pixel
    that is farthest from the border of that region or of the image.

    Args:
        predicted: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        The point (2,), XY, and its label: 1 if the region is missing, 0 if it is excess, and -1,
        which stands for no point, if the masks are equal.
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
    """Returns the prompt with one more point, XY."""
    return Prompt(np.vstack([prompt.point_coords, point]), np.append(prompt.point_labels, label))
