"""Shows what weights make of the photographs in examples/images: a row each.

    python examples/compare_checkpoints.py CHECKPOINT [CHECKPOINT ...] --out masks.png

For each checkpoint, from the left: the mask of a point with the highest predicted IoU, the other
two, and the mask of a box.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import SamPredictor, sam_model_registry
from mobile_sam_plugin.drawing import draw_overlay
from mobile_sam_plugin.images import load_image

IMAGES = Path(__file__).parent / "images"
HEIGHT = 147
PROMPTS = {  # a point, and a box, XY in pixels of the image
    "coffee.png": ([300, 150], [170, 10, 430, 300]),
    "chelsea.png": ([230, 128], [95, 10, 362, 292]),
    "flower.jpg": ([300, 240], [165, 82, 448, 358]),
    "rocket.jpg": ([322, 270], [308, 125, 338, 412]),
    "astronaut.png": ([225, 330], [5, 2, 400, 510]),
    "china.jpg": ([230, 240], [80, 20, 365, 340]),
}


def show(predictor: SamPredictor, name: str) -> list[NDArray[np.uint8]]:
    """Returns four pictures of a photograph, each of the same size."""
    image = load_image(IMAGES / name)
    point, box = PROMPTS[name]
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(point_coords=np.array([point]), point_labels=np.ones(1))
    of_box, _, _ = predictor.predict(box=np.array(box), multimask_output=False)
    best, *others = masks[np.argsort(-scores)]
    pictures = [draw_overlay(image, [best], point_coords=[point], point_labels=[1])]
    pictures += [draw_overlay(image, [mask]) for mask in others]
    pictures.append(draw_overlay(image, of_box, prompt_box=box))
    size = round(HEIGHT * 4 / 3), HEIGHT
    return [
        np.asarray(cv2.resize(_crop(each), size, interpolation=cv2.INTER_AREA)) for each in pictures
    ]


def _crop(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the upper part of a picture, or its middle, at four to three."""
    height, width = picture.shape[:2]
    kept = min(height, width * 3 // 4), min(width, height * 4 // 3)
    left = (width - kept[1]) // 2
    return picture[: kept[0], left : left + kept[1]]


def main(checkpoints: list[str], out: str) -> None:
    columns = []
    for checkpoint in checkpoints:
        predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint))
        columns.append(np.vstack([np.hstack(show(predictor, name)) for name in PROMPTS]))
    # A palette of 256 colours is a quarter of the file.
    Image.fromarray(np.hstack(columns)).quantize(256).save(out)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--out", default="masks.png")
    arguments = parser.parse_args()
    main(arguments.checkpoints, arguments.out)
