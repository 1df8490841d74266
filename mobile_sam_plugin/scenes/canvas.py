"""The canvas of a synthetic scene: its colours, the light on them, and the owner of each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from . import shapes
from .parts import Part
from .shapes import Outline

_MINIMUM_AREA = 0.0015  # of the picture
_MAXIMUM_AREA = 0.9
_MINIMUM_PIXELS = 12
_MINIMUM_LENGTH = 0.015  # of a painted outline, in picture units
_MINIMUM_VISIBLE = 0.12  # of the area of a thing


class Window(NamedTuple):
    """A rectangle of the picture in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def empty(self) -> bool:
        """Whether it has no pixel."""
        return self.x0 >= self.x1 or self.y0 >= self.y1

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def within(self, other: "Window") -> tuple[slice, slice]:
        """Returns its rows and columns in another window, which contains it."""
        x, y = other[:2]
        return slice(self.y0 - y, self.y1 - y), slice(self.x0 - x, self.x1 - x)

    def intersect(self, other: "Window") -> "Window":
        """Returns the part of the window inside another."""
        return Window(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    def unite(self, other: "Window | None") -> "Window":
        """Returns the smallest window around both."""
        if other is None:
            return self
        return Window(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))


@dataclass
class Thing:
    """An owner of pixels.

    Attributes:
        parent: the index of the thing that it is a part of, or -1.
        annotated: whether it has a mask of its own.
        area: number of its pixels that were painted, visible or not.
        window: where it and its parts were painted.
    """

    parent: int
    annotated: bool
    area: int = 0
    window: Window | None = None


class Canvas:
    """The scene while it is painted. Lengths are in picture units: 1 is sqrt(H * W) pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.unit = float(np.sqrt(height * width))
        self.colors = np.zeros((height, width, 3), np.uint8)
        self.light = np.ones((height, width), np.float32)
        self.owner = np.zeros((height, width), np.uint16)
        self.things: list[Thing] = []
        self.whole = Window(0, 0, width, height)

    def paint(
        self,
        part: Part,
        light_from: tuple[float, float],
        blur: float = 0.0,
        parent: int = -1,
        inside: tuple[Window, NDArray[np.uint8]] | None = None,
    ) -> None:
        """Paints an object or a part of one.

        Args:
            part: with its outlines in picture units.
            light_from: XY, the direction of the light; the longer, the lower the light.
            blur: by which it is out of focus, in picture units.
            parent: the index of the thing that it is a part of.
            inside: the window and the coverage of that thing, which cut it.
        """
        index = parent
        if part.annotated or parent < 0:
            index = len(self.things)
            self.things.append(Thing(parent, part.annotated))
        covered = inside
        if part.outline and part.texture:
            cut = None if part.attached else inside
            coverage = self._cover(part.outline, blur, cut)
            if coverage is None:
                return
            self._paint_surface(part, *coverage, light_from, blur, index, lit=cut is None)
            covered = coverage
        for child in part.parts:
            self.paint(child, light_from, blur, index, covered)

    def cast(self, outlines: Sequence[Outline], blur: float, strength: float) -> None:
        """Casts a shadow: darkens the inside of outlines, with soft edges ``blur`` wide."""
        contours = [contour for outline in outlines for contour in outline]
        window = self._window(contours, 2.5 * blur)
        if window.empty:
            return
        step = max(1.0, blur * self.unit / 2)  # coarse, since it is blurred
        columns = max(1, round((window.x1 - window.x0) / step))
        rows = max(1, round((window.y1 - window.y0) / step))
        scale = np.array((columns / (window.x1 - window.x0), rows / (window.y1 - window.y0)))
        shadow = np.zeros((rows, columns), np.uint8)
        for outline in outlines:
            points = [
                np.round(((c * self.unit - (window.x0, window.y0)) * scale - 0.5) * 16)
                for c in outline
            ]
            cv2.fillPoly(shadow, [p.astype(np.int32) for p in points], 255, cv2.LINE_8, 4)
        sigma = max(blur * self.unit * float(scale.mean()) / 1.5, 0.6)
        shadow = cv2.GaussianBlur(shadow, (0, 0), sigma)
        factor = 1 - shadow.astype(np.float32) * (strength / 255)
        size = (window.x1 - window.x0, window.y1 - window.y0)
        self.light[window.slices] *= cv2.resize(factor, size, interpolation=cv2.INTER_LINEAR)

    def masks(self) -> NDArray[np.bool_]:
        """Returns the masks (N, H, W) of the annotated things that show enough, at least one."""
        count = len(self.things)
        members = np.eye(count, dtype=bool)
        visible = np.bincount(self.owner.ravel(), minlength=count)
        total = np.array([thing.area for thing in self.things])
        for index in reversed(range(count)):  # parts come after what they belong to
            thing = self.things[index]
            if thing.parent < 0:
                continue
            whole = self.things[thing.parent]
            members[thing.parent] |= members[index]
            visible[thing.parent] += visible[index]
            if not whole.area:
                total[thing.parent] += total[index]
            if thing.window is not None:
                whole.window = thing.window.unite(whole.window)
        fewest = max(_MINIMUM_PIXELS, _MINIMUM_AREA * self.owner.size)
        most = _MAXIMUM_AREA * self.owner.size
        kept = []
        for index, thing in enumerate(self.things):
            enough = max(fewest, _MINIMUM_VISIBLE * total[index])
            if thing.parent >= 0 and self.things[thing.parent].annotated:
                # A part that is nearly all of the visible whole stands for the whole.
                most_of_part = 0.93 * visible[thing.parent]
            else:
                most_of_part = most
            if thing.annotated and enough <= visible[index] <= min(most, most_of_part):
                kept.append(index)
        kept = kept or [int(np.argmax(visible))]
        masks = np.zeros((len(kept), *self.owner.shape), dtype=bool)
        for mask, index in zip(masks, kept, strict=True):
            window = self.things[index].window
            assert window is not None  # it is visible
            mask[window.slices] = members[index][self.owner[window.slices]]
        return masks

    def _window(self, contours: Sequence[NDArray[np.float64]], margin: float) -> Window:
        """Returns the box of contours, with a margin in picture units and one of a pixel."""
        bounds = np.array(shapes.bounds(contours)) + (-margin, -margin, margin, margin)
        x0, y0, x1, y1 = (bounds * self.unit).tolist()
        window = Window(floor(x0) - 1, floor(y0) - 1, ceil(x1) + 1, ceil(y1) + 1)
        return window.intersect(self.whole)

    def _cover(
        self, outline: Outline, blur: float, inside: tuple[Window, NDArray[np.uint8]] | None
    ) -> tuple[Window, NDArray[np.uint8]] | None:
        """Returns the coverage, 0 to 255, of the pixels of a window; None for a small outline."""
        sigma = blur * self.unit
        soft = sigma > 0.4
        x0, y0, x1, y1 = shapes.bounds(outline)
        window = self._window(outline, 2 * blur if soft else 0.0)
        if inside is not None:
            window = window.intersect(inside[0])
        if window.empty or max(x1 - x0, y1 - y0) < _MINIMUM_LENGTH:
            return None
        coverage = np.zeros((window.y1 - window.y0, window.x1 - window.x0), np.uint8)
        far = 4.0 * max(self.height, self.width)
        contours = [
            np.round((np.clip(c * self.unit, -far, far) - (window.x0 + 0.5, window.y0 + 0.5)) * 16)
            for c in outline
        ]
        cv2.fillPoly(coverage, [c.astype(np.int32) for c in contours], 255, cv2.LINE_AA, 4)
        if soft:
            coverage = cv2.GaussianBlur(coverage, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        if inside is not None:
            coverage = cv2.min(coverage, np.ascontiguousarray(inside[1][window.within(inside[0])]))
        return window, coverage

    def _paint_surface(
        self,
        part: Part,
        window: Window,
        coverage: NDArray[np.uint8],
        light_from: tuple[float, float],
        blur: float,
        index: int,
        lit: bool,
    ) -> None:
        assert part.texture is not None
        rows, columns = coverage.shape
        surface = part.texture.render(window.x0, window.y0, columns, rows, self.unit)
        if blur * self.unit > 0.7:
            surface = cv2.GaussianBlur(surface, (0, 0), blur * self.unit)
        share = coverage.astype(np.float32)
        share *= 1 / 255
        rest = 1 - share
        below = self.colors[window.slices]
        self.colors[window.slices] = cv2.blendLinear(surface, below, share, rest)
        if part.border is not None:
            self._draw_border(part, window)
        if lit or part.roundness > 0.8:
            shade = _model(coverage, part.roundness, light_from)
            light = self.light[window.slices]
            if lit:
                light *= rest
                light += shade * share
            else:
                light *= 1 + (shade - 1) * share
        owned = coverage > 127
        self.owner[window.slices][owned] = index
        self.things[index].area += int(np.count_nonzero(owned))
        self.things[index].window = window.unite(self.things[index].window)

    def _draw_border(self, part: Part, window: Window) -> None:
        contours = [
            np.round((c * self.unit - (window.x0 + 0.5, window.y0 + 0.5)) * 16).astype(np.int32)
            for c in part.outline
        ]
        region = np.ascontiguousarray(self.colors[window.slices])
        color = [float(c) for c in part.border] if part.border is not None else []
        thickness = max(1, round(0.005 * self.unit))
        cv2.polylines(region, contours, True, color, thickness, cv2.LINE_AA, 4)
        self.colors[window.slices] = region


def _model(
    coverage: NDArray[np.uint8], roundness: float, light_from: tuple[float, float]
) -> NDArray[np.float32]:
    """Returns the light (H, W) on a surface that is lower at its edges; 1 where it is flat."""
    height, width = coverage.shape
    scale = min(1.0, 28 / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(coverage, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    sigma = 0.13 * max(size)
    relief = cv2.GaussianBlur(small, (0, 0), sigma)
    slope_x = cv2.Scharr(relief, cv2.CV_32F, 1, 0)
    slope_y = cv2.Scharr(relief, cv2.CV_32F, 0, 1)
    strength = -roundness * sigma * 2.5 / 32 * 1.2
    shade = 1 + strength * (light_from[0] * slope_x + light_from[1] * slope_y)
    shade = np.clip(shade, 0.3, 1.6)
    return cv2.resize(shade, (width, height), interpolation=cv2.INTER_LINEAR)
