"""Starts an annotation again and again and kills it each time; run by test_annotation.py.

    python -m tests.annotation.attempts MODEL IMAGES OUT KILLS SEED

Each attempt is a fork, which saves the seconds that imports take. The first runs undisturbed, in
OUT/undisturbed, to measure how long a run takes; the next KILLS, in OUT/killed, get a SIGKILL at a
random moment; the last finishes. Prints the number of images done at each kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mobile_sam_plugin import MobileSam, annotate
from mobile_sam_plugin.annotation.writers import import_pyarrow

FORMATS = ("coco", "parquet", "ids", "yolo", "overlay")
SEARCH: dict[str, Any] = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}


def start(model: MobileSam, images: Path, out: Path) -> int:
    """Starts an attempt, and returns the id of its process."""
    process = os.fork()
    if process == 0:
        try:
            for _ in annotate(images, out, model=model, formats=FORMATS, overlay_every=3, **SEARCH):
                pass
            os._exit(0)
        finally:
            os._exit(1)
    return process


def check_json(out: Path) -> int:
    """Reads all JSON files, which must be complete, and returns the number of images done."""
    done = list((out / "sa1b").rglob("*.json"))
    for path in [*done, *out.glob("*.json")]:
        json.loads(path.read_text())
    return len(done)


def main(model_file: Path, images: Path, out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    import_pyarrow()  # once, not in every fork
    model = torch.load(model_file, weights_only=False)
    begin = time.monotonic()
    assert os.waitpid(start(model, images, out / "undisturbed"), 0)[1] == 0
    duration = time.monotonic() - begin

    random_moments = random.Random(seed)
    for _ in range(kills):
        process = start(model, images, out / "killed")
        time.sleep(random_moments.uniform(0, 0.3 * duration))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        print(check_json(out / "killed"), flush=True)
    assert os.waitpid(start(model, images, out / "killed"), 0)[1] == 0


if __name__ == "__main__":
    model_file, images, out = map(Path, sys.argv[1:4])
    main(model_file, images, out, kills=int(sys.argv[4]), seed=int(sys.argv[5]))
