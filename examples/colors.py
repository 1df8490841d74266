r"""A minimal detector and a minimal classifier, which recognise colours, not objects.

They need no weights, so the other examples can use them without a network:

    python examples/grounded_sam.py "an orange blossom. a teal leaf." --detector colors \
        --image examples/images/flower.jpg
    python examples/semantic_labels.py --classes "orange petals,teal leaves,black ground" \
        --search "orange petals" --classifier colors --image examples/images/flower.jpg
"""

import re
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mobile_sam_plugin.integrations.detectors import Detections

COLORS = {
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (240, 240, 240),
    "red": (200, 40, 40),
    "orange": (230, 130, 40),
    "brown": (110, 60, 30),
    "yellow": (230, 210, 60),
    "green": (60, 150, 60),
    "teal": (10, 90, 100),
    "blue": (50, 90, 200),
    "purple": (130, 60, 150),
    "pink": (240, 160, 180),
}


def detect_colors(
    image: NDArray[np.uint8],
    texts: Sequence[str],
    box_threshold: float,
    text_threshold: float,
) -> Detections:
    """Finds regions of the colours that the texts name, as a ``Detector`` does.

    The score is the share of the box that has the colour; specks are no regions.
    """
    names = _nearest_colors(cv2.medianBlur(image, 9))
    boxes, scores, phrases = [], [], []
    for prompt in texts:
        matching = np.isin(names, _places(prompt)).astype(np.uint8)
        _, _, regions, _ = cv2.connectedComponentsWithStats(matching)
        for x, y, width, height, area in regions[1:]:
            score = area / (width * height)
            if area >= 0.01 * matching.size and score >= box_threshold:
                boxes.append((x, y, x + width, y + height))
                scores.append(score)
                phrases.append(prompt)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), phrases
    )


def classify_colors(
    images: Iterable[NDArray[np.uint8]], texts: Sequence[str]
) -> NDArray[np.float32]:
    """Tells how much of each image has the colour of each text, as a ``Classifier`` does."""
    rows = []
    for image in images:
        inside = image.any(axis=2)  # black is what is outside of the mask, or all of it
        names = _nearest_colors(image)[inside if inside.any() else ~inside]
        rows.append([10 * np.isin(names, _places(text)).mean() for text in texts])
    return np.array(rows, np.float32).reshape(-1, len(texts))


def _places(text: str) -> list[int]:
    words = re.findall(r"\w+", text.lower())  # "red" is none in "colored"
    return [place for place, name in enumerate(COLORS) if name in words]


def _nearest_colors(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The place in ``COLORS`` of the one most like each pixel, as the eye sees it (CIELAB)."""
    palette = np.array([[*COLORS.values()]], np.uint8)
    lab, references = (
        cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32) for pixels in (image, palette)
    )
    distances = [np.linalg.norm(lab - reference, axis=2) for reference in references[0]]
    return np.argmin(distances, axis=0)
