"""Removes an object that is given by points and a box, with OpenCV, which needs no weights.

python examples/remove_object.py
python examples/remove_object.py --image dog.jpg --point 320,240,1
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.inpaint_anything import InpaintAnything

ROCKET = Path(__file__).parent / "images" / "rocket.jpg"
POINTS = ["322,200,1", "322,300,1"]
BOX = "308,125,338,412"


def main(image: str, clicks: list[str], box: str | None, checkpoint: str) -> None:
    """Writes ``removed.png``: the picture before, the mask, and the picture after."""
    points = np.array([click.split(",") for click in clicks], dtype=float).reshape(-1, 3)
    editor = InpaintAnything(sam_model_registry["vit_t"](checkpoint=checkpoint))
    objects = editor.segment(
        image,
        point_coords=points[:, :2] if clicks else None,
        point_labels=points[:, 2] if clicks else None,
        box=None if box is None else [float(number) for number in box.split(",")],
    )
    result = editor.remove(image, objects)
    pictures = np.hstack([result.original, result.overlay(), result.image])
    Image.fromarray(pictures).save("removed.png")
    print(f"removed.png: {result.mask.sum():,} of {result.mask.size:,} pixels painted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", help="the rocket, with clicks and a box on it, if not given")
    parser.add_argument("--point", action="append", help="X,Y,LABEL, 1 on the object, 0 beside it")
    parser.add_argument("--box", help="X0,Y0,X1,Y1 in pixels")
    parser.add_argument("--checkpoint", default="bundled")
    arguments = parser.parse_args()
    try:
        if arguments.image is None:
            main(str(ROCKET), POINTS, BOX, arguments.checkpoint)
        else:
            main(arguments.image, arguments.point or [], arguments.box, arguments.checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"remove_object.py: {error}")
