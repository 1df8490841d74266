"""The parts of objects in synthetic scenes, and the parts that decorate an outline.

An object is a tree of parts, so that a point may mean the whole or a part of it. Functions that
make parts take the scene's materials, which hold its random generator, and a diameter in picture
units, which textures are scaled by.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from . import shapes
from .shapes import Outline, placement
from .textures import Color, Materials, Texture

SMALL = 0.12
"""In picture units: smaller things have no decoration."""


@dataclass(frozen=True)
class Part:
    """An object, a part of one, or a group of objects.

    Attributes:
        outline: of its own surface; empty for a group, which only has parts.
        texture: of the surface.
        parts: in the order in which they are painted, over the surface.
        attached: whether it may reach beyond the outline of the whole that it is a part of.
        annotated: whether it has a mask of its own, which includes its parts.
        roundness: 0 if it is shaded as flat, 1 if as round.
        border: colour of a line around it, or None.
    """

    outline: Outline
    texture: Texture | None = None
    parts: tuple["Part", ...] = ()
    attached: bool = False
    annotated: bool = True
    roundness: float = 0.0
    border: Color | None = None

    def moved(self, matrix: NDArray[np.float64]) -> "Part":
        """Returns the same with its outlines transformed by a (2, 3) matrix."""
        outline = shapes.transform(self.outline, matrix)
        return self._changed(outline, self.texture, [part.moved(matrix) for part in self.parts])

    def varied(self, rng: np.random.Generator, amount: float) -> "Part":
        """Returns another of its kind: colours shifted, patterns from elsewhere."""
        texture = self.texture and self.texture.varied(rng, amount)
        return self._changed(
            self.outline, texture, [part.varied(rng, amount) for part in self.parts]
        )

    def _changed(self, outline: Outline, texture: Texture | None, parts: "list[Part]") -> "Part":
        """Does what dataclasses.replace does, in a third of the time."""
        return Part(
            outline,
            texture,
            tuple(parts),
            self.attached,
            self.annotated,
            self.roundness,
            self.border,
        )

    def outlines(self) -> list[Outline]:
        """Returns the outlines that together make its silhouette."""
        own = [self.outline] if self.outline else []
        return own + [
            outline
            for part in self.parts
            if part.attached or not self.outline
            for outline in part.outlines()
        ]

    def bounds(self) -> tuple[float, float, float, float]:
        """Returns the silhouette's box, XYXY."""
        return shapes.bounds([contour for outline in self.outlines() for contour in outline])


def decorate(materials: Materials, part: Part, size: float, depth: int) -> Part:
    """Adds parts inside an outline: patches, bands, a cut, an inset, a grid, letters or spots."""
    rng = materials.rng
    if not part.outline or depth <= 0 or size < SMALL:
        return part
    kinds: list[Callable[..., list[Part]]] = [_patches, _bands, _cut, inset, grid, word, _spots]
    chances = np.array([3.0, 2.0, 1.0, 2.0, 0.8, 0.6, 1.0])
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    added = []
    for child in kind(materials, part.outline, size):
        if child.outline and rng.random() < 0.35:
            x0, y0, x1, y1 = child.bounds()
            smaller = size * max(x1 - x0, y1 - y0) / 2
            child = decorate(materials, child, smaller, depth - 1)
        added.append(child)
    return replace(part, parts=(*part.parts, *added))


def surface(
    materials: Materials,
    outline: Outline,
    size: float,
    parts: tuple[Part, ...] = (),
    attached: bool = False,
    texture: Texture | None = None,
) -> Part:
    """Makes a part with a texture, at random with roundness and a border."""
    rng = materials.rng
    return Part(
        outline,
        texture or materials.texture(size),
        parts,
        attached,
        roundness=materials.roundness * rng.uniform(0, 1.4),
        border=materials.color() * 0.4 if rng.random() < materials.border_share else None,
    )


def _inside(rng: np.random.Generator, outline: Outline) -> tuple[float, float]:
    """Returns a random point inside an outline, or the middle of its box if none is found."""
    x0, y0, x1, y1 = shapes.bounds(outline)
    contour = outline[0].astype(np.float32)
    for _ in range(12):
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if cv2.pointPolygonTest(contour, (x, y), False) > 0:
            return x, y
    return (x0 + x1) / 2, (y0 + y1) / 2


# Parts within an outline


def _patches(materials: Materials, outline: Outline, size: float) -> list[Part]:
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    radius = max(x1 - x0, y1 - y0) / 2
    parts = []
    for _ in range(rng.integers(1, 5)):
        scale = radius * shapes.log_uniform(rng, 0.12, 0.65)
        matrix = placement(_inside(rng, outline), scale, rng.uniform(0, 2 * np.pi))
        shape = shapes.transform(shapes.silhouette(rng), matrix)
        parts.append(surface(materials, shape, size * scale / radius))
    return parts


def _spots(materials: Materials, outline: Outline, size: float) -> list[Part]:
    """Makes several parts of one kind: buttons, eyes, holes, wheels."""
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    radius = max(x1 - x0, y1 - y0) / 2
    scale = radius * rng.uniform(0.08, 0.25)
    shape = shapes.silhouette(rng)
    texture = materials.texture(size * scale / radius)
    prototype = decorate(
        materials,
        surface(materials, shape, size * scale / radius, texture=texture),
        size * scale / radius,
        depth=1,
    )
    count = int(rng.integers(2, 8))
    if rng.random() < 0.5:
        points = [_inside(rng, outline) for _ in range(count)]
    else:
        start, end = np.array(_inside(rng, outline)), np.array(_inside(rng, outline))
        points = [tuple(start + (end - start) * t) for t in np.linspace(0, 1, count)]
    return [prototype.moved(placement((x, y), scale)) for x, y in points]


def _bands(materials: Materials, outline: Outline, size: float) -> list[Part]:
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    reach = max(x1 - x0, y1 - y0)
    angle = rng.choice((0.0, 0.0, np.pi / 2, rng.uniform(0, np.pi)))
    parts = []
    for _ in range(rng.integers(1, 4)):
        thickness = reach * rng.uniform(0.06, 0.3)
        wavy = shapes.stroke(rng, width=0.5 * thickness / reach)
        straight = shapes.rectangle(2.4, 0.5 * thickness / reach)
        shape = wavy if rng.random() < 0.25 else straight
        matrix = placement(_inside(rng, outline), 2 * reach, angle)
        parts.append(surface(materials, shapes.transform(shape, matrix), size))
    return parts


def _cut(materials: Materials, outline: Outline, size: float) -> list[Part]:
    """Makes one side of a line across: a roof, a cap, a half."""
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    angle = rng.choice((0.0, np.pi, rng.uniform(0, 2 * np.pi)))
    side = shapes.half_plane(*_inside(rng, outline), angle, 2 * max(x1 - x0, y1 - y0))
    return [surface(materials, side, size)]


def inset(materials: Materials, outline: Outline, size: float) -> list[Part]:
    """Makes a smaller copy of the shape: the inside of a frame, a plate or a tyre."""
    rng = materials.rng
    factor = rng.uniform(0.45, 0.9)
    x0, y0, x1, y1 = shapes.bounds(outline)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    smaller = shapes.transform(outline[:1], placement((x * (1 - factor), y * (1 - factor)), factor))
    inner = surface(materials, smaller, size * factor)
    return [decorate(materials, inner, size * factor, depth=1)]


def grid(materials: Materials, outline: Outline, size: float) -> list[Part]:
    """Makes rows and columns of one shape: windows, keys, drawers."""
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    columns, rows = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    if columns * rows == 1:
        columns = 2
    inset = rng.uniform(0.03, 0.2)
    width, height = (x1 - x0) * (1 - 2 * inset), (y1 - y0) * (1 - 2 * inset)
    fill = rng.uniform(0.5, 0.92)
    cell = np.array((width / columns, height / rows))
    shape = shapes.rectangle(*(cell * fill))
    if rng.random() < 0.3:
        circle = shapes.ellipse(rng, aspect=1.0)[0]
        shape = [circle * cell * fill / 2]
    extent = size * cell.max() * fill / max(x1 - x0, y1 - y0)
    prototype = decorate(
        materials, surface(materials, shape, extent), extent, depth=int(rng.random() < 0.5)
    )
    variety = rng.choice((0.02, 0.3))
    return [
        prototype.moved(
            placement(
                (
                    x0 + inset * (x1 - x0) + (column + 0.5) * cell[0],
                    y0 + inset * (y1 - y0) + (row + 0.5) * cell[1],
                ),
                1.0,
            )
        ).varied(rng, variety)
        for row in range(rows)
        for column in range(columns)
    ]


def word(materials: Materials, outline: Outline, size: float) -> list[Part]:
    """Makes a word inside an outline."""
    rng = materials.rng
    x0, y0, x1, y1 = shapes.bounds(outline)
    count = int(rng.integers(1, 6))
    width = (x1 - x0) * rng.uniform(0.5, 0.95)
    scale = min(width / count / 2.0, (y1 - y0) * 0.35)
    made = letters(materials, count, size * scale / max(x1 - x0, y1 - y0) * 2)
    return [made.moved(placement(_inside(rng, outline), scale))]


def letters(materials: Materials, count: int, extent: float) -> Part:
    """Makes a row of random letters, each with a mask."""
    rng = materials.rng
    texture = materials.flat() if rng.random() < 0.7 else materials.texture(extent)
    spacing = rng.uniform(1.5, 2.0)
    row = tuple(
        Part(
            shapes.transform(
                shapes.letter(rng), placement(((index - (count - 1) / 2) * spacing, 0), 0.9)
            ),
            texture,
            attached=True,
        )
        for index in range(count)
    )
    return Part([], parts=row)
