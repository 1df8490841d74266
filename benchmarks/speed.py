"""The speed of this package beside segment-anything with timm's TinyViT.

Both sides run on the same photographs with the same weights, alternating in one process, at their
default settings. Peak memory and start-up are measured in fresh processes. The limit of a row is
the time of its multiplications alone at the speed of this machine's matrix product.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segment_anything
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import mobile_sam_plugin
from tests.baseline import build_baseline

from .report import write_report

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "images"
SIDES = ("baseline", "ours")
# The bundled checkpoint's scores are low: at these thresholds dozens of masks survive.
EVERYTHING: dict[str, Any] = {
    "pred_iou_thresh": 0.35,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
    "output_mode": "coco_rle",
}


# Programs for fresh processes; each prints a number. Seconds beyond what both sides import:
IMPORT = """import time, torch, torchvision, timm.models.tiny_vit, segment_anything
start = time.perf_counter()
from mobile_sam_plugin import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
print(time.perf_counter() - start)"""
BUILD = {
    "baseline": """import time
from tests.baseline import build_baseline
from mobile_sam_plugin import build_sam_vit_t
sam = build_sam_vit_t("bundled")
start = time.perf_counter()
build_baseline(sam)
print(time.perf_counter() - start)""",
    "ours": """import time
from mobile_sam_plugin import SamPredictor, build_sam_vit_t
from mobile_sam_plugin.mobile_sam import MobileSam
start = time.perf_counter()
build_sam_vit_t("bundled")
print(time.perf_counter() - start)""",
}
# Megabytes at the peak of a row on one side. Not getrusage's, which starts from the parent's peak.
PEAK = """import re
from benchmarks.speed import ROWS, Side
ROWS["{row}"].prepare(Side("{side}"))(0)()
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)"""


class Side:
    """One of the two implementations, and what it does in each row."""

    def __init__(self, name: str) -> None:
        sam = mobile_sam_plugin.build_sam_vit_t("bundled")
        self.sam = build_baseline(sam) if name == "baseline" else sam
        self.sam.requires_grad_(False)  # for PyTorch's counter of operations, which stumbles on it
        self.classes: Any = segment_anything if name == "baseline" else mobile_sam_plugin
        self.predictor = self.classes.SamPredictor(self.sam)

    def set_image(self, run: int) -> Callable[[], Any]:
        pixels = photograph(run)
        return lambda: self.predictor.set_image(pixels)

    def first_click(self, run: int) -> Callable[[], Any]:
        pixels = photograph(run)
        self.predictor.set_image(pixels)
        height, width = pixels.shape[:2]
        point, label = np.array([[0.5 * width, 0.5 * height]]), np.array([1])
        return lambda: self.predictor.predict(point, label)

    def second_click(self, run: int) -> Callable[[], Any]:
        first = self.first_click(run)
        first()
        height, width = self.predictor.original_size
        points, labels = np.array([[0.5 * width, 0.5 * height], [9, 9]]), np.array([1, 0])
        return lambda: self.predictor.predict(points, labels)

    def box(self, run: int) -> Callable[[], Any]:
        self.first_click(run)()
        height, width = self.predictor.original_size
        box = np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.7 * height])
        return lambda: self.predictor.predict(box=box, multimask_output=False)

    def boxes(self, run: int) -> Callable[[], Any]:
        self.first_click(run)()
        height, width = self.predictor.original_size
        corners = np.random.default_rng(run).uniform(size=(300, 2, 2)) * [width, height]
        corners.sort(axis=1)
        boxes = self.predictor.transform.apply_boxes_torch(
            torch.from_numpy(corners.reshape(-1, 4)), (height, width)
        )
        return lambda: self.predictor.predict_torch(None, None, boxes, multimask_output=False)

    def everything(self, points_per_side: int, megapixels: float | None = None) -> Any:
        generator = self.classes.SamAutomaticMaskGenerator(
            self.sam, points_per_side=points_per_side, **EVERYTHING
        )
        return lambda run: lambda: generator.generate(photograph(run, megapixels))


@dataclass(frozen=True)
class Row:
    """Something that users wait for: ``prepare(side)(run)`` returns the function to time."""

    title: str
    prepare: Callable[[Side], Callable[[int], Callable[[], Any]]]
    warm_up: bool = True  # not if a run takes minutes and earlier rows have warmed up
    memory: bool = True  # not if another row has the same batches


ROWS = {
    "set_image": Row("set_image", lambda side: side.set_image),
    "first_click": Row("first click on an image", lambda side: side.first_click),
    "second_click": Row("second click", lambda side: side.second_click),
    "box": Row("box", lambda side: side.box),
    "boxes": Row("300 boxes", lambda side: side.boxes, warm_up=False),
    "everything_8": Row("everything, 8 points per side", lambda side: side.everything(8)),
    "everything_16": Row(
        "everything, 16 points per side", lambda side: side.everything(16), False, False
    ),
    "everything_32": Row(
        "everything, 32 points per side", lambda side: side.everything(32), False, False
    ),
    **{
        f"everything_{megapixels:g}mp": Row(
            f"everything, 8 points per side, {megapixels:g} megapixels",
            lambda side, megapixels=megapixels: side.everything(8, megapixels),  # type: ignore[misc]
            warm_up=False,
        )
        for megapixels in (0.25, 1, 2, 4, 12)
    },
}


def photograph(run: int, megapixels: float | None = None) -> Any:
    """One of the bundled photographs in turn, (H, W, 3) uint8, if need be resized."""
    paths = sorted(path for path in PHOTOGRAPHS.iterdir() if path.suffix in (".jpg", ".png"))
    image = Image.open(paths[run % len(paths)]).convert("RGB")
    if megapixels is not None:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    return np.asarray(image)


def measure(rows: list[str], runs: int, path: Path, keep: bool = False) -> None:
    """Times every row on both sides by turns, and writes the results so far after each.

    Args:
        rows: names of ``ROWS``.
        runs: of each row and side.
        path: of the JSON file.
        keep: rows that the file has already are kept, not measured again.

    Raises:
        ValueError: the rows to keep come from another machine, other versions or other runs.
    """
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "runs": runs,
    }
    if keep and path.exists():
        results: dict[str, Any] = json.loads(path.read_text())
        for name, value in machine.items():
            if results["machine"][name] != value:
                raise ValueError(
                    f"{path} was measured with {name} {results['machine'][name]!r}, not {value!r}: "
                    "leave out --keep, or name another file with --out"
                )
    else:
        results = {
            "machine": {**machine, "gflops": _matrix_product_peak()},
            "start": {
                "import": statistics.median(_run_python(IMPORT) for _ in range(runs)),
                "build": {
                    side: statistics.median(_run_python(BUILD[side]) for _ in range(runs))
                    for side in SIDES
                },
            },
            "rows": {},
        }
    peak = results["machine"]["gflops"]
    sides = {name: Side(name) for name in SIDES}
    for name in rows:
        if name in results["rows"]:
            continue
        row = ROWS[name]
        prepared = {side: row.prepare(sides[side]) for side in SIDES}
        if row.warm_up:
            for side in SIDES:
                prepared[side](0)()
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        turns = list(itertools.product(range(runs), SIDES))
        for run, side in tqdm(turns, desc=row.title, disable=None):
            work = prepared[side](run)
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
        gmac = _count(prepared["ours"](0))
        results["rows"][name] = {
            "title": row.title,
            "seconds": seconds,
            "median": {side: statistics.median(seconds[side]) for side in SIDES},
            "gmac": gmac,
            "limit": 2 * gmac / peak,
            "megabytes": {side: _run_python(PEAK.format(side=side, row=name)) for side in SIDES}
            if row.memory
            else None,
        }
        results["rows"] = {name: results["rows"][name] for name in ROWS if name in results["rows"]}
        path.write_text(json.dumps(results, indent=1))


def _count(work: Callable[[], Any]) -> float:
    """Multiply-accumulates, in 1e9, of all matrix products and convolutions in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2e9


def _matrix_product_peak() -> float:
    """The machine's speed in 1e9 operations a second, multiplying 2048 x 2048 float32."""
    a = torch.randn(2048, 2048)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def _run_python(code: str) -> float:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--runs", type=int, default=5, help="per row and side (default 5)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark.json"), help="default benchmark.json"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the rows that --out has, measure the others"
    )
    parser.add_argument(
        "--report", action="store_true", help="only table and picture, of an earlier --out"
    )
    parser.add_argument(
        "--pages", action="store_true", help="update the tables of README.md and docs/speed.md"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and draws the picture.

    Raises:
        ValueError: if matplotlib or the file for --report is missing, or as :func:`measure`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the picture needs matplotlib: pip install 'mobile-sam-plugin[benchmark]'")
    if arguments.report and not arguments.out.is_file():
        raise ValueError(f"--report: there is no {arguments.out}; run the benchmark first")
    if not arguments.report:
        measure(arguments.rows, arguments.runs, arguments.out, arguments.keep)
    write_report(arguments.out, arguments.pages)
