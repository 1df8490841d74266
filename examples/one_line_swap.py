"""A typical SAM script on MobileSAM; only model type and checkpoint changed.

Run it without arguments for the bundled checkpoint, or with hf://nielsr/mobilesam for the authors'
weights from the Hub.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from segment_anything import SamPredictor, sam_model_registry

import mobile_sam_plugin  # noqa: F401 - adds vit_t to segment_anything

HERE = Path(__file__).parent


def main(checkpoint: str) -> None:
    """Segments the cup in the photograph by a click, and saves it cut out."""
    image = cv2.cvtColor(cv2.imread(str(HERE / "images" / "coffee.png")), cv2.COLOR_BGR2RGB)

    sam = sam_model_registry["vit_t"](checkpoint=checkpoint)  # was: ["vit_h"](...)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(
        point_coords=np.array([[300, 130]]),
        point_labels=np.array([1]),
        box=np.array([170, 10, 430, 300]),
    )

    best = masks[np.argmax(scores)]
    cut_out = np.dstack([image[..., ::-1], best * np.uint8(255)])
    cv2.imwrite("coffee_cut_out.png", cut_out)
    print(f"coffee_cut_out.png: {best.sum():,} pixels, predicted IoU {scores.max():.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "bundled")
