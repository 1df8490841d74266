"""What a fine-tuning leaves behind: the file, its card, the table and the picture."""

import dataclasses
import json
from pathlib import Path

from .._version import __version__
from ..build import build_sam_vit_t
from ..checkpoint import HUB_FILE, read_backbone, read_checkpoint, save_checkpoint
from ..datasets.annotated import AnnotatedImages
from ..distill.options import TrainingOptions
from ..evaluation.results import Evaluation, Score
from ..evaluation.worst_and_best import draw_worst_and_best
from ..files import write_file

CARD_FILE = "README.md"
FIGURE_FILE = "worst_and_best.png"

_NAMES = {
    "click": "one click",
    "click_best": "one click, best of three masks",
    "box": "box",
    "corrective_3": "click and three corrective clicks",
}


def format_table(before: Evaluation, after: Evaluation) -> str:
    """Returns the scores before and after, and the gain, with 95 % intervals, as Markdown."""
    gains = before.compare(after)
    lines = ["| mean IoU | before | after | gain |", "|---|---|---|---|"]
    for name, label in _NAMES.items():
        cells = [_format(before.scores[name]), _format(after.scores[name]), _format(gains[name])]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    images = sum(bool(image.masks) for image in after.images)
    count = after.scores["box"].count
    lines += ["", f"{count:,} masks of {images:,} images, with 95 % intervals."]
    return "\n".join(lines)


def _format(score: Score) -> str:
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"


def write_weights(
    best: Path, path: Path, options: TrainingOptions, before: Evaluation, after: Evaluation
) -> None:
    """Writes the best weights of a run with what is to be known of them, and their card beside.

    Args:
        best: the file of the run.
        path: the file to write.
        options: of the run.
        before, after: the scores of the checkpoint that it started from, and of these weights.
    """
    settings = dataclasses.asdict(options)
    used = {name: value for name, value in settings.items() if value not in (None, ())}
    scores = {
        name: {metric: score.mean for metric, score in evaluation.scores.items()}
        for name, evaluation in (("before", before), ("after", after))
    }
    metadata = {
        "data": options.data[0],
        "base": str(options.checkpoint),
        "options": json.dumps(used),
        "scores": json.dumps(scores),
        "mobile_sam_plugin": __version__,
    }
    save_checkpoint(read_checkpoint(best), path, backbone=read_backbone(best), metadata=metadata)
    listed = "\n".join(f"- {name}: {value}" for name, value in used.items())
    card = build_sam_vit_t(path).generate_model_card(
        description=(
            f"Fine-tuned from `{options.checkpoint}` on `{options.data[0]}`.\n\n"
            f"{format_table(before, after)}\n\n"
            "These images were not trained on, but they chose the best epoch: for a score to "
            f"publish, evaluate on others.\n\n## Options\n\n{listed}\n"
        )
    )
    write_file(path.parent / CARD_FILE, str(card).encode())


def draw_cases(out: Path, after: Evaluation, validation: AnnotatedImages, prompts: str) -> None:
    """Draws the masks that the weights did worst and best on, for the prompts of the training."""
    if prompts == "box":
        after = dataclasses.replace(after, scores={"box": after.scores["box"]})
    draw_worst_and_best(after, build_sam_vit_t(out / HUB_FILE), validation, out / FIGURE_FILE)
