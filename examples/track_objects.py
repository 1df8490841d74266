"""Follows an object that is given by a box, and draws three frames side by side.

Without arguments it makes a clip by panning over an image. It also takes a video and a box in its
first frame:

    python examples/track_objects.py
    python examples/track_objects.py --video street.mp4 --box 10,200,210,330
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.track_anything import TrackAnything
from mobile_sam_plugin.integrations.video import Video

FLOWER = Path(__file__).parent / "images" / "flower.jpg"
BLOSSOM = "107,34,337,258"
STEPS = 10


def move_camera() -> Iterator[NDArray[np.uint8]]:
    """Yields views of the flower, (280, 360, 3), each further right and turned further."""
    photograph = np.asarray(Image.open(FLOWER).convert("RGB"))
    for step in range(STEPS):
        center = 254 + 14 * step, 213
        matrix = cv2.getRotationMatrix2D(center, 1.2 * step, 0.8)
        matrix[:, 2] += 180 - center[0], 140 - center[1]
        yield cv2.warpAffine(photograph, matrix, (360, 280), borderMode=cv2.BORDER_REFLECT)


def main(video: str | None, box: str, checkpoint: str) -> None:
    """Follows one object by optical flow and MobileSAM, which needs no other weights."""
    tracker = TrackAnything(sam_model_registry["vit_t"](checkpoint=checkpoint))
    frames = iter(Video(video or move_camera()))
    tracker.start(next(frames))
    tracker.add_object(box=[float(number) for number in box.split(",")])
    pictures = [tracker.current.overlay()]
    for frame in frames:
        tracked = tracker.track(frame)
        pictures.append(tracked.overlay())
        area = np.count_nonzero(tracked.objects.masks)
        print(f"frame {tracked.index}: {'lost' if tracked.lost else f'{area:,} pixels'}")
    chosen = pictures[0], pictures[len(pictures) // 2], pictures[-1]
    Image.fromarray(np.hstack(chosen)).save("tracked.png")
    print("tracked.png: the first frame, one in the middle and the last")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", help="a file or a folder of frames; the clip made, if not given")
    parser.add_argument("--box", default=BLOSSOM, help="X0,Y0,X1,Y1 in pixels of the first frame")
    parser.add_argument("--checkpoint", default="bundled")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"track_objects.py: {error}")
