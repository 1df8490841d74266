"""Synthetic pictures with exact masks, as many as one likes, to train and to measure with.

A scene is a background of several regions and objects before it, back to front. Each thing is
painted into three maps: its colours, the light that falls on it, and who owns each pixel. A mask is
what its thing and the parts of that own at the end, so it holds visible pixels only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..datasets.annotated import AnnotatedImage
from ..datasets.readable import Items, Readable
from ..errors import UserError
from ..files import encode_image
from . import shapes
from .objects import Part, decorate, make_object
from .shapes import Outline, placement
from .textures import Materials, Photographs, Texture

_MINIMUM_SIDE = 32
_MINIMUM_AREA = 0.0015  # of the picture
_MAXIMUM_AREA = 0.9
_MINIMUM_PIXELS = 12
_MINIMUM_LENGTH = 0.015  # of what is painted, in picture units
_MINIMUM_VISIBLE = 0.12  # of what a thing would cover if nothing were before it
_MAXIMUM_PARTS = 90  # of one scene, to bound the time
# Added to the seeds, of 64 bits, of scenes to train on. numpy hashes a seed in words of 32 bits, of
# which the third is then 3, and else at most 2, the number of a purpose.
_TRAINING = 3 << 64


def make_scene(
    seed: int, size: int | tuple[int, int] = 512, photographs: Items[Path] = ()
) -> AnnotatedImage:
    """Makes the picture of a seed: always the same, in every process.

    At another size it is the same scene, as another camera would have taken it.

    Args:
        seed: not negative.
        size: of a square, or (height, width); 32 pixels at least.
        photographs: files of which patches become the surfaces of some things.

    Returns:
        A picture named after its seed, and the masks of regions of the background, objects and
        parts of them: at least one, and none of them empty.

    Raises:
        ValueError: a negative seed, a size too small, or a photograph that cannot be read.

    Example:
        >>> scene = make_scene(seed=7, size=512)
        >>> scene.image.shape, scene.masks.dtype
        ((512, 512, 3), dtype('bool'))
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < _MINIMUM_SIDE:
        raise UserError(
            f"a scene must be {_MINIMUM_SIDE} pixels high and wide at least, not {height} x {width}"
        )
    if seed < 0:
        raise UserError(f"the seed of a scene must not be negative, but is {seed}")
    composer, camera, sensor = (np.random.default_rng((seed, purpose)) for purpose in range(3))
    canvas = _Canvas(height, width)
    _Composer(composer, photographs, canvas).compose()
    image = _photograph(canvas, camera, sensor)
    return AnnotatedImage(f"scene_{seed}", image, canvas.masks())


class Scenes:
    """A set of scenes; ``scenes[i]`` is made when it is asked for, and always the same.

    Args:
        count: how many.
        size: of each, as :func:`make_scene` takes it.
        seed: sets of different seeds have no scene in common.
        photographs: files of which patches become surfaces. In place of one that cannot be read
            comes the next.
        training: make scenes to train on, of which no set without it has any, whatever the seeds.
        strict: raise an error at a photograph that cannot be read.

    Attributes:
        photographs: those that can be read, with a count of the others.
    """

    def __init__(
        self,
        count: int,
        size: int | tuple[int, int] = 512,
        seed: int = 0,
        photographs: Sequence[Path] = (),
        *,
        training: bool = False,
        strict: bool = False,
    ) -> None:
        if count < 1:
            raise UserError(f"there must be one scene at least, not {count}")
        self.count = count
        self.size = size
        self.seed = seed
        self.photographs = Readable(Photographs(photographs), strict=strict, what="photograph")
        self.training = training

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> AnnotatedImage:
        if not -self.count <= index < self.count:
            raise IndexError(f"there is no scene {index} among {self.count}")
        place = index % self.count
        state = np.random.SeedSequence((self.seed, place)).generate_state(2)
        seed = int(state[0]) << 32 | int(state[1])
        scene = make_scene(seed + self.training * _TRAINING, self.size, self.photographs)
        kind = "training_scene" if self.training else "scene"
        return replace(scene, name=f"{kind}_{self.seed}_{place:06}")


class _Window(NamedTuple):
    """A rectangle of the picture in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def empty(self) -> bool:
        return self.x0 >= self.x1 or self.y0 >= self.y1

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def within(self, other: "_Window") -> tuple[slice, slice]:
        """Where it lies in the other, which holds it."""
        return (
            slice(self.y0 - other.y0, self.y1 - other.y0),
            slice(self.x0 - other.x0, self.x1 - other.x0),
        )

    def intersect(self, other: "_Window") -> "_Window":
        return _Window(
            max(self.x0, other.x0),
            max(self.y0, other.y0),
            min(self.x1, other.x1),
            min(self.y1, other.y1),
        )

    def unite(self, other: "_Window | None") -> "_Window":
        if other is None:
            return self
        return _Window(
            min(self.x0, other.x0),
            min(self.y0, other.y0),
            max(self.x1, other.x1),
            max(self.y1, other.y1),
        )


@dataclass
class _Thing:
    """What owns pixels.

    Attributes:
        parent: the index of what it is a part of, or -1.
        annotated: it has a mask of its own.
        area: the pixels that were painted of it, be they visible or not.
        window: where it and its parts were painted.
    """

    parent: int
    annotated: bool
    area: int = 0
    window: _Window | None = None


class _Canvas:
    """The picture in the making. Lengths are in picture units, of which it has one in area."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.unit = float(np.sqrt(height * width))
        self.colors = np.zeros((height, width, 3), np.uint8)
        self.light = np.ones((height, width), np.float32)
        self.owner = np.zeros((height, width), np.uint16)
        self.things: list[_Thing] = []
        self.whole = _Window(0, 0, width, height)

    def paint(
        self,
        part: Part,
        light_from: tuple[float, float],
        blur: float = 0.0,
        parent: int = -1,
        inside: tuple[_Window, NDArray[np.uint8]] | None = None,
    ) -> None:
        """Paints an object or a part of one.

        Args:
            part: with its outlines in picture units.
            light_from: XY, the direction in which the light is, and how much lower it stands.
            blur: how far it is out of focus, in picture units.
            parent: the index of the thing that it is a part of.
            inside: the coverage of that thing, which cuts it, and where in the picture that is.
        """
        index = parent
        if part.annotated or parent < 0:
            index = len(self.things)
            self.things.append(_Thing(parent, part.annotated))
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
        """Darkens what lies under outlines, with soft edges ``blur`` wide."""
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
        """(N, H, W): of the annotated things those of which enough is visible, one at least."""
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
                # A part that is all that one sees of the whole is the whole.
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

    def _window(self, contours: Sequence[NDArray[np.float64]], margin: float) -> _Window:
        """What bounds contours, with a margin in picture units and one of a pixel."""
        bounds = np.array(shapes.bounds(contours)) + (-margin, -margin, margin, margin)
        x0, y0, x1, y1 = (bounds * self.unit).tolist()
        window = _Window(floor(x0) - 1, floor(y0) - 1, ceil(x1) + 1, ceil(y1) + 1)
        return window.intersect(self.whole)

    def _cover(
        self, outline: Outline, blur: float, inside: tuple[_Window, NDArray[np.uint8]] | None
    ) -> tuple[_Window, NDArray[np.uint8]] | None:
        """How much an outline covers each pixel of a window, 0 to 255; None if it is small."""
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
        window: _Window,
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

    def _draw_border(self, part: Part, window: _Window) -> None:
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
    """The light (H, W) on a surface that falls off towards its edges; 1 where it is flat."""
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


class _Composer:
    """Decides what is in a scene, and paints it from back to front."""

    def __init__(self, rng: np.random.Generator, photographs: Items[Path], canvas: _Canvas) -> None:
        self.rng = rng
        self.canvas = canvas
        self.width = canvas.width / canvas.unit
        self.height = canvas.height / canvas.unit
        self.materials = Materials(rng, photographs)
        angle = rng.uniform(-np.pi, 0)  # from above
        low = rng.uniform(0.2, 1.0)
        self.light_from = (float(np.cos(angle) * low), float(np.sin(angle) * low))
        self.shadow = rng.uniform(0, 0.75) * (rng.random() < 0.85)
        self.shadow_blur = shapes.log_uniform(rng, 0.002, 0.03)
        self.shadow_length = rng.uniform(0.01, 0.12)
        self.horizon: float | None = None

    def compose(self) -> None:
        rng = self.rng
        self._paint_background()
        if rng.random() < 0.2:
            self._defocus()
        self._paint_objects()
        if rng.random() < 0.12:
            self._paint_foreground()

    def _paint_region(self, outline: Outline, texture: Texture) -> None:
        part = Part(outline, texture)
        if self.rng.random() < 0.12:
            part = decorate(self.rng, self.materials, part, 1.0, depth=1)
        self.canvas.paint(part, self.light_from)

    def _paint_background(self) -> None:
        rng = self.rng
        everything = shapes.rectangle(4 * self.width, 4 * self.height)
        kind = rng.choice(5, p=(0.22, 0.32, 0.2, 0.18, 0.08))
        texture = self.materials.texture(rng.uniform(0.3, 1.2))
        self._paint_region(everything, texture)
        if kind == 1:
            self._paint_land()
        elif kind == 2:
            self._paint_room()
        elif kind == 3:
            self._paint_patchwork()
        elif kind == 4:
            self._paint_lumps()

    def _paint_land(self) -> None:
        """Sky, hills, ground: each lower edge before the one behind it."""
        rng = self.rng
        edges = np.sort(rng.uniform(0.1, 0.85, rng.integers(1, 5))) * self.height
        for edge in edges:
            x = np.linspace(-0.2, self.width + 0.2, 120)
            waves = rng.normal(0, 1, 9) / np.arange(1, 10) ** rng.uniform(0.8, 2)
            rise = rng.choice((0.0, rng.uniform(0, 0.08)))
            y = edge + rise * (
                waves @ np.sin(np.outer(np.arange(1, 10) * 3, x) + waves[:, None] * 9)
            )
            y = y + rng.normal(0, 0.08) * (x - self.width / 2)
            outline = [np.vstack([np.column_stack([x, y]), (x[-1], 9), (x[0], 9)])]
            self._paint_region(outline, self._receding(edge))
        self.horizon = float(edges[-1])

    def _paint_room(self) -> None:
        """Walls that meet in corners, and a floor or a table."""
        rng = self.rng
        edge = rng.uniform(0.3, 0.9) * self.height
        corner = rng.uniform(-0.3, 1.3) * self.width
        drop = rng.normal(0, 0.3, 2)
        if rng.random() < 0.5:
            side = [np.array([(corner, -1), (9, -1), (9, 9), (corner, 9)])]
            self._paint_region(side, self.materials.texture(rng.uniform(0.3, 1.2)))
        left = edge + drop[0] * corner
        right = edge + drop[1] * (self.width - corner)
        floor = [
            np.array(
                [
                    (-0.1, left),
                    (corner, edge),
                    (self.width + 0.1, right),
                    (self.width + 0.1, 9),
                    (-0.1, 9),
                ]
            )
        ]
        self._paint_region(floor, self._receding(edge))
        self.horizon = float(edge)

    def _paint_patchwork(self) -> None:
        """The picture cut by lines and curves, like fields from above."""
        rng = self.rng
        for _ in range(rng.integers(1, 7)):
            x, y = rng.uniform(0, self.width), rng.uniform(0, self.height)
            angle = rng.uniform(0, 2 * np.pi)
            if rng.random() < 0.6:
                outline = shapes.half_plane(x, y, angle, 4)
            else:
                stroke = shapes.stroke(rng, rng.uniform(0.03, 0.2))
                outline = shapes.transform(stroke, placement((x, y), 1.6, angle))
            self._paint_region(outline, self.materials.texture(rng.uniform(0.2, 1.0)))

    def _paint_lumps(self) -> None:
        """Large irregular patches, like a thicket or a rock face."""
        rng = self.rng
        for _ in range(rng.integers(2, 8)):
            matrix = placement(
                (rng.uniform(0, self.width), rng.uniform(0, self.height)), rng.uniform(0.2, 0.6)
            )
            outline = shapes.transform(shapes.blob(rng), matrix)
            self._paint_region(outline, self.materials.texture(rng.uniform(0.2, 1.0)))

    def _receding(self, edge: float) -> Texture:
        """A texture that runs from the viewer to a height of the picture, or just a texture."""
        rng = self.rng
        texture = self.materials.texture(rng.uniform(0.2, 1.0))
        if rng.random() < 0.5 or texture.photograph:
            return texture
        vanishing = edge - rng.uniform(0.1, 0.5)
        tilt = np.array(
            [[1, 0, -self.width / 2], [0, 0, 0.3], [0, 1 / (self.height - vanishing), 0]]
        )
        tilt[2, 2] = -vanishing / (self.height - vanishing)
        layers = tuple(
            (tile, np.vstack([matrix, (0, 0, 1)]) @ tilt, share)
            for tile, matrix, share in texture.layers
        )
        return replace(texture, layers=layers)

    def _defocus(self) -> None:
        """What has been painted so far is out of focus."""
        sigma = self.rng.uniform(0.002, 0.012) * self.canvas.unit
        self.canvas.colors = cv2.GaussianBlur(self.canvas.colors, (0, 0), sigma)

    def _paint_objects(self) -> None:
        rng = self.rng
        budget = rng.uniform(0.4, 2.4)  # the sum of their areas, of the picture
        largest = shapes.log_uniform(rng, 0.2, 1.2)
        placed: list[tuple[float, float, float]] = []
        while budget > 0 and len(placed) < 30:
            size = shapes.log_uniform(rng, 0.1, largest)
            x, y = rng.uniform(-0.05, 1.05, 2) * (self.width, self.height)
            if self.horizon is not None and rng.random() < 0.8:  # it stands on the ground
                nearness = rng.random()
                size = max(size * (0.6 + 0.8 * nearness), 0.08)
                y = self.horizon + (self.height - self.horizon) * nearness - 0.3 * size
            placed.append((size, x, y))
            budget -= 0.5 * size**2
        if rng.random() < 0.35:  # something that the picture is of
            placed.append(
                (rng.uniform(0.6, 1.1), *rng.normal(0.5, 0.1, 2) * (self.width, self.height))
            )
        if self.horizon is not None:
            placed.sort(key=lambda place: place[2] + 0.5 * place[0])
        elif rng.random() < 0.7:
            placed.sort(key=lambda place: -place[0])
        made: list[Part] = []
        for size, x, y in placed:
            if len(self.canvas.things) > _MAXIMUM_PARTS:
                break
            if made and rng.random() < 0.2:
                part = made[rng.integers(len(made))].varied(rng, rng.uniform(0, 0.4))
            else:
                part = make_object(rng, self.materials, size)
                made.append(part)
            turns = (0.0, rng.normal(0, 0.15), rng.uniform(0, 6.28))
            turn = rng.choice(turns, p=(0.55, 0.35, 0.1) if self.horizon else (0.35, 0.3, 0.35))
            aspect = rng.choice((-1, 1)) * np.exp(rng.normal(0, 0.12))
            part = part.moved(placement((x, y), size / 2, turn, aspect))
            self._cast_shadow(part, size)
            self.canvas.paint(part, self.light_from)

    def _cast_shadow(self, part: Part, size: float) -> None:
        rng = self.rng
        if rng.random() > 0.8 or not self.shadow:
            return
        outlines = part.outlines()
        _, _, _, bottom = part.bounds()
        away = -np.array(self.light_from) * self.shadow_length * size * 1.5
        if self.horizon is not None and rng.random() < 0.7:
            # On the ground: sheared away from the light, and flat.
            shear = -self.light_from[0] * rng.uniform(0.3, 1.0)
            flat = rng.uniform(0.1, 0.4)
            matrix = np.array([[1, -shear, shear * bottom], [0, flat, bottom * (1 - flat)]])
        else:
            matrix = placement(away, 1.0)
        outlines = [shapes.transform(outline, matrix) for outline in outlines]
        self.canvas.cast(outlines, self.shadow_blur * max(size, 0.1) * 2, self.shadow)

    def _paint_foreground(self) -> None:
        """Something close to the camera, cut by the edge of the picture, out of focus."""
        rng = self.rng
        for _ in range(rng.integers(1, 4)):
            size = rng.uniform(0.4, 1.2)
            x, y = rng.choice((-0.1, 1.1)) * self.width, rng.uniform(0, 1) * self.height
            part = make_object(rng, self.materials, size)
            part = part.moved(placement((x, y), size / 2, rng.uniform(0, 6.28)))
            self.canvas.paint(part, self.light_from, blur=rng.uniform(0, 0.015))


def _photograph(
    canvas: _Canvas, rng: np.random.Generator, sensor: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture that a camera takes of a canvas, (H, W, 3) RGB.

    ``sensor`` alone is drawn from as often as there are pixels.
    """
    size = (canvas.width, canvas.height)
    light = canvas.light * cv2.resize(_illumination(rng), size, interpolation=cv2.INTER_CUBIC)
    picture = canvas.colors * light[..., None]
    # Like a camera's exposure, which aims at a middle grey and misses it.
    brightness = max(float(np.mean(picture[::4, ::4])), 8.0)
    exposure = (np.clip(rng.normal(115, 28), 55, 190) / brightness) ** 0.9
    picture *= (exposure * np.exp(rng.normal(0, 0.07, 3))).astype(np.float32)
    haze = rng.uniform(0, 0.25) * (rng.random() < 0.3)
    if haze:
        picture = picture * np.float32(1 - haze) + np.float32(haze * rng.uniform(120, 255))
    if rng.random() < 0.06:
        picture[:] = picture.mean(axis=2, keepdims=True)
    exposed = np.asarray(cv2.convertScaleAbs(picture))
    blurs = (0.0, rng.uniform(0.0005, 0.0015), rng.uniform(0.001, 0.004))
    blur = rng.choice(blurs, p=(0.3, 0.5, 0.2)) * canvas.unit
    if blur > 0.3:
        exposed = cv2.GaussianBlur(exposed, (0, 0), blur)
    noise = rng.choice((0.0, rng.uniform(0.5, 4), rng.uniform(3, 14)), p=(0.25, 0.55, 0.2))
    if noise:
        grain = sensor.standard_normal((canvas.height, canvas.width), np.float32) * np.float32(
            noise
        )
        exposed = cv2.add(exposed, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    gamma, curve = np.exp(rng.normal(0, 0.15)), rng.uniform(-0.1, 0.5)
    values = np.linspace(0, 1, 256) ** gamma
    values = (1 - curve) * values + curve * (3 * values**2 - 2 * values**3)
    exposed = cv2.LUT(exposed, (255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    if rng.random() < 0.75:
        quality = int(rng.integers(35, 98))
        jpeg = encode_image(".jpg", np.asarray(exposed), cv2.IMWRITE_JPEG_QUALITY, quality)
        decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        exposed = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return np.asarray(exposed)


def _illumination(rng: np.random.Generator) -> NDArray[np.float32]:
    """Light whatever it falls on, (64, 64): from one side, in patches, less in the corners."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y)
    light -= rng.uniform(0, 0.25) * (rng.random() < 0.4) * (x**2 + y**2)
    if rng.random() < 0.25:  # leaves or a window frame between the light and the scene
        shade = np.zeros((64, 64), np.uint8)
        for _ in range(rng.integers(1, 6)):
            matrix = placement(rng.uniform(0, 64, 2), rng.uniform(6, 40), rng.uniform(0, 6.28))
            outline = shapes.transform(shapes.silhouette(rng), matrix)
            cv2.fillPoly(shade, [np.round(c).astype(np.int32) for c in outline], 255)
        soft = cv2.GaussianBlur(shade, (0, 0), rng.uniform(0.6, 3))
        light *= 1 - soft / 255 * rng.uniform(0.15, 0.55)
    return np.clip(light, 0.25, 2).astype(np.float32)
