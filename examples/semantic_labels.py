"""Segments everything in a picture, names each mask by CLIP, and looks one up by a sentence.

    python examples/semantic_labels.py
    python examples/semantic_labels.py --classes sky,mountain,house --search "a red roof" \
        --image examples/images/china.jpg

CLIP comes from the Hugging Face Hub; without a network name a folder: --classifier FOLDER.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.semantic_segment_anything import (
    DEFAULT_CLASSIFIER,
    SemanticMobileSam,
)

HERE = Path(__file__).parent


def main(image: str, classes: str, search: str, classifier: str, checkpoint: str) -> None:
    """Writes ``semantic_labels.png``, the map with its legend, and ``search.png``."""
    sam = sam_model_registry["vit_t"](checkpoint=checkpoint)
    semantic = SemanticMobileSam(sam, classifier)
    masks = semantic.segment(image)

    found = semantic.predict(image, classes.split(","), masks)
    Image.fromarray(found.legend()).save("semantic_labels.png")
    print(f"semantic_labels.png: {len(found)} masks, {', '.join(sorted({*found.labels}))}")

    best = semantic.search(image, search, masks, limit=1)
    Image.fromarray(best.overlay()).save("search.png")
    print(f"search.png: {search}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default=str(HERE / "images" / "coffee.png"))
    parser.add_argument("--classes", default="cup,saucer,spoon,table")
    parser.add_argument("--search", default="a spoon")
    parser.add_argument("--classifier", default=DEFAULT_CLASSIFIER)
    parser.add_argument("--checkpoint", default="bundled")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"semantic_labels.py: {error}")
