"""Many threads on one model, and many images one after the other: the same masks, flat memory.

The encoder is timm's smallest, at 256 x 256 pixels, so that thousands of images take minutes: what
grows with the images is in the code around it.
"""

import argparse
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import (
    MobileSam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    annotate,
    build_sam_vit_t,
)
from mobile_sam_plugin.mobile_sam import set_img_size

THREADS = 64
SEARCH: dict[str, Any] = {
    "points_per_side": 2,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
}
_WARM_UP = 0.2  # of the images, in which caches and pools of memory fill


def build() -> MobileSam:
    """An untrained encoder with the bundled prompt encoder and mask decoder."""
    torch.manual_seed(0)
    sam, bundled = MobileSam.untrained("test_efficientnet"), build_sam_vit_t("bundled")
    for name in ("prompt_encoder", "mask_decoder"):
        getattr(sam, name).load_state_dict(getattr(bundled, name).state_dict())
    set_img_size(sam, 256)
    return sam


def make_image(number: int) -> NDArray[np.uint8]:
    """An image of its own size and content."""
    chance = np.random.default_rng(number)
    height, width = chance.integers(40, 200, 2)
    return chance.integers(0, 256, (height, width, 3), dtype=np.uint8)


def compare_threads(sam: MobileSam) -> dict[str, int]:
    """Returns the number of threads whose results differ from those of one thread alone."""
    generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **SEARCH)

    def predict(number: int) -> str:
        predictor = SamPredictor(sam)
        predictor.set_image(make_image(number))
        return str([each.tobytes() for each in predictor.predict([[20, 20]], [1])])

    def generate(number: int) -> str:
        return json.dumps(generator.generate(make_image(number)), default=float)

    differing = {}
    for name, call in (("predictors", predict), ("one generator", generate)):
        expected = [call(number) for number in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = [*pool.map(call, range(THREADS))]
        differing[name] = sum(a != b for a, b in zip(found, expected, strict=True))
    return differing


def predict_many(sam: MobileSam, count: int) -> Iterator[None]:
    """One predictor, one image after the other."""
    predictor = SamPredictor(sam)
    for number in range(count):
        predictor.set_image(make_image(number))
        predictor.predict([[20, 20]], [1])
        yield


def annotate_many(sam: MobileSam, count: int) -> Iterator[None]:
    """A folder of images, each a link to one of a hundred files."""
    with tempfile.TemporaryDirectory() as name:
        images, out = Path(name, "images"), Path(name, "out")
        images.mkdir()
        for number in range(min(100, count)):
            Image.fromarray(make_image(number)).save(images / f"{number:06}.png")
        for number in range(100, count):
            os.link(images / f"{number % 100:06}.png", images / f"{number:06}.png")
        for result in annotate(images, out, model=sam, workers=1, **SEARCH):
            assert result.error is None, result.error
            yield
        shutil.rmtree(out)


def slope(megabytes: list[float], step: int) -> tuple[float, float]:
    """Returns the growth of memory in KB an image, and half of its 95 % interval.

    Args:
        megabytes: of the process, after every so many images.
        step: the number of images between two of them.
    """
    kept = np.array(megabytes[int(len(megabytes) * _WARM_UP) :])
    images = np.arange(len(kept)) * step
    (growth, _), covariance = np.polyfit(images, kept * 1024, 1, cov=True)
    return float(growth), float(1.96 * np.sqrt(covariance[0, 0]))


def describe_growth(megabytes: list[float], step: int, what: str) -> str:
    """Says how memory grew over images or requests; the arguments are those of :func:`slope`."""
    growth, interval = slope(megabytes, step)
    return (
        f"{megabytes[0]:,.0f} to {megabytes[-1]:,.0f} MB, at most {max(megabytes):,.0f}; after "
        f"the first fifth {growth:+.3f} KB {what} (95 % interval +-{interval:.3f})"
    )


def measure_memory(
    run: Callable[[MobileSam, int], Iterator[None]], sam: MobileSam, count: int, points: int = 100
) -> list[float]:
    """Returns the megabytes of this process at so many points of a run."""
    step, found = max(1, count // points), []
    for number, _ in enumerate(run(sam, count), 1):
        if number % step == 0:
            gc.collect()
            resident = Path("/proc/self/statm").read_text().split()[1]
            found.append(int(resident) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("endurance.json"))


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints what was found."""
    torch.set_num_threads(1)
    sam = build()
    results: dict[str, Any] = {"images": arguments.images, "differing": compare_threads(sam)}
    for name, count in results["differing"].items():
        print(f"{THREADS} threads, {name}: {count} results differ from those of one thread")
    for name, many in (("SamPredictor", predict_many), ("annotate", annotate_many)):
        found = results[name] = measure_memory(many, sam, arguments.images)
        grown = describe_growth(found, max(1, arguments.images // 100), "an image")
        print(f"{arguments.images:,} images, {name}: {grown}")
        arguments.out.write_text(json.dumps(results, indent=1))
