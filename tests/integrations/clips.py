"""Clips, masks and propagators for the tests of videos."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.integrations.instances import Instances
from mobile_sam_plugin.integrations.track_anything import TrackAnything
from mobile_sam_plugin.integrations.tracks import TrackedFrame
from mobile_sam_plugin.integrations.video import (
    VideoWriter,
)

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
SIZE = 48, 64


class ColorPropagator:
    """A propagator as a user might write one: an object is where its colour is."""

    def reset(self) -> None:
        self.colors: dict[int, Pixels] = {}

    def set_masks(self, frame: Pixels, masks: Mapping[int, Mask]) -> None:
        for number, mask in masks.items():
            if mask.any():
                self.colors[number] = np.median(frame[mask], axis=0).astype(np.uint8)

    def propagate(self, frame: Pixels) -> dict[int, Mask]:
        found = {
            number: np.abs(frame.astype(int) - color).max(axis=2) < 60
            for number, color in self.colors.items()
        }
        return {number: mask for number, mask in found.items() if mask.any()}


class StillPropagator:
    """Another one: objects stay where they were told to be; it says the same of all of them."""

    def reset(self) -> None:
        self.masks: dict[int, Mask] = {}

    def set_masks(self, frame: Pixels, masks: Mapping[int, Mask]) -> None:
        self.masks.update(masks)

    def propagate(self, frame: Pixels) -> Mapping[int, Any]:
        return self.masks


def square(x: int, y: int, side: int = 12, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, bool)
    mask[max(y, 0) : y + side, max(x, 0) : x + side] = True
    return mask


def make_frames(length: int = 8) -> tuple[list[Pixels], list[Mask], list[Mask]]:
    """A red square that goes right, away in frames 3 and 4, and a green one that goes down."""
    frames, reds, greens = [], [], []
    for index in range(length):
        red, green = square(4 + 4 * index, 4), square(30, 14 + 2 * index)
        if index in (3, 4):
            red[:] = False
        red &= ~green
        frame = np.full((*SIZE, 3), 90, np.uint8)
        frame[red], frame[green] = RED, GREEN
        frames.append(frame)
        reds.append(red)
        greens.append(green)
    return frames, reds, greens


def write_clip(path: Path, frames: list[Pixels], rate: float = 12.5) -> Path:
    with VideoWriter(path, rate) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_folder(folder: Path, frames: list[Pixels]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def ids_of(tracked: TrackedFrame) -> list[int]:
    assert tracked.objects.tracker_id is not None
    return list(tracked.objects.tracker_id)


def finds(masks: list[Mask], labels: list[str] | None = None) -> Instances:
    boxes = []
    for mask in masks:
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        boxes.append([x, y, x + width, y + height])
    return Instances(
        SIZE,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(masks, bool).reshape(-1, *SIZE),
        np.full(len(masks), 0.5, np.float32),
        labels or ["thing"] * len(masks),
    )


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "tracks.csv", newline="") as table:
        return [*csv.DictReader(table)]


def read_ids(folder: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]


def ramp(height: int, width: int) -> Pixels:
    """Smooth, so that scaling it down and up again changes little, and different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, (x + y) / 2], axis=-1) * 200 + 20).round().astype(np.uint8)


def disc(height: int, width: int, x: int, y: int, radius: int) -> Mask:
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def random_pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


SMALL = np.zeros((6, 8, 3), dtype=np.uint8)
SPOT = np.eye(6, 8, dtype=bool)


def clip() -> tuple[list[Pixels], list[Mask]]:
    """A red disc that crosses a ramp and is hidden in the third frame."""
    frames, masks = [], []
    for index in range(5):
        mask = disc(48, 64, 10 + 10 * index, 24, 6)
        frame = ramp(48, 64)
        if index == 2:
            mask[:] = False
        frame[mask] = (255, 0, 0)
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def follow_both(tracker: TrackAnything) -> None:
    """A prompt: the two squares of the first frame."""
    _, reds, greens = make_frames()
    tracker.add_object(mask=reds[0], label="ball")
    tracker.add_object(mask=greens[0], label="a leaf, green")
