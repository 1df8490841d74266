"""What float16 changes in the masks of an embedding on disk, and what encoding takes instead.

On each photograph of the package, points on a regular grid are clicks of their own, with three
masks each. They are decoded from the embedding as it was computed and from its file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mobile_sam_plugin import SamPredictor, build_sam_vit_t
from mobile_sam_plugin.images import load_image
from mobile_sam_plugin.photographs import list_photographs


def measure(checkpoint: str, points_per_side: int, dtype: torch.dtype, folder: Path) -> list[str]:
    """Returns the lines of a report."""
    predictor = SamPredictor(build_sam_vit_t(checkpoint))
    found = SamPredictor(predictor.model)
    ious, changed, seconds = [], [], []
    sides = (np.arange(points_per_side) + 0.5) / points_per_side
    for path in tqdm(list_photographs(), desc="photographs", disable=None):
        pixels, file = load_image(path), folder / f"{path.name}.safetensors"
        times = [time.perf_counter()]
        predictor.set_image(pixels)
        times.append(time.perf_counter())
        predictor.save_embedding(file, dtype)
        times.append(time.perf_counter())
        found.load_embedding(file)
        seconds.append(np.diff([*times, time.perf_counter()]))
        height, width = pixels.shape[:2]
        for x, y in np.stack(np.meshgrid(sides * width, sides * height), axis=-1).reshape(-1, 2):
            expected, _, _ = predictor.predict([[x, y]], [1])
            masks, _, _ = found.predict([[x, y]], [1])
            either = (masks | expected).sum(axis=(1, 2))
            changed += (masks ^ expected).sum(axis=(1, 2)).tolist()
            ious += ((masks & expected).sum(axis=(1, 2))[either > 0] / either[either > 0]).tolist()
    encoding, saving, loading = 1e3 * np.median(seconds, axis=0)
    size = np.mean([file.stat().st_size for file in folder.iterdir()])
    return [
        f"{len(changed):,} masks, {dtype}, checkpoint {checkpoint!r}, "
        f"{torch.get_num_threads()} threads",
        f"IoU: mean {np.mean(ious):.5f}, 1st percentile {np.quantile(ious, 0.01):.4f}, "
        f"least {np.min(ious):.4f}; above 0.99: {np.mean(np.array(ious) > 0.99):.2%}",
        f"pixels changed: median {np.median(changed):.0f}, 99th percentile "
        f"{np.quantile(changed, 0.99):.0f}, most {np.max(changed)}; "
        f"none in {np.mean(np.array(changed) == 0):.1%} of the masks",
        f"medians: encode {encoding:.0f} ms, save {saving:.0f} ms, load {loading:.0f} ms; "
        f"{size / 1e6:.1f} MB a file",
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--points-per-side", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(arguments.checkpoint, arguments.points_per_side, dtype, Path(folder))
        print(*lines, sep="\n")
