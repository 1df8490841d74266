"""Images as a bad camera, bad weather or a bad file leave them: ImageNet-C's fifteen corruptions.

They are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (arXiv 1903.12261), with the parameters of their published code, at
five severities; and ``occlusion``, by squares of black. Lengths are in pixels of the image, as in
that code, which was made for images of 224 x 224: the same severity harms a large image less.

``elastic_transform`` is that of Michaelis et al. (arXiv 1907.07484), which grows with the image and
leaves things in their places. What is our own: the pictures of frost are generated, and fog comes
from octaves of noise instead of a plasma of squares and diamonds. docs/measurements/robustness.md
compares the strength of all with that of published code.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
"""From weak to strong."""

Pixels = NDArray[np.float32]
"""(H, W, 3) RGB, in [0, 1]."""

_FROST = (0.55, 0.62, 0.66)  # RGB of ice, the mean of the published pictures of frost
_GRID = 16  # squares of an occlusion along each side


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, seed: int | Sequence[int] = 0
) -> NDArray[np.uint8]:
    """Returns a corrupted copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        name: one of :data:`CORRUPTIONS`.
        severity: one of :data:`SEVERITIES`.
        seed: random seed; the same one gives the same pixels.

    Raises:
        UserError: if there is no such corruption or severity.
    """
    if name not in _TABLE:
        raise UserError(f"there is no corruption {name!r}, only {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"the severity must be 1 to 5, not {severity}")
    function, parameters = _TABLE[name]
    pixels = image.astype(np.float32) / 255
    corrupted = function(pixels, np.random.default_rng(seed), *parameters[severity - 1])
    return np.rint(corrupted.clip(0, 1) * 255).astype(np.uint8)


def parse_corruptions(texts: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the corruptions and severities that texts name, each once, in the order of the paper.

    Args:
        texts: ``NAME`` for all severities, or ``NAME:SEVERITY``; NAME may be ``all``.

    Raises:
        UserError: if a text names none.
    """
    chosen = set()
    for text in texts:
        name, colon, severity = text.strip().partition(":")
        if name != "all" and name not in CORRUPTIONS:
            raise UserError(
                f"there is no corruption {name!r}, only all, {', '.join(CORRUPTIONS)}; with :1 to "
                ":5 for one severity"
            )
        if colon and severity not in map(str, SEVERITIES):
            raise UserError(f"the severity of {text!r} must be 1 to 5")
        names = CORRUPTIONS if name == "all" else (name,)
        chosen |= {(each, s) for each in names for s in ((int(severity),) if colon else SEVERITIES)}
    return sorted(chosen, key=lambda each: (CORRUPTIONS.index(each[0]), each[1]))


# Noise


def _gaussian_noise(pixels: Pixels, random: Generator, deviation: float) -> NDArray[Any]:
    return pixels + random.normal(scale=deviation, size=pixels.shape)


def _shot_noise(pixels: Pixels, random: Generator, photons: float) -> NDArray[Any]:
    """The light is counted: white is so many photons on average."""
    return random.poisson(pixels * photons) / photons


def _impulse_noise(pixels: Pixels, random: Generator, amount: float) -> NDArray[Any]:
    """Of all values, so many are 0 or 1."""
    hit = random.random(pixels.shape) < amount
    return np.where(hit, random.integers(2, size=pixels.shape), pixels)


# Blur


def _defocus_blur(pixels: Pixels, _: Generator, radius: int, softness: float) -> NDArray[Any]:
    """The point of light becomes a disc, with an edge that is blurred a little."""
    reach = max(8, radius)
    offsets = np.arange(-reach, reach + 1)
    disc = (np.hypot(*np.meshgrid(offsets, offsets)) <= radius).astype(np.float32)
    side = 3 if radius <= 8 else 5
    return _filter(pixels, cv2.GaussianBlur(disc / disc.sum(), (side, side), softness))


def _glass_blur(
    pixels: Pixels, random: Generator, deviation: float, reach: int, rounds: int
) -> NDArray[Any]:
    """Each pixel shows a neighbour, several times, between two blurs."""
    blurred = _blur(pixels, deviation)
    height, width = blurred.shape[:2]
    columns = np.arange(width)
    for _ in range(rounds):
        down, right = random.integers(-reach, reach, size=(2, height, width))
        for row in reversed(range(height)):  # so that what a row shows may come from far below
            rows = (row + down[row]).clip(0, height - 1)
            blurred[row] = blurred[rows, (columns + right[row]).clip(0, width - 1)]
    return _blur(blurred, deviation)


def _motion_blur(pixels: Pixels, random: Generator, radius: int, deviation: float) -> NDArray[Any]:
    return _smear(pixels, radius, deviation, random.uniform(-45, 45))


def _zoom_blur(pixels: Pixels, _: Generator, furthest: float, step: float) -> NDArray[Any]:
    """The mean of the image and of its middle, ever more enlarged."""
    factors = 1 + step * np.arange(round((furthest - 1) / step))
    zoomed = sum(_zoom(pixels, factor) for factor in factors)
    return (pixels + zoomed) / (len(factors) + 1)


# Weather


def _snow(
    pixels: Pixels,
    random: Generator,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: int,
    length: float,
    clarity: float,
) -> NDArray[Any]:
    """Flakes of enlarged noise above a threshold fall over an image that has turned pale."""
    flakes = random.normal(mean, deviation, pixels.shape[:2]).astype(np.float32)
    flakes = _zoom(flakes, size)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1).astype(np.float32)
    flakes = _smear(flakes, radius, length, random.uniform(-135, -45))[..., None]
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pale = np.maximum(pixels, 1.5 * gray + 0.5)
    return clarity * pixels + (1 - clarity) * pale + flakes + flakes[::-1, ::-1]


def _frost(pixels: Pixels, random: Generator, image: float, ice: float) -> NDArray[Any]:
    """The image shines through a pane of ice, whose needles are ridges of noise."""
    ridges = 1 - np.abs(2 * _fractal(pixels.shape[:2], random, 1.3) - 1)
    needles = _smear(ridges, 10, 5, random.uniform(-135, -45))
    needles = (needles - needles.mean()) / max(float(needles.std()), 1e-6)
    return image * pixels + ice * (np.array(_FROST) + 0.2 * needles[..., None]).clip(0, 1)


def _fog(pixels: Pixels, random: Generator, amount: float, decay: float) -> NDArray[Any]:
    """Light is added in clouds, then all is dimmed so that the brightest pixel stays as it is."""
    brightest = float(pixels.max())
    clouds = amount * _fractal(pixels.shape[:2], random, decay)[..., None]
    return (pixels + clouds) * brightest / (brightest + amount)


def _brightness(pixels: Pixels, _: Generator, amount: float) -> NDArray[Any]:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = (hsv[..., 2] + amount).clip(0, 1)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


# Digital


def _contrast(pixels: Pixels, _: Generator, factor: float) -> NDArray[Any]:
    mean = pixels.mean(axis=(0, 1))
    return (pixels - mean) * factor + mean


def _elastic_transform(pixels: Pixels, random: Generator, strength: float) -> NDArray[Any]:
    """Each pixel moves, as its neighbours do: by a blurred field of random offsets."""
    height, width = pixels.shape[:2]
    reach = 0.005 * height
    right, down = (
        _blur(random.uniform(-reach, reach, (height, width)).astype(np.float32), 0.01 * height)
        for _ in range(2)
    )
    rows, columns = np.indices((height, width), dtype=np.float32)
    places = columns + strength * right, rows + strength * down
    return np.asarray(cv2.remap(pixels, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _pixelate(pixels: Pixels, _: Generator, scale: float) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    few = max(1, int(width * scale)), max(1, int(height * scale))
    image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize(
        few, Image.Resampling.BOX
    )
    coarse = image.resize(few, Image.Resampling.BOX)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BOX)) / 255


def _jpeg_compression(pixels: Pixels, _: Generator, quality: int) -> NDArray[Any]:
    bgr = np.rint(pixels[..., ::-1] * 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[..., ::-1] / 255


def _occlusion(pixels: Pixels, random: Generator, share: float) -> NDArray[Any]:
    """Of a grid of squares over the image, so many are black."""
    height, width = pixels.shape[:2]
    hidden = np.zeros(_GRID * _GRID, dtype=np.uint8)
    hidden[random.permutation(len(hidden))[: round(share * len(hidden))]] = 1
    grid = hidden.reshape(_GRID, _GRID)
    rows, columns = (np.arange(length) * _GRID // length for length in (height, width))
    return np.where(grid[rows][:, columns, None], 0, pixels)


# What they share


def _blur(pixels: Pixels, deviation: float) -> Pixels:
    side = 2 * int(4 * deviation + 0.5) + 1
    blurred = cv2.GaussianBlur(pixels, (side, side), deviation, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred)


def _filter(pixels: Pixels, kernel: Pixels) -> Pixels:
    return np.asarray(cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REPLICATE))


def _smear(pixels: Pixels, radius: int, deviation: float, degrees: float) -> Pixels:
    """Blurs in one direction, as ImageMagick does: by half of a Gaussian, 2 radius + 1 pixels long.

    Args:
        pixels: (H, W) or (H, W, 3).
        radius: in pixels.
        deviation: of the Gaussian, in pixels.
        degrees: the direction, from that of the rows.
    """
    reach = 2 * radius
    distances = np.arange(reach + 1)
    weights = np.exp(-(distances**2) / (2 * deviation**2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    angle = np.deg2rad(degrees)
    rows, columns = (
        np.rint(distances * each).astype(int) + reach for each in (np.sin(angle), np.cos(angle))
    )
    np.add.at(kernel, (rows, columns), weights / weights.sum())
    return _filter(pixels, kernel)


def _zoom(pixels: Pixels, factor: float) -> Pixels:
    """Enlarges the middle of an image, (H, W) or (H, W, 3), to the size of the image."""
    height, width = pixels.shape[:2]
    few = [min(length, int(np.ceil(length / factor))) for length in (height, width)]
    top, left = (height - few[0]) // 2, (width - few[1]) // 2
    middle = pixels[top : top + few[0], left : left + few[1]]
    return np.asarray(cv2.resize(middle, (width, height), interpolation=cv2.INTER_LINEAR))


def _fractal(size: tuple[int, int], random: Generator, decay: float) -> Pixels:
    """Returns clouds (H, W) in [0, 1]: octaves of noise, each weaker by the square of the decay."""
    side = 1 << max(*size, 2).bit_length()
    clouds = np.zeros((side, side), dtype=np.float32)
    weight, cells = 1.0, 4
    while cells <= side:
        noise = random.uniform(-1, 1, (cells, cells)).astype(np.float32)
        clouds += weight * cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
        weight, cells = weight / decay**2, cells * 2
    clouds = clouds[: size[0], : size[1]] - clouds.min()
    return np.asarray(clouds / max(float(clouds.max()), 1e-6))


_TABLE: dict[str, tuple[Callable[..., NDArray[Any]], Sequence[tuple[float, ...]]]] = {
    "gaussian_noise": (_gaussian_noise, [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)]),
    "shot_noise": (_shot_noise, [(60,), (25,), (12,), (5,), (3,)]),
    "impulse_noise": (_impulse_noise, [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)]),
    "defocus_blur": (_defocus_blur, [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)]),
    "glass_blur": (_glass_blur, [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)]),
    "motion_blur": (_motion_blur, [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]),
    "zoom_blur": (
        _zoom_blur,
        [(1.11, 0.01), (1.16, 0.01), (1.22, 0.02), (1.26, 0.02), (1.33, 0.03)],
    ),
    "snow": (
        _snow,
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "frost": (_frost, [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)]),
    "fog": (_fog, [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]),
    "brightness": (_brightness, [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)]),
    "contrast": (_contrast, [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)]),
    "elastic_transform": (_elastic_transform, [(12.5,), (16.25,), (21.25,), (25,), (30,)]),
    "pixelate": (_pixelate, [(0.6,), (0.5,), (0.4,), (0.3,), (0.25,)]),
    "jpeg_compression": (_jpeg_compression, [(25,), (18,), (15,), (10,), (7,)]),
    "occlusion": (_occlusion, [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)]),
}

CORRUPTIONS = tuple(_TABLE)
"""The names of all corruptions, in the order of the paper; the last one is not of the paper."""
