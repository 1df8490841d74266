"""From the command line to the first mask, with torch, onnxruntime and OpenVINO.

Each run is a fresh process of ``mobile-sam segment``. Processor time is of all its threads: it
stays nearly the same while other programs run, which elapsed time does not.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from .report import ROOT, processor, seconds

PHOTOGRAPH = ROOT / "examples" / "images" / "coffee.png"


def measure(runs: int) -> dict[str, tuple[float, float]]:
    """Median elapsed and processor seconds by backend."""
    from mobile_sam_plugin import build_sam_vit_t
    from mobile_sam_plugin.deploy import export

    found = {}
    with tempfile.TemporaryDirectory() as name:
        export(build_sam_vit_t("bundled"), f"{name}/models", [PHOTOGRAPH])
        exported = ["--onnx-dir", f"{name}/models"]
        options = {
            "torch": ["--checkpoint", "bundled"],
            "onnx": ["--backend", "onnx", *exported],
            "openvino": ["--backend", "openvino", *exported],
        }
        for backend, given in options.items():
            command = [sys.executable, "-m", "mobile_sam_plugin", "segment", str(PHOTOGRAPH)]
            command += ["--point", "330,150", "--out", f"{name}/out", *given]
            taken = [_time(command) for _ in range(runs)]
            elapsed, processor_time = map(statistics.median, zip(*taken, strict=True))
            found[backend] = elapsed, processor_time
    return found


def _time(command: list[str]) -> tuple[float, float]:
    """Elapsed and processor seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--runs", type=int, default=3, help="of each (default 3)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    print(f"{processor()}, {os.cpu_count()} cores; medians of {arguments.runs} runs.\n")
    print("| `--backend` | first mask | processor time |\n|---|---|---|")
    for backend, times in measure(arguments.runs).items():
        print(f"| {backend} | {' | '.join(map(seconds, times))} |")
