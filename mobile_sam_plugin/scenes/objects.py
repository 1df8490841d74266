"""The objects of synthetic scenes: vehicles, vessels, buildings, furniture, signs and others.

Every maker, here and in :mod:`~.living`, takes the scene's materials and the object's diameter in
picture units, and returns the object around the origin, with a radius of about 1.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from . import shapes
from .living import creature, figure, plant, tree
from .parts import SMALL, Part, decorate, grid, inset, letters, surface, word
from .shapes import placement
from .textures import Materials


def make_object(materials: Materials, size: float) -> Part:
    """Makes any object."""
    rng = materials.rng
    if size < SMALL:
        made = _SINGLES[rng.integers(len(_SINGLES))](materials, size)
    else:
        made = _MAKERS[rng.choice(len(_MAKERS), p=_SHARES)](materials, size)
    x0, y0, x1, y1 = made.bounds()
    scale = 2 / max(np.hypot(x1 - x0, y1 - y0), 1e-6) * 1.2
    return made.moved(placement((-scale * (x0 + x1) / 2, -scale * (y0 + y1) / 2), scale))


def _simple(materials: Materials, size: float) -> Part:
    """Makes a shape, plain or decorated."""
    rng = materials.rng
    shape = shapes.transform(
        shapes.silhouette(rng),
        placement((0, 0), 1, rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.4), rng.normal(0, 0.2)),
    )
    part = surface(materials, shape, size)
    return decorate(materials, part, size, depth=2) if rng.random() < 0.6 else part


def _lathed(materials: Materials, size: float) -> Part:
    """Makes a vase, a bottle, a lamp: bands across, perhaps a handle behind."""
    rng = materials.rng
    body = surface(materials, shapes.profile(rng), size)
    if rng.random() < 0.8:
        bands = []
        for _ in range(rng.integers(1, 4)):
            top = rng.uniform(-1, 0.9)
            strip = shapes.transform(
                shapes.rectangle(2.2, rng.uniform(0.08, 0.6)), placement((0, top), 1)
            )
            band = surface(materials, strip, size)
            bands.append(decorate(materials, band, size / 2, int(rng.random() < 0.25)))
        body = replace(body, parts=tuple(bands))
    if rng.random() < 0.3:
        handle = shapes.transform(
            shapes.ring(rng)[:1] + [shapes.ring(rng)[0] * 0.7],
            placement((rng.choice((-0.6, 0.6)), rng.uniform(-0.4, 0.3)), 0.4),
        )
        grip = surface(materials, handle, size / 3, attached=True)
        return Part([], parts=(grip, replace(body, attached=True)))
    return body


def _cuboid(materials: Materials, size: float) -> Part:
    """Makes a box that shows three faces: of one material, lit differently, or of three."""
    rng = materials.rng
    right = np.array((rng.uniform(0.3, 0.9), rng.uniform(-0.35, 0.05)))
    left = np.array((-rng.uniform(0.3, 0.9), rng.uniform(-0.35, 0.05)))
    up = np.array((0.0, -rng.uniform(0.3, 1.4)))
    origin = np.zeros(2)
    one = rng.random() < 0.6
    texture = materials.texture(size)
    light = rng.permutation((0.0, -0.35, -0.7))
    faces = []
    for (first, second, start), shade in zip(
        ((right, up, origin), (left, up, origin), (right, left, up)), light, strict=True
    ):
        shape = [np.array([start, start + first, start + first + second, start + second])]
        surface = texture.shaded(1 + shade * 0.8) if one else materials.texture(size)
        face = Part(shape, surface, attached=True)
        if rng.random() < 0.4:
            face = replace(face, parts=(_skewed(materials, start, first, second, size),))
        faces.append(face)
    return Part([], parts=tuple(faces))


def _skewed(
    materials: Materials,
    start: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    size: float,
) -> Part:
    """Makes a label, door or window on the face of a box."""
    rng = materials.rng
    shape = shapes.superellipse(rng) if rng.random() < 0.7 else shapes.silhouette(rng)
    scale = rng.uniform(0.2, 0.8) / 2
    matrix = np.column_stack(
        [first * scale, second * scale, start + first * 0.5 + second * rng.uniform(0.4, 0.6)]
    )
    return surface(materials, shapes.transform(shape, matrix), size * scale)


def _vehicle(materials: Materials, size: float) -> Part:
    """Makes a body on wheels, with windows."""
    rng = materials.rng
    paint = materials.texture(size)
    height = rng.uniform(0.25, 0.5)
    hull = shapes.smooth(
        np.array([(-1, height), (-1, 0), (-0.9, -0.05), (0.95, -0.05), (1, 0.1), (1, height)]), 2
    )
    cabin_left, cabin_right = np.sort(rng.uniform(-0.95, 0.75, 2))
    cabin_right = max(cabin_right, cabin_left + 0.5)
    roof = -rng.uniform(0.25, 0.7)
    cabin_outline = np.array(
        [
            (cabin_left, 0.05),
            (cabin_left + rng.uniform(0, 0.2), roof),
            (cabin_right - rng.uniform(0, 0.3), roof),
            (cabin_right, 0.05),
        ]
    )
    glass = materials.texture(size * 0.3)
    panes = int(rng.integers(1, 4))
    edges = np.linspace(cabin_left + 0.1, cabin_right - 0.1, panes + 1)
    windows = tuple(
        Part(
            [np.array([(a + 0.03, -0.02), (a + 0.03, roof + 0.08), (b, roof + 0.08), (b, -0.02)])],
            glass.varied(rng, 0.1),
        )
        for a, b in pairwise(edges)
    )
    cabin = Part([shapes.smooth(cabin_outline, 2)], paint, windows, attached=True, annotated=False)
    body = replace(surface(materials, [hull], size, attached=True, texture=paint), annotated=False)
    if rng.random() < 0.6:
        body = decorate(materials, body, size, depth=1)
    radius = rng.uniform(0.15, 0.3)
    tyre, hub = materials.texture(size * 0.2).shaded(0.4), materials.texture(size * 0.1)
    wheel = Part(
        shapes.ellipse(rng, 1.0),
        tyre,
        (Part([shapes.ellipse(rng, 1.0)[0] * rng.uniform(0.4, 0.75)], hub),),
        attached=True,
    )
    count = int(rng.integers(2, 4))
    wheels = [
        wheel.moved(placement((x, height), radius))
        for x in np.linspace(-0.62, 0.62, count) + rng.normal(0, 0.04, count)
    ]
    return Part([], parts=(cabin, body, *wheels))


def _facade(materials: Materials, size: float) -> Part:
    """Makes a building, a shelf or a cupboard: a front with rows of openings, perhaps a roof."""
    rng = materials.rng
    width = rng.uniform(0.4, 1.0)
    front = surface(materials, shapes.rectangle(2 * width, 2), size, attached=True)
    front = replace(front, parts=tuple(grid(materials, front.outline, size)), roundness=0.0)
    if rng.random() < 0.5:
        return front
    eaves = width * rng.uniform(1.0, 1.25)
    ridge = rng.uniform(0, 0.9) * width
    roof = [np.array([(-eaves, -0.95), (-ridge, -1.5), (ridge, -1.5), (eaves, -0.95)])]
    return Part([], parts=(front, surface(materials, roof, size * 0.6, attached=True)))


def _furniture(materials: Materials, size: float) -> Part:
    """Makes a slab on legs, perhaps with a back: a table, a chair, a bench."""
    rng = materials.rng
    wood = materials.texture(size)
    slant = rng.uniform(0, 0.3)
    depth = rng.uniform(0.1, 0.4)
    top = [np.array([(-1, 0), (-1 + slant, -depth), (1 - slant, -depth), (1, 0)])]
    edge = rng.uniform(0.04, 0.15)
    front = [np.array([(-1, 0), (1, 0), (1, edge), (-1, edge)])]
    width = rng.uniform(0.04, 0.1)
    length = rng.uniform(0.5, 1.2)
    legs = [
        Part(
            [np.array([(x, 0), (x + 2 * width, 0), (x + 2 * width, length * f), (x, length * f)])],
            wood.shaded(0.6 if f < 1 else 0.8),
            attached=True,
        )
        for x, f in ((-0.8, 0.8), (0.65, 0.8), (-0.97, 1.0), (0.97 - 2 * width, 1.0))
    ]
    parts = [*legs]
    if rng.random() < 0.5:
        back = [np.array([(-0.9, -depth), (0.9, -depth), (0.85, -depth - 1), (-0.85, -depth - 1)])]
        rest = surface(materials, back, size, attached=True, texture=wood.varied(rng, 0.1))
        parts.append(decorate(materials, rest, size, depth=1))
    slab = Part(
        [],
        parts=(
            Part(top, wood, attached=True, annotated=False),
            Part(front, wood.shaded(0.75), attached=True, annotated=False),
        ),
        attached=True,
    )
    return Part([], parts=(*parts, slab))


def _cup(materials: Materials, size: float) -> Part:
    """Makes a vessel seen from above at an angle: outside, inside, contents, a handle."""
    rng = materials.rng
    clay = materials.texture(size)
    tilt = rng.uniform(0.15, 0.5)
    height = rng.uniform(0.4, 1.5)
    base = rng.uniform(0.4, 1.0)
    circle = shapes.ellipse(rng, 1.0)[0]
    rim = circle * (0.7, 0.7 * tilt) - (0, height / 2)
    foot = circle * (0.7 * base, 0.7 * base * tilt) + (0, height / 2)
    side = cv2.convexHull(np.concatenate([rim, foot]).astype(np.float32))[:, 0].astype(np.float64)
    level = rng.uniform(0.0, 0.25) * height
    liquid = rim * (0.9, 0.85) + (0, level - 0.1 * height / 2)
    filled = Part([liquid], materials.texture(size * 0.5))
    hollow = Part([rim], clay.shaded(rng.uniform(0.5, 1.2)), (filled,))
    body = Part([side], clay, attached=True, roundness=materials.roundness)
    if rng.random() < 0.5:
        body = decorate(materials, body, size * 0.7, depth=1)
    body = replace(body, parts=(*body.parts, hollow))
    if rng.random() < 0.5:
        outer = circle * (0.35, 0.35) + (rng.choice((-0.75, 0.75)), 0)
        middle = outer.mean(axis=0)
        grip = Part(
            [outer, (outer - middle) * rng.uniform(0.5, 0.75) + middle],
            clay.shaded(0.85),
            attached=True,
        )
        return Part([], parts=(grip, body))
    return body


def _sign(materials: Materials, size: float) -> Part:
    """Makes a board, book, screen or bottle's label with writing on it."""
    rng = materials.rng
    board = surface(materials, shapes.superellipse(rng), size, texture=materials.flat())
    parts: list[Part] = []
    if rng.random() < 0.5:
        parts += inset(materials, board.outline, size)
    for _ in range(rng.integers(1, 4)):
        parts += word(materials, board.outline, size)
    return replace(board, parts=tuple(parts))


def _line(materials: Materials, size: float) -> Part:
    """Makes a rope, branch, pole, cable or snake."""
    rng = materials.rng
    shape = shapes.transform(shapes.stroke(rng), placement((0, 0), 1, rng.uniform(0, np.pi)))
    return surface(materials, shape, size * 0.2)


def _writing(materials: Materials, size: float) -> Part:
    """Makes letters that stand by themselves."""
    rng = materials.rng
    count = int(rng.integers(1, 7))
    return letters(materials, count, size / count).moved(
        placement((0, 0), 1 / count, rng.normal(0, 0.2))
    )


def _heap(materials: Materials, size: float) -> Part:
    """Makes several of a kind, close together: fruit, books, people, tiles."""
    rng = materials.rng
    count = int(rng.integers(3, 13))
    makers = _SINGLES if size > 3 * SMALL else _SINGLES[:4]
    maker = makers[rng.integers(len(makers))]
    arrangement = rng.integers(4)
    if arrangement == 0:  # a heap
        points = rng.normal(0, 0.45, (count, 2)) * (1, 0.7)
        points = points[np.argsort(points[:, 1])]
        scales = np.full(count, 0.75 / np.sqrt(count) * rng.uniform(0.9, 1.5))
    elif arrangement == 1:  # a row
        points = np.column_stack([np.linspace(-0.9, 0.9, count), np.zeros(count)])
        scales = np.full(count, rng.uniform(0.8, 1.4) / count)
    elif arrangement == 2:  # a stack
        points = np.column_stack([rng.normal(0, 0.04, count), np.linspace(0.9, -0.9, count)])
        scales = np.full(count, rng.uniform(0.9, 1.5) / count)
    else:  # rows and columns
        side = int(np.ceil(np.sqrt(count)))
        row, column = np.divmod(np.arange(count), side)
        points = np.column_stack([column, row]) * 2 / side - 1 + 1 / side
        scales = np.full(count, rng.uniform(0.7, 1.1) / side)
    jitter = rng.uniform(0, 0.25)
    turning = rng.choice((0.0, 0.1, 3.0))
    prototype = maker(materials, size * scales[0])
    x0, y0, x1, y1 = prototype.bounds()
    norm = 2 / max(x1 - x0, y1 - y0)
    prototype = prototype.moved(placement((-norm * (x0 + x1) / 2, -norm * (y0 + y1) / 2), norm))
    members = tuple(
        replace(
            prototype.moved(
                placement(
                    (point + rng.normal(0, jitter, 2) * scale),
                    scale * np.exp(rng.normal(0, jitter / 2)),
                    rng.normal(0, turning),
                )
            ).varied(rng, jitter / 2),
            attached=True,
        )
        for point, scale in zip(points, scales, strict=True)
    )
    return Part([], parts=members, annotated=bool(rng.random() < 0.6))


_SINGLES = (_simple, _simple, _lathed, _simple, _cuboid, figure, _cup, _vehicle, creature, _sign)
_WEIGHTED: dict[Callable[[Materials, float], Part], float] = {
    _simple: 6.0,
    _lathed: 1.6,
    _cuboid: 1.6,
    figure: 1.6,
    creature: 1.4,
    _vehicle: 1.2,
    plant: 1.2,
    tree: 1.0,
    _facade: 1.0,
    _furniture: 0.8,
    _cup: 1.2,
    _sign: 0.9,
    _line: 0.9,
    _writing: 0.4,
    _heap: 2.2,
}
_MAKERS = tuple(_WEIGHTED)
_SHARES = np.array(list(_WEIGHTED.values())) / sum(_WEIGHTED.values())
