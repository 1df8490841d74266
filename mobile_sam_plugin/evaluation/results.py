"""The results of an evaluation: scores, and the files that hold them."""

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from ..errors import MissingExtra, UserError
from ..files import remove_partials, write_file
from ..runs import RUN_FILE, claim, write_settings
from .costs import Cost
from .metrics import bootstrap
from .predictors import Effort

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra.of("matplotlib", "distill") from error

_IMAGES_FILE = "images.jsonl"


@dataclass(frozen=True)
class Score:
    """The mean of a metric.

    Attributes:
        mean: over all masks of all images; NaN if there is none.
        low, high: 95 % confidence interval of the mean, by bootstrap over images.
        count: number of masks.
        skipped: number of further masks for which there was no such prompt.
    """

    mean: float
    low: float
    high: float
    count: int
    skipped: int


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image.

    Attributes:
        index: of the image in the data set.
        name: of the image.
        masks: indices of the masks that were prompted for.
        scores: the values of each metric: one per such mask, None if there was no such prompt; for
            recall, one per mask of the image.
        fingerprint: of the image's pixels and masks.
    """

    index: int
    name: str
    masks: list[int]
    scores: dict[str, list[float | None]]
    fingerprint: str


@dataclass(frozen=True)
class Evaluation:
    """What :func:`~.evaluation.evaluate` found.

    Attributes:
        scores: the score of each metric.
        images: the scores of each image.
        settings: the arguments, and the fingerprints and input sizes of the models.
        unreadable: number of images that were skipped because they could not be used.
        left_out: what was left out, by kind, as text; "" if nothing was.
        costs: of the model's parts, if they were counted, see :func:`~.costs.count_costs`.
    """

    scores: dict[str, Score]
    images: list[ImageScores]
    settings: dict[str, Any]
    unreadable: int = 0
    left_out: str = ""
    costs: dict[str, Cost] = field(default_factory=dict)

    def format_table(self) -> str:
        """Returns the scores, and the costs if there are any, as Markdown."""
        lines = ["| metric | mean | 95 % interval | masks | skipped |", "|---|---|---|---|---|"]
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

    def compare(self, other: "Evaluation") -> dict[str, Score]:
        """Returns how much higher another evaluation of the same masks scores.

        Args:
            other: of another model, with the same data, metrics and arguments.

        Returns:
            The mean of the differences, mask by mask, for each metric that both have.
        """
        of_other = {image.index: image for image in other.images}
        differences = [
            dataclasses.replace(
                image,
                scores={
                    name: [
                        None if here is None or there is None else there - here
                        for here, there in zip(
                            values, of_other[image.index].scores.get(name, []), strict=False
                        )
                    ]
                    for name, values in image.scores.items()
                },
            )
            for image in self.images
            if image.index in of_other
        ]
        names = [name for name in self.scores if name in other.scores]
        return summarize(differences, names, self.settings["seed"])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``evaluation.json``, ``evaluation.md``, ``scores.png`` and the scores per image.

        The latter, ``images.jsonl``, and the settings in ``run.json`` are those that
        :func:`~.evaluation.evaluate` resumes from.

        Args:
            folder: created if missing.
        """
        self.save_scores(folder)
        save_figure(_draw_scores(self), Path(folder) / "scores.png")
        write_file(Path(folder) / "evaluation.md", self.format_table().encode() + b"\n")

    def save_scores(self, folder: str | os.PathLike[str]) -> None:
        """Writes what :meth:`save` does, without the table and the figure."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        summary = {
            "scores": {name: _as_json(score) for name, score in self.scores.items()},
            "unreadable": self.unreadable,
            "left_out": self.left_out,
            "costs": {name: _as_json(cost) for name, cost in self.costs.items()},
        }
        write_settings(folder, self.settings)
        write_file(folder / _IMAGES_FILE, b"".join(map(_as_line, self.images)))
        write_file(folder / "evaluation.json", json.dumps(summary, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: if the folder holds no evaluation, or a damaged one.
        """
        folder = Path(folder)
        summary = json.loads((folder / "evaluation.json").read_bytes())
        return cls(
            scores={
                name: Score(**{key: _from_json(value) for key, value in score.items()})
                for name, score in summary["scores"].items()
            },
            images=_read_images(folder / _IMAGES_FILE),
            settings=json.loads((folder / RUN_FILE).read_bytes()),
            unreadable=summary["unreadable"],
            left_out=summary["left_out"],
            costs={name: Cost(**cost) for name, cost in summary["costs"].items()},
        )


def format_comparison(evaluations: Mapping[str, Evaluation], efforts: Mapping[str, Effort]) -> str:
    """Returns the scores of several models by the same prompts, and what each takes, as Markdown.

    Args:
        evaluations: of each model, by its name.
        efforts: of each model, by the same names.
    """
    first = next(iter(evaluations.values()))
    lines = [f"| | masks | {' | '.join(evaluations)} |", "|---|---|" + "---|" * len(evaluations)]
    for metric, of_first in first.scores.items():
        scores = [evaluation.scores[metric] for evaluation in evaluations.values()]
        cells = [
            f"{score.mean:.4f} ({score.low:.4f} to {score.high:.4f})" if score.count else ""
            for score in scores
        ]
        lines.append(f"| {metric} | {of_first.count:,} | {' | '.join(cells)} |")
    taken = [efforts[name] for name in evaluations]
    rows = {
        "parameters": [f"{each.parameters:,}" if each.parameters else "" for each in taken],
        "ms an image": [f"{each.image_milliseconds:.1f}" for each in taken],
        "ms a click": [f"{each.click_milliseconds:.1f}" for each in taken],
    }
    lines += [f"| {name} | | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _draw_scores(evaluation: Evaluation) -> Figure:
    """Draws the scores with their intervals, and the distribution of the masks' IoU."""
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
    spread.set_ylabel("fraction of masks")
    if spread.lines:
        spread.legend(frameon=False)
    for axes in (means, spread):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_file(path, png.getvalue())


def summarize(images: list[ImageScores], names: Iterable[str], seed: int) -> dict[str, Score]:
    """Returns the score of each name; ``seed`` is that of the bootstrap."""
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


class Journal:
    """The scores of each image, in a folder, as an evaluation goes on.

    Args:
        folder: of the evaluation; created if missing.
        settings: of the evaluation.

    Attributes:
        known: scores of an earlier run of the same evaluation, by the image's index, on which its
            prompts depend, and its fingerprint.

    Raises:
        ValueError: if the folder holds another evaluation.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / _IMAGES_FILE
        claim(folder, settings)
        remove_partials(folder)
        images = _read_images(self._path) if self._path.exists() else []
        write_file(self._path, b"".join(map(_as_line, images)))
        self.known = {(image.index, image.fingerprint): image for image in images}

    def add(self, image: ImageScores) -> None:
        """Appends the scores of an image."""
        with open(self._path, "ab") as file:
            file.write(_as_line(image))


def _read_images(path: Path) -> list[ImageScores]:
    """Reads one image per line, except for an incomplete line at the end."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        return [ImageScores(**json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is damaged, or does not belong to an evaluation: remove it ({error})"
        ) from error


def _as_line(image: ImageScores) -> bytes:
    return json.dumps(dataclasses.asdict(image), allow_nan=False).encode() + b"\n"


def _as_json(values: Score | Cost) -> dict[str, Any]:
    """JSON has no NaN."""
    fields = dataclasses.asdict(values).items()
    return {name: None if value != value else value for name, value in fields}


def _from_json(value: Any) -> Any:
    return float("nan") if value is None else value
