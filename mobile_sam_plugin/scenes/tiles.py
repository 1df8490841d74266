"""The tiles of synthetic textures: patterns that repeat without a seam."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 512
"""The side of a tile in pixels."""

# Indices of the tiles, by kind.
NOISE = (0, 1, 2, 3)
SMOOTH = (4, 5)
ROUGH = tuple(range(6, 19))
PATTERNS = tuple(range(19, 37))


@lru_cache(maxsize=1)
def make_tiles() -> tuple[NDArray[np.uint8], ...]:
    """Makes the tiles, once per process.

    Returns:
        For each side S of 512, 256, 128, 64 and 32 pixels (37, 2 S, 2 S) uint8: each tile is
        repeated twice in both directions.
    """
    rng = np.random.default_rng(20230625)
    top = SIDE / 2
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


def _noise(
    rng: np.random.Generator, low: float, high: float, slope: float, stretch: float = 1.0
) -> NDArray[np.float64]:
    """Makes periodic noise, whose amplitudes fall with the frequency to the power ``slope``."""
    frequencies = np.fft.fftfreq(SIDE, 1 / SIDE)
    radius = np.hypot(frequencies[:, None] * stretch, frequencies[None, : SIDE // 2 + 1])
    amplitude = np.zeros_like(radius)
    band = (radius >= low) & (radius <= high)
    amplitude[band] = radius[band] ** -slope
    phases = np.exp(2j * np.pi * rng.random(radius.shape))
    field = np.fft.irfft2(amplitude * phases, (SIDE, SIDE))
    return field / field.std()


def _even(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spreads normally distributed values evenly over [0, 1]."""
    return 1 / (1 + np.exp(-1.702 * field))


def _leaves(
    rng: np.random.Generator, small: float, large: float, aspect: float, count: int
) -> NDArray[np.float64]:
    """Makes a dead leaves model, things on things, with the statistics of natural images."""
    tile = np.full((SIDE, SIDE), 128, np.uint8)
    for radius in np.sort(np.exp(rng.uniform(np.log(small), np.log(large), count)))[::-1]:
        x, y = rng.integers(0, SIDE, 2)
        shade = int(rng.integers(0, 256))
        angle = rng.uniform(0, 360)
        axes = (max(1, int(radius)), max(1, int(radius * aspect)))
        reach = int(radius) + 1
        for dx in (-SIDE, 0, SIDE):
            for dy in (-SIDE, 0, SIDE):
                if -reach < x + dx < SIDE + reach and -reach < y + dy < SIDE + reach:
                    center = (int(x + dx), int(y + dy))
                    cv2.ellipse(tile, center, axes, angle, 0, 360, shade, -1, cv2.LINE_AA)
    return tile / 255.0


def _cells(rng: np.random.Generator, count: int, jointed: bool) -> NDArray[np.float64]:
    """Makes cells around random points, each of one shade, with or without dark joints."""
    points = rng.integers(0, SIDE, (count, 2))
    big = np.full((2 * SIDE, 2 * SIDE), 255, np.uint8)
    half = SIDE // 2
    labels = np.zeros((2 * SIDE, 2 * SIDE), np.int32)
    for dx in (-SIDE, 0, SIDE):
        for dy in (-SIDE, 0, SIDE):
            moved = points + (half + dx, half + dy)
            inside = ((moved >= 0) & (moved < 2 * SIDE)).all(axis=1)
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
    return shade[half : half + SIDE, half : half + SIDE]


def _bricks(
    rng: np.random.Generator, rows: int, columns: int, offset: float, joint: float
) -> NDArray[np.float64]:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    row = np.floor(y * rows).astype(int)
    across = x * columns + (row % 2) * offset
    column = np.floor(across).astype(int) % columns
    shade = 0.35 + 0.65 * rng.random((rows, columns))[row, column]
    gap = np.minimum(across % 1, 1 - across % 1) / columns
    gap = np.minimum(gap, np.minimum(y * rows % 1, 1 - y * rows % 1) / rows)
    return np.where(gap < joint, 0.0, shade)


def _stripes(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    sine = 0.5 + 0.5 * np.sin(2 * np.pi * 10 * x)
    widths = rng.random(24)[np.minimum((x * 24).astype(int), 23)]
    plaid = (widths + widths.T) / 2
    wavy = 0.5 + 0.5 * np.sin(2 * np.pi * (8 * x + 0.05 * np.sin(2 * np.pi * 3 * y) * 8))
    warped = 0.5 + 0.5 * np.sin(2 * np.pi * (6 * x) + 2.5 * _noise(rng, 1, 12, 1.5))
    zigzag = 0.5 + 0.5 * np.sin(2 * np.pi * (10 * x + np.abs(12 * y % 2 - 1)))
    return [sine, (sine > 0.5) * 1.0, widths, plaid, wavy, warped, zigzag]


def _lattices(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
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
