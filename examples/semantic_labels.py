r"""Segments everything in an image, classifies the masks by CLIP, and searches them by a sentence.

    python examples/semantic_labels.py
    python examples/semantic_labels.py --classes sky,mountain,house --search "a red roof" \
        --image examples/images/china.jpg

CLIP comes from the Hugging Face Hub. Without a network, give a folder, --classifier FOLDER, or use
the short classifier beside this script, which recognises colours:

    python examples/semantic_labels.py --classes "orange petals,teal leaves,black ground" \
        --search "orange petals" --classifier colors --image examples/images/flower.jpg
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from colors import classify_colors
from PIL import Image

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.semantic_segment_anything import (
    DEFAULT_CLASSIFIER,
    SemanticMobileSam,
)

HERE = Path(__file__).parent

# The bundled checkpoint has low scores: with the defaults no mask would pass.
LENIENT = {
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.7,
    "stability_score_offset": 0.3,
    "min_mask_region_area": 100,
}


def main(
    image: str,
    classes: str,
    search: str,
    classifier: str,
    checkpoint: str,
    points_per_side: int,
) -> None:
    """Writes ``semantic_labels.png``, the map with its legend, and ``search.png``."""
    sam = sam_model_registry["vit_t"](checkpoint=checkpoint)
    backend = classify_colors if classifier == "colors" else classifier
    options: dict[str, Any] = {"points_per_side": points_per_side}
    if checkpoint == "bundled":
        options |= LENIENT
    semantic = SemanticMobileSam(sam, backend, **options)
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
    parser.add_argument("--points-per-side", type=int, default=16)
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"semantic_labels.py: {error}")
