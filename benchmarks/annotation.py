"""Annotating a data set: images per second beside the original's loop, peak memory, and workers.

Both sides take the same images and the same weights, one after the other in one process, and write
the masks of each image as JSON. The original's loop is the usual script around ``mobile_sam``: one
image after another, with its own model. Peak memory is measured in fresh processes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mobile_sam_plugin import MobileSam, annotate, build_sam_vit_t
from mobile_sam_plugin.records import encode_mask
from tests.original import build_original, mobile_sam

from .report import processor
from .speed import EVERYTHING, PHOTOGRAPHS, save_for_both

BOXES_PER_IMAGE = 5
SEARCH = {name: value for name, value in EVERYTHING.items() if name != "output_mode"}


def save_images(folder: Path, count: int) -> Path:
    """The photographs in ``examples/images``, again and again, each time turned or flipped anew.

    Returns:
        A COCO json with boxes at random places.
    """
    photographs = sorted(path for path in PHOTOGRAPHS.iterdir() if path.suffix in (".jpg", ".png"))
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        turn, photograph = divmod(index, len(photographs))
        picture = Image.open(photographs[photograph]).convert("RGB")
        if turn:
            picture = picture.transpose(Image.Transpose((turn - 1) % len(Image.Transpose)))
        images.append({"id": 1 + index, "file_name": f"{index:04}.jpg"})
        picture.save(folder / images[-1]["file_name"], quality=95)
        for _ in range(BOXES_PER_IMAGE):
            corners = np.sort(rng.uniform(size=(2, 2)), axis=0) * picture.size
            box = [*corners[0], *(corners[1] - corners[0])]
            annotations.append(
                {"id": 1 + len(annotations), "image_id": 1 + index, "category_id": 1, "bbox": box}
            )
    categories = [{"id": 1, "name": "object"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def original_boxes(sam: Any, data: Path, out: Path) -> None:
    """The loop of SamPredictor over a COCO data set."""
    predictor = mobile_sam.SamPredictor(sam)
    content = json.loads(data.read_text())
    boxes: dict[int, list[list[float]]] = {}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    for image in content["images"]:
        pixels = np.asarray(Image.open(data.parent / image["file_name"]).convert("RGB"))
        predictor.set_image(pixels)
        prompts = predictor.transform.apply_boxes_torch(
            torch.tensor(boxes[image["id"]]), pixels.shape[:2]
        )
        masks, scores, _ = predictor.predict_torch(None, None, prompts, multimask_output=False)
        records = [
            {"segmentation": encode_mask(mask), "predicted_iou": score, "area": int(mask.sum())}
            for mask, score in zip(masks[:, 0].numpy(), scores[:, 0].tolist(), strict=True)
        ]
        (out / f"{image['id']}.json").write_text(json.dumps(records))


def original_everything(sam: Any, images: Path, out: Path, points_per_side: int) -> None:
    """The loop of SAM's ``scripts/amg.py``."""
    generator = mobile_sam.SamAutomaticMaskGenerator(
        sam, points_per_side=points_per_side, **EVERYTHING
    )
    for path in sorted(images.glob("*.jpg")):
        records = generator.generate(np.asarray(Image.open(path).convert("RGB")))
        (out / f"{path.stem}.json").write_text(json.dumps(records))


def run_annotate(model: MobileSam, source: Path, workers: int = 1, **options: Any) -> None:
    """All of ``mobile-sam annotate`` but its start, into a folder of its own."""
    with tempfile.TemporaryDirectory() as out:
        for result in annotate(source, out, model=model, workers=workers, **options):
            assert result.error is None, result.error


def measure(count: int, many: int, points_per_side: int) -> dict[str, Any]:
    """The results, as the JSON file holds them.

    Args:
        count: images.
        many: images for the second figure of memory.
        points_per_side: of everything mode.
    """
    model = build_sam_vit_t("bundled")
    threads = torch.get_num_threads()
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = build_original(save_for_both(folder))
        images, out = folder / "images", folder / "original"
        images.mkdir()
        out.mkdir()
        data = save_images(images, count)
        search: dict[str, Any] = {"points_per_side": points_per_side, **SEARCH}
        ours_boxes: dict[str, Any] = {"source": data, "mode": "boxes"}
        ours_everything: dict[str, Any] = {"source": images, **search}
        rows: dict[str, tuple[int, Callable[[], None]]] = {
            "boxes, original": (threads, lambda: original_boxes(original, data, out)),
            "boxes, annotate": (threads, lambda: run_annotate(model, **ours_boxes)),
            "everything, original": (
                threads,
                lambda: original_everything(original, images, out, points_per_side),
            ),
            "everything, annotate": (threads, lambda: run_annotate(model, **ours_everything)),
            "boxes, 1 worker of 1 thread": (1, lambda: run_annotate(model, **ours_boxes)),
            "boxes, 2 workers of 1 thread": (
                2,
                lambda: run_annotate(model, workers=2, **ours_boxes),
            ),
            "everything, 1 worker of 1 thread": (1, lambda: run_annotate(model, **ours_everything)),
            "everything, 2 workers of 1 thread": (
                2,
                lambda: run_annotate(model, workers=2, **ours_everything),
            ),
        }
        (warm_up := folder / "warm_up").mkdir()
        first = save_images(warm_up, 1)
        original_boxes(original, first, out)
        run_annotate(model, first, mode="boxes")
        for row, (row_threads, run) in tqdm(rows.items(), disable=None):
            torch.set_num_threads(row_threads)
            start = time.perf_counter()
            run()
            rates[row] = count / (time.perf_counter() - start)
    megabytes = {number: peak_megabytes(number) for number in (count, many)}
    return {
        "images": count,
        "boxes_per_image": BOXES_PER_IMAGE,
        "points_per_side": points_per_side,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
        },
        "images_per_second": rates,
        "megabytes": megabytes,
    }


PEAK = """import sys
from pathlib import Path
from benchmarks.annotation import run_annotate
from mobile_sam_plugin import build_sam_vit_t
run_annotate(build_sam_vit_t("bundled"), Path(sys.argv[1]), mode="boxes")
print(open("/proc/self/status").read())"""


def peak_megabytes(count: int) -> float:
    """The peak of a fresh process that annotates so many images by boxes."""
    with tempfile.TemporaryDirectory() as folder:
        data = save_images(Path(folder), count)
        command = [sys.executable, "-c", PEAK, str(data)]
        status = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    match = re.search(r"VmHWM:\s+(\d+)", status)
    assert match is not None
    return int(match[1]) / 1024


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, rates = results["machine"], results["images_per_second"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, torch "
        f"{machine['torch']}; {results['images']} images: the photographs in `examples/images`, "
        f"and again flipped and turned. Boxes: {results['boxes_per_image']} per image. Everything: "
        f"{results['points_per_side']} points per side.",
        "",
        "| images per second | the original's loop | annotate | |",
        "|---|---|---|---|",
    ]
    for mode in ("boxes", "everything"):
        before, after = rates[f"{mode}, original"], rates[f"{mode}, annotate"]
        lines.append(f"| {mode} | {before:.3g} | {after:.3g} | **{after / before:.1f} x** |")
    lines += ["", "| images per second | 1 worker | 2 workers | |", "|---|---|---|---|"]
    for mode in ("boxes", "everything"):
        one, two = rates[f"{mode}, 1 worker of 1 thread"], rates[f"{mode}, 2 workers of 1 thread"]
        lines.append(f"| {mode}, a thread each | {one:.3g} | {two:.3g} | {two / one:.2f} x |")
    (few, first), (many, second) = results["megabytes"].items()
    lines += [
        "",
        f"Peak memory, mode boxes: {first:,.0f} MB after {few} images, {second:,.0f} MB after "
        f"{many} ({second / first - 1:+.1%}).",
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--many", type=int, default=200, help="images, for memory")
    parser.add_argument("--points-per-side", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="2 and 4 images, 2 points per side")
    parser.add_argument("--out", type=Path, default=Path("annotation.json"))


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the tables."""
    sizes = (arguments.images, arguments.many, arguments.points_per_side)
    results = measure(*((2, 4, 2) if arguments.quick else sizes))
    arguments.out.write_text(json.dumps(results, indent=1))
    print(format_table(results))
