"""Everything mode with fewer prompts: recall and time, beside those of a coarser grid.

Each image of a data set is searched in each way, with the thresholds of ``mobile-sam evaluate``'s
recall, which drop no mask. Recall is COCO's average recall of the 1000 masks with the highest
predicted IoU: of the true masks, and of the 100 best masks of the grid of 32 points a side. Time is
that of the processor on one thread, encoding included, so that other work on the machine matters
little. Proposals are the boxes of the true masks, as a detector without any error would find them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from tqdm import tqdm

from mobile_sam_plugin import SamAutomaticMaskGenerator, build_sam_vit_t
from mobile_sam_plugin.datasets.formats import open_annotated_images
from mobile_sam_plugin.evaluation.metrics import average_recall
from mobile_sam_plugin.everything import drop_empty
from mobile_sam_plugin.records import Record, encode_mask

from .report import ROOT, processor, put_between_marks

SEARCHES: dict[str, dict[str, Any]] = {
    "grid, 32 a side": {"points_per_side": 32},
    "grid, 16 a side": {"points_per_side": 16},
    "grid, 8 a side": {"points_per_side": 8},
    "hierarchical, 32 a side": {"points_per_side": 32, "search": "hierarchical"},
    "hierarchical, 16 a side": {"points_per_side": 16, "search": "hierarchical"},
    "proposals, the true boxes": {"search": "proposals"},
}
GRID = "grid, 32 a side"
COLORS = {"grid": "#b8bcc4", "hierarchical": "#2a78d6", "proposals": "#1f9d6b"}
_EVERY_MASK: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
_LIKE_GRID = 100  # of the grid's masks, the best ones, which the others should find


class _Counting(SamAutomaticMaskGenerator):
    """Counts the prompts that are decoded."""

    prompts = 0

    def _find_at(self, prompts: Any, few: Any, *more: Any) -> Any:
        self.prompts += len(few)
        return super()._find_at(prompts, few, *more)


def measure(checkpoint: str, data: str, minutes: float, out: Path) -> dict[str, Any]:
    """Searches images in random order until the time is over; writes the results after each."""
    torch.set_num_threads(1)
    model = build_sam_vit_t(checkpoint)
    images = open_annotated_images(data)
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    results: dict[str, Any] = {
        "processor": processor(),
        "torch": torch.__version__,
        "checkpoint": checkpoint,
        "images": [],
    }
    start = time.process_time()
    for index in tqdm(order, desc="images", disable=None):
        if time.process_time() - start > 60 * minutes:
            break
        item = images[index]
        truth = [encode_mask(item.take([mask])[0]) for mask in range(item.count)]
        rows: dict[str, Any] = {}
        like_grid: list[Any] = []
        for name, options in SEARCHES.items():
            generator = _Counting(model, output_mode="coco_rle", **_EVERY_MASK, **options)
            boxes = None
            if "proposals" in name:
                boxes = [_edges(pycocotools.mask.toBbox(mask)) for mask in truth]
            began = time.process_time()
            records = drop_empty(generator.generate(item.image, proposals=boxes))
            seconds = time.process_time() - began
            records.sort(key=lambda record: -record["predicted_iou"])
            if name == GRID:
                like_grid = [record["segmentation"] for record in records[:_LIKE_GRID]]
            rows[name] = {
                "seconds": seconds,
                "prompts": generator.prompts,
                "recall": _recall(records, truth),
                "recall_of_grid": _recall(records, like_grid),
            }
        results["images"].append({"name": item.name, "searches": rows})
        out.write_text(json.dumps(results, indent=1))
    return results


def _recall(records: list[Record], masks: list[Any]) -> list[float]:
    """Returns the average recall of each mask."""
    ious = np.zeros((0, len(masks)))
    if records:
        found = [record["segmentation"] for record in records[:1000]]
        ious = pycocotools.mask.iou(found, masks, [False] * len(masks))
    return average_recall(ious).tolist()


def _edges(box: Any) -> list[float]:
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]


def summarize(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the means of each search: times and prompts by image, recall by mask."""
    summary = {}
    for name in SEARCHES:
        rows = [image["searches"][name] for image in results["images"]]
        summary[name] = {
            "seconds": np.mean([row["seconds"] for row in rows]),
            "prompts": np.mean([row["prompts"] for row in rows]),
            "recall": np.mean([value for row in rows for value in row["recall"]]),
            "recall_of_grid": np.mean([value for row in rows for value in row["recall_of_grid"]]),
        }
    return summary


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    summary = summarize(results)
    grid = summary[GRID]
    masks = sum(len(image["searches"][GRID]["recall"]) for image in results["images"])
    lines = [
        f"{len(results['images'])} images with {masks} true masks, checkpoint "
        f"`{results['checkpoint']}`; {results['processor']}, one thread, torch {results['torch']}.",
        "",
        "| search | prompts | seconds of processor | of the grid's time | recall of true masks | "
        "of the grid's recall | recall of the grid's masks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        lines.append(
            f"| {name} | {row['prompts']:.0f} | {row['seconds']:.1f} | "
            f"{row['seconds'] / grid['seconds']:.0%} | {row['recall']:.3f} | "
            f"{row['recall'] / grid['recall']:.0%} | {row['recall_of_grid']:.3f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws recall over time, a line for each search."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    summary = summarize(results)
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = {"recall": "recall of true masks", "recall_of_grid": "recall of the grid's masks"}
    for axes, (score, title) in zip(both, titles.items(), strict=True):
        for search, color in COLORS.items():
            rows = {name: row for name, row in summary.items() if name.startswith(search)}
            places = sorted((row["seconds"], row[score], name) for name, row in rows.items())
            seconds, recalls, names = zip(*places, strict=True)
            axes.plot(seconds, recalls, "o-", color=color, label=search)
            for place in zip(names, seconds, recalls, strict=True):
                label = place[0].partition(", ")[2].removesuffix(" a side")
                axes.annotate(
                    label, place[1:], xytext=(4, 5), textcoords="offset points", fontsize=8
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.margins(x=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds of processor an image")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("data", help="images with masks, as mobile-sam evaluate takes them")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--minutes", type=float, default=15, help="of processor time")
    parser.add_argument("--out", type=Path, default=Path("search.json"))
    parser.add_argument("--pages", action="store_true", help="update docs/measurements/search.md")


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    results = measure(arguments.checkpoint, arguments.data, arguments.minutes, arguments.out)
    table = format_table(results)
    print(table)
    draw(results, arguments.out.with_suffix(".png"))
    if arguments.pages:
        put_between_marks(ROOT / "docs" / "measurements" / "search.md", table)
        draw(results, ROOT / "docs" / "images" / "search.png")
