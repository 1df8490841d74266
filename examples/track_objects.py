"""Follows an object that a box points out, and draws the first frame and the last side by side.

Run it as it is, for a clip that it makes from a photograph, over which it moves a camera; or with a
video, a box in its first frame and a checkpoint:

    python examples/track_objects.py
    python examples/track_objects.py street.mp4 10,200,210,330 hf://nielsr/mobilesam
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import sam_model_registry
from mobile_sam_plugin.integrations.track_anything import TrackAnything
from mobile_sam_plugin.integrations.video import Video

HERE = Path(__file__).parent


def move_camera() -> Iterator[NDArray[np.uint8]]:
    """Yields 12 views of a photograph, (300, 420, 3), each further right and down."""
    photograph = np.asarray(Image.open(HERE / "images" / "coffee.png").convert("RGB"))
    for step in range(12):
        x, y = 12 * step, 5 * step
        yield photograph[y : y + 300, x : x + 420]


def main(video: str, box: str, checkpoint: str) -> None:
    """Follows one object by optical flow and MobileSAM, which needs no other weights."""
    tracker = TrackAnything(sam_model_registry["vit_t"](checkpoint=checkpoint))
    frames = iter(Video(video or move_camera()))
    first = last = next(frames)
    tracked = tracker.start(first)
    tracker.add_object(box=[float(number) for number in box.split(",")])
    before = tracker.current.objects.overlay(first)
    for last in frames:
        tracked = tracker.track(last)
        area = np.count_nonzero(tracked.objects.masks)
        print(f"frame {tracked.index}: {'lost' if tracked.lost else f'{area:,} pixels'}")
    Image.fromarray(np.hstack([before, tracked.objects.overlay(last)])).save("tracked.png")
    print("tracked.png: the first frame and the last")


if __name__ == "__main__":
    defaults = "", "170,10,410,290", "bundled"
    main(*sys.argv[1:], *defaults[len(sys.argv) - 1 :])
