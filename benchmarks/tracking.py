"""How well and how fast objects are followed, on generated clips with exact masks.

In each clip textured objects from the generator of training scenes move, turn, grow, bend and hide
each other in front of a moving background; in half of the clips an untracked object passes in
front of them. Every method starts from the exact masks of the first frame. J is the IoU
of a frame's mask with the exact one, 1 if both are empty, as in DAVIS; its mean is taken over
objects, frames after the first, and clips.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

from tqdm import tqdm

from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.integrations.track_anything import TrackAnything
from tests.moving_clips import (
    Clip,
    Masks,
    follow,
    follow_flow,
    hold_still,
    make_clip,
    measure_j,
)


def measure(clips: range, length: int, checkpoint: str) -> dict[str, Any]:
    """The results of all methods, as the JSON file holds them."""
    tracker = TrackAnything(build_sam_vit_t(checkpoint))
    times: list[tuple[float, float]] = []
    methods: dict[str, Callable[[Clip], Iterator[Masks]]] = {
        "first mask held still": hold_still,
        "optical flow without MobileSAM": follow_flow,
        "TrackAnything": lambda clip: follow(tracker, clip, times),
    }
    results: dict[str, Any] = {"checkpoint": checkpoint, "length": length, "clips": [*clips]}
    results["j"] = {name: [] for name in methods}
    for seed in tqdm(clips, desc="clips", disable=None):
        clip = make_clip(seed, length)
        for name, method in methods.items():
            results["j"][name].append(float(measure_j(clip, method(clip)).mean()))
    encoder, frame = (1e3 * median(column) for column in zip(*times, strict=True))
    results["milliseconds"] = {"encoder": encoder, "frame with 3 objects": frame}
    return results


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    clips = results["clips"]
    lines = [
        f"Mean J on {len(clips)} generated clips of {results['length']} frames, 640 x 480, "
        f"3 objects each; checkpoint {results['checkpoint']!r}.",
        "",
        "| | mean J | worst clip | best clip |",
        "|---|---|---|---|",
    ]
    for name, scores in results["j"].items():
        lines.append(f"| {name} | {mean(scores):.3f} | {min(scores):.3f} | {max(scores):.3f} |")
    encoder, frame = results["milliseconds"].values()
    lines += [
        "",
        f"Encoder {encoder:.0f} ms; a frame with 3 objects, encoder and all, {frame:.0f} ms: "
        f"{frame / encoder - 1:+.0%}.",
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--first-clip", type=int, default=100)
    parser.add_argument("--length", type=int, default=60, help="frames of each")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("tracking.json"))


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    clips = range(arguments.first_clip, arguments.first_clip + arguments.clips)
    results = measure(clips, arguments.length, arguments.checkpoint)
    arguments.out.write_text(json.dumps(results, indent=1))
    print(format_table(results))
