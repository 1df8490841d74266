"""Composites: cut out things pasted on photographs, with exact masks, any number of them.

Pasting gives what labels by people lack: exact outlines, parts, clutter and occlusion. It is the
copy-paste augmentation of arXiv 2012.07177 on other backgrounds.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

_MINIMUM_AREA = 0.0015  # of the picture
_MINIMUM_VISIBLE = 0.12  # of the area that was pasted
_MOST_OBJECTS = 7
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
        rng = np.random.default_rng((self.seed, place))
        for _ in range(_ATTEMPTS):
            image, masks = self._compose(rng)
            if len(masks):
                return AnnotatedImage(f"composite_{self.seed}_{place:06}", image, masks)
        raise UserError(
            f"no object was large enough to be seen in {_ATTEMPTS} composites: give other objects, "
            f"or a size above {self.size}"
        )

    def _compose(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        sides = [self.size, max(32, round(self.size * rng.uniform(0.6, 1)))]
        height, width = sides if rng.random() < 0.5 else sides[::-1]
        canvas = self._background(rng, height, width)
        behind = np.ones((height, width), bool)
        masks: list[NDArray[np.bool_]] = []
        pasted: list[int] = []  # the area of each before others covered it
        for _ in range(rng.integers(1, _MOST_OBJECTS + 1)):
            thing = self.objects[int(rng.integers(len(self.objects)))]
            layer, parts = _place(thing, rng, height, width)
            mask = layer[..., 3] > 127
            if not mask.any():
                continue
            _cast_shadow(canvas, layer[..., 3], rng)
            rest = 1 - layer[..., 3:].astype(np.float32) / 255
            canvas *= rest
            canvas += _tint(layer[..., :3].astype(np.float32), rng)
            for earlier in masks:
                earlier &= ~mask
            behind &= ~mask
            for new in (mask, *(part & mask for part in parts)):
                masks.append(new)
                pasted.append(int(np.count_nonzero(new)))
        if masks and rng.random() < 0.3:
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

    def _background(self, rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
        """Returns a random part of a photograph, (height, width, 3), at random out of focus."""
        path = self.photographs[int(rng.integers(len(self.photographs)))]
        photograph = read_texture_image(path)
        rows, columns = photograph.shape[:2]
        share = log_uniform(rng, 0.15, 1) * min(rows / height, columns / width)
        kept = max(1, round(share * height)), max(1, round(share * width))
        y, x = (int(rng.integers(n - k + 1)) for n, k in zip((rows, columns), kept, strict=True))
        part = photograph[y : y + kept[0], x : x + kept[1]]
        shrinks = share > 1
        part = np.asarray(
            cv2.resize(
                part,
                (width, height),
                interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
            )
        )
        if rng.random() < 0.25:
            part = np.asarray(cv2.GaussianBlur(part, (0, 0), rng.uniform(0.002, 0.01) * self.size))
        return _tint(part.astype(np.float32), rng)


def _place(
    thing: CutOut, rng: np.random.Generator, height: int, width: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Returns a thing turned, scaled and moved, (height, width, 4), and the masks of its parts."""
    rows, columns = thing.pixels.shape[:2]
    scale = log_uniform(rng, 0.12, 0.95) * min(height, width) / max(rows, columns)
    angle = np.deg2rad(rng.normal(0, 18)) * (rng.random() < 0.6)
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    flip = rng.choice((-1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([scale * stretch * flip, scale / stretch])
    center = rng.uniform(-0.05, 1.05, 2) * (width, height)
    shift = center - linear @ (columns / 2, rows / 2)
    matrix = np.column_stack([linear, shift])
    pixels = thing.pixels
    if scale < 0.7:  # what the warp would skip
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.35 / scale)
    layer = np.asarray(cv2.warpAffine(pixels, matrix, (width, height)))
    chosen = rng.permutation(len(thing.parts))[:_MOST_PARTS]
    parts = [
        cv2.warpAffine(
            thing.parts[index].astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST
        )
        > 0
        for index in chosen
    ]
    return layer, parts


def _tint(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Changes the exposure and the white balance of pixels (H, W, 3)."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    return np.clip(pixels * gain.astype(np.float32), 0, 255)


def _cast_shadow(
    canvas: NDArray[np.float32], alpha: NDArray[np.uint8], rng: np.random.Generator
) -> None:
    """Darkens the canvas below a thing, at random."""
    if rng.random() > 0.4:
        return
    height, width = alpha.shape
    length = float(np.sqrt(np.count_nonzero(alpha)))
    x, y = rng.normal(0, 0.05 * length, 2)
    moved = cv2.warpAffine(alpha, np.array([[1, 0, x], [0, 1, y]]), (width, height))
    soft = cv2.GaussianBlur(moved, (0, 0), max(1.0, 0.04 * length))
    canvas *= 1 - soft[..., None].astype(np.float32) * np.float32(rng.uniform(0.2, 0.7) / 255)
