"""The exported files in onnxruntime and OpenVINO, beside torch.

Every row is a fresh process with nothing loaded, so that its start and its memory are its own. The
decoder's graph is compared with the one that SAM's own ``SamOnnxModel`` exports in one process, by
turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from .report import processor, put_between_marks, seconds

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ROOT / "examples" / "images"

# From an interpreter that has started to the first mask; then set_image and a click, again.
PROGRAM = """
import json, re, statistics, sys, time
start = time.perf_counter()
from PIL import Image
{load}
def set_image():
    predictor.set_image(Image.open("{photograph}"))
def click():
    predictor.predict([[300, 200]], [1])
set_image()
click()
first_mask = time.perf_counter() - start
times = {{}}
for work in (set_image, click):
    taken = []
    for _ in range({runs}):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    times[work.__name__] = statistics.median(taken)
memory = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({{"first_mask": first_mask, "memory": memory, **times}}))
"""
TORCH = """from mobile_sam_plugin import SamPredictor, build_sam_vit_t
predictor = SamPredictor(build_sam_vit_t("bundled"))"""
EXPORTED = """from mobile_sam_plugin.deploy import {name} as Predictor
predictor = Predictor("{folder}/mobile_sam_encoder.onnx", "{folder}/mobile_sam_decoder.onnx")"""


def measure(runs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Exports the bundled weights in every precision; the rows of both tables."""
    from mobile_sam_plugin import build_sam_vit_t
    from mobile_sam_plugin.deploy import export
    from mobile_sam_plugin.images import list_images

    sam = build_sam_vit_t("bundled")
    with tempfile.TemporaryDirectory() as folder:
        programs, overlaps = {"torch": TORCH}, {}
        for precision in ("fp32", "fp16", "int8"):
            files = f"{folder}/{precision}"
            encoder, decoder = export(
                sam, files, list_images(PHOTOGRAPHS, recursive=True), precision, force=True
            )
            title = f"onnxruntime, {precision}"
            programs[title] = EXPORTED.format(name="OnnxPredictor", folder=files)
            overlaps[title] = encoder.mask_iou
        for precision in ("fp32", "int8"):
            programs[f"OpenVINO, {precision}"] = EXPORTED.format(
                name="OpenVinoPredictor", folder=f"{folder}/{precision}"
            )
        rows = [
            {"title": title, "mask_iou": overlaps.get(title), **_run(load, runs)}
            for title, load in programs.items()
        ]
        upstream = Path(folder, "upstream.onnx")
        _export_upstreams_decoder(sam, upstream)
        # int8 leaves the decoder in float32.
        return rows, _compare_decoders({"SAM's own": upstream, "this one": decoder.path}, runs)


def _export_upstreams_decoder(sam: Any, path: Path) -> None:
    """As SAM's ``scripts/export_onnx_model.py`` does."""
    import torch
    from segment_anything.utils.onnx import SamOnnxModel

    inputs = {name: torch.from_numpy(value) for name, value in _click().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what tracing makes constant, such as sizes
        torch.onnx.export(
            SamOnnxModel(sam, return_single_mask=False),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=17,
            dynamo=False,
        )


def _click() -> dict[str, Any]:
    """A decoder's inputs for a click on a picture of 600 x 400 pixels."""
    import numpy as np

    return {
        "image_embeddings": np.random.default_rng(0).normal(size=(1, 256, 64, 64)).astype("f4"),
        "point_coords": np.array([[[512, 341], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([400, 600], np.float32),
    }


def _compare_decoders(paths: dict[str, Path], runs: int) -> list[dict[str, Any]]:
    """Seconds of a click in onnxruntime, with and without masks at the picture's size."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    sessions = {
        title: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for title, path in paths.items()
    }
    outputs = {
        "low_res": ["iou_predictions", "low_res_masks"],
        "full": ["iou_predictions", "masks"],
    }
    times: dict[tuple[str, str], list[float]] = {}
    click = _click()
    for run in range(4 * runs + 1):
        for title, session in sessions.items():
            for what, names in outputs.items():
                start = time.perf_counter()
                session.run(names, click, options)
                if run:  # the first warms up
                    times.setdefault((title, what), []).append(time.perf_counter() - start)
    return [
        {
            "title": title,
            "megabytes": path.stat().st_size / 1e6,
            **{what: statistics.median(times[title, what]) for what in outputs},
        }
        for title, path in paths.items()
    ]


def _run(load: str, runs: int) -> dict[str, float]:
    photograph = PHOTOGRAPHS / "coffee.png"
    code = PROGRAM.format(load=load, photograph=photograph, runs=runs)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    results: dict[str, float] = json.loads(done.stdout)
    return results


def format_tables(rows: list[dict[str, Any]], decoders: list[dict[str, Any]], runs: int) -> str:
    """The results as Markdown."""
    lines = [
        f"{processor()}, {os.cpu_count()} cores; medians of {runs} runs on a photograph of 600 x "
        "400 pixels. Mask IoU is the mean over nine clicks on the first photograph. For int8: all "
        "photographs, also used for calibration.",
        "",
        "| | set_image | click | import to first mask | peak memory | mask IoU with torch |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        overlap = "" if row["mask_iou"] is None else f"{row['mask_iou']:.3f}"
        times = " | ".join(seconds(row[name]) for name in ("set_image", "click", "first_mask"))
        lines.append(f"| {row['title']} | {times} | {row['memory']:,.0f} MB | {overlap} |")
    lines += [
        "",
        "| decoder's graph, in onnxruntime | size | click, low-res logits | click, masks too |",
        "|---|---|---|---|",
    ]
    for row in decoders:
        times = " | ".join(seconds(row[name]) for name in ("low_res", "full"))
        lines.append(f"| {row['title']} | {row['megabytes']:.1f} MB | {times} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--runs", type=int, default=5, help="of set_image and click (default 5)")
    parser.add_argument(
        "--page", type=Path, help="write the tables to this file, between its benchmark marks"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the tables.

    Raises:
        OSError, ValueError: if --page cannot be written, or has no marks.
    """
    tables = format_tables(*measure(arguments.runs), arguments.runs)
    print(tables)
    if arguments.page is not None:
        put_between_marks(arguments.page, tables)
