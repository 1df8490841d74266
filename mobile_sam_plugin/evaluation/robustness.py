"""How masks change when an image is corrupted: SAM under corruptions, as arXiv 2306.07713 asks.

Prompts come from the true masks. Each is given to the model with the clean image, then with every
corruption of it; the prompts stay as they are. Scores of a metric such as ``box``:

- ``box``: the IoU of the mask of the clean image with the true mask;
- ``box fog:3``: of that of the image in fog of severity 3, with the true mask;
- ``clean_box fog:3``: of the same, with the model's own mask of the clean image.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..errors import UserError
from ..predictor import SamPredictor
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt, parse_corruptions
from .evaluation import check_arguments, examine_all, fingerprint_of
from .examiner import MASKS_AT_ONCE, PROMPTS, choose_masks, predict
from .metrics import mask_iou
from .predictors import Predictor, predictor_of
from .prompts import Prompt, make_prompt
from .results import Evaluation, Score, save_figure


def evaluate_corruptions(
    model: Sam | Predictor,
    data: AnnotatedImages,
    corruptions: Sequence[str] = ("all",),
    *,
    metrics: Sequence[str] = ("click", "box"),
    masks_per_image: int = 5,
    seed: int = 0,
    strict: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates a model on corrupted images, against true masks and its masks of clean images.

    Args:
        model, data: as in :func:`~.evaluation.evaluate`.
        corruptions: ``"NAME"`` or ``"NAME:SEVERITY"``, see :data:`~.corruptions.CORRUPTIONS`;
            ``"all"`` are 80 images for each.
        metrics: some of :data:`~.examiner.PROMPTS`.
        masks_per_image, strict, folder, progress: as in :func:`~.evaluation.evaluate`.
        seed: random seed of masks, prompts, corruptions and bootstrap.

    Returns:
        Its ``scores`` have the names that this module explains.

    Raises:
        UserError: if there is no such corruption; or as :func:`~.evaluation.evaluate`.

    Example:
        >>> found = evaluate_corruptions(sam, open_annotated_images("val"), ["fog", "snow:5"])
        >>> found.scores["clean_box snow:5"].mean
    """
    check_arguments(data, metrics, PROMPTS, masks_per_image, seed)
    chosen = parse_corruptions(corruptions)
    if not chosen:
        raise UserError(f"give at least one corruption: all, {', '.join(CORRUPTIONS)}")
    size = {} if isinstance(model, Predictor) else {"img_size": model.image_encoder.img_size}
    settings: dict[str, Any] = {
        "corruptions": [f"{name}:{severity}" for name, severity in chosen],
        "metrics": [name for name in PROMPTS if name in metrics],
        "masks_per_image": masks_per_image,
        "seed": seed,
        **size,
        "model": fingerprint_of(model),
    }
    return examine_all(
        data,
        _Examiner(model, chosen, settings["metrics"], masks_per_image, seed),
        settings,
        sizes=size.values(),
        strict=strict,
        folder=folder,
        progress=progress,
    )


class _Examiner:
    """Scores a model on one image and its corruptions after another."""

    def __init__(
        self,
        model: Sam | Predictor,
        corruptions: Sequence[tuple[str, int]],
        metrics: Sequence[str],
        masks_per_image: int,
        seed: int,
    ) -> None:
        self._predictor = predictor_of(model)
        self._corruptions = corruptions
        self._metrics = metrics
        self._masks_per_image = masks_per_image
        self._seed = seed
        self.names = list(metrics) + [
            f"{prefix}{metric} {name}:{severity}"
            for metric in metrics
            for prefix in ("clean_", "")
            for name, severity in corruptions
        ]

    def examine(
        self, index: int, item: AnnotatedImage
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        masks = choose_masks(item.count, self._masks_per_image, (self._seed, index))
        scores: dict[str, list[float | None]] = {}
        if not masks:
            return masks, scores
        truth = item.take(masks)
        prompts = make_prompts(self._metrics, truth, [(self._seed, index, each) for each in masks])
        clean = segment(self._predictor, item.image, prompts)
        for metric, found in clean.items():
            scores[metric] = compare(found, truth)
        for name, severity in self._corruptions:
            seed = (self._seed, index, CORRUPTIONS.index(name), severity)
            image = corrupt(item.image, name, severity, seed)
            for metric, found in segment(self._predictor, image, prompts).items():
                scores[f"clean_{metric} {name}:{severity}"] = compare(found, clean[metric])
                scores[f"{metric} {name}:{severity}"] = compare(found, truth)
        return masks, {name: scores[name] for name in self.names}


Masks = list[NDArray[np.bool_] | None]
"""A mask (H, W) for each prompt, None where there is no prompt."""


def make_prompts(
    metrics: Iterable[str], truth: NDArray[np.bool_], seeds: Sequence[Sequence[int]]
) -> dict[str, list[Prompt | None]]:
    """Returns the prompts of each metric for true masks (N, H, W); None where there is none.

    Args:
        metrics: some of :data:`~.examiner.PROMPTS`.
        truth: the masks.
        seeds: of the prompts for each mask.
    """
    return {
        metric: [make_prompt(metric, *pair) for pair in zip(truth, seeds, strict=True)]
        for metric in metrics
    }


def segment(
    predictor: SamPredictor | Predictor,
    image: NDArray[np.uint8],
    prompts: Mapping[str, Sequence[Prompt | None]],
) -> dict[str, Masks]:
    """Returns the masks that a model chooses in an image, for each kind of prompts.

    Args:
        predictor: of the model; its image is set.
        image: (H, W, 3) uint8 RGB.
        prompts: by their kind; None for a prompt that does not exist.
    """
    predictor.set_image(image)
    found: dict[str, Masks] = {}
    for kind, of_kind in prompts.items():
        found[kind] = [None] * len(of_kind)
        places = [place for place, prompt in enumerate(of_kind) if prompt is not None]
        for start in range(0, len(places), MASKS_AT_ONCE):
            few = places[start : start + MASKS_AT_ONCE]
            given = [prompt for place in few if (prompt := of_kind[place]) is not None]
            for place, mask in zip(few, predict(predictor, given).best_masks, strict=True):
                found[kind][place] = mask
    return found


def compare(masks: Masks, others: Iterable[Any]) -> list[float | None]:
    """Returns the IoU of each mask with the other, (H, W) bool, of its place; None without one.

    Raises:
        UserError: if they differ in size.
    """
    scores: list[float | None] = []
    for mask, other in zip(masks, others, strict=True):
        if mask is None or other is None:
            scores.append(None)
        elif mask.shape != other.shape:
            raise UserError(
                f"the predictor returned masks of the shape {mask.shape} for an image of "
                f"{other.shape}"
            )
        else:
            scores.append(float(mask_iou(mask, other)))
    return scores


# The report


def format_corruptions(evaluations: Mapping[str, Evaluation]) -> str:
    """Returns tables as Markdown: by severity for each model, and of all models side by side.

    Args:
        evaluations: results of :func:`evaluate_corruptions` with the same arguments, by the names
            of the models.
    """
    parts = []
    for kind in _kinds(evaluations):
        if len(evaluations) > 1:
            parts += [
                f"{_explain(kind)}, mean of the severities",
                _compare_models(evaluations, kind),
            ]
        for model, evaluation in evaluations.items():
            parts += [f"{_explain(kind)}, {model}", _table(evaluation, kind)]
    widest = max(
        (score.high - score.low) / 2
        for evaluation in evaluations.values()
        for score in evaluation.scores.values()
        if score.count
    )
    first = next(iter(evaluations.values()))
    masks = max(score.count for score in first.scores.values())
    left_out = f"; {first.left_out}" if first.left_out else ""
    parts.append(
        f"{len(first.images):,} images, {masks:,} masks{left_out}. Half of a 95 % interval is at "
        f"most {widest:.2f}."
    )
    return "\n\n".join(parts)


def draw_corruptions(evaluations: Mapping[str, Evaluation], path: str | os.PathLike[str]) -> None:
    """Draws heat maps of corruptions and severities: a row for each model, a column for each score.

    Args:
        evaluations: as in :func:`format_corruptions`.
        path: of the figure, a PNG.
    """
    kinds = _kinds(evaluations)
    names = _names(next(iter(evaluations.values())))
    size = (1.6 + 3.1 * len(kinds), len(evaluations) * (1.2 + 0.3 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(evaluations), len(kinds), squeeze=False, sharey=True)
    for row, (model, evaluation) in zip(panels, evaluations.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            grid = np.array([_means(evaluation, kind, name) for name in names])
            shown = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (y, x), value in np.ndenumerate(grid):
                if value == value:  # not NaN
                    ink = "black" if value > 0.6 else "white"
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=ink, size=7)
            axes.set_title(f"{kind}, {model}", fontsize=9)
            axes.set_xticks(range(len(SEVERITIES)), SEVERITIES)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
    figure.supxlabel("severity", fontsize=9)
    figure.colorbar(shown, ax=panels, label="mean IoU", fraction=0.04, pad=0.02)
    save_figure(figure, Path(path))


def _kinds(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Returns the scores without corruptions: clean_click, click, clean_box, box."""
    scores = next(iter(evaluations.values())).scores
    return list(dict.fromkeys(name.split()[0] for name in scores if " " in name))


def _names(evaluation: Evaluation) -> list[str]:
    """Returns the names of the corruptions."""
    pairs = (name.split()[1] for name in evaluation.scores if " " in name)
    return list(dict.fromkeys(pair.partition(":")[0] for pair in pairs))


def _explain(kind: str) -> str:
    metric = kind.removeprefix("clean_")
    other = "the clean image's mask" if kind != metric else "the true mask"
    return f"Mean IoU of `{metric}` with {other}"


def _means(evaluation: Evaluation, kind: str, name: str) -> list[float]:
    """Returns the score at each severity; NaN where there is none."""
    none = Score(float("nan"), float("nan"), float("nan"), 0, 0)
    return [evaluation.scores.get(f"{kind} {name}:{each}", none).mean for each in SEVERITIES]


def _table(evaluation: Evaluation, kind: str) -> str:
    lines = ["| | 1 | 2 | 3 | 4 | 5 | mean |", "|---|" + "---|" * 6]
    for name in _names(evaluation):
        means = _means(evaluation, kind, name)
        lines.append(f"| {name} | {' | '.join(map(_cell, [*means, _mean(means)]))} |")
    if kind in evaluation.scores:
        clean = _cell(evaluation.scores[kind].mean)
        lines.append(f"| the clean image |{' |' * len(SEVERITIES)} {clean} |")
    return "\n".join(lines)


def _compare_models(evaluations: Mapping[str, Evaluation], kind: str) -> str:
    lines = [f"| | {' | '.join(evaluations)} |", "|---|" + "---|" * len(evaluations)]
    names = _names(next(iter(evaluations.values())))
    columns = [[_mean(_means(each, kind, name)) for name in names] for each in evaluations.values()]
    for name, values in zip(names, zip(*columns, strict=True), strict=True):
        lines.append(f"| {name} | {' | '.join(map(_cell, values))} |")
    lines.append(f"| mean | {' | '.join(_cell(_mean(column)) for column in columns)} |")
    if all(kind in each.scores for each in evaluations.values()):
        cells = [_cell(each.scores[kind].mean) for each in evaluations.values()]
        lines.append(f"| the clean image | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _cell(value: float) -> str:
    return f"{value:.3f}" if value == value else ""
