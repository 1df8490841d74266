"""The speed of this package on a GPU, beside the original MobileSAM.

The same photograph and weights on all sides. Every time is taken after the device has finished.
The original is measured in float32 alone: it fails in half precision.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import mobile_sam_plugin

from .speed import EVERYTHING, build, mobile_sam, photograph, save_for_both

# Name of the side, its package, the dtype of its weights, and whether TF32 is on.
SIDES: tuple[tuple[str, Any, torch.dtype, bool], ...] = (
    ("original, float32", mobile_sam, torch.float32, False),
    ("ours, float32", mobile_sam_plugin, torch.float32, False),
    ("ours, TF32", mobile_sam_plugin, torch.float32, True),
    ("ours, bfloat16", mobile_sam_plugin, torch.bfloat16, False),
    ("ours, float16", mobile_sam_plugin, torch.float16, False),
)
PHOTOGRAPH = 3  # 640 x 427 pixels
CLICK: dict[str, Any] = {"point_coords": np.array([[300, 200]]), "point_labels": np.array([1])}


class Timer:
    """Times work on a device.

    Args:
        device: such as ``"cuda"``.
        runs: of each work; the median counts.
    """

    def __init__(self, device: str, runs: int) -> None:
        self.device, self.runs = torch.device(device), runs

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """The median; a first run warms up."""
        work()
        times = []
        for _ in range(self.runs):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def megabytes(self, work: Callable[[], Any]) -> float | None:
        """Memory of the device at the peak; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) / 2**20


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allows products with 10 bits, or forbids them."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = enabled
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@torch.no_grad()
def measure_side(
    package: Any, sam: Any, timer: Timer, points_per_side: int, batches: list[int]
) -> dict[str, float | None]:
    """Milliseconds of each row, images a second of each batch, and the peak memory in MB."""
    pixels = photograph(PHOTOGRAPH)
    device, dtype = timer.device, next(sam.parameters()).dtype
    predictor = package.SamPredictor(sam)
    rows: dict[str, float | None] = {}
    one = torch.randn(1, 3, 1024, 1024, device=device, dtype=dtype)
    rows["encoder"] = timer.milliseconds(lambda: sam.image_encoder(one))
    rows["set_image"] = timer.milliseconds(lambda: predictor.set_image(pixels))
    rows["click"] = timer.milliseconds(lambda: predictor.predict(**CLICK))
    points = torch.rand(64, 1, 2, generator=torch.Generator().manual_seed(0)).to(device) * 600
    labels = torch.ones(64, 1, device=device)
    rows["64 clicks"] = timer.milliseconds(lambda: predictor.predict_torch(points, labels))
    generator = package.SamAutomaticMaskGenerator(
        sam, points_per_side=points_per_side, **EVERYTHING
    )
    rows["everything"] = timer.milliseconds(lambda: generator.generate(pixels))
    rows["everything, MB"] = timer.megabytes(lambda: generator.generate(pixels))
    for batch in batches:
        images = one.expand(batch, -1, -1, -1).contiguous()
        ms = timer.milliseconds(lambda images=images: sam.image_encoder(images))  # type: ignore[misc]
        rows[f"images a second in batches of {batch}"] = 1e3 * batch / ms
    return rows


def format_table(sides: dict[str, dict[str, float | None]]) -> str:
    """The results as Markdown, a row each; times in milliseconds."""
    names = list(next(iter(sides.values())))
    lines = [f"| ms | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for name in names:
        values = (side.get(name) for side in sides.values())
        cells = ("" if value is None else f"{value:.3g}" for value in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--runs", type=int, default=7, help="of each row (default: 7)")
    parser.add_argument(
        "--points-per-side", type=int, default=32, help="of everything mode (default: 32)"
    )
    parser.add_argument(
        "--batches", type=int, nargs="*", default=[1, 8, 32], help="default: 1 8 32"
    )
    parser.add_argument(
        "--profile", action="store_true", help="also what everything mode spends its time on"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="figures as JSON; default gpu.json"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures all sides in turn and prints a table.

    Raises:
        ValueError: if torch sees no such device.
    """
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device here; --device cpu tries the program without")
    timer = Timer(arguments.device, arguments.runs)
    name = torch.cuda.get_device_name(timer.device) if timer.device.type == "cuda" else "CPU"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "sides": {}}
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_for_both(Path(folder))
        for title, package, dtype, with_tf32 in SIDES:
            if timer.device.type == "cpu" and (with_tf32 or dtype != torch.float32):
                continue  # a CPU has no TF32, and few have half precision
            kind = "original" if package is mobile_sam else "ours"
            sam = build(kind, checkpoint).to(timer.device).to(dtype)
            with tf32(with_tf32):
                rows = measure_side(
                    package, sam, timer, arguments.points_per_side, arguments.batches
                )
            results["sides"][title] = rows
            arguments.out.write_text(json.dumps(results, indent=1))
            print(f"{title}: everything in {rows['everything']:.0f} ms", flush=True)
        print(format_table(results["sides"]))
        if arguments.profile:
            sam = build("ours", checkpoint).to(timer.device)
            _print_profile(sam, arguments.points_per_side)


def _print_profile(sam: Any, points_per_side: int) -> None:
    generator = mobile_sam_plugin.SamAutomaticMaskGenerator(
        sam, points_per_side=points_per_side, **EVERYTHING
    )
    generator.generate(photograph(PHOTOGRAPH))
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        generator.generate(photograph(PHOTOGRAPH))
    averages = profiled.key_averages()
    for order in ("self_cuda_time_total", "self_cpu_time_total"):
        print(averages.table(sort_by=order, row_limit=15, max_name_column_width=50))
