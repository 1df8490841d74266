"""Random changes of photographs for training."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from ..scenes.camera import compress

# How photographs vary, here and on a device (device_examples.py):
COLOR_CHANCE, GRAY_CHANCE = 0.8, 0.08
CONTRAST, SATURATION = 0.35, 0.6  # most by which brightness, contrast and saturation change
BLUR_CHANCE, BLUR = 0.25, (0.3, 1.2)  # standard deviation in pixels
GRAIN_CHANCE, GRAIN = 0.35, (2, 14)  # standard deviation in levels

_MINIMUM_ZOOM = 0.3
_ASPECT = 1.25  # most by which a crop's sides differ from the image's, as a factor
_COLORS = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(CONTRAST, CONTRAST, SATURATION)], p=COLOR_CHANCE),
        v2.RandomGrayscale(p=GRAY_CHANCE),
    ]
)


def random_crop(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
    """Returns the rows and columns of an image that are kept: a zoom, at another aspect.

    Args:
        shape: of the image, beginning with (H, W).
        rng: the source of randomness.
    """
    zoom = np.exp(rng.uniform(np.log(_MINIMUM_ZOOM), 0))
    kept = []
    for length in shape[:2]:
        share = min(1.0, zoom * _ASPECT ** rng.uniform(-1, 1))
        part = max(1, round(share * length))
        start = int(rng.integers(length - part + 1))
        kept.append(slice(start, start + part))
    return kept[0], kept[1]


def change_colors(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Changes brightness, contrast and saturation of an image, at random, or makes it gray.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: the source of randomness.

    Returns:
        An image of the same size and type.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        pixels = _COLORS(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())


def lower_quality(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Adds blur, noise and JPEG artefacts to an image, each at random.

    Args:
        image: (H, W, 3) uint8 RGB, at the size at which the model sees it.
        rng: the source of randomness.

    Returns:
        An image of the same size and type.
    """
    changed = image
    if rng.random() < BLUR_CHANCE:
        changed = np.asarray(cv2.GaussianBlur(changed, (0, 0), rng.uniform(*BLUR)))
    if rng.random() < GRAIN_CHANCE:
        grain = rng.standard_normal(changed.shape, np.float32) * np.float32(rng.uniform(*GRAIN))
        changed = np.asarray(cv2.add(changed, grain, dtype=cv2.CV_8U))
    return compress(changed, int(rng.integers(35, 93))) if rng.random() < 0.4 else changed
