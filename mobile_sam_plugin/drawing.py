"""Masks, boxes and prompts drawn over images: one palette, one overlay."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .records import Record, decode_mask

Color = tuple[int, int, int]

_WHITE: Color = (255, 255, 255)
_OBJECT: Color = (0, 170, 60)
_BACKGROUND: Color = (230, 30, 40)
_PROMPT_BOX: Color = (255, 140, 0)
_OPACITY = 0.45


@lru_cache(maxsize=1)
def palette() -> NDArray[np.uint8]:
    """Returns 256 colours, (256, 3) uint8 RGB: black for the background, then those of objects.

    Their hues are a golden angle apart: spread evenly however many there are, neighbours unlike.
    """
    colors = [colorsys.hsv_to_rgb((0.58 + i * 0.618034) % 1, 0.85, 1.0) for i in range(255)]
    made = (np.array([(0, 0, 0), *colors]) * 255).round().astype(np.uint8)
    made.flags.writeable = False  # it is kept
    return made


def colors_of(numbers: ArrayLike) -> NDArray[np.uint8]:
    """Returns the colours, (..., 3) uint8 RGB, of objects by number; 0 is the background.

    After 255 objects the colours repeat.
    """
    given = np.asarray(numbers, dtype=np.int64)
    return palette()[np.where(given > 0, 1 + (given - 1) % 255, 0)]


def draw_overlay(
    image: NDArray[np.uint8],
    masks: Sequence[Record] | Sequence[NDArray[np.bool_]] | NDArray[np.bool_],
    *,
    numbers: Sequence[int] | None = None,
    boxes: ArrayLike = (),
    captions: Sequence[str] = (),
    point_coords: ArrayLike = (),
    point_labels: ArrayLike = (),
    prompt_box: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """Draws objects, and the prompt that they come from, over a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: N masks (H, W) bool, or records, which are decoded one at a time. Large ones are
            drawn first, so that small ones stay visible.
        numbers: of the objects, from 1, which choose the colours; 1 to N if None.
        boxes: (N, 4) XYXY, with a caption each; or none.
        captions: one per box.
        point_coords: (P, 2), XY.
        point_labels: (P,), 1 is drawn as a green disc, 0 as a red cross.
        prompt_box: XYXY.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = image.copy()
    unit = max(*image.shape[:2], 400) / 400  # lines and points grow with the image
    colors = colors_of(range(1, 1 + len(masks)) if numbers is None else numbers).tolist()
    for index in np.argsort([-_area(mask) for mask in masks], kind="stable"):
        each = masks[index]
        mask = each if isinstance(each, np.ndarray) else decode_mask(each)
        _draw_mask(picture, mask, colors[index], unit)
    each_box = np.asarray(boxes, dtype=float).reshape(-1, 4)
    for box, caption, color in zip(each_box, captions, colors, strict=False):
        _draw_box(picture, box, color, unit)
        _draw_caption(picture, box, caption, color, unit)
    if prompt_box is not None:
        corners = np.asarray(prompt_box, dtype=float).reshape(4)
        _draw_box(picture, corners, _WHITE, 2.1 * unit)
        _draw_box(picture, corners, _PROMPT_BOX, unit)
    coords = np.asarray(point_coords, dtype=float).reshape(-1, 2)
    for point, label in zip(coords, np.ravel(point_labels), strict=True):
        _draw_point(picture, point, label, unit)
    return picture


def _area(mask: Record | NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask)) if isinstance(mask, np.ndarray) else mask["area"]


def _draw_mask(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color, unit: float
) -> None:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    region = picture[y : y + height, x : x + width]
    inside = mask[y : y + height, x : x + width]
    region[inside] = (region[inside] * (1 - _OPACITY) + np.array(color) * _OPACITY).round()
    outlines, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y)
    )
    cv2.drawContours(picture, outlines, -1, color, _pixels(0.7 * unit), cv2.LINE_AA)


def _draw_box(
    picture: NDArray[np.uint8], box: NDArray[np.float64], color: Color, unit: float
) -> None:
    corners = _visible(picture, box[:2]), _visible(picture, box[2:])
    cv2.rectangle(picture, *corners, color, _pixels(1.4 * unit), cv2.LINE_AA)


def _draw_caption(
    picture: NDArray[np.uint8], box: NDArray[np.float64], text: str, color: Color, unit: float
) -> None:
    """Writes a text on its colour: above a box, or inside it where there is no room above."""
    height, width = picture.shape[:2]
    font, scale, thickness = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * unit, _pixels(unit)
    (text_width, text_height), descent = cv2.getTextSize(text, font, scale, thickness)
    (x, y), reach = _visible(picture, box[:2]), text_height + descent
    left = int(np.clip(x, 0, max(width - text_width, 0)))
    y = int(np.clip(y, 0, height))
    base = y - descent if y >= reach else y + reach
    top_left, bottom_right = (left, base - text_height - 1), (left + text_width, base + descent)
    cv2.rectangle(picture, top_left, bottom_right, color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else _WHITE
    cv2.putText(picture, text, (left, base), font, scale, ink, thickness, cv2.LINE_AA)


def _draw_point(picture: NDArray[np.uint8], point: ArrayLike, label: Any, unit: float) -> None:
    """A green disc for the object, a red cross for the background, both with a white edge."""
    center = _visible(picture, point)
    if label == 1:
        cv2.circle(picture, center, _pixels(5.5 * unit), _WHITE, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, center, _pixels(3.8 * unit), _OBJECT, cv2.FILLED, cv2.LINE_AA)
        return
    for color, size, width in ((_WHITE, 11, 5), (_BACKGROUND, 9, 2)):
        shape, side = cv2.MARKER_TILTED_CROSS, _pixels(size * unit)
        cv2.drawMarker(picture, center, color, shape, side, _pixels(width * unit), cv2.LINE_AA)


def _pixels(length: float) -> int:
    return max(1, round(length))


def _visible(picture: NDArray[np.uint8], point: ArrayLike) -> tuple[int, int]:
    """Whole pixels; what lies far outside of the picture stays outside, but in OpenCV's range."""
    height, width = picture.shape[:2]
    x, y = np.clip(np.asarray(point, dtype=float), (-width, -height), (2 * width, 2 * height))
    return round(x), round(y)
