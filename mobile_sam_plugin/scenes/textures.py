"""The surfaces of synthetic scenes: colours, and textures that mix them by periodic patterns.

A texture reads a value from one or two tiles, which are patterns that repeat without a seam, and
gives it a colour from a ramp. The tiles are made once a process; turned, stretched and combined,
they give endless different surfaces at the cost of two image warps.
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

from ..datasets.readable import Items
from ..images import open_image, opened_pixels
from .shapes import log_uniform

Color = NDArray[np.float64]  # (3,) RGB in [0, 255]

_SIDE = 512  # of a tile, in pixels
_PHOTOGRAPH_SIDE = 1024  # photographs are reduced to this


@dataclass(frozen=True)
class Texture:
    """A surface, endless in the plane of the picture.

    Attributes:
        layers: of each pattern its tile, the (2, 3) or (3, 3) matrix from picture units to tiles,
            and its weight.
        ramp: (256, 1, 3) uint8 RGB, the colour of each value of the pattern; for a photograph, what
            becomes of each value of a channel.
        photograph: the file that the surface is a patch of, in place of a pattern; the matrix of
            the first layer then leads to the photograph, whose shorter side is 1.
    """

    layers: tuple[tuple[int, NDArray[np.float64], float], ...]
    ramp: NDArray[np.uint8]
    photograph: Path | None = None

    def render(self, x: int, y: int, width: int, height: int, unit: float) -> NDArray[np.uint8]:
        """Paints a window of the picture.

        Args:
            x, y, width, height: the window, in pixels.
            unit: pixels that make one picture unit.

        Returns:
            (height, width, 3) RGB.
        """
        window = np.array([[1 / unit, 0, x / unit], [0, 1 / unit, y / unit], [0, 0, 1]])
        if self.photograph is not None:
            pixels = read_photograph(self.photograph)
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
                # Sums of patterns are paler than each: the contrast is restored about the middle.
                total = float(np.hypot(weight, share))
                offset = 127.5 * (1 - (weight + share) / total)
                values = cv2.addWeighted(values, weight / total, layer, share / total, offset)
        return cv2.applyColorMap(values, self.ramp)

    def varied(self, rng: np.random.Generator, amount: float) -> "Texture":
        """The same kind of surface from elsewhere, its colours shifted by up to ``amount``."""
        layers = tuple(
            (tile, matrix + _shift(rng, matrix), share) for tile, matrix, share in self.layers
        )
        shift = rng.normal(0, 60 * amount) + rng.normal(0, 30 * amount, 3)
        ramp = np.clip(self.ramp + shift, 0, 255).astype(np.uint8)
        return replace(self, layers=layers, ramp=ramp)

    def shaded(self, factor: float) -> "Texture":
        """The same surface darker or brighter."""
        ramp = np.clip(self.ramp * factor, 0, 255).astype(np.uint8)
        return replace(self, ramp=ramp)


class Materials:
    """Makes the textures of one scene, whose colours go together.

    Args:
        rng: what decides.
        photographs: files of which patches become surfaces; may be empty.
    """

    def __init__(self, rng: np.random.Generator, photographs: Items[Path]) -> None:
        self.rng = rng
        self.photographs = photographs
        self.colors = [_natural_color(rng) for _ in range(rng.integers(2, 6))]
        self.used: list[Texture] = []
        self.contrast = rng.uniform(0.3, 1.0)
        self.plainness = rng.uniform(0.05, 0.5)
        self.photograph_share = rng.uniform(0, 0.8) if len(photographs) else 0.0
        self.roundness = rng.choice((0.0, rng.uniform(0.3, 1.2), rng.uniform(0.6, 1.2)))
        self.border_share = rng.choice((0.0, 0.0, 0.0, 0.1, 0.8))

    def color(self) -> Color:
        """A colour near one of the scene's, sometimes another."""
        rng = self.rng
        if rng.random() < 0.25:
            return _natural_color(rng)
        base = self.colors[rng.integers(len(self.colors))]
        return np.clip(base * rng.uniform(0.55, 1.5) + rng.normal(0, 14, 3), 4, 252)

    def texture(self, extent: float) -> Texture:
        """A texture for something of a size.

        Args:
            extent: its diameter in picture units, which patterns are scaled by.
        """
        rng = self.rng
        if len(self.photographs) and rng.random() < self.photograph_share:
            return self._photograph(extent)
        if self.used and rng.random() < 0.12:  # the same stuff again, hard to tell from the first
            return self.used[rng.integers(len(self.used))].varied(rng, 0.15)
        kinds = (self._plain, self._rough, self._patterned)
        rest = 1 - self.plainness
        made = kinds[rng.choice(3, p=(self.plainness, 0.6 * rest, 0.4 * rest))](extent)
        self.used.append(made)
        return made

    def flat(self) -> Texture:
        """One colour."""
        return Texture(((_NOISE[0], _turned(self.rng, 1.0), 1.0),), _ramp([self.color()] * 2))

    def _plain(self, extent: float) -> Texture:
        """One colour that changes a little over the surface."""
        rng = self.rng
        color = self.color()
        end = np.clip(color * rng.uniform(0.85, 1.15) + rng.normal(0, 5, 3), 0, 255)
        smooth = (_pick(rng, _SMOOTH), _turned(rng, extent * rng.uniform(1, 6)), 1.0)
        fine = (_pick(rng, _NOISE), _turned(rng, extent * rng.uniform(0.5, 2)), rng.uniform(0, 0.5))
        return Texture((smooth, fine), _ramp([color, end]))

    def _rough(self, extent: float) -> Texture:
        """Noise at two scales."""
        rng = self.rng
        coarse = (
            _pick(rng, _NOISE + _ROUGH),
            _turned(rng, extent * log_uniform(rng, 0.5, 5), stretch=0.5),
            1.0,
        )
        fine = (
            _pick(rng, _NOISE + _ROUGH),
            _turned(rng, log_uniform(rng, 0.2, 1.0)),
            rng.uniform(0.0, 1.0),
        )
        return Texture((coarse, fine), self._shades())

    def _patterned(self, extent: float) -> Texture:
        """Stripes, checks, dots, bricks and the like, with some noise."""
        rng = self.rng
        span = extent * log_uniform(rng, 0.3, 1.6)
        pattern = (_pick(rng, _PATTERNS), _turned(rng, span, stretch=0.3), 1.0)
        share = rng.uniform(0.05, 0.8)
        noise = (_pick(rng, _NOISE), _turned(rng, extent * rng.uniform(0.5, 3)), share)
        return Texture((pattern, noise), self._shades())

    def _photograph(self, extent: float) -> Texture:
        """A patch, so small that it shows no whole thing."""
        rng = self.rng
        path = self.photographs[int(rng.integers(len(self.photographs)))]
        span = extent * log_uniform(rng, 1.3, 5)
        as_it_is = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        return Texture(((0, _turned(rng, span), 1.0),), as_it_is, path)

    def _shades(self) -> NDArray[np.uint8]:
        """A ramp of two to four colours, more often shades of one than different ones."""
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
def read_photograph(path: Path) -> NDArray[np.uint8]:
    """A photograph for texture patches, (H, W, 3) RGB, its longer side reduced to 1024 pixels.

    Raises:
        ValueError: it cannot be read.
        FileNotFoundError: there is no such file.
    """
    with open_image(path, str(path)) as image:
        if image.mode.startswith("I"):
            rgb = Image.fromarray(opened_pixels(image))
        else:
            image.draft("RGB", (_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE))
            image.thumbnail((2 * _PHOTOGRAPH_SIDE, 2 * _PHOTOGRAPH_SIDE), Image.Resampling.BOX)
            rgb = image.convert("RGB")
        rgb.thumbnail((_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


class Photographs:
    """Files of photographs, each of which is read before its path is given.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        """Returns a path; ValueError or OSError if the file cannot be read."""
        read_photograph(self.paths[index])
        return self.paths[index]


def _natural_color(rng: np.random.Generator) -> Color:
    """Photographs hold more earth, leaf and sky than the colour circle does, and few vivid ones."""
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
    """(256, 1, 3): the colours spread evenly; ``sharpness`` makes steps of the slopes."""
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
    """(2, 3) from picture units to tiles, of which one covers ``span``, turned and moved."""
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.35:  # what people build is upright
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
    """Values of a tile (height, width), from the reduction of it that the scale asks for."""
    (a, b, _), (c, d, _), (e, f, g) = matrix.tolist()
    depth = e * width / 2 + f * height / 2 + g
    texels = _SIDE * math.sqrt(abs(a * d - b * c)) / abs(depth)
    level = min(max(round(math.log2(max(texels, 1.0))), 0), 4)
    side = _SIDE >> level
    scaled = matrix * [[side], [side], [1]]
    if not e and not f:
        # Within the repeated margin of the tile OpenCV is five times as fast as around its border.
        left = min(0.0, a * width) + min(0.0, b * height)
        top = min(0.0, c * width) + min(0.0, d * height)
        scaled[0, 2] -= side * math.floor(scaled[0, 2] / side + left)
        scaled[1, 2] -= side * math.floor(scaled[1, 2] / side + top)
    return _warp(_tiles()[level][tile], scaled, width, height, cv2.BORDER_WRAP)


def _warp(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], width: int, height: int, border: int
) -> NDArray[np.uint8]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if not matrix[2, :2].any():
        return cv2.warpAffine(pixels, matrix[:2], (width, height), flags=flags, borderMode=border)
    return cv2.warpPerspective(pixels, matrix, (width, height), flags=flags, borderMode=border)


# Tiles


def _noise(
    rng: np.random.Generator, low: float, high: float, slope: float, stretch: float = 1.0
) -> NDArray[np.float64]:
    """Periodic noise: amplitudes fall with the frequency to the power ``slope``."""
    frequencies = np.fft.fftfreq(_SIDE, 1 / _SIDE)
    radius = np.hypot(frequencies[:, None] * stretch, frequencies[None, : _SIDE // 2 + 1])
    amplitude = np.zeros_like(radius)
    band = (radius >= low) & (radius <= high)
    amplitude[band] = radius[band] ** -slope
    phases = np.exp(2j * np.pi * rng.random(radius.shape))
    field = np.fft.irfft2(amplitude * phases, (_SIDE, _SIDE))
    return field / field.std()


def _even(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spreads normally distributed values evenly over [0, 1]."""
    return 1 / (1 + np.exp(-1.702 * field))


def _leaves(
    rng: np.random.Generator, small: float, large: float, aspect: float, count: int
) -> NDArray[np.float64]:
    """The dead leaves model, whose statistics are those of natural images: things on things."""
    tile = np.full((_SIDE, _SIDE), 128, np.uint8)
    for radius in np.sort(np.exp(rng.uniform(np.log(small), np.log(large), count)))[::-1]:
        x, y = rng.integers(0, _SIDE, 2)
        shade = int(rng.integers(0, 256))
        angle = rng.uniform(0, 360)
        axes = (max(1, int(radius)), max(1, int(radius * aspect)))
        reach = int(radius) + 1
        for dx in (-_SIDE, 0, _SIDE):
            for dy in (-_SIDE, 0, _SIDE):
                if -reach < x + dx < _SIDE + reach and -reach < y + dy < _SIDE + reach:
                    center = (int(x + dx), int(y + dy))
                    cv2.ellipse(tile, center, axes, angle, 0, 360, shade, -1, cv2.LINE_AA)
    return tile / 255.0


def _cells(rng: np.random.Generator, count: int, jointed: bool) -> NDArray[np.float64]:
    """Cells around random points, each of one shade, with dark joints or without."""
    points = rng.integers(0, _SIDE, (count, 2))
    big = np.full((2 * _SIDE, 2 * _SIDE), 255, np.uint8)
    half = _SIDE // 2
    labels = np.zeros((2 * _SIDE, 2 * _SIDE), np.int32)
    for dx in (-_SIDE, 0, _SIDE):
        for dy in (-_SIDE, 0, _SIDE):
            moved = points + (half + dx, half + dy)
            inside = ((moved >= 0) & (moved < 2 * _SIDE)).all(axis=1)
            big[moved[inside, 1], moved[inside, 0]] = 0
            labels[moved[inside, 1], moved[inside, 0]] = np.flatnonzero(inside) + 1
    _, nearest = cv2.distanceTransformWithLabels(
        big, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    point_of = np.zeros(nearest.max() + 1, np.int32)
    point_of[nearest[big == 0]] = labels[big == 0]
    cell = point_of[nearest]
    shade = rng.random(count + 1)[cell]
    if jointed:
        edge = (cell != np.roll(cell, 1, 0)) | (cell != np.roll(cell, 1, 1))
        shade = 0.25 + 0.75 * shade
        shade[cv2.dilate(edge.astype(np.uint8), np.ones((4, 4), np.uint8)) > 0] = 0.0
    return shade[half : half + _SIDE, half : half + _SIDE]


def _bricks(
    rng: np.random.Generator, rows: int, columns: int, offset: float, joint: float
) -> NDArray[np.float64]:
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    row = np.floor(y * rows).astype(int)
    across = x * columns + (row % 2) * offset
    column = np.floor(across).astype(int) % columns
    shade = 0.35 + 0.65 * rng.random((rows, columns))[row, column]
    gap = np.minimum(across % 1, 1 - across % 1) / columns
    gap = np.minimum(gap, np.minimum(y * rows % 1, 1 - y * rows % 1) / rows)
    return np.where(gap < joint, 0.0, shade)


def _stripes(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    sine = 0.5 + 0.5 * np.sin(2 * np.pi * 10 * x)
    widths = rng.random(24)[np.minimum((x * 24).astype(int), 23)]
    plaid = (widths + widths.T) / 2
    wavy = 0.5 + 0.5 * np.sin(2 * np.pi * (8 * x + 0.05 * np.sin(2 * np.pi * 3 * y) * 8))
    warped = 0.5 + 0.5 * np.sin(2 * np.pi * (6 * x) + 2.5 * _noise(rng, 1, 12, 1.5))
    zigzag = 0.5 + 0.5 * np.sin(2 * np.pi * (10 * x + np.abs(12 * y % 2 - 1)))
    return [sine, (sine > 0.5) * 1.0, widths, plaid, wavy, warped, zigzag]


def _lattices(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    checks = ((np.floor(x * 10) + np.floor(y * 10)) % 2) * 1.0
    dots = (np.hypot(x * 8 % 1 - 0.5, y * 8 % 1 - 0.5) < 0.3) * 1.0
    shifted = y * 8 + np.floor(x * 8) % 2 * 0.5
    staggered = np.clip(3 - 8 * np.hypot(x * 8 % 1 - 0.5, shifted % 1 - 0.5), 0, 1)
    weave = np.where(
        (np.floor(x * 16) + np.floor(y * 16)) % 2 > 0,
        np.abs(np.sin(np.pi * 16 * x)),
        np.abs(np.sin(np.pi * 16 * y)) * 0.8,
    )
    scattered = np.clip(0.5 + 6 * (_noise(rng, 6, 9, 0.0) - 1.0), 0, 1)
    return [checks, dots, staggered, weave, scattered]


_NOISE = (0, 1, 2, 3)
_SMOOTH = (4, 5)
_ROUGH = tuple(range(6, 19))
_PATTERNS = tuple(range(19, 37))


@lru_cache(maxsize=1)
def _tiles() -> tuple[NDArray[np.uint8], ...]:
    """(37, 2 S, 2 S), each tile four times, for the sides S of 512, 256 and so on, five of them."""
    rng = np.random.default_rng(20230625)
    top = _SIDE / 2
    noise = [_even(_noise(rng, 1, top, slope)) for slope in (0.6, 1.0, 1.4, 1.8)]
    smooth = [_even(_noise(rng, 1, 5, 1.0)), _even(_noise(rng, 1, 40, 2.6))]
    veins = np.abs(_noise(rng, 1, top, 1.9))
    rough = [
        _even(_noise(rng, 1, top, 1.3, stretch=0.12)),
        _even(_noise(rng, 1, top, 0.8, stretch=0.04)),
        _even(_noise(rng, 18, 30, 0.0)),
        _even(_noise(rng, 40, 90, 0.5)),
        np.exp(-3 * veins),
        np.clip(veins / 2, 0, 1),
        _leaves(rng, 3, 60, 1.0, 1500),
        _leaves(rng, 2, 20, 1.0, 4000),
        _leaves(rng, 12, 50, 0.12, 2500),
        _leaves(rng, 6, 40, 0.4, 1800),
        _cells(rng, 700, jointed=False),
        _cells(rng, 150, jointed=False),
        _even(_noise(rng, 4, 60, 1.0)) ** 3,
    ]
    patterns = [
        *_stripes(rng),
        *_lattices(rng),
        _bricks(rng, 16, 8, 0.5, 0.006),
        _bricks(rng, 8, 8, 0.0, 0.004),
        _bricks(rng, 6, 12, 0.5, 0.002),
        _bricks(rng, 12, 2, 0.4, 0.002),
        _cells(rng, 250, jointed=True),
        _cells(rng, 60, jointed=True),
    ]
    fields = [*noise, *smooth, *rough, *patterns]
    levels = [np.stack([(255 * np.clip(field, 0, 1)).round().astype(np.uint8) for field in fields])]
    for _ in range(4):
        side = levels[-1].shape[1] // 2
        reduced = [
            cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in levels[-1]
        ]
        levels.append(np.stack(reduced))
    return tuple(np.tile(level, (1, 2, 2)) for level in levels)
