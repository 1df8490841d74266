"""The objects of synthetic scenes: trees of parts, so that a click may mean the whole or a part.

Every maker takes a random generator, the scene's materials and the object's diameter in picture
units, which textures are scaled by. It returns the object around the origin, its radius about 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from . import shapes
from .shapes import Outline, placement
from .textures import Color, Materials, Texture

_SMALL = 0.12  # in picture units: what is smaller has no decoration


@dataclass(frozen=True)
class Part:
    """An object, a part of one, or a group of objects.

    Attributes:
        outline: its own surface; empty for a group, which only has parts.
        texture: of the surface.
        parts: in the order in which they are painted, over the surface.
        attached: it may reach beyond the outline of what it is a part of, which does not cut it.
        annotated: it has a mask of its own, which its parts belong to.
        roundness: 0 for flat, 1 for what light and shade make look round.
        border: the colour of a line around it, or None.
    """

    outline: Outline
    texture: Texture | None = None
    parts: tuple["Part", ...] = field(default=())
    attached: bool = False
    annotated: bool = True
    roundness: float = 0.0
    border: Color | None = None

    def moved(self, matrix: NDArray[np.float64]) -> "Part":
        """The same at another place: the outlines transformed by a (2, 3) matrix."""
        outline = shapes.transform(self.outline, matrix)
        return self._changed(outline, self.texture, [part.moved(matrix) for part in self.parts])

    def varied(self, rng: np.random.Generator, amount: float) -> "Part":
        """Another of its kind: colours shifted, textures from elsewhere."""
        texture = self.texture and self.texture.varied(rng, amount)
        return self._changed(
            self.outline, texture, [part.varied(rng, amount) for part in self.parts]
        )

    def _changed(self, outline: Outline, texture: Texture | None, parts: "list[Part]") -> "Part":
        """As dataclasses.replace, which takes thrice the time."""
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
        """The outlines that together make its silhouette."""
        own = [self.outline] if self.outline else []
        return own + [
            outline
            for part in self.parts
            if part.attached or not self.outline
            for outline in part.outlines()
        ]

    def bounds(self) -> tuple[float, float, float, float]:
        """XYXY of the silhouette."""
        return shapes.bounds([contour for outline in self.outlines() for contour in outline])


def make_object(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """Any object."""
    if size < _SMALL:
        made = _SINGLES[rng.integers(len(_SINGLES))](rng, materials, size)
    else:
        made = _MAKERS[rng.choice(len(_MAKERS), p=_SHARES)](rng, materials, size)
    x0, y0, x1, y1 = made.bounds()
    scale = 2 / max(np.hypot(x1 - x0, y1 - y0), 1e-6) * 1.2
    return made.moved(placement((-scale * (x0 + x1) / 2, -scale * (y0 + y1) / 2), scale))


def decorate(
    rng: np.random.Generator, materials: Materials, part: Part, size: float, depth: int
) -> Part:
    """Adds parts within the outline of one: patches, bands, a cut, an inset, a grid or letters."""
    if not part.outline or depth <= 0 or size < _SMALL:
        return part
    kinds: list[Callable[..., list[Part]]] = [_patches, _bands, _cut, _inset, _grid, _word, _spots]
    chances = np.array([3.0, 2.0, 1.0, 2.0, 0.8, 0.6, 1.0])
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    added = []
    for child in kind(rng, materials, part.outline, size):
        if child.outline and rng.random() < 0.35:
            x0, y0, x1, y1 = child.bounds()
            smaller = size * max(x1 - x0, y1 - y0) / 2
            child = decorate(rng, materials, child, smaller, depth - 1)
        added.append(child)
    return replace(part, parts=(*part.parts, *added))


def _surface(
    rng: np.random.Generator,
    materials: Materials,
    outline: Outline,
    size: float,
    parts: tuple[Part, ...] = (),
    attached: bool = False,
    texture: Texture | None = None,
) -> Part:
    """A part with a texture, and perhaps roundness and a border."""
    return Part(
        outline,
        texture or materials.texture(size),
        parts,
        attached,
        roundness=materials.roundness * rng.uniform(0, 1.4),
        border=materials.color() * 0.4 if rng.random() < materials.border_share else None,
    )


def _inside(rng: np.random.Generator, outline: Outline) -> tuple[float, float]:
    """A point within an outline, or near it where none is found."""
    x0, y0, x1, y1 = shapes.bounds(outline)
    contour = outline[0].astype(np.float32)
    for _ in range(12):
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if cv2.pointPolygonTest(contour, (x, y), False) > 0:
            return x, y
    return (x0 + x1) / 2, (y0 + y1) / 2


# Parts within an outline


def _patches(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    x0, y0, x1, y1 = shapes.bounds(outline)
    radius = max(x1 - x0, y1 - y0) / 2
    parts = []
    for _ in range(rng.integers(1, 5)):
        scale = radius * shapes.log_uniform(rng, 0.12, 0.65)
        matrix = placement(_inside(rng, outline), scale, rng.uniform(0, 2 * np.pi))
        shape = shapes.transform(shapes.silhouette(rng), matrix)
        parts.append(_surface(rng, materials, shape, size * scale / radius))
    return parts


def _spots(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    """Several alike: buttons, eyes, holes, wheels."""
    x0, y0, x1, y1 = shapes.bounds(outline)
    radius = max(x1 - x0, y1 - y0) / 2
    scale = radius * rng.uniform(0.08, 0.25)
    shape = shapes.silhouette(rng)
    texture = materials.texture(size * scale / radius)
    prototype = decorate(
        rng,
        materials,
        _surface(rng, materials, shape, size * scale / radius, texture=texture),
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


def _bands(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
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
        parts.append(_surface(rng, materials, shapes.transform(shape, matrix), size))
    return parts


def _cut(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    """One side of a line across: a roof, a cap, a shadow-coloured half."""
    x0, y0, x1, y1 = shapes.bounds(outline)
    angle = rng.choice((0.0, np.pi, rng.uniform(0, 2 * np.pi)))
    side = shapes.half_plane(*_inside(rng, outline), angle, 2 * max(x1 - x0, y1 - y0))
    return [_surface(rng, materials, side, size)]


def _inset(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    """The same shape smaller: what a frame, a plate or a tyre holds."""
    factor = rng.uniform(0.45, 0.9)
    x0, y0, x1, y1 = shapes.bounds(outline)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    smaller = shapes.transform(outline[:1], placement((x * (1 - factor), y * (1 - factor)), factor))
    inner = _surface(rng, materials, smaller, size * factor)
    return [decorate(rng, materials, inner, size * factor, depth=1)]


def _grid(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    """Rows and columns of one shape: windows, keys, drawers."""
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
        rng,
        materials,
        _surface(rng, materials, shape, extent),
        extent,
        depth=int(rng.random() < 0.5),
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


def _word(
    rng: np.random.Generator, materials: Materials, outline: Outline, size: float
) -> list[Part]:
    x0, y0, x1, y1 = shapes.bounds(outline)
    count = int(rng.integers(1, 6))
    width = (x1 - x0) * rng.uniform(0.5, 0.95)
    scale = min(width / count / 2.0, (y1 - y0) * 0.35)
    word = _letters(rng, materials, count, size * scale / max(x1 - x0, y1 - y0) * 2)
    return [word.moved(placement(_inside(rng, outline), scale))]


def _letters(rng: np.random.Generator, materials: Materials, count: int, extent: float) -> Part:
    texture = materials.flat() if rng.random() < 0.7 else materials.texture(extent)
    spacing = rng.uniform(1.5, 2.0)
    letters = tuple(
        Part(
            shapes.transform(
                shapes.letter(rng), placement(((index - (count - 1) / 2) * spacing, 0), 0.9)
            ),
            texture,
            attached=True,
        )
        for index in range(count)
    )
    return Part([], parts=letters)


# Objects


def _simple(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A shape, plain or decorated."""
    shape = shapes.transform(
        shapes.silhouette(rng),
        placement((0, 0), 1, rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.4), rng.normal(0, 0.2)),
    )
    part = _surface(rng, materials, shape, size)
    return decorate(rng, materials, part, size, depth=2) if rng.random() < 0.6 else part


def _lathed(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A vase, a bottle, a lamp: bands across, perhaps a handle behind."""
    body = _surface(rng, materials, shapes.profile(rng), size)
    if rng.random() < 0.8:
        bands = []
        for _ in range(rng.integers(1, 4)):
            top = rng.uniform(-1, 0.9)
            strip = shapes.transform(
                shapes.rectangle(2.2, rng.uniform(0.08, 0.6)), placement((0, top), 1)
            )
            band = _surface(rng, materials, strip, size)
            bands.append(decorate(rng, materials, band, size / 2, int(rng.random() < 0.25)))
        body = replace(body, parts=tuple(bands))
    if rng.random() < 0.3:
        handle = shapes.transform(
            shapes.ring(rng)[:1] + [shapes.ring(rng)[0] * 0.7],
            placement((rng.choice((-0.6, 0.6)), rng.uniform(-0.4, 0.3)), 0.4),
        )
        grip = _surface(rng, materials, handle, size / 3, attached=True)
        return Part([], parts=(grip, replace(body, attached=True)))
    return body


def _cuboid(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A box that shows three faces: of one material, lit differently, or of three."""
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
            face = replace(face, parts=(_skewed(rng, materials, start, first, second, size),))
        faces.append(face)
    return Part([], parts=tuple(faces))


def _skewed(
    rng: np.random.Generator,
    materials: Materials,
    start: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    size: float,
) -> Part:
    """A label, door or window on the face of a box."""
    shape = shapes.superellipse(rng) if rng.random() < 0.7 else shapes.silhouette(rng)
    scale = rng.uniform(0.2, 0.8) / 2
    matrix = np.column_stack(
        [first * scale, second * scale, start + first * 0.5 + second * rng.uniform(0.4, 0.6)]
    )
    return _surface(rng, materials, shapes.transform(shape, matrix), size * scale)


def _figure(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A person, more or less: head, body and limbs, clothed."""
    skin, top, bottom = (materials.texture(size * factor) for factor in (0.2, 0.4, 0.4))
    width = rng.uniform(0.16, 0.32)
    spread = rng.uniform(0.05, 0.35)
    limb = rng.uniform(0.06, 0.12)
    roundness = materials.roundness

    def limb_between(points: NDArray[np.float64], thick: float, texture: Texture) -> list[Part]:
        return [
            Part(
                shapes.capsule(first, second, thick, thick * 0.85),
                texture,
                attached=True,
                annotated=False,
                roundness=roundness,
            )
            for first, second in zip(points, points[1:], strict=False)
        ]

    legs: list[Part] = []
    for side in (-1, 1):
        hip = np.array((side * width * 0.5, 0.1))
        knee = hip + (side * spread * 0.5 + rng.normal(0, 0.08), 0.42)
        foot = knee + (rng.normal(0, 0.12), 0.42)
        bones = limb_between(np.array([hip, knee, foot]), limb * 1.2, bottom)
        shoe = shapes.transform(
            shapes.ellipse(rng, 0.45), placement((foot[0] + 0.04 * side, foot[1]), limb * 1.6)
        )
        boot = _surface(rng, materials, shoe, size * 0.1, attached=True)
        legs.append(Part([], parts=(*bones, boot), attached=True))
    arms: list[Part] = []
    for side in (-1, 1):
        shoulder = np.array((side * width, -0.42))
        elbow = shoulder + (side * rng.uniform(0.02, 0.3), rng.uniform(-0.2, 0.32))
        hand = elbow + rng.normal(0, 0.2, 2) + (0, 0.1)
        bare = rng.random() < 0.4
        bones = limb_between(np.array([shoulder, elbow]), limb, top)
        bones += limb_between(np.array([elbow, hand]), limb * 0.85, skin if bare else top)
        palm = shapes.transform(shapes.blob(rng, 0.2), placement((hand[0], hand[1]), limb * 1.2))
        grip = Part(palm, skin, attached=True, roundness=roundness)
        arms.append(Part([], parts=(*bones, grip), attached=True))
    waist = width * rng.uniform(0.7, 1.2)
    trunk = np.array([(-width, -0.5), (width, -0.5), (waist, 0.18), (-waist, 0.18)])
    torso = Part([shapes.smooth(trunk, 2)], top, attached=True, roundness=roundness)
    if rng.random() < 0.5:
        torso = decorate(rng, materials, torso, size * 0.4, depth=1)
    radius = rng.uniform(0.13, 0.2)
    head = _head(rng, materials, skin, size).moved(placement((0, -0.5 - radius), radius))
    skirts: list[Part] = []
    if rng.random() < 0.25:
        skirt = [np.array([(-width, 0.1), (width, 0.1), (width * 2, 0.6), (-width * 2, 0.6)])]
        skirts.append(_surface(rng, materials, skirt, size * 0.4, attached=True))
    clothed = [*legs, *skirts, torso]
    arms_behind = rng.random() < 0.3
    return Part([], parts=(*((*arms, *clothed) if arms_behind else (*clothed, *arms)), head))


def _head(rng: np.random.Generator, materials: Materials, skin: Texture, size: float) -> Part:
    """A face with eyes and a mouth, and hair or a hat behind and above."""
    features: list[Part] = []
    eyes = rng.uniform(0.3, 0.45)
    eye_shape = shapes.ellipse(rng, rng.uniform(0.4, 0.8))
    white, iris = materials.flat(), materials.flat()
    for side in (-1, 1):
        at = placement((side * eyes, -0.1), 0.2)
        pupil = Part(
            shapes.transform(shapes.ellipse(rng, 1.0), placement((side * eyes, -0.1), 0.1)), iris
        )
        features.append(Part(shapes.transform(eye_shape, at), white, (pupil,)))
    mouth = shapes.transform(shapes.leaf(rng), placement((0, 0.5), rng.uniform(0.25, 0.45)))
    features.append(Part(mouth, materials.flat()))
    if rng.random() < 0.6:
        nose = shapes.transform(shapes.ellipse(rng, 0.8), placement((0, 0.2), 0.12))
        features.append(Part(nose, skin.shaded(0.8), annotated=False, roundness=1.0))
    face = Part(
        shapes.transform(shapes.blob(rng, 0.05), placement((0, 0), 1, np.pi / 2)),
        skin,
        tuple(features),
        attached=True,
        roundness=materials.roundness,
    )
    hair = shapes.transform(
        shapes.blob(rng, rng.uniform(0.1, 0.8)),
        placement((0, -0.45), rng.uniform(0.9, 1.3), aspect=1.1),
    )
    return Part(
        [], parts=(_surface(rng, materials, hair, size * 0.2, attached=True), face), attached=True
    )


def _creature(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """An animal, more or less: a body on legs, a head, a tail."""
    fur = materials.texture(size)
    roundness = materials.roundness
    legs = []
    thickness = rng.uniform(0.05, 0.12)
    length = rng.uniform(0.35, 0.7)
    for x in (-0.55, -0.35, 0.35, 0.55):
        hip = np.array((x + rng.normal(0, 0.04), 0.1))
        foot = hip + (rng.normal(0, 0.12), length)
        legs.append(
            Part(
                shapes.capsule(hip, foot, thickness * 1.5, thickness),
                fur.shaded(rng.uniform(0.7, 1)),
                attached=True,
                roundness=roundness,
            )
        )
    body = Part(
        shapes.transform(shapes.blob(rng, 0.15), placement((0, 0), 0.8, aspect=1.0)),
        fur,
        attached=True,
        roundness=roundness,
    )
    if rng.random() < 0.4:
        body = decorate(rng, materials, body, size * 0.7, depth=1)
    tail = shapes.transform(
        shapes.stroke(rng, rng.uniform(0.05, 0.25)),
        placement((-0.9, -0.1), 0.45, rng.uniform(-1, 1) + np.pi),
    )
    neck = np.array((0.75, rng.uniform(-0.75, -0.2)))
    throat = Part(
        shapes.capsule(np.array((0.5, -0.1)), neck, 0.25, 0.15),
        fur,
        attached=True,
        annotated=False,
        roundness=roundness,
    )
    radius = rng.uniform(0.2, 0.35)
    ears = [
        Part(
            shapes.transform(
                shapes.leaf(rng),
                placement((neck[0] + x, neck[1] - radius), radius * 0.7, rng.uniform(1, 2.2)),
            ),
            fur.shaded(0.75),
            attached=True,
        )
        for x in (-0.1, 0.1)
    ]
    eye = Part(
        shapes.transform(
            shapes.ellipse(rng, 0.9), placement((neck[0] + 0.05, neck[1] - 0.05), radius * 0.18)
        ),
        materials.flat(),
    )
    muzzle = shapes.transform(
        shapes.ellipse(rng, 0.7), placement((neck[0] + radius * 0.7, neck[1] + 0.06), radius * 0.5)
    )
    face = Part(
        shapes.transform(shapes.blob(rng, 0.1), placement((neck[0], neck[1]), radius)),
        fur,
        (eye,),
        attached=True,
        roundness=roundness,
    )
    head = Part(
        [],
        parts=(*ears, face, _surface(rng, materials, muzzle, size * 0.1, attached=True)),
        attached=True,
    )
    animal = Part(
        [],
        parts=(Part(tail, fur, attached=True), *legs[::2], body, *legs[1::2], throat, head),
    )
    return animal.moved(placement((0, 0), 1, aspect=rng.choice((-1.0, 1.0))))


def _vehicle(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A body on wheels, with windows."""
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
        for a, b in zip(edges, edges[1:], strict=False)
    )
    cabin = Part([shapes.smooth(cabin_outline, 2)], paint, windows, attached=True, annotated=False)
    body = replace(
        _surface(rng, materials, [hull], size, attached=True, texture=paint), annotated=False
    )
    if rng.random() < 0.6:
        body = decorate(rng, materials, body, size, depth=1)
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


def _plant(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """Stems with leaves or blossoms, perhaps in a pot."""
    green = materials.texture(size * 0.2)
    stems: list[Part] = []
    leaf = shapes.leaf(rng) if rng.random() < 0.7 else shapes.flower(rng)
    blossom = _surface(rng, materials, shapes.flower(rng), size * 0.2, attached=True)
    blossom = decorate(rng, materials, blossom, size * 0.2, depth=1)
    for _ in range(rng.integers(2, 8)):
        tip = np.array((rng.normal(0, 0.5), -rng.uniform(0.2, 1.1)))
        root = np.array((rng.normal(0, 0.06), 0.35))
        stem = Part(
            shapes.capsule(root, tip, 0.03, 0.015),
            green.shaded(0.7),
            attached=True,
            annotated=False,
        )
        stems.append(stem)
        scale = rng.uniform(0.15, 0.5)
        if rng.random() < 0.35:
            stems.append(
                blossom.moved(placement(tip, scale * 0.7, rng.uniform(0, 6))).varied(rng, 0.1)
            )
        else:
            angle = np.arctan2(*(tip - root)[::-1]) + rng.normal(0, 0.5)
            shape = shapes.transform(leaf, placement(tip, scale, angle))
            stems.append(
                Part(shape, green.varied(rng, 0.25), attached=True, roundness=materials.roundness)
            )
    plant = Part([], parts=tuple(stems), attached=True)
    if rng.random() < 0.5:
        return plant
    flare = rng.uniform(0.25, 0.45)
    pot_outline = [
        np.array([(-flare, 0.25), (flare, 0.25), (flare * 0.75, 0.95), (-flare * 0.75, 0.95)])
    ]
    pot = _surface(rng, materials, pot_outline, size * 0.4, attached=True)
    return Part([], parts=(plant, decorate(rng, materials, pot, size * 0.4, depth=1)))


def _tree(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A trunk under a ragged crown of one or several lumps."""
    trunk = shapes.capsule(
        np.array((0.0, 1.0)), np.array((rng.normal(0, 0.1), -0.1)), rng.uniform(0.06, 0.14), 0.05
    )
    foliage = materials.texture(size * 0.3)
    lumps = tuple(
        Part(
            shapes.transform(
                shapes.blob(rng, rng.uniform(0.6, 1.0)),
                placement(rng.normal((0, -0.3), 0.22), rng.uniform(0.35, 0.7), rng.uniform(0, 6)),
            ),
            foliage.varied(rng, 0.08),
            attached=True,
            annotated=False,
            roundness=materials.roundness,
        )
        for _ in range(rng.integers(1, 5))
    )
    crown = Part([], parts=lumps, attached=True)
    bark = _surface(rng, materials, trunk, size * 0.2, attached=True)
    return Part([], parts=(bark, crown))


def _facade(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A building, a shelf or a cupboard: a front with rows of openings, perhaps a roof."""
    width = rng.uniform(0.4, 1.0)
    front = _surface(rng, materials, shapes.rectangle(2 * width, 2), size, attached=True)
    front = replace(front, parts=tuple(_grid(rng, materials, front.outline, size)), roundness=0.0)
    if rng.random() < 0.5:
        return front
    eaves = width * rng.uniform(1.0, 1.25)
    ridge = rng.uniform(0, 0.9) * width
    roof = [np.array([(-eaves, -0.95), (-ridge, -1.5), (ridge, -1.5), (eaves, -0.95)])]
    return Part([], parts=(front, _surface(rng, materials, roof, size * 0.6, attached=True)))


def _furniture(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A slab on legs, perhaps with a back: a table, a chair, a bench."""
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
        rest = _surface(rng, materials, back, size, attached=True, texture=wood.varied(rng, 0.1))
        parts.append(decorate(rng, materials, rest, size, depth=1))
    slab = Part(
        [],
        parts=(
            Part(top, wood, attached=True, annotated=False),
            Part(front, wood.shaded(0.75), attached=True, annotated=False),
        ),
        attached=True,
    )
    return Part([], parts=(*parts, slab))


def _cup(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A vessel seen from above at an angle: outside, inside, what it holds, a handle."""
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
        body = decorate(rng, materials, body, size * 0.7, depth=1)
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


def _sign(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A board, book, screen or bottle's label with writing on it."""
    board = _surface(rng, materials, shapes.superellipse(rng), size, texture=materials.flat())
    parts: list[Part] = []
    if rng.random() < 0.5:
        parts += _inset(rng, materials, board.outline, size)
    for _ in range(rng.integers(1, 4)):
        parts += _word(rng, materials, board.outline, size)
    return replace(board, parts=tuple(parts))


def _line(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """A rope, branch, pole, cable or snake."""
    shape = shapes.transform(shapes.stroke(rng), placement((0, 0), 1, rng.uniform(0, np.pi)))
    return _surface(rng, materials, shape, size * 0.2)


def _writing(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """Letters that stand by themselves."""
    count = int(rng.integers(1, 7))
    return _letters(rng, materials, count, size / count).moved(
        placement((0, 0), 1 / count, rng.normal(0, 0.2))
    )


def _heap(rng: np.random.Generator, materials: Materials, size: float) -> Part:
    """Several of a kind, close together: fruit, books, people, tiles."""
    count = int(rng.integers(3, 13))
    makers = _SINGLES if size > 3 * _SMALL else _SINGLES[:4]
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
    prototype = maker(rng, materials, size * scales[0])
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


_SINGLES = (_simple, _simple, _lathed, _simple, _cuboid, _figure, _cup, _vehicle, _creature, _sign)
_WEIGHTED: dict[Callable[[np.random.Generator, Materials, float], Part], float] = {
    _simple: 6.0,
    _lathed: 1.6,
    _cuboid: 1.6,
    _figure: 1.6,
    _creature: 1.4,
    _vehicle: 1.2,
    _plant: 1.2,
    _tree: 1.0,
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
