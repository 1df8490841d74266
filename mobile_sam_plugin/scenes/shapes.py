"""The outlines of synthetic scenes: ellipses, polygons, blobs, rings, strokes, letters and others.

An outline is a list of closed contours, each (K, 2) XY with y downwards, filled by the even-odd
rule: a contour inside another is a hole. Shapes are centred on the origin, their radius about 1.
"""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Contour = NDArray[np.float64]
Outline = list[Contour]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789&?!"

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a number whose logarithm is uniform: the median is sqrt(low * high)."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def transform(outline: Outline, matrix: NDArray[np.float64]) -> Outline:
    """Applies a (2, 3) affine matrix."""
    return [contour @ matrix[:, :2].T + matrix[:, 2] for contour in outline]


def placement(
    at: Sequence[float] | Contour,
    scale: float,
    angle: float = 0.0,
    aspect: float = 1.0,
    shear: float = 0.0,
) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix that stretches x by ``aspect``, shears, turns, scales and moves."""
    cos, sin = np.cos(angle), np.sin(angle)
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ [[aspect, shear], [0, 1]]
    return np.column_stack([linear, at])


def bounds(outline: Sequence[Contour]) -> tuple[float, float, float, float]:
    """Returns the box of contours, XYXY."""
    points = np.concatenate(outline)
    x0, y0 = points.min(axis=0)
    x1, y1 = points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def ellipse(rng: np.random.Generator, aspect: float | None = None) -> Outline:
    """Makes an ellipse, upright, its width 2 and its height at most that."""
    height = rng.uniform(0.35, 1.0) if aspect is None else aspect
    return [_circle(64) * (1, height)]


def superellipse(rng: np.random.Generator) -> Outline:
    """Makes a rectangle with round corners."""
    power = 2 / rng.uniform(2.6, 10)
    circle = _circle(96)
    return [np.sign(circle) * np.abs(circle) ** power * (1, rng.uniform(0.25, 1.0)) * 0.9]


def rectangle(width: float, height: float) -> Outline:
    """Makes a rectangle around the origin."""
    return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)]


def polygon(rng: np.random.Generator) -> Outline:
    """Makes a regular or irregular polygon of 3 to 8 corners, or a star."""
    corners = int(rng.integers(3, 9))
    angles = 2 * np.pi * (np.arange(corners) + rng.random()) / corners
    kind = rng.random()
    if kind < 0.25:
        radii = np.ones(corners)
    elif kind < 0.85:
        angles = angles + rng.uniform(-0.35, 0.35, corners) * 2 * np.pi / corners
        radii = rng.uniform(0.55, 1.0, corners)
    else:
        corners = int(rng.integers(4, 9))
        angles = np.pi * np.arange(2 * corners) / corners
        radii = np.where(np.arange(2 * corners) % 2, rng.uniform(0.35, 0.8), 1.0)
    return [_polar(angles, radii)]


def blob(rng: np.random.Generator, roughness: float | None = None) -> Outline:
    """Makes a closed smooth curve; a rough one looks like a tree's crown or a cloud."""
    rough = rng.uniform(0, 1) ** 2 if roughness is None else roughness
    angles = 2 * np.pi * np.arange(160) / 160
    harmonics = np.arange(1, 24)
    amplitude = harmonics ** -(2.4 - 1.3 * rough) * rng.normal(0, 1, harmonics.size)
    amplitude[0] *= 0.3
    phases = rng.uniform(0, 2 * np.pi, harmonics.size)
    radii = np.exp(0.45 * (amplitude @ np.cos(np.outer(harmonics, angles) + phases[:, None])))
    return [_polar(angles, radii / radii.max()) * (1, rng.uniform(0.5, 1.0))]


def spline(rng: np.random.Generator) -> Outline:
    """Makes a smooth closed curve through scattered points, with bays and horns."""
    corners = int(rng.integers(5, 10))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
    return [smooth(_polar(angles, rng.uniform(0.3, 1.0, corners)), rounds=3)]


def flower(rng: np.random.Generator) -> Outline:
    """Makes petals, or the teeth of a gear."""
    angles = 2 * np.pi * np.arange(240) / 240
    wave = np.tanh(rng.uniform(0.6, 6) * np.sin(int(rng.integers(3, 13)) * angles))
    return [_polar(angles, 1 - rng.uniform(0.06, 0.3) * (1 + wave / np.abs(wave).max()) / 2 * 2)]


def ring(rng: np.random.Generator) -> Outline:
    """Makes a band around a hole, of an ellipse, a rectangle or a polygon."""
    kind = rng.integers(4)
    outer = (ellipse, superellipse, polygon, ellipse)[kind](rng)[0]
    inner = outer * rng.uniform(0.35, 0.85)
    if rng.random() < 0.3:
        inner = inner + rng.uniform(-0.06, 0.06, 2)
    return [outer, inner]


def arc(rng: np.random.Generator) -> Outline:
    """Makes a part of a ring, such as a handle or a crescent."""
    angles = np.linspace(0, rng.uniform(1.6, 5.2), 48) + rng.uniform(0, 2 * np.pi)
    width = rng.uniform(0.08, 0.4)
    taper = np.sin(np.linspace(0, np.pi, 48)) if rng.random() < 0.3 else np.ones(48)
    outer = _polar(angles, np.ones(48))
    inner = _polar(angles, 1 - width * taper)
    return [np.concatenate([outer, inner[::-1]])]


def stroke(rng: np.random.Generator, width: float | None = None) -> Outline:
    """Makes a curved line about 2 long, tapering or not: a rope, a branch, a pole, a snake."""
    thickness = log_uniform(rng, 0.015, 0.22) if width is None else width
    points = 60
    along = np.linspace(-1, 1, points)
    bend = rng.normal(0, 1, 4) * (0.5, 0.25, 0.15, 0.08) * rng.uniform(0, 1.2)
    turns = np.array([np.sin(np.pi * k * along / 2 + k) for k in range(1, 5)])
    center = np.column_stack([along, bend @ turns])
    tangent = np.gradient(center, axis=0)
    normal = np.column_stack([-tangent[:, 1], tangent[:, 0]])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    taper = np.linspace(1, rng.uniform(0.15, 1), points) if rng.random() < 0.5 else np.ones(points)
    half = (thickness / 2 * taper)[:, None] * normal
    return [np.concatenate([center + half, (center - half)[::-1]])]


def leaf(rng: np.random.Generator) -> Outline:
    """Makes two arcs that meet in two points."""
    along = np.linspace(-1, 1, 32)
    half = (1 - np.abs(along) ** rng.uniform(1.5, 3)) * rng.uniform(0.15, 0.45)
    bend = rng.uniform(-0.3, 0.3) * (1 - along**2)
    upper = np.column_stack([along, bend + half])
    lower = np.column_stack([along, bend - half])
    return [np.concatenate([upper, lower[::-1]])]


def heart(rng: np.random.Generator) -> Outline:
    """Makes a heart or, upside down, a spade."""
    t = 2 * np.pi * np.arange(80) / 80
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 17
    return [np.column_stack([x, y * rng.choice((-1, 1))])]


def profile(rng: np.random.Generator) -> Outline:
    """The silhouette of something turned on a lathe: a vase, a bottle, a lamp, a chessman."""
    knots = int(rng.integers(3, 8))
    widths = rng.uniform(0.12, 0.7, knots)
    if rng.random() < 0.4:  # piecewise straight
        heights = np.sort(rng.uniform(-1, 1, knots - 2))
        heights = np.concatenate([[-1], heights, [1]])
        right = np.column_stack([widths, heights])
    else:
        t = np.linspace(0, 1, 40)
        angles = np.pi * np.outer(np.arange(knots), t)
        curve = 0.4 + 0.5 * ((widths - 0.4) @ np.cos(angles + rng.uniform(0, 6, (knots, 1))))
        right = np.column_stack([np.clip(curve, 0.1, 0.8), 2 * t - 1])
    left = right[::-1] * (-1, 1)
    return [np.concatenate([right, left])]


def capsule(start: Contour, end: Contour, first: float, last: float) -> Outline:
    """Makes a limb: the hull of two discs with the radii ``first`` and ``last``."""
    discs = [_circle(20) * first + start, _circle(20) * last + end]
    hull = cv2.convexHull(np.concatenate(discs).astype(np.float32))
    return [hull[:, 0].astype(np.float64)]


def half_plane(x: float, y: float, angle: float, reach: float) -> Outline:
    """Makes one side of a line through a point, as far as ``reach``."""
    return transform([_CUT], placement((x, y), reach, angle))


def letter(rng: np.random.Generator) -> Outline:
    """Makes a letter or digit of one of several fonts and weights."""
    character = LETTERS[rng.integers(len(LETTERS))]
    return _glyph(character, int(rng.integers(len(_FONTS))), int(rng.integers(0, 4)))


def silhouette(rng: np.random.Generator) -> Outline:
    """Makes any of the compact shapes, upright."""
    return _SILHOUETTES[rng.choice(len(_SILHOUETTES), p=_SHARES)](rng)


def smooth(contour: Contour, rounds: int) -> Contour:
    """Cuts the corners of a closed polygon (Chaikin's algorithm)."""
    for _ in range(rounds):
        following = np.roll(contour, -1, axis=0)
        pairs = np.stack([0.75 * contour + 0.25 * following, 0.25 * contour + 0.75 * following], 1)
        contour = pairs.reshape(-1, 2)
    return contour


_CUT = np.array([(-1.0, 0.0), (1.0, 0.0), (1.0, 1.0), (-1.0, 1.0)])


def _circle(points: int) -> Contour:
    return _polar(2 * np.pi * np.arange(points) / points, np.ones(points))


def _polar(angles: NDArray[np.float64], radii: NDArray[np.float64]) -> Contour:
    return np.column_stack([np.cos(angles) * radii, np.sin(angles) * radii])


@cache
def _glyph(character: str, font: int, weight: int) -> Outline:
    canvas = np.zeros((192, 192), np.uint8)
    thickness = (5, 10, 16, 24)[weight]
    (width, height), _ = cv2.getTextSize(character, _FONTS[font], 4.0, thickness)
    origin = (96 - width // 2, 96 + height // 2)
    cv2.putText(canvas, character, origin, _FONTS[font], 4.0, 255, thickness, cv2.LINE_AA)
    big = cv2.GaussianBlur(cv2.resize(canvas, None, fx=2, fy=2), (0, 0), 3)
    contours, _ = cv2.findContours(
        (big > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    outline = [contour[:, 0].astype(np.float64) for contour in contours if len(contour) > 5]
    x0, y0, x1, y1 = bounds(outline)
    return [(contour - ((x0 + x1) / 2, (y0 + y1) / 2)) / ((y1 - y0) / 2) for contour in outline]


_WEIGHTED = {
    ellipse: 3.0,
    superellipse: 3.0,
    polygon: 2.0,
    blob: 4.0,
    spline: 2.5,
    flower: 0.6,
    ring: 0.8,
    arc: 0.4,
    leaf: 1.0,
    heart: 0.3,
    profile: 2.5,
    letter: 0.5,
}
_SILHOUETTES = tuple(_WEIGHTED)
_SHARES = np.array(list(_WEIGHTED.values())) / sum(_WEIGHTED.values())
