"""``python -m benchmarks.deploy``: the exported files in onnxruntime and OpenVINO, beside torch.

Every row is a fresh process with nothing loaded, so that its start and its memory are its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .report import seconds

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


def measure(runs: int) -> list[dict[str, Any]]:
    """Exports the bundled weights in every precision, and measures each row."""
    from mobile_sam_plugin import build_sam_vit_t
    from mobile_sam_plugin.deploy import export
    from mobile_sam_plugin.distill.data import list_images

    with tempfile.TemporaryDirectory() as folder:
        programs, overlaps = {"torch": TORCH}, {}
        for precision in ("fp32", "fp16", "int8"):
            files = f"{folder}/{precision}"
            encoder, _ = export(
                build_sam_vit_t("bundled"), files, list_images(PHOTOGRAPHS), precision, force=True
            )
            title = f"onnxruntime, {precision}"
            programs[title] = EXPORTED.format(name="OnnxPredictor", folder=files)
            overlaps[title] = encoder.mask_iou
        openvino = EXPORTED.format(name="OpenVinoPredictor", folder=f"{folder}/fp32")
        programs["OpenVINO, fp32"] = openvino
        return [
            {"title": title, "mask_iou": overlaps.get(title), **_run(load, runs)}
            for title, load in programs.items()
        ]


def _run(load: str, runs: int) -> dict[str, float]:
    photograph = PHOTOGRAPHS / "coffee.png"
    code = PROGRAM.format(load=load, photograph=photograph, runs=runs)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    results: dict[str, float] = json.loads(done.stdout)
    return results


def format_table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| | set_image | click | import to first mask | peak memory | mask IoU with torch |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        overlap = "" if row["mask_iou"] is None else f"{row['mask_iou']:.3f}"
        times = " | ".join(seconds(row[name]) for name in ("set_image", "click", "first_mask"))
        lines.append(f"| {row['title']} | {times} | {row['memory']:,.0f} MB | {overlap} |")
    return "\n".join(lines)


def main() -> None:
    """The command ``python -m benchmarks.deploy``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy", description="Measure the exported files beside torch."
    )
    parser.add_argument("--runs", type=int, default=5, help="of set_image and click (default 5)")
    print(f"{os.cpu_count()} cores; medians of {(runs := parser.parse_args().runs)} runs.\n")
    print(format_table(measure(runs)))


if __name__ == "__main__":
    main()
