"""Composites: cut out things pasted on photographs, with exact masks, any number of them.

Pasting gives what labels by people lack: exact outlines, parts, clutter and occlusion. It is the
copy-paste augmentation of arXiv 2012.07177 on other backgrounds.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.formats import open_annotated_images
from ..datasets.unreadable import Items, SkipUnreadable
from ..errors import UserError
from ..images import list_images, load_mask, open_image
from .shapes import log_uniform
from .textures import TextureImages, read_texture_image

MOST_OBJECTS = 7
"""The most things in a composite."""
SHADOW_BLUR = 0.03
"""Standard deviation at the edge of a shadow, as a share of the thing's longer side."""

_MINIMUM_AREA = 0.0015  # of the picture
_MINIMUM_VISIBLE = 0.12  # of the area that was pasted
_MOST_PARTS = 3  # of one thing, with a mask of their own
_LARGEST_SIDE = 512  # of a cut out thing, to which larger ones are reduced
_ATTEMPTS = 20


@dataclass(frozen=True)
class CutOut:
    """A thing without its background.

    Attributes:
        pixels: (H, W, 4) uint8, RGB multiplied by alpha, and alpha.
        parts: (P, H, W) bool, parts of the thing; may be none.
    """

    pixels: NDArray[np.uint8]
    parts: NDArray[np.bool_]


class _Pictures:
    """Cut outs from pictures with transparency; a folder beside each may hold its parts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        places = {path.with_suffix("") for path in paths}
        self._paths = [path for path in paths if path.parent not in places]
        self._parts: dict[Path, list[Path]] = {}
        for path in paths:
            if path.parent in places:
                self._parts.setdefault(path.parent, []).append(path)

    @property
    def are_transparent(self) -> bool:
        """Whether the first picture has transparency."""
        with open_image(self._paths[0], str(self._paths[0])) as image:
            return image.has_transparency_data

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> CutOut:
        path = self._paths[index]
        with open_image(path, str(path)) as image:
            pixels = np.asarray(image.convert("RGBA"))
        alpha = pixels[..., 3]
        if not (alpha > 127).any() or alpha.min() > 127:
            raise UserError(f"{str(path)!r} is no cut out thing: it has no transparent background")
        parts = [load_mask(part) for part in self._parts.get(path.with_suffix(""), [])]
        for part in parts:
            if part.shape != alpha.shape:
                raise UserError(f"the parts of {str(path)!r} are not of its size")
        return _cut(pixels[..., :3], alpha, np.array(parts, bool).reshape(-1, *alpha.shape))


class _Things:
    """Cut outs from images with masks: for each image one of its things, with its parts."""

    def __init__(self, images: AnnotatedImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> CutOut:
        item = self._images[index]
        masks = item.masks
        areas = masks.sum((1, 2))
        # What reaches three sides of the image is its background.
        sides = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
        things = np.flatnonzero(np.sum([side.any(1) for side in sides], axis=0) < 3)
        if not len(things):
            raise UserError(f"{item.name!r} has no thing to cut out: its masks reach its sides")
        largest = things[areas[things].argmax()]
        thing = masks[largest]
        inside = [
            part
            for part, area in zip(masks, areas, strict=True)
            if area < 0.9 * areas[largest] and np.count_nonzero(part & thing) > 0.9 * area
        ]
        soft = cv2.GaussianBlur(thing.astype(np.uint8) * 255, (3, 3), 0)
        parts = np.array(inside, bool).reshape(-1, *thing.shape)
        return _cut(item.image, np.asarray(soft), parts)


def _cut(image: NDArray[np.uint8], alpha: NDArray[np.uint8], parts: NDArray[np.bool_]) -> CutOut:
    """Crops to what shows, and reduces what is larger than it will ever be pasted."""
    x, y, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    rows, columns = slice(y, y + height), slice(x, x + width)
    alpha = alpha[rows, columns]
    share = alpha[..., None].astype(np.float32) / 255
    pixels = np.dstack([(image[rows, columns] * share).round().astype(np.uint8), alpha])
    scale = _LARGEST_SIDE / max(width, height)
    parts = parts[:, rows, columns]
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        smaller = [cv2.resize(part.astype(np.uint8), size) > 0 for part in parts]
        parts = np.array(smaller, bool).reshape(-1, *pixels.shape[:2])
    return CutOut(pixels, parts)


def open_cut_outs(source: str | os.PathLike[str]) -> Items[CutOut]:
    """Opens a data set of things to paste.

    Args:
        source: a folder of pictures with transparency, ``NAME.png``, each perhaps with a folder
            ``NAME/`` of the masks of its parts; or images with masks, as
            :func:`~mobile_sam_plugin.datasets.formats.open_annotated_images` takes them, from each
            of which its largest thing is cut.

    Raises:
        FileNotFoundError, ValueError: see `open_annotated_images`.
    """
    path = Path(source)
    if path.is_dir():
        pictures = _Pictures(list_images(path, recursive=True, beside=(".json", ".npy")))
        if pictures.are_transparent:
            return pictures
    return _Things(open_annotated_images(path))


class Placement(NamedTuple):
    """Where and how a thing is pasted, whatever its size.

    Attributes:
        number: of the thing.
        side: its longer side, as a share of the composite's shorter one.
        linear: (2, 2), how it is turned, stretched and flipped.
        center: (2,) XY, as a share of the composite's sides.
        seed: random seed of the parts that get a mask.
        gain: (3,), factors of its colours.
        shift: (2,) XY, of its shadow, as a share of its length.
        darkness: of its shadow; 0 for none.
    """

    number: int
    side: float
    linear: NDArray[np.float64]
    center: NDArray[np.float64]
    seed: int
    gain: NDArray[np.float32]
    shift: NDArray[np.float64]
    darkness: float

    def matrix(self, shape: tuple[int, ...], height: int, width: int) -> NDArray[np.float64]:
        """Returns the matrix (2, 3) from pixels of a thing of this shape to the composite's."""
        rows, columns = shape[:2]
        linear = self.linear * (self.side * min(height, width) / max(rows, columns))
        corner = self.center * (width, height) - linear @ (columns / 2, rows / 2)
        return np.column_stack([linear, corner])


class Plan(NamedTuple):
    """What is random in a composite: drawn first, so that it can be rendered in several ways.

    Attributes:
        height, width: of the composite.
        photograph: index of the background.
        share: how much of the photograph shows, of the most that fits.
        place: (2,) YX, where in the photograph that is, from 0 to 1.
        blur: standard deviation in pixels of the composite, 0 for none.
        gain: (3,), factors of the background's colours.
        placements: of the things, from the back to the front.
        has_behind: whether what lies behind all things has a mask.
    """

    height: int
    width: int
    photograph: int
    share: float
    place: NDArray[np.float64]
    blur: float
    gain: NDArray[np.float32]
    placements: list[Placement]
    has_behind: bool

    def background(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Returns the rows and columns of a photograph of this shape that show."""
        share = self.share * min(shape[0] / self.height, shape[1] / self.width)
        kept = []
        for length, side, place in zip(shape, (self.height, self.width), self.place, strict=False):
            part = max(1, round(share * side))
            start = int(place * (length - part + 1))
            kept.append(slice(start, start + part))
        return kept[0], kept[1]


def _draw_plan(rng: np.random.Generator, size: int, objects: int, photographs: int) -> Plan:
    """Draws a composite of things and a background, of which there are so many."""
    sides = [size, max(32, round(size * rng.uniform(0.6, 1)))]
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    return Plan(
        height,
        width,
        photograph=int(rng.integers(photographs)),
        share=log_uniform(rng, 0.15, 1),
        place=rng.random(2),
        blur=rng.uniform(0.002, 0.01) * size if rng.random() < 0.25 else 0.0,
        gain=_draw_gain(rng),
        placements=[
            _draw_placement(rng, objects) for _ in range(rng.integers(1, MOST_OBJECTS + 1))
        ],
        has_behind=bool(rng.random() < 0.3),
    )


def _draw_placement(rng: np.random.Generator, objects: int) -> Placement:
    angle = np.deg2rad(rng.normal(0, 18)) * (rng.random() < 0.6)
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Placement(
        number=int(rng.integers(objects)),
        side=log_uniform(rng, 0.12, 0.95),
        linear=turn @ np.diag([stretch * rng.choice((-1, 1)), 1 / stretch]),
        center=rng.uniform(-0.05, 1.05, 2),
        seed=int(rng.integers(2**32)),
        gain=_draw_gain(rng),
        shift=rng.normal(0, 0.04, 2),
        darkness=rng.uniform(0.2, 0.7) if rng.random() < 0.4 else 0.0,
    )


def _draw_gain(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws an exposure and a white balance."""
    return (rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)).astype(np.float32)


class Composites:
    """A data set of composites; ``composites[i]`` is made on request, and always the same.

    Args:
        count: number of composites.
        objects: things to paste, see :func:`open_cut_outs`. An unusable one is replaced with the
            next.
        photographs: image files for the backgrounds; an unreadable one likewise.
        size: side of a square that holds a composite, in pixels.
        seed: sets with different seeds have no composite in common.
        strict: raise an error at an unusable object or photograph.

    Attributes:
        objects, photographs: the usable ones, and a count of the others.

    Examples:
        >>> composites = Composites(1000, open_cut_outs("cut_outs"), list_images("photographs"))
        >>> composites[0].image.shape, composites[0].masks.dtype
        ((448, 512, 3), dtype('bool'))
    """

    def __init__(
        self,
        count: int,
        objects: Items[CutOut],
        photographs: Sequence[Path],
        size: int = 512,
        seed: int = 0,
        *,
        strict: bool = False,
    ) -> None:
        if count < 1:
            raise UserError(f"there must be at least one composite, not {count}")
        if size < 32:
            raise UserError(f"a composite must be at least 32 pixels wide, not {size}")
        self.count = count
        self.size = size
        self.seed = seed
        self.objects = SkipUnreadable(objects, strict=strict, what="object")
        self.photographs = SkipUnreadable(
            TextureImages(photographs), strict=strict, what="photograph"
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> AnnotatedImage:
        if not -self.count <= index < self.count:
            raise IndexError(f"there is no composite {index} among {self.count}")
        place = index % self.count
        for plan in islice(self._plans(place), _ATTEMPTS):
            image, masks = self._render(plan)
            if len(masks):
                return AnnotatedImage(f"composite_{self.seed}_{place:06}", image, masks)
        raise UserError(
            f"no object was large enough to be seen in {_ATTEMPTS} composites: give other objects, "
            f"or a size above {self.size}"
        )

    def plan(self, index: int) -> Plan:
        """Returns the plan of a composite, if the first one that is drawn shows a thing."""
        return next(self._plans(index % self.count))

    def _plans(self, place: int) -> Iterator[Plan]:
        rng = np.random.default_rng((self.seed, place))
        while True:
            yield _draw_plan(rng, self.size, len(self.objects), len(self.photographs))

    def _render(self, plan: Plan) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        height, width = plan.height, plan.width
        canvas = self._background(plan)
        behind = np.ones((height, width), bool)
        masks: list[NDArray[np.bool_]] = []
        pasted: list[int] = []  # the area of each before others covered it
        for placement in plan.placements:
            layer, parts = _place(self.objects[placement.number], placement, height, width)
            mask = layer[..., 3] > 127
            if not mask.any():
                continue
            _cast_shadow(canvas, layer[..., 3], placement)
            rest = 1 - layer[..., 3:].astype(np.float32) / 255
            canvas *= rest
            canvas += _tint(layer[..., :3].astype(np.float32), placement.gain)
            for earlier in masks:
                earlier &= ~mask
            behind &= ~mask
            for new in (mask, *(part & mask for part in parts)):
                masks.append(new)
                pasted.append(int(np.count_nonzero(new)))
        if masks and plan.has_behind:
            masks.append(behind)
            pasted.append(int(np.count_nonzero(behind)))
        fewest = _MINIMUM_AREA * height * width
        visible = [
            mask
            for mask, area in zip(masks, pasted, strict=True)
            if np.count_nonzero(mask) >= max(fewest, _MINIMUM_VISIBLE * area)
        ]
        image = np.clip(canvas, 0, 255).round().astype(np.uint8)
        return image, np.array(visible, bool).reshape(-1, height, width)

    def _background(self, plan: Plan) -> NDArray[np.float32]:
        """Returns the part of a photograph that shows, (height, width, 3)."""
        photograph = read_texture_image(self.photographs[plan.photograph])
        part = photograph[plan.background(photograph.shape)]
        shrinks = part.shape[0] > plan.height
        part = np.asarray(
            cv2.resize(
                part,
                (plan.width, plan.height),
                interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
            )
        )
        if plan.blur:
            part = np.asarray(cv2.GaussianBlur(part, (0, 0), plan.blur))
        return _tint(part.astype(np.float32), plan.gain)


def _place(
    thing: CutOut, placement: Placement, height: int, width: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Returns a thing turned, scaled and moved, (height, width, 4), and the masks of its parts."""
    matrix = placement.matrix(thing.pixels.shape, height, width)
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the centre of a pixel
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    pixels = thing.pixels
    if scale < 0.7:  # what the warp would skip
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.35 / scale)
    layer = np.asarray(cv2.warpAffine(pixels, matrix, (width, height)))
    order = np.random.default_rng(placement.seed).permutation(len(thing.parts))
    parts = [
        cv2.warpAffine(
            thing.parts[index].astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST
        )
        > 0
        for index in order[:_MOST_PARTS]
    ]
    return layer, parts


def _tint(pixels: NDArray[np.float32], gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiplies the colours of pixels (H, W, 3)."""
    return np.clip(pixels * gain, 0, 255)


def _cast_shadow(
    canvas: NDArray[np.float32], alpha: NDArray[np.uint8], placement: Placement
) -> None:
    """Darkens the canvas below a thing, if it casts a shadow."""
    if not placement.darkness:
        return
    height, width = alpha.shape
    length = placement.side * min(height, width)
    shift = np.column_stack([np.eye(2), placement.shift * length])
    moved = cv2.warpAffine(alpha, shift, (width, height))
    soft = cv2.GaussianBlur(moved, (0, 0), max(1.0, SHADOW_BLUR * length))
    canvas *= 1 - soft[..., None].astype(np.float32) * np.float32(placement.darkness / 255)
