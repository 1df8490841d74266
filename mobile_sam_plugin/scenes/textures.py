"""The surfaces of synthetic scenes: colours, and textures that mix them by periodic patterns.

A texture reads a value from one or two tiles, which are patterns that repeat without a seam, and
gives it a colour from a ramp. The tiles are made once per process. Turned, stretched and combined,
they give endless different surfaces for two image warps each.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..datasets.unreadable import Items
from ..images import open_image, opened_pixels
from .shapes import log_uniform
from .tiles import NOISE, PATTERNS, ROUGH, SIDE, SMOOTH, make_tiles

Color = NDArray[np.float64]  # (3,) RGB in [0, 255]

_IMAGE_SIDE = 1024  # texture images are reduced to this


@dataclass(frozen=True)
class Texture:
    """A surface, endless in the plane of the image.

    Attributes:
        layers: for each pattern its tile, the (2, 3) or (3, 3) matrix from picture units to tiles,
            and its weight.
        ramp: (256, 1, 3) uint8 RGB, the colour of each value of the pattern; with `image`, the
            output for each value of a channel.
        image: a file; the surface is a patch of it instead of a pattern. The matrix of the first
            layer then leads to the image, whose shorter side is 1.
    """

    layers: tuple[tuple[int, NDArray[np.float64], float], ...]
    ramp: NDArray[np.uint8]
    image: Path | None = None

    def render(self, x: int, y: int, width: int, height: int, unit: float) -> NDArray[np.uint8]:
        """Paints a window of the image.

        Args:
            x: left column of the window, in pixels.
            y: top row.
            width: of the window.
            height: of the window.
            unit: pixels per picture unit.

        Returns:
            (height, width, 3) RGB.
        """
        window = np.array([[1 / unit, 0, x / unit], [0, 1 / unit, y / unit], [0, 0, 1]])
        if self.image is not None:
            pixels = read_texture_image(self.image)
            matrix = _square(self.layers[0][1]) @ window
            matrix[:2] *= min(pixels.shape[:2])
            patch = _warp(pixels, matrix, width, height, cv2.BORDER_REFLECT)
            return np.asarray(cv2.LUT(patch, self.ramp))
        values = None
        weight = 0.0
        for tile, matrix, share in self.layers:
            layer = _sample(tile, _square(matrix) @ window, width, height)
            if values is None:
                values, weight = layer, share
            else:
                # A sum of patterns has less contrast than each: it is restored about the middle.
                total = float(np.hypot(weight, share))
                offset = 127.5 * (1 - (weight + share) / total)
                values = cv2.addWeighted(values, weight / total, layer, share / total, offset)
        return cv2.applyColorMap(values, self.ramp)

    def varied(self, rng: np.random.Generator, amount: float) -> "Texture":
        """Returns a surface of the same kind, elsewhere in its pattern, with shifted colours."""
        layers = tuple(
            (tile, matrix + _shift(rng, matrix), share) for tile, matrix, share in self.layers
        )
        shift = rng.normal(0, 60 * amount) + rng.normal(0, 30 * amount, 3)
        ramp = np.clip(self.ramp + shift, 0, 255).astype(np.uint8)
        return replace(self, layers=layers, ramp=ramp)

    def shaded(self, factor: float) -> "Texture":
        """Returns the same surface, darker or brighter."""
        ramp = np.clip(self.ramp * factor, 0, 255).astype(np.uint8)
        return replace(self, ramp=ramp)


class Materials:
    """Makes the textures of one scene, whose colours go together.

    Args:
        rng: the random generator of the scene.
        texture_images: image files whose patches become surfaces; may be empty.
    """

    def __init__(self, rng: np.random.Generator, texture_images: Items[Path]) -> None:
        self.rng = rng
        self.texture_images = texture_images
        self.colors = [_natural_color(rng) for _ in range(rng.integers(2, 6))]
        self.used: list[Texture] = []
        self.contrast = rng.uniform(0.3, 1.0)
        self.plainness = rng.uniform(0.05, 0.5)
        self.image_share = rng.uniform(0, 0.8) if len(texture_images) else 0.0
        self.roundness = rng.choice((0.0, rng.uniform(0.3, 1.2), rng.uniform(0.6, 1.2)))
        self.border_share = rng.choice((0.0, 0.0, 0.0, 0.1, 0.8))

    def color(self) -> Color:
        """Makes a colour, mostly close to one of the scene's."""
        rng = self.rng
        if rng.random() < 0.25:
            return _natural_color(rng)
        base = self.colors[rng.integers(len(self.colors))]
        return np.clip(base * rng.uniform(0.55, 1.5) + rng.normal(0, 14, 3), 4, 252)

    def texture(self, extent: float) -> Texture:
        """Makes a texture.

        Args:
            extent: diameter of the thing in picture units, which patterns are scaled by.
        """
        rng = self.rng
        if len(self.texture_images) and rng.random() < self.image_share:
            return self._image_patch(extent)
        if self.used and rng.random() < 0.12:  # the same material again, which makes edges weak
            return self.used[rng.integers(len(self.used))].varied(rng, 0.15)
        kinds = (self._plain, self._rough, self._patterned)
        rest = 1 - self.plainness
        made = kinds[rng.choice(3, p=(self.plainness, 0.6 * rest, 0.4 * rest))](extent)
        self.used.append(made)
        return made

    def flat(self) -> Texture:
        """Makes a texture of one colour."""
        return Texture(((NOISE[0], _turned(self.rng, 1.0), 1.0),), _ramp([self.color()] * 2))

    def _plain(self, extent: float) -> Texture:
        """Makes a texture of one colour that changes a little over the surface."""
        rng = self.rng
        color = self.color()
        end = np.clip(color * rng.uniform(0.85, 1.15) + rng.normal(0, 5, 3), 0, 255)
        smooth = (_pick(rng, SMOOTH), _turned(rng, extent * rng.uniform(1, 6)), 1.0)
        fine = (_pick(rng, NOISE), _turned(rng, extent * rng.uniform(0.5, 2)), rng.uniform(0, 0.5))
        return Texture((smooth, fine), _ramp([color, end]))

    def _rough(self, extent: float) -> Texture:
        """Makes a texture of noise at two scales."""
        rng = self.rng
        coarse = (
            _pick(rng, NOISE + ROUGH),
            _turned(rng, extent * log_uniform(rng, 0.5, 5), stretch=0.5),
            1.0,
        )
        fine = (
            _pick(rng, NOISE + ROUGH),
            _turned(rng, log_uniform(rng, 0.2, 1.0)),
            rng.uniform(0.0, 1.0),
        )
        return Texture((coarse, fine), self._shades())

    def _patterned(self, extent: float) -> Texture:
        """Makes a texture of stripes, checks, dots, bricks or the like, with some noise."""
        rng = self.rng
        span = extent * log_uniform(rng, 0.3, 1.6)
        pattern = (_pick(rng, PATTERNS), _turned(rng, span, stretch=0.3), 1.0)
        share = rng.uniform(0.05, 0.8)
        noise = (_pick(rng, NOISE), _turned(rng, extent * rng.uniform(0.5, 3)), share)
        return Texture((pattern, noise), self._shades())

    def _image_patch(self, extent: float) -> Texture:
        """Makes a texture from a patch of an image, too small to show a whole thing."""
        rng = self.rng
        path = self.texture_images[int(rng.integers(len(self.texture_images)))]
        span = extent * log_uniform(rng, 1.3, 5)
        as_it_is = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        return Texture(((0, _turned(rng, span), 1.0),), as_it_is, path)

    def _shades(self) -> NDArray[np.uint8]:
        """Makes a ramp of two to four colours, mostly shades of one."""
        rng = self.rng
        first = self.color()
        colors = [first]
        for _ in range(rng.integers(1, 4)):
            if rng.random() < 0.25:
                colors.append(self.color())
            else:
                spread = self.contrast * np.exp(rng.normal(-0.9, 0.6))
                factor = np.exp(rng.choice((-1, 1)) * spread)
                colors.append(
                    np.clip(first * factor + rng.normal(0, 10 * self.contrast, 3), 0, 255)
                )
        return _ramp(colors, sharpness=rng.uniform(0, 1) ** 3)


@lru_cache(maxsize=64)
def read_texture_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image for texture patches, (H, W, 3) RGB, its longer side at most 1024 pixels.

    Raises:
        ValueError: if it cannot be read.
        FileNotFoundError: if there is no such file.
    """
    with open_image(path, str(path)) as image:
        if image.mode.startswith("I"):
            rgb = Image.fromarray(opened_pixels(image))
        else:
            image.draft("RGB", (_IMAGE_SIDE, _IMAGE_SIDE))
            image.thumbnail((2 * _IMAGE_SIDE, 2 * _IMAGE_SIDE), Image.Resampling.BOX)
            rgb = image.convert("RGB")
        rgb.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


class TextureImages:
    """A data set of paths of image files, each of which is read before its path is returned.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        """Returns a path; raises ValueError or OSError if the file cannot be read."""
        read_texture_image(self.paths[index])
        return self.paths[index]


def _natural_color(rng: np.random.Generator) -> Color:
    """Draws a colour as in photographs: mostly earth, leaf and sky, and few vivid ones."""
    family = rng.random()
    if family < 0.45:
        hue = rng.uniform(0.01, 0.14)
    elif family < 0.62:
        hue = rng.uniform(0.18, 0.42)
    elif family < 0.82:
        hue = rng.uniform(0.52, 0.66)
    else:
        hue = rng.random()
    saturation = rng.beta(5, 2) if rng.random() < 0.15 else rng.beta(1.3, 2.6)
    value = 0.04 + 0.94 * rng.beta(1.6, 1.3)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _ramp(colors: Sequence[Color], sharpness: float = 0.0) -> NDArray[np.uint8]:
    """Returns (256, 1, 3): the colours evenly spread; ``sharpness`` turns slopes into steps."""
    position = np.linspace(0, len(colors) - 1, 256)
    if sharpness:
        stop = np.round(position)
        slope = 1 / max(1 - sharpness, 1e-3)
        beyond = np.maximum(np.abs(position - stop) - sharpness / 2, 0)
        position = stop + np.sign(position - stop) * beyond * slope
    stops = np.arange(len(colors))
    table = np.array(colors)
    channels = [np.interp(position, stops, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)[:, None]


def _pick(rng: np.random.Generator, tiles: Sequence[int]) -> int:
    return tiles[int(rng.integers(len(tiles)))]


def _turned(rng: np.random.Generator, span: float, stretch: float = 0.0) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix from picture units to tiles, each ``span`` wide, turned, moved."""
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.35:  # as most built things are
        angle = rng.choice((0, np.pi / 2)) + rng.normal(0, 0.03)
    factors = np.exp(rng.normal(0, 1, 2) * stretch) / span
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.zeros((2, 3))
    matrix[:, :2] = factors[:, None] * [[cos, sin], [-sin, cos]]
    return matrix + _shift(rng, matrix)


def _shift(rng: np.random.Generator, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    shift = np.zeros_like(matrix)
    shift[:2, 2] = rng.random(2)
    return shift


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix if len(matrix) == 3 else np.vstack([matrix, (0, 0, 1)])


def _sample(tile: int, matrix: NDArray[np.float64], width: int, height: int) -> NDArray[np.uint8]:
    """Returns values of a tile, (height, width), from its reduction that fits the scale."""
    (a, b, _), (c, d, _), (e, f, g) = matrix.tolist()
    depth = e * width / 2 + f * height / 2 + g
    texels = SIDE * math.sqrt(abs(a * d - b * c)) / abs(depth)
    level = min(max(round(math.log2(max(texels, 1.0))), 0), 4)
    side = SIDE >> level
    scaled = matrix * [[side], [side], [1]]
    if not e and not f:
        # OpenCV is five times as fast inside the repeated tile as across its border.
        left = min(0.0, a * width) + min(0.0, b * height)
        top = min(0.0, c * width) + min(0.0, d * height)
        scaled[0, 2] -= side * math.floor(scaled[0, 2] / side + left)
        scaled[1, 2] -= side * math.floor(scaled[1, 2] / side + top)
    return _warp(make_tiles()[level][tile], scaled, width, height, cv2.BORDER_WRAP)


def _warp(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], width: int, height: int, border: int
) -> NDArray[np.uint8]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if not matrix[2, :2].any():
        return cv2.warpAffine(pixels, matrix[:2], (width, height), flags=flags, borderMode=border)
    return cv2.warpPerspective(pixels, matrix, (width, height), flags=flags, borderMode=border)
