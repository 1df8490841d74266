"""Masks as polygons: outlines along the edges of pixels, which restore the mask when filled.

A polygon has no holes, so that those of a mask are filled. Parts that touch at a corner are one
part, as for OpenCV, and its outline then passes that corner twice.
"""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]

_LABELME_VERSION = "5.5.0"  # the first whose shapes have all of the fields written here

# The neighbours of a pixel, XY, in the order in which OpenCV looks for the next one on a contour:
# against the clock on the screen. Even ones share a side with it, odd ones a corner.
_NEIGHBOURS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])


def outer_polygons(mask: BoolArray) -> list[NDArray[np.int64]]:
    """Returns the outlines of the parts of a mask, along the edges of pixels.

    Whatever fills a polygon by the centres of pixels gets the mask again, its holes filled;
    ``pycocotools`` does. The areas of the polygons are those of the parts in pixels.

    Args:
        mask: (H, W).

    Returns:
        A polygon a part, (N, 2) XY: whole numbers, from 0 at the left and upper edge of the image
        to its width and height at the others. Against the clock, no corner on a straight line, the
        last not joined to the first again. None for an empty mask.
    """
    return [_straighten(_walk(contour, 0.5) + 0.5).astype(int) for contour in _contours(mask)]


def outline(mask: BoolArray) -> NDArray[np.float64]:
    """Returns one polygon around all parts of a mask, as Ultralytics reads it.

    That paints polygons with OpenCV, which takes the pixels that an outline passes for parts of it.
    So it runs through the centres of pixels. A part that has no area then, since it is as thin as
    one pixel, is outlined at half of that width, within the same pixels. Parts are joined by lines
    of no width.

    Args:
        mask: (H, W).

    Returns:
        (N, 2) XY in pixels, 0.5 in the middle of the first; of no point if the mask is empty.
    """
    parts = []
    for contour in _contours(mask):
        points = _straighten(contour.astype(float))
        if len(points) < 3 or _area(points) == 0:
            points = _straighten(_walk(contour, 0.25))
        parts.append(points + 0.5)
    if not parts:
        return np.zeros((0, 2))
    # From the first point of the first part to each of the others, around it, and back.
    start = parts[0][:1]
    around = [np.concatenate([part, part[:1], start]) for part in parts[1:]]
    return np.concatenate([parts[0], *([start] if around else []), *around])


@dataclass
class Losses:
    """Counts what polygons lose of masks, to report it.

    Attributes:
        with_holes: masks with holes, which are filled.
        empty: masks of no pixel, which have no polygon.
    """

    with_holes: int = 0
    empty: int = 0

    def outer_polygons(self, mask: BoolArray) -> list[NDArray[np.int64]]:
        """:func:`outer_polygons`, what is lost in them counted."""
        polygons = outer_polygons(mask)
        self.with_holes += bool(sum(map(_area, polygons)) > np.count_nonzero(mask))
        self.empty += not polygons
        return polygons

    def coco_polygons(self, mask: BoolArray) -> list[list[int]]:
        """Returns the same as COCO's ``segmentation``: x0, y0, x1, y1 and so on per part."""
        return [polygon.ravel().tolist() for polygon in self.outer_polygons(mask)]

    def add(self, others: "Losses") -> None:
        """Adds the counts of other masks."""
        self.with_holes += others.with_holes
        self.empty += others.empty

    def warn(self) -> None:
        """Warns, if anything was lost."""
        losses = []
        if self.with_holes:
            losses.append(f"the holes of {count_masks(self.with_holes)} are filled")
        if self.empty:
            losses.append(f"{count_masks(self.empty)} of no pixel left out")
        if losses:
            warnings.warn(f"polygons are outer outlines: {', '.join(losses)}", stacklevel=3)


def labelme_content(
    masks: Iterable[tuple[str, BoolArray]],
    image_size: tuple[int, int],
    image_path: str,
    losses: Losses,
) -> dict[str, Any]:
    """Returns what labelme opens and edits: one polygon per part of a mask.

    The parts of one mask share a ``group_id``. Holes are lost; masks of no pixel have no shape.

    Args:
        masks: a label and a (H, W) mask each.
        image_size: (height, width).
        image_path: where labelme finds the image: relative to the folder of the json, or absolute.
        losses: counts what is lost.

    Returns:
        What ``json`` can write.
    """
    shapes = []
    for number, (label, mask) in enumerate(masks, 1):
        polygons = losses.outer_polygons(mask)
        shapes += [
            {
                "label": label,
                "points": polygon.tolist(),
                "group_id": number if len(polygons) > 1 else None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for polygon in polygons
        ]
    return {
        "version": _LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image_size[0],
        "imageWidth": image_size[1],
    }


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """Returns the path of a file relative to a folder, with ``/``; absolute on another drive."""
    place = Path(path)
    place = place.parent.resolve() / place.name  # `..` leads out of what a link points to
    try:
        return PurePath(os.path.relpath(place, Path(folder).resolve())).as_posix()
    except ValueError:  # on another drive
        return place.as_posix()


def count_masks(number: int) -> str:
    """Returns "1 mask", "2 masks" and so on."""
    return f"{number} mask{'s'[: number != 1]}"


def _contours(mask: BoolArray) -> list[NDArray[np.int32]]:
    """Returns the pixels, (N, 2) XY, along the outside of each part; holes have none."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return []
    # COCO's masks lie in memory column by column, which OpenCV does not take.
    inside = np.array(mask[y : y + height, x : x + width], dtype=np.uint8, order="C")
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    return [contour.reshape(-1, 2) for contour in contours]


def _walk(contour: NDArray[np.int32], reach: float) -> NDArray[np.float64]:
    """Returns the corners along the outer sides of the pixels of a contour.

    Args:
        contour: (N, 2), each pixel a neighbour of the one before, the first of the last.
        reach: of the corners from the middle of a pixel, along each axis; 0.5 for its edges.

    Returns:
        (M, 2) XY, where the middle of the first pixel is 0.
    """
    if len(contour) == 1:
        return contour + _NEIGHBOURS[[1, 3, 5, 7]] * reach
    ahead = np.roll(contour, -1, axis=0) - contour
    numbers = np.zeros((3, 3), dtype=int)
    numbers[_NEIGHBOURS[:, 1] + 1, _NEIGHBOURS[:, 0] + 1] = range(8)
    leaving = numbers[ahead[:, 1] + 1, ahead[:, 0] + 1]
    # All neighbours between the one that one comes from and the one that one goes to are outside.
    # Of those that share a side, each has its corner before and the one behind passed.
    coming = (np.roll(leaving, 1) + 4) % 8
    turn = (leaving - coming - 1) % 8 + 1
    steps = np.arange(1, 8)
    between = coming[:, None] + steps
    outside = (steps < turn[:, None]) & (between % 2 == 0)
    pixel, step = np.nonzero(outside)
    sides = between[pixel, step]
    corners = np.stack([sides - 1, sides + 1], axis=1) % 8
    return (contour[pixel, None] + _NEIGHBOURS[corners] * reach).reshape(-1, 2)


def _straighten(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a closed polygon without repeated points and points on a straight line."""
    if len(points) > 1:
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, behind = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * behind[:, 1] - before[:, 1] * behind[:, 0]
    back = (before * behind).sum(axis=1) <= 0
    return points[(turns != 0) | back]


def _area(points: NDArray[Any]) -> float:
    x, y = points.T.astype(float)
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
