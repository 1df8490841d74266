"""How good a SAM is: against the masks of a data set, and against its teacher on the same prompts.

The prompts of a mask, all in pixels of the original image:

- ``click``: a pixel of the mask, drawn at random; of the three masks that SAM then offers, the one
  with the highest predicted IoU counts, as in upstream's ``predictor_example.ipynb``.
- ``click_best``: the same click, and of the three masks the one with the highest true IoU.
- ``box``: the mask's bounding box, its first and last pixels.
- ``pair_100`` to ``pair_500``, the paper's Table 7: the click, and a background point at a
  distance of 100 to 500 pixels, drawn at random among the pixels of that circle that lie in the
  image and outside of the mask. Where there is none, the prompt is skipped, and counted as such.
- ``corrective_1`` to ``corrective_5``: the click, then that many more clicks, each in the middle of
  what is wrong, see :func:`~.measures.corrective_click`. With each goes the logits of the mask that
  it corrects.

Wherever a prompt is more than a click, SAM's single mask for unambiguous prompts is taken, as in
that notebook.

``recall_10``, ``recall_100`` and ``recall_1000`` are COCO's average recall of so many masks of
everything mode, those with the highest predicted IoU, see :func:`~.measures.find_recalled`.

The paper does not tell which of three masks it compares between student and teacher. Here each
model takes its own: the one with the highest predicted IoU.
"""

import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor
from typing_extensions import Self

from ..automatic_mask_generator import SamAutomaticMaskGenerator
from ..checkpoint import fingerprint
from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.readable import Skipped, check_fit
from ..drawing import draw_overlay
from ..errors import MissingExtra, UserError
from ..everything import drop_empty
from ..files import write_file
from ..predictor import SamPredictor
from ..records import encode_mask
from .costs import Cost
from .measures import (
    PAIR_DISTANCES,
    Prompt,
    add_click,
    bootstrap,
    corrective_click,
    find_recalled,
    intersection_over_union,
    make_prompt,
)

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra.of("matplotlib", "distill") from error

_ROUNDS = {f"corrective_{clicks}": clicks for clicks in (1, 2, 3, 4, 5)}
_RECALLS = {f"recall_{masks}": masks for masks in (10, 100, 1000)}
_PROMPTS = ("click", "box", *PAIR_DISTANCES)
_DRAWN = ("click", "click_best", "box", *PAIR_DISTANCES)

MEASURES = ("click", "click_best", "box", *PAIR_DISTANCES, *_ROUNDS, *_RECALLS)
"""All measures. With a teacher, ``click``, ``box`` and ``pair_...`` also give ``teacher_...``."""

# Every mask is kept, since the ranking decides which of them count; else upstream's settings.
_EVERYTHING: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
# However many masks of an image are wanted, memory holds the predictions for so many.
_MASKS_AT_ONCE = 8


@dataclass(frozen=True)
class Score:
    """The mean of a measure.

    Attributes:
        mean: over all masks of all images; NaN if there was none.
        low, high: its 95 % confidence interval, by bootstrap over images.
        count: how many masks it is the mean of.
        skipped: for how many masks there was no such prompt.
    """

    mean: float
    low: float
    high: float
    count: int
    skipped: int


@dataclass(frozen=True)
class ImageScores:
    """What was measured on one image.

    Attributes:
        index: the image's, in the data set.
        name: the image's.
        masks: indices of the masks that were prompted for.
        scores: a measure's value for each of these masks, None where there was no such prompt; for
            recall, a value for each mask of the image.
        fingerprint: of the pixels and masks that were measured on; "" in results of older releases.
    """

    index: int
    name: str
    masks: list[int]
    scores: dict[str, list[float | None]]
    fingerprint: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        scores: a score a measure.
        images: what they are the means of.
        settings: the arguments, and fingerprints and image sizes of the models.
        unreadable: how many images were skipped since they could not be used.
        left_out: what was, by kind, for people to read; "" if nothing was.
        costs: of the parts of the student, if they were counted, see :func:`~.costs.count_costs`.

    Example:
        >>> evaluation = evaluate(sam, open_annotated_images("scenes:100"), measures=["click"])
        >>> evaluation.scores["click"].mean
        >>> evaluation.save(Path("evaluation"))
    """

    scores: dict[str, Score]
    images: list[ImageScores]
    settings: dict[str, Any]
    unreadable: int = 0
    left_out: str = ""
    costs: dict[str, Cost] = field(default_factory=dict)

    def format_table(self) -> str:
        """The scores, and the costs if there are any, as Markdown."""
        lines = ["| measure | mean | 95 % interval | masks | skipped |", "|---|---|---|---|---|"]
        for name, score in self.scores.items():
            mean = interval = ""
            if score.count:
                mean, interval = f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}"
            lines.append(f"| {name} | {mean} | {interval} | {score.count:,} | {score.skipped:,} |")
        left_out = f"; {self.left_out}" if self.left_out else ""
        lines += ["", f"{len(self.images):,} images{left_out}."]
        if self.costs:
            lines += ["", "| part | parameters | GMAC | ms |", "|---|---|---|---|"]
            lines += [
                f"| {name} | {cost.parameters:,} | {cost.gmac:.3f} | {cost.milliseconds:.1f} |"
                for name, cost in self.costs.items()
            ]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``evaluation.json``, ``evaluation.md``, ``scores.png`` and ``images.jsonl``.

        The last is the journal that :func:`evaluate` can continue. A file appears whole or not at
        all.

        Args:
            folder: made if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        summary = {
            "scores": {name: _as_json(score) for name, score in self.scores.items()},
            "unreadable": self.unreadable,
            "left_out": self.left_out,
            "costs": {name: _as_json(cost) for name, cost in self.costs.items()},
        }
        _write_journal(folder / "images.jsonl", self.settings, self.images)
        _save_figure(_draw_scores(self), folder / "scores.png")
        write_file(folder / "evaluation.md", self.format_table().encode() + b"\n")
        write_file(folder / "evaluation.json", json.dumps(summary, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: the folder holds no evaluation, or a damaged one.
        """
        summary = json.loads((Path(folder) / "evaluation.json").read_text())
        settings, images = _read_journal(Path(folder) / "images.jsonl")
        return cls(
            scores={
                name: Score(**{key: _from_json(value) for key, value in score.items()})
                for name, score in summary["scores"].items()
            },
            images=images,
            settings=settings,
            unreadable=summary["unreadable"],
            left_out=summary.get("left_out", ""),  # which older releases did not write
            costs={name: Cost(**cost) for name, cost in summary["costs"].items()},
        )


def evaluate(
    student: Sam,
    data: AnnotatedImages,
    *,
    teacher: Sam | None = None,
    measures: Sequence[str] = MEASURES,
    masks_per_image: int = 5,
    seed: int = 0,
    strict: bool = False,
    journal: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model on a data set, one image after another.

    Masks are compared at the size of the original image. Which masks of an image are taken and
    which prompts they get depends on nothing but the seed, the image's index and the mask's, so
    models and measures can be compared mask by mask.

    Args:
        student: any SAM.
        data: images with masks; an image without masks takes no part.
        teacher: compare the student's masks with this model's, too.
        measures: of :data:`MEASURES`. Recall takes by far the most time: 1024 clicks an image.
        masks_per_image: how many masks of an image to prompt for, at most, drawn at random. Recall
            is of all masks.
        seed: of masks, prompts and bootstrap.
        strict: raise where an image cannot be used, instead of skipping it with a warning.
        journal: a file of JSON lines that the scores of each image are added to. Of images that it
            holds already, from a run that broke off, they are taken from there, if neither pixels
            nor masks have changed.
        progress: called with the number of images done and of all images.

    Raises:
        ValueError: an unknown measure, no image or no mask in all of them, a journal of an
            evaluation of another model, at another image size or with other arguments, most images
            broken, or with ``strict`` one.
        OSError: with ``strict`` an image that cannot be read.
    """
    _check_arguments(data, measures, masks_per_image, seed)
    sizes = {"img_size": student.image_encoder.img_size}
    if teacher is not None:
        sizes["teacher_img_size"] = teacher.image_encoder.img_size
    settings: dict[str, Any] = {
        "measures": [name for name in MEASURES if name in measures],
        "masks_per_image": masks_per_image,
        "seed": seed,
        **sizes,
        "student": _fingerprint(student),
        "teacher": None if teacher is None else _fingerprint(teacher),
    }
    known: dict[tuple[int, str], ImageScores] = {}
    if journal is not None:
        known = _continue_journal(Path(journal), settings)
    examiner = _Examiner(student, teacher, settings["measures"], masks_per_image, seed)
    images: list[ImageScores] = []
    skipped = Skipped(len(data), strict=strict, what="image")
    for index in range(len(data)):
        try:
            item = data[index]
            for size in sizes.values():
                check_fit(item.image, size)
        except (OSError, ValueError) as error:
            skipped.skip(index, error)
        else:
            skipped.use(index, item.empty)
            content = item.fingerprint()
            if (index, content) in known:
                images.append(known[index, content])
            else:
                images.append(examiner.examine(index, item, content))
                if journal is not None:
                    with open(journal, "ab") as file:
                        file.write(_line(dataclasses.asdict(images[-1])))
        if progress is not None:
            progress(index + 1, len(data))
    skipped.tell()
    if not any(image.masks for image in images):
        raise UserError(
            f"there is no mask in the {len(images)} of {len(data)} images that could be read"
        )
    return Evaluation(
        _summarize(images, examiner.names, seed),
        images,
        settings,
        len(skipped),
        skipped.describe(),
    )


class _Examiner:
    """Measures on one image after another.

    Attributes:
        names: of the scores that are wanted.
        kinds: of the prompts that they take.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Sam | None,
        measures: Sequence[str],
        masks_per_image: int,
        seed: int,
    ) -> None:
        self.student = SamPredictor(student)
        self.teacher = None if teacher is None else SamPredictor(teacher)
        self.generator = SamAutomaticMaskGenerator(student, output_mode="coco_rle", **_EVERYTHING)
        self.masks_per_image = masks_per_image
        self.seed = seed
        compared = _PROMPTS if teacher is not None else ()
        self.names = [
            name
            for measure in measures
            for name in (measure, *(f"teacher_{kind}" for kind in compared if kind == measure))
        ]
        from_clicks = {"click", "click_best", *_ROUNDS}
        self.kinds = [
            kind
            for kind in _PROMPTS
            if kind in measures or (kind == "click" and from_clicks & set(measures))
        ]

    def examine(self, index: int, item: AnnotatedImage, content: str) -> ImageScores:
        """Measures all on one image; ``content`` is its fingerprint."""
        count = min(item.count, self.masks_per_image)
        chosen = np.random.default_rng((self.seed, index)).permutation(item.count)[:count]
        masks: list[int] = sorted(chosen.tolist())
        scores: dict[str, list[float | None]] = {}
        if masks and self.kinds:
            self.student.set_image(item.image)
            if self.teacher is not None:
                self.teacher.set_image(item.image)
            for start in range(0, count, _MASKS_AT_ONCE):
                few = masks[start : start + _MASKS_AT_ONCE]
                for name, values in self._prompt(index, few, item.take(few)).items():
                    scores[name] = scores.get(name, []) + values
        if masks and set(self.names) & set(_RECALLS):
            scores |= self._search(item)
        return ImageScores(index, item.name, masks, scores, content)

    def _prompt(
        self, index: int, masks: list[int], truth: NDArray[np.bool_]
    ) -> dict[str, list[float | None]]:
        """Measures all but recall. ``truth`` (N, H, W) are the masks of these N indices."""
        scores: dict[str, list[float | None]] = {}
        for kind in self.kinds:
            prompts = {
                row: prompt
                for row, mask in enumerate(truth)
                if (prompt := make_prompt(kind, mask, (self.seed, index, masks[row]))) is not None
            }
            rows = list(prompts)
            for name, ious in self._compare(kind, list(prompts.values()), truth[rows]).items():
                if name in self.names:
                    of_rows = dict(zip(rows, ious.tolist(), strict=True))
                    scores[name] = [of_rows.get(row) for row in range(len(truth))]
        return scores

    def _compare(
        self, kind: str, prompts: list[Prompt], truth: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float64]]:
        """All measures that start from prompts of a kind, for N prompts: of each the IoU (N,)."""
        if not prompts:
            return {kind: np.zeros(0), f"teacher_{kind}": np.zeros(0)}
        predicted = _predict(self.student, prompts)
        ious = {kind: intersection_over_union(predicted.best_masks, truth)}
        if self.teacher is not None:
            taught = _predict(self.teacher, prompts).best_masks
            ious[f"teacher_{kind}"] = intersection_over_union(predicted.best_masks, taught)
        if kind == "click":
            candidates = intersection_over_union(predicted.masks, truth[:, None])
            ious["click_best"] = candidates.max(axis=1)
            ious |= self._correct(prompts, predicted, truth)
        return ious

    def _correct(
        self, prompts: list[Prompt], predicted: "_Predicted", truth: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float64]]:
        """The IoU (N,) after each further click, from N clicks and what they gave."""
        ious = {}
        for round_ in range(max(_ROUNDS.get(name, 0) for name in self.names)):
            prompts = [
                add_click(prompt, *corrective_click(mask, true_mask))
                for prompt, mask, true_mask in zip(
                    prompts, predicted.best_masks, truth, strict=True
                )
            ]
            predicted = _predict(self.student, prompts, predicted.best_logits)
            ious[f"corrective_{round_ + 1}"] = intersection_over_union(predicted.best_masks, truth)
        return ious

    def _search(self, item: AnnotatedImage) -> dict[str, list[float | None]]:
        records = drop_empty(self.generator.generate(item.image))
        records.sort(key=lambda record: -record["predicted_iou"])
        truth = [encode_mask(item.take([mask])[0]) for mask in range(item.count)]
        ious = np.zeros((0, len(truth)))
        if records:
            found = [record["segmentation"] for record in records]
            ious = pycocotools.mask.iou(found, truth, [False] * len(truth))
        return {
            name: find_recalled(ious[:limit]).tolist()
            for name, limit in _RECALLS.items()
            if name in self.names
        }


@dataclass(frozen=True)
class _Predicted:
    """What a model makes of N prompts, C masks of each.

    Attributes:
        masks: (N, C, H, W).
        best: (N,), the index of the mask with the highest predicted IoU.
        logits: (N, C, 256, 256), low-res.
    """

    masks: NDArray[np.bool_]
    best: NDArray[np.int64]
    logits: Tensor

    @property
    def best_masks(self) -> NDArray[np.bool_]:
        """(N, H, W)."""
        return self.masks[np.arange(len(self.best)), self.best]

    @property
    def best_logits(self) -> Tensor:
        """(N, 1, 256, 256), low-res."""
        return self.logits[np.arange(len(self.best)), self.best][:, None]


def _predict(
    predictor: SamPredictor, prompts: Sequence[Prompt], mask_input: Tensor | None = None
) -> _Predicted:
    """All prompts at once; they are of one kind, with as many points each."""
    size = predictor.original_size
    coords = labels = boxes = None
    if prompts[0].box is None:
        points = np.stack([prompt.points for prompt in prompts])
        coords = _to_device(predictor, predictor.transform.apply_coords(points, size))
        labels = _to_device(predictor, np.stack([prompt.labels for prompt in prompts]))
    else:
        corners = np.stack([prompt.box for prompt in prompts if prompt.box is not None])
        boxes = _to_device(predictor, predictor.transform.apply_boxes(corners, size))
    masks, scores, logits = predictor.predict_torch(
        coords,
        labels,
        boxes,
        mask_input,
        multimask_output=boxes is None and len(prompts[0].points) == 1,
    )
    return _Predicted(masks.cpu().numpy(), scores.argmax(dim=1).cpu().numpy(), logits)


def _to_device(predictor: SamPredictor, numbers: NDArray[Any]) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float, device=predictor.device)


def find_drawable(evaluation: Evaluation) -> str | None:
    """The measure that :func:`draw_worst_and_best` draws: the first of one prompt that has scores.

    Returns:
        ``click``, ``click_best``, ``box`` or one of the pairs; None if no mask has any of these.
    """
    scores = evaluation.scores
    return next((name for name in _DRAWN if name in scores and scores[name].count), None)


def draw_worst_and_best(
    evaluation: Evaluation,
    student: Sam,
    data: AnnotatedImages,
    path: str | os.PathLike[str],
    count: int = 4,
) -> None:
    """Draws the masks that a model did worst and best on: image, truth, prediction with prompt.

    By the measure that :func:`find_drawable` tells, one mask an image at most. Only the part of the
    image around both masks is shown.

    Args:
        evaluation: of that model on that data.
        student: predicts these masks again.
        data: where the images are read again.
        path: of the picture, a PNG.
        count: how many of each.

    Raises:
        ValueError: there is no such measure.
    """
    measure = find_drawable(evaluation)
    if measure is None:
        raise UserError(f"there is no worst and best case of {', '.join(evaluation.scores)}")
    kind = "click" if measure == "click_best" else measure
    cases = {}
    for title, choose in (("worst", min), ("best", max)):
        of_images = [
            (*choose(scored), image.index)
            for image in evaluation.images
            if (scored := _scored_masks(image, measure))
        ]
        cases[title] = sorted(of_images, reverse=choose is max)[:count]
    rows = max(len(found) for found in cases.values())
    figure = Figure(figsize=(15, 2.6 * rows), layout="constrained")
    tiles = figure.subplots(rows, 6, squeeze=False)
    for tile in tiles.flat:
        tile.set_axis_off()
    predictor = SamPredictor(student)
    for column, (title, found) in zip((0, 3), cases.items(), strict=True):
        for row, (iou, mask, index) in enumerate(found):
            item = data[index]
            truth = item.take([mask])[0]
            prompt = make_prompt(kind, truth, (evaluation.settings["seed"], index, mask))
            assert prompt is not None  # it has a score
            predictor.set_image(item.image)
            found_masks = _predict(predictor, [prompt])
            predicted = found_masks.best_masks[0]
            if measure == "click_best":
                candidates = found_masks.masks[0]
                predicted = candidates[intersection_over_union(candidates, truth).argmax()]
            rows_seen, columns_seen = _window(truth | predicted)
            image = item.image[rows_seen, columns_seen]
            shift = np.array([columns_seen.start, rows_seen.start])
            shifted = Prompt(
                prompt.points - shift,
                prompt.labels,
                None if prompt.box is None else prompt.box - np.tile(shift, 2),
            )
            pictures = {
                f"{title} {measure}: IoU {iou:.3f}": image,
                "true mask": _overlay(image, truth[rows_seen, columns_seen]),
                "predicted": _overlay(image, predicted[rows_seen, columns_seen], shifted),
            }
            for offset, (name, picture) in enumerate(pictures.items()):
                tiles[row, column + offset].imshow(_shrink(picture))
                tiles[row, column + offset].set_title(name, fontsize=9)
    _save_figure(figure, Path(path))


def _scored_masks(image: ImageScores, kind: str) -> list[tuple[float, int]]:
    """IoU and index of the masks that have a score."""
    scores = image.scores.get(kind, [])
    return [(iou, mask) for iou, mask in zip(scores, image.masks, strict=False) if iou is not None]


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around a mask, so that small things can be seen."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = max(1.5 * max(width, height), 200)
    windows = []
    for start, length, limit in ((y, height, mask.shape[0]), (x, width, mask.shape[1])):
        first = max(0, min(round(start + (length - side) / 2), round(limit - side)))
        windows.append(slice(first, min(limit, first + round(side))))
    return windows[0], windows[1]


def _overlay(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], prompt: Prompt | None = None
) -> NDArray[np.uint8]:
    if prompt is None:
        return draw_overlay(image, [mask])
    return draw_overlay(
        image,
        [mask],
        point_coords=prompt.points,
        point_labels=prompt.labels,
        prompt_box=prompt.box,
    )


def _shrink(picture: NDArray[np.uint8], side: int = 384) -> NDArray[np.uint8]:
    scale = min(1.0, side / max(picture.shape[:2]))
    width, height = (max(1, round(length * scale)) for length in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))


def _draw_scores(evaluation: Evaluation) -> Figure:
    """All scores with their intervals; and how the IoU of masks is distributed."""
    figure = Figure(figsize=(11, 1.6 + 0.24 * len(evaluation.scores)), layout="constrained")
    means, spread = figure.subplots(1, 2)
    for row, score in enumerate(evaluation.scores.values()):
        means.plot([score.low, score.high], [row, row], color="#b8bcc4", linewidth=5)
        means.plot(score.mean, row, "o", color="#2a78d6", markersize=5)
    means.set_yticks(range(len(evaluation.scores)), list(evaluation.scores))
    means.invert_yaxis()
    means.set_xlim(0, 1)
    means.set_xlabel("mean, and its 95 % interval")
    for name in ("click", "click_best", "box", "teacher_click", "teacher_box"):
        values = sorted(_values(evaluation.images, name))
        if values:
            spread.plot(values, np.linspace(0, 1, len(values)), label=name)
    spread.set_xlim(0, 1)
    spread.set_xlabel("IoU")
    spread.set_ylabel("fraction of masks that are no better")
    if spread.lines:
        spread.legend(frameon=False)
    for axes in (means, spread):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _save_figure(figure: Figure, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_file(path, png.getvalue())


def _summarize(images: list[ImageScores], names: Iterable[str], seed: int) -> dict[str, Score]:
    scores = {}
    for name in names:
        values = _values(images, name)
        skipped = sum(value is None for image in images for value in image.scores.get(name, []))
        mean = sum(values) / len(values) if values else float("nan")
        low, high = bootstrap([_values([image], name) for image in images], seed)
        scores[name] = Score(mean, low, high, len(values), skipped)
    return scores


def _values(images: Iterable[ImageScores], name: str) -> list[float]:
    return [value for image in images for value in image.scores.get(name, []) if value is not None]


def _check_arguments(
    data: AnnotatedImages, measures: Sequence[str], masks_per_image: int, seed: int
) -> None:
    if isinstance(measures, str):
        raise UserError(f"measures must be a list of names such as ['click'], not {measures!r}")
    for name in measures:
        if name not in MEASURES:
            raise UserError(f"there is no measure {name!r}, only {', '.join(MEASURES)}")
    if not measures:
        raise UserError(f"name at least one measure: {', '.join(MEASURES)}")
    if masks_per_image < 1:
        raise UserError(f"masks_per_image must be at least 1, not {masks_per_image}")
    if seed < 0:
        raise UserError(f"seed must not be negative, but is {seed}")
    if len(data) == 0:
        raise UserError("there is no image to evaluate on")


def _fingerprint(sam: Sam) -> str:
    of_pixels = {"pixel_mean": sam.pixel_mean, "pixel_std": sam.pixel_std}  # which no file holds
    return fingerprint(sam.state_dict() | of_pixels)


def _continue_journal(path: Path, settings: dict[str, Any]) -> dict[tuple[int, str], ImageScores]:
    """Makes a journal ready to be added to, and returns what it holds.

    Keys are an image's place, which its prompts depend on, and its contents.
    """
    images: list[ImageScores] = []
    if path.exists() and path.stat().st_size:
        others, images = _read_journal(path)
        different = [name for name in settings if others.get(name) != settings[name]]
        if different:
            raise UserError(
                f"{str(path)!r} is of an evaluation with other {', '.join(different)}: "
                "remove it, or write elsewhere"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_journal(path, settings, images)
    return {(image.index, image.fingerprint): image for image in images}


def _read_journal(path: Path) -> tuple[dict[str, Any], list[ImageScores]]:
    """The settings in the first line, and an image a line; half a line at the end is left out."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        settings, *images = [json.loads(line) for line in lines]
        return dict(settings), [ImageScores(**image) for image in images]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is no journal of an evaluation, or damaged: remove it ({error})"
        ) from error


def _write_journal(path: Path, settings: dict[str, Any], images: list[ImageScores]) -> None:
    lines = [_line(settings), *(_line(dataclasses.asdict(image)) for image in images)]
    write_file(path, b"".join(lines))


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _as_json(values: Score | Cost) -> dict[str, Any]:
    """JSON has no NaN."""
    fields = dataclasses.asdict(values).items()
    return {name: None if value != value else value for name, value in fields}


def _from_json(value: Any) -> Any:
    return float("nan") if value is None else value
