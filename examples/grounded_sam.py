r"""Segments the objects that a text names, and draws them with supervision.

    python examples/grounded_sam.py "a cup. a spoon."
    python examples/grounded_sam.py "a cat" --image examples/images/chelsea.png

The detector comes from the Hugging Face Hub. Without a network, give a folder, --detector FOLDER,
or use the short detector beside this script, which recognises colours:

    python examples/grounded_sam.py "an orange blossom. a teal leaf." --detector colors \
        --image examples/images/flower.jpg
"""

import argparse
import sys
from pathlib import Path

import cv2
import supervision
from colors import detect_colors

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.detectors import DEFAULT_DETECTOR
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam

HERE = Path(__file__).parent


def main(image: str, text: str, detector: str, checkpoint: str) -> None:
    """Writes ``grounded.png``."""
    sam = sam_model_registry["vit_t"](checkpoint=checkpoint)
    backend = detect_colors if detector == "colors" else detector
    objects = GroundedMobileSam(sam, backend).predict(image, text)

    detections = objects.to_supervision()
    scene = cv2.imread(image)
    scene = supervision.MaskAnnotator().annotate(scene, detections)
    scene = supervision.BoxAnnotator().annotate(scene, detections)
    scene = supervision.LabelAnnotator().annotate(scene, detections)  # the labels found
    cv2.imwrite("grounded.png", scene)
    print(f"grounded.png: {', '.join(objects.labels) or 'nothing found'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", default="a cup. a spoon.")
    parser.add_argument("--image", default=str(HERE / "images" / "coffee.png"))
    parser.add_argument("--detector", default=DEFAULT_DETECTOR)
    parser.add_argument("--checkpoint", default="bundled")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"grounded_sam.py: {error}")
