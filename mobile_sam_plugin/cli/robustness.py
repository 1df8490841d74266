"""The parts of ``mobile-sam evaluate`` for corrupted and attacked images."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ..datasets.annotated import AnnotatedImages
    from ..evaluation.predictors import Predictor

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
    from tqdm import tqdm

    from ..evaluation.robustness import draw_corruptions, evaluate_corruptions, format_corruptions
    from ..files import write_file

    found = {}
    for name, model in models.items():
        folder = None if out is None else out / folder_name(name)
        with tqdm(total=len(data), unit="image", desc=name, disable=None) as bar:
            found[name] = evaluate_corruptions(
                model,
                data,
                corruptions,
                **options,
                folder=folder,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        if folder is not None:
            found[name].save_scores(folder)
    report = format_corruptions(found)
    typer.echo(report)
    if out is not None:
        draw_corruptions(found, out / "robustness.png")
        write_file(out / "robustness.md", report.encode() + b"\n")
        typer.echo(out / "robustness.md")


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
    from tqdm import tqdm

    from ..evaluation.attack import evaluate_attack, format_attacks
    from ..evaluation.predictors import find_module
    from ..files import write_file

    found = {}
    for name, model in models.items():
        source = find_module(model)
        if not isinstance(source, Sam):
            continue
        folder = None if out is None else out / folder_name(name)
        with tqdm(total=len(data), unit="image", desc=f"{name} attacked", disable=None) as bar:
            found[name] = evaluate_attack(
                source,
                models,
                data,
                **options,
                folder=folder,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        if folder is not None:
            found[name].save_scores(folder)
    report = format_attacks(found)
    typer.echo(report)
    if out is not None:
        write_file(out / "attack.md", report.encode() + b"\n")
        typer.echo(out / "attack.md")


def folder_name(name: str) -> str:
    """Returns the name of the folder for the results of a model."""
    return re.sub(r"\W+", "_", name)
