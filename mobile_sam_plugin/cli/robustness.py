"""The parts of ``mobile-sam evaluate`` for corrupted and attacked images."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from segment_anything.modeling import Sam

    from ..datasets.annotated import AnnotatedImages
    from ..evaluation.predictors import Predictor
    from ..evaluation.results import Evaluation

AttackName = Literal["fgsm", "pgd"]
GoalName = Literal["remove", "enlarge", "target"]


def run_corruptions(
    models: "dict[str, Sam | Predictor]",
    data: "AnnotatedImages",
    corruptions: list[str],
    options: dict[str, Any],
    out: Path | None,
) -> None:
    """Prints and writes how the masks of models change in corrupted images.

    Args:
        models: by name; each gets a folder.
        data: images with masks.
        corruptions: as ``evaluate_corruptions`` takes them.
        options: other arguments of that function.
        out: output folder, or None.
    """
    from ..evaluation.robustness import draw_corruptions, evaluate_corruptions, format_corruptions

    found = {
        name: _run(
            partial(evaluate_corruptions, model, data, corruptions, **options),
            *(len(data), name, None if out is None else out / folder_name(name)),
        )
        for name, model in models.items()
    }
    if out is not None:
        draw_corruptions(found, out / "robustness.png")
    _report(format_corruptions(found), None if out is None else out / "robustness.md")


def run_attacks(
    models: "dict[str, Sam | Predictor]",
    data: "AnnotatedImages",
    options: dict[str, Any],
    out: Path | None,
) -> None:
    """Prints and writes how far an attack on each SAM moves the masks of all models.

    Args:
        models: by name; those that are a SAM, or hold one as ``model``, are attacked.
        data: images with masks.
        options: other arguments of ``evaluate_attack``.
        out: output folder, or None.
    """
    from segment_anything.modeling import Sam

    from ..evaluation.attack import evaluate_attack, format_attacks
    from ..evaluation.predictors import find_module

    found = {
        name: _run(
            partial(evaluate_attack, source, models, data, **options),
            *(len(data), f"{name} attacked", None if out is None else out / folder_name(name)),
        )
        for name, model in models.items()
        if isinstance(source := find_module(model), Sam)
    }
    _report(format_attacks(found), None if out is None else out / "attack.md")


def _run(
    evaluate: "Callable[..., Evaluation]", images: int, title: str, folder: Path | None
) -> "Evaluation":
    """Evaluates under a progress bar, and writes the scores."""
    from tqdm import tqdm

    with tqdm(total=images, unit="image", desc=title, disable=None) as bar:
        found = evaluate(folder=folder, progress=lambda done, _: bar.update(done - bar.n))
    if folder is not None:
        found.save_scores(folder)
    return found


def _report(text: str, path: Path | None) -> None:
    from ..files import write_file

    typer.echo(text)
    if path is not None:
        write_file(path, text.encode() + b"\n")
        typer.echo(path)


def folder_name(name: str) -> str:
    """Returns the name of the folder for the results of a model."""
    return re.sub(r"\W+", "_", name)
