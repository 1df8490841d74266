"""The speed of this package beside the original MobileSAM, and segment-anything's vit_b for scale.

The original and this package run on the same photographs with the same weights, alternating in one
process, at their default settings. vit_b is untrained, as time does not depend on the weights, but
in everything mode, which it leaves out. Peak memory and the time of the import are measured in
fresh processes. The limit of a row is the time of its multiplications alone at the speed of this
machine's matrix product.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segment_anything
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import mobile_sam_plugin
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, read_checkpoint, save_checkpoint
from tests.original import build_original, mobile_sam

from .report import processor, quartiles, seconds, write_report

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "images"
SIDES = ("original", "ours")
# The bundled checkpoint's scores are low: at these thresholds dozens of masks survive.
EVERYTHING: dict[str, Any] = {
    "pred_iou_thresh": 0.2,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
    "output_mode": "coco_rle",
}


# Programs for fresh processes; each prints a number. Seconds beyond what users import anyway:
IMPORT = """import time, torch, torchvision, timm.models.tiny_vit, segment_anything
start = time.perf_counter()
from mobile_sam_plugin import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
print(time.perf_counter() - start)"""
# Megabytes at the peak of a row on one side. Not getrusage's, which starts from the parent's peak.
PEAK = """import re
from benchmarks.speed import ROWS, Side
ROWS["{row}"].prepare(Side("{side}", "{checkpoint}"))(0)()
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)"""


def save_for_both(folder: Path) -> Path:
    """The bundled weights as a file in float32, which the original and this package load."""
    path = folder / "mobile_sam.pt"
    save_checkpoint(read_checkpoint(BUNDLED_FILE), path, torch.float32, for_upstream=True)
    return path


def build(name: str, checkpoint: str | os.PathLike[str]) -> Any:
    """The model of a side: ``original``, ``ours`` or ``vit_b``."""
    if name == "original":
        return build_original(checkpoint)
    if name == "ours":
        return mobile_sam_plugin.build_sam_vit_t(checkpoint)
    return segment_anything.sam_model_registry[name]()


class Side:
    """One of the implementations, and what it does in each row."""

    def __init__(self, name: str, checkpoint: str | os.PathLike[str]) -> None:
        self.sam = build(name, checkpoint)
        self.sam.requires_grad_(False)  # for PyTorch's counter of operations, which stumbles on it
        packages = {"original": mobile_sam, "ours": mobile_sam_plugin, "vit_b": segment_anything}
        self.classes: Any = packages[name]
        self.known: dict[int, Any] = {}

    def set_image(self, run: int) -> Callable[[], Any]:
        predictor, pixels = self.classes.SamPredictor(self.sam), photograph(run)
        return lambda: predictor.set_image(pixels)

    def first_click(self, run: int) -> Callable[[], Any]:
        predictor = self.classes.SamPredictor(self.sam)
        predictor.set_image(photograph(run))
        point, label = self.middle(predictor), np.array([1])
        return lambda: predictor.predict(point, label)

    def clicked(self, run: int) -> Any:
        """A predictor for one of three photographs, on which somebody has just clicked."""
        photo = run % 3
        if photo not in self.known:
            self.known[photo] = self.classes.SamPredictor(self.sam)
            self.known[photo].set_image(photograph(photo))
        self.known[photo].predict(self.middle(self.known[photo]), np.array([1]))
        return self.known[photo]

    def middle(self, predictor: Any) -> Any:
        height, width = predictor.original_size
        return np.array([[0.5 * width, 0.5 * height]])

    def second_click(self, run: int) -> Callable[[], Any]:
        predictor = self.clicked(run)
        points, labels = np.concatenate([self.middle(predictor), [[9, 9]]]), np.array([1, 0])
        return lambda: predictor.predict(points, labels)

    def box(self, run: int) -> Callable[[], Any]:
        predictor = self.clicked(run)
        height, width = predictor.original_size
        box = np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.7 * height])
        return lambda: predictor.predict(box=box, multimask_output=False)

    def boxes(self, run: int) -> Callable[[], Any]:
        predictor = self.clicked(run)
        height, width = predictor.original_size
        corners = np.random.default_rng(run).uniform(size=(100, 2, 2)) * [width, height]
        corners.sort(axis=1)
        boxes = predictor.transform.apply_boxes_torch(
            torch.from_numpy(corners.reshape(-1, 4)), (height, width)
        )
        return lambda: predictor.predict_torch(None, None, boxes, multimask_output=False)

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
    runs: int  # fewer where a run takes long, so that all takes ten minutes on two cores
    memory: bool = False
    vit_b: bool = False


ROWS = {
    "set_image": Row("set_image", lambda side: side.set_image, 5, vit_b=True),
    "first_click": Row("first click on an image", lambda side: side.first_click, 7),
    "second_click": Row("second click", lambda side: side.second_click, 15, vit_b=True),
    "box": Row("box", lambda side: side.box, 15, vit_b=True),
    "boxes": Row("100 boxes", lambda side: side.boxes, 3, memory=True),
    "everything_8": Row(
        "everything, 8 points per side", lambda side: side.everything(8), 3, memory=True
    ),
    "everything_16": Row("everything, 16 points per side", lambda side: side.everything(16), 3),
    "everything_32": Row("everything, 32 points per side", lambda side: side.everything(32), 1),
    "everything_12mp": Row(
        "everything, 8 points per side, 12 megapixels",
        lambda side: side.everything(8, 12),
        3,
        memory=True,
    ),
}


def photograph(run: int, megapixels: float | None = None) -> Any:
    """One of the bundled photographs in turn, (H, W, 3) uint8, if need be resized."""
    paths = sorted(path for path in PHOTOGRAPHS.iterdir() if path.suffix in (".jpg", ".png"))
    image = Image.open(paths[run % len(paths)]).convert("RGB")
    if megapixels is not None:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    return np.asarray(image)


def measure(rows: list[str], runs: int | None, path: Path, keep: bool = False) -> None:
    """Times every row on all sides by turns, and writes the results so far after each.

    Args:
        rows: names of ``ROWS``.
        runs: of each row and side; None for each row's own number.
        path: of the JSON file.
        keep: rows that the file has already are kept, not measured again.

    Raises:
        ValueError: the rows to keep come from another machine or other versions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    machine: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_for_both(Path(folder))
        if keep and path.exists():
            results: dict[str, Any] = json.loads(path.read_text())
            for name, value in machine.items():
                if results["machine"][name] != value:
                    raise ValueError(
                        f"{path} was measured with {name} {results['machine'][name]!r}, not "
                        f"{value!r}: leave out --keep, or name another file with --out"
                    )
        else:
            start = _measure_start(checkpoint, runs or 3)
            machine["gflops"] = _matrix_product_peak()
            results = {"machine": machine, "start": start, "rows": {}}
        sides: dict[str, Side] = {}
        for number, name in enumerate(rows, 1):
            if name not in results["rows"]:
                row = _measure_row(name, runs, sides, checkpoint, results["machine"]["gflops"])
                results["rows"][name] = row
                print(f"{number}/{len(rows)}  {_summary(row)}", flush=True)
                ordered = {key: results["rows"][key] for key in ROWS if key in results["rows"]}
                results["rows"] = ordered
                path.write_text(json.dumps(results, indent=1))


def _measure_start(checkpoint: Path, runs: int) -> dict[str, Any]:
    """Seconds of the import, and of building each model."""
    start = {
        "import": [_run_python(IMPORT) for _ in range(runs)],
        "build": {
            side: [_time(lambda side=side: build(side, checkpoint)) for _ in range(runs)]  # type: ignore[misc]
            for side in SIDES
        },
    }
    print("start measured", flush=True)
    return start


def _measure_row(
    name: str, runs: int | None, sides: dict[str, Side], checkpoint: Path, peak: float
) -> dict[str, Any]:
    """A row of the results.

    Args:
        name: of ``ROWS``.
        runs: see :func:`measure`.
        sides: built so far; missing ones are added.
        checkpoint: for both.
        peak: 1e9 operations a second of this machine.
    """
    row = ROWS[name]
    names = [*SIDES, *(["vit_b"] if row.vit_b else [])]
    for side in names:
        if side not in sides:
            sides[side] = Side(side, checkpoint)
    prepared = {side: row.prepare(sides[side]) for side in names}
    if row.runs > 3:
        for side in names:
            prepared[side](0)()  # warms up
    times: dict[str, list[float]] = {side: [] for side in names}
    for run, side in itertools.product(range(runs or row.runs), names):
        times[side].append(_time(prepared[side](run)))
    gmac = _count(prepared["ours"](0))
    megabytes = None
    if row.memory:
        megabytes = {
            side: _run_python(PEAK.format(side=side, row=name, checkpoint=checkpoint))
            for side in SIDES
        }
    return {
        "title": row.title,
        "seconds": times,
        "gmac": gmac,
        "limit": 2 * gmac / peak,
        "megabytes": megabytes,
    }


def _summary(row: dict[str, Any]) -> str:
    medians = {side: quartiles(times)[1] for side, times in row["seconds"].items()}
    text = ", ".join(f"{side} {seconds(median)}" for side, median in medians.items())
    return f"{row['title']}: {text}; {medians['original'] / medians['ours']:.1f} x as fast"


def _time(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _count(work: Callable[[], Any]) -> float:
    """Multiply-accumulates, in 1e9, of all matrix products and convolutions in some work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a mode counts in its own thread
    with _Operations() as counter:
        work()
    torch.set_num_threads(threads)
    return counter.count / 2e9


class _Operations(TorchDispatchMode):
    """Counts operations as PyTorch's ``FlopCounterMode``, without its hooks on all modules.

    With hooks, a module takes no shortcuts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        in_place = function._overloadpacket.__name__.removesuffix("_")
        formula = flop_registry.get(getattr(torch.ops.aten, in_place, None))
        if formula is not None:
            settings = {name: value for name, value in kwargs.items() if name != "out"}
            self.count += formula(*args, **settings, out_val=result)
        return result


def _matrix_product_peak() -> float:
    """The machine's speed in 1e9 operations a second, multiplying 2048 x 2048 float32."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(_time(lambda: a @ a) for _ in range(10)) / 1e9


def _run_python(code: str) -> float:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        choices=list(ROWS),
        default=list(ROWS),
        help=f"any of {', '.join(ROWS)} (default: all)",
    )
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help=f"of each row and side (default: {', '.join(str(row.runs) for row in ROWS.values())})",
    )
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
        "--pages",
        action="store_true",
        help="update README.md, docs/measurements/speed.md and its picture",
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
