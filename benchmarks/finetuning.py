"""What fine-tuning gains, on a data set each: all weights, and low-rank adapters beside them.

Each run is a process of its own, so that its memory can be told: the most that was resident, which
holds the libraries as well. A run that is interrupted goes on with the same command.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

VARIANTS: dict[str, list[str]] = {"all weights": [], "lora 8": ["--lora", "8"]}


def measure(data: str, out: Path, options: list[str]) -> list[str]:
    """Fine-tunes on a data set in each way, and returns the rows of a table."""
    rows = []
    for name, of_variant in VARIANTS.items():
        folder = out / f"{Path(data).stem}-{name.replace(' ', '-')}"
        command = [
            *(sys.executable, "-m", "mobile_sam_plugin", "finetune", data, "--out", str(folder)),
            *(*options, *of_variant),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise ValueError(f"{' '.join(command)} failed")
        seconds = usage.ru_utime + usage.ru_stime
        table = (folder / "README.md").read_text()
        rows += [
            f"| {data} | {name} | {time.perf_counter() - start:.0f} s | {seconds:.0f} s "
            f"| {usage.ru_maxrss * 1024 / 1e9:.1f} GB | {row.strip('| ')} |"
            for row in table.splitlines()
            if row.startswith(("| one click", "| box", "| click and"))
        ]
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("data", nargs="+", help="images with masks, as finetune takes them")
    parser.add_argument("--out", type=Path, default=Path("finetuning"), help="folder of the runs")
    parser.add_argument(
        "--options", default="--checkpoint bundled", help="of mobile-sam finetune, in one argument"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints a table."""
    print("| data | trained | wall | CPU | memory | mean IoU | before | after | gain |")
    print("|---|---|---|---|---|---|---|---|---|")
    for data in arguments.data:
        print("\n".join(measure(data, arguments.out, arguments.options.split())), flush=True)
