"""Generated clips with exact masks, the methods that follow objects through them, and their J."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mobile_sam_plugin.integrations.track_anything import TrackAnything
from mobile_sam_plugin.photographs import list_photographs
from mobile_sam_plugin.scenes.objects import make_object
from mobile_sam_plugin.scenes.parts import Part
from mobile_sam_plugin.scenes.textures import Materials, read_texture_image

PHOTOGRAPHS = list_photographs()

Frame = NDArray[np.uint8]
Masks = NDArray[np.bool_]  # (N, H, W)


@dataclass(frozen=True)
class Clip:
    """A video with exact masks.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, N, H, W) bool, what is visible of each object.
    """

    frames: Frame
    masks: Masks


def make_clip(
    seed: int, length: int = 60, size: tuple[int, int] = (480, 640), objects: int = 3
) -> Clip:
    """Makes the clip of a seed.

    Args:
        seed: clips of different seeds have nothing in common.
        length: frames.
        size: (height, width).
        objects: how many have masks.
    """
    rng = np.random.default_rng((seed, length, *size))
    height, width = size
    materials = Materials(rng, PHOTOGRAPHS)
    background = _Background(rng, materials, size)
    bystanders = int(rng.random() < 0.5)  # in front of all, and not followed
    movers = [
        _Mover(rng, materials, size, (place + 0.5) / (objects + bystanders))
        for place in range(objects + bystanders)
    ]
    order = [*rng.permutation(objects), *range(objects, len(movers))]
    phase, noise = rng.uniform(0, 2 * np.pi), rng.uniform(1, 4)
    frames = np.empty((length, height, width, 3), np.uint8)
    masks = np.empty((length, objects, height, width), bool)
    for t in range(length):
        picture = background.render(t)
        owner = np.full(size, -1)
        for index in order:
            layer = movers[index].render(t)
            share = layer[..., 3:].astype(np.float32) / 255
            picture = picture * (1 - share) + layer[..., :3] * share
            owner[layer[..., 3] > 127] = index
        picture = cv2.GaussianBlur(picture, (0, 0), 0.7)  # the lens
        picture *= 1 + 0.08 * np.sin(t / 8 + phase)  # the light
        picture += rng.normal(0, noise, picture.shape)  # the sensor
        frames[t] = np.clip(picture, 0, 255)
        masks[t] = owner == np.arange(objects)[:, None, None]
    return Clip(frames, masks)


class _Background:
    """A photograph or a texture, which the camera pans over, turning and zooming a little."""

    def __init__(
        self, rng: np.random.Generator, materials: Materials, size: tuple[int, int]
    ) -> None:
        self.height, self.width = size
        self.pixels = read_texture_image(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))])
        if rng.random() < 0.4:
            unit = float(np.sqrt(self.height * self.width))
            self.pixels = materials.texture(0.5).render(0, 0, self.width, self.height, unit)
        self.pan = _Sway(rng, 0.08 * np.array([self.width, self.height]))
        self.tilt = _Sway(rng, np.array([0.07, 0.1]))

    def render(self, t: int) -> NDArray[np.float32]:
        rows, columns = self.pixels.shape[:2]
        angle, zoom = self.tilt(t)
        scale = 1.35 * max(self.height / rows, self.width / columns) * np.exp(zoom)
        center = np.array([self.width, self.height]) / 2 + self.pan(t)
        matrix = _place(center, scale, angle) @ _shift(-columns / 2, -rows / 2)
        return cv2.warpAffine(
            self.pixels,
            matrix[:2],
            (self.width, self.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        ).astype(np.float32)


class _Mover:
    """An object on its way."""

    def __init__(
        self, rng: np.random.Generator, materials: Materials, size: tuple[int, int], column: float
    ) -> None:
        height, width = size
        self.size = size
        self.sprite = _sprite(rng, materials, round(height * rng.uniform(0.25, 0.5)))
        self.start = np.array([column * width, rng.uniform(0.3, 0.7) * height])
        to_middle = np.array([width, height]) / 2 - self.start
        self.velocity = to_middle * rng.uniform(0.4, 1.6) / 60 + rng.normal(0, 0.002 * width, 2)
        self.sway = _Sway(rng, 0.05 * np.array([width, height]))
        self.angle, self.turn = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-2, 2))
        self.shape = _Sway(rng, np.array([0.35, 0.12]))  # logarithms of size and aspect
        self.bend = rng.uniform(0, 0.06) * (rng.random() < 0.5)

    def render(self, t: int) -> NDArray[np.uint8]:
        """(H, W, 4) RGBA."""
        side = len(self.sprite)
        grow, aspect = np.exp(self.shape(t) - self.shape(0))
        center = self.start + self.velocity * t + self.sway(t) - self.sway(0)
        matrix = _place(center, grow, self.angle + self.turn * t, aspect)
        inverse = np.linalg.inv(matrix @ _shift(-side / 2, -side / 2))
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        u = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
        v = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
        u = u + self.bend * side * np.sin(4 * v / side + t / 6)
        return cv2.remap(self.sprite, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)


class _Sway:
    """A smooth random motion around 0, XY or any other two numbers."""

    def __init__(self, rng: np.random.Generator, amplitude: NDArray[np.float64]) -> None:
        self.amplitude = amplitude * rng.uniform(0.3, 1, 2)
        self.pace = 2 * np.pi / rng.uniform(50, 150, 2)
        self.phase = rng.uniform(0, 2 * np.pi, 2)

    def __call__(self, t: int) -> NDArray[np.float64]:
        return self.amplitude * np.sin(self.pace * t + self.phase)


def _place(
    center: NDArray[np.float64], scale: float, angle: float, aspect: float = 1.0
) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([aspect, 1])
    return np.vstack([np.column_stack([linear, center]), (0, 0, 1)])


def _shift(x: float, y: float) -> NDArray[np.float64]:
    return _place(np.array([x, y]), 1, 0)


def _sprite(rng: np.random.Generator, materials: Materials, side: int) -> NDArray[np.uint8]:
    """An object in one piece, (side, side, 4) RGBA."""
    everywhere = np.full((side, side), 255, np.uint8)
    while True:
        sprite = np.zeros((side, side, 4), np.uint8)
        matrix = _place(np.array([side, side]) / 2, 0.42 * side, 0)[:2]
        _paint(make_object(materials, 0.5).moved(matrix), sprite, everywhere)
        solid = (sprite[..., 3] > 127).astype(np.uint8)
        if solid.mean() > 0.15 and cv2.connectedComponents(solid)[0] == 2:
            return sprite


def _paint(part: Part, sprite: NDArray[np.uint8], inside: NDArray[np.uint8]) -> None:
    coverage = inside
    side = len(sprite)
    if part.outline and part.texture is not None:
        coverage = np.zeros((side, side), np.uint8)
        contours = [np.round(16 * contour).astype(np.int32) for contour in part.outline]
        cv2.fillPoly(coverage, contours, 255, cv2.LINE_AA, 4)
        if not part.attached:
            coverage = cv2.min(coverage, inside)
        surface = part.texture.render(0, 0, side, side, 2.0 * side)
        share = coverage[..., None] / 255
        sprite[..., :3] = (sprite[..., :3] * (1 - share) + surface * share).round()
        sprite[..., 3] = cv2.max(sprite[..., 3], coverage)
    for child in part.parts:
        _paint(child, sprite, coverage)


def hold_still(clip: Clip) -> Iterator[Masks]:
    """The first baseline: the first masks, for each frame behind the first."""
    for _ in clip.frames[1:]:
        yield clip.masks[0]


def follow_flow(clip: Clip) -> Iterator[Masks]:
    """The second baseline: masks carried by optical flow, finer than the tracker's, and no more."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = clip.frames.shape[1:3]
    grid = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    carried = [mask.astype(np.float32) for mask in clip.masks[0]]
    before = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY)
    for frame in clip.frames[1:]:
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        source = grid + flow.calc(gray, before, None)
        carried = [cv2.remap(mask, source, None, cv2.INTER_LINEAR) for mask in carried]
        before = gray
        yield np.array(carried) > 0.5


def follow(
    tracker: TrackAnything, clip: Clip, times: list[tuple[float, float]] | None = None
) -> Iterator[Masks]:
    """The tracker.

    Args:
        times: gets the seconds that the encoder alone and the tracker take for every tenth frame,
            as far as all objects are seen there: lost ones cost less.
    """
    tracker.start(clip.frames[0])
    for mask in clip.masks[0]:
        tracker.add_object(mask=mask)
    for index, frame in enumerate(clip.frames[1:]):
        if times is not None and index % 10 == 0:
            encoding = seconds_of(lambda: tracker.predictor.set_image(frame))  # noqa: B023
            tracking = seconds_of(lambda: tracker.track(frame))  # noqa: B023
            if not tracker.current.lost:
                times.append((encoding, tracking))
        else:
            tracker.track(frame)
        objects = tracker.current.objects
        masks = np.zeros_like(clip.masks[0])
        assert objects.tracker_id is not None
        masks[objects.tracker_id - 1] = objects.masks
        yield masks


def measure_j(clip: Clip, found: Iterator[Masks]) -> NDArray[np.float64]:
    """J of each frame behind the first and each object, (T - 1, N)."""
    scores = []
    for masks, exact in zip(found, clip.masks[1:], strict=True):
        union = np.count_nonzero(masks | exact, axis=(1, 2))
        common = np.count_nonzero(masks & exact, axis=(1, 2))
        scores.append(np.where(union, common / np.maximum(union, 1), 1.0))
    return np.array(scores)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
