"""Draws images of one kind with their label maps, to try fine-tuning on.

    python examples/labelled_images.py leaves|nuclei|letters OUT [COUNT]

Writes OUT/00.jpg with OUT/00.png and so on: a label map has one value per thing, 0 for none.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mobile_sam_plugin.files import encode_image, write_file
from mobile_sam_plugin.scenes.shapes import Outline, blob, leaf, letter, placement, transform

SIDE = 384

# Shape; radius in pixels; things per image; color of the ground; color of the things; their spread.
KINDS = {
    "leaves": (leaf, (30, 60), (15, 25), (112, 98, 82), (96, 120, 60), 18),
    "nuclei": (blob, (8, 18), (40, 70), (226, 190, 210), (128, 84, 150), 12),
    "letters": (letter, (14, 26), (25, 45), (222, 214, 196), (84, 76, 82), 20),
}


def draw(kind: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns an image, (H, W, 3) RGB, and its label map, (H, W)."""
    rng = np.random.default_rng((sorted(KINDS).index(kind), seed))
    shape, radii, counts, ground, color, spread = KINDS[kind]
    image = np.full((SIDE, SIDE, 3), ground, np.float32) + mottle(rng, 24)[..., None]
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(1, int(rng.integers(*counts)) + 1):
        matrix = placement(rng.uniform(0, SIDE, 2), rng.uniform(*radii), rng.uniform(0, 2 * np.pi))
        mask = fill(transform(shape(rng), matrix))
        tone = np.array(color) + rng.normal(0, spread, 3)
        shade = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)  # darker along the edge
        drawn = tone * (0.8 + 0.25 * shade[..., None]) + mottle(rng, 10)[..., None]
        image[mask] = (0.85 * drawn + 0.15 * image)[mask]
        labels[mask] = number
    image = cv2.GaussianBlur(image, (0, 0), 0.9) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def mottle(rng: np.random.Generator, strength: float) -> NDArray[np.float32]:
    """Returns smooth brightness, (H, W), of a standard deviation of about the strength."""
    coarse = rng.normal(0, strength, (12, 12)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


def fill(outline: Outline) -> NDArray[np.bool_]:
    """Returns the pixels of an outline, (H, W)."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask, [np.round(contour).astype(np.int32) for contour in outline], 1)
    return mask > 0


def main(kind: str, out: str, count: str = "20") -> None:
    """Writes the images and label maps."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(int(count)):
        image, labels = draw(kind, seed)
        write_file(folder / f"{seed:02}.jpg", encode_image(".jpg", image))
        write_file(folder / f"{seed:02}.png", encode_image(".png", labels))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in KINDS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
