"""``mobile-sam evaluate``: how good a checkpoint is on a data set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import Checkpoint, Device, MaxPixels, ModelType, load_sam


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images with masks: a COCO instances json, a folder of SA-1B, a folder of images "
            "with PNG masks, or scenes:COUNT or scenes:COUNT:SEED, synthetic pictures.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Where the images lie, if not beside the json or the masks.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    model_type: Annotated[
        ModelType, typer.Option(help="What the checkpoint is.")
    ] = ModelType.vit_t,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="C", help="A checkpoint whose masks to compare with, too."),
    ] = None,
    teacher_type: Annotated[
        ModelType, typer.Option(help="What the teacher's checkpoint is.")
    ] = ModelType.vit_h,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="click, click_best, box, pair_100 to pair_500, corrective_1 to corrective_5, "
            "recall_10, recall_100, recall_1000. Recall takes by far the most time.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Take only the first images.", show_default="all"),
    ] = None,
    masks_per_image: Annotated[
        int, typer.Option(min=1, help="Masks of an image to prompt for, at most.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of masks, prompts and intervals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Where to write the results. A run that broke off is continued there: an image "
            "whose pixels and masks are as they were is not measured again.",
            show_default="nowhere",
        ),
    ] = None,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of skipping it.")
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Measure how good a checkpoint's masks are, with 95 % intervals, and what its parts cost.

    Prints a table, and writes into DIR: the table as evaluation.md, evaluation.json, scores.png,
    worst_and_best.png, and images.jsonl with the scores of each image.
    """
    from dataclasses import replace

    from torch.utils.data import Subset
    from tqdm import tqdm

    from ..datasets.annotated import open_annotated_images
    from ..evaluation.costs import count_costs
    from ..evaluation.evaluation import MEASURES, draw_worst_and_best, find_drawable
    from ..evaluation.evaluation import evaluate as evaluate_model

    wanted = [name.strip() for name in measures.split(",")] if measures else MEASURES
    annotated: Any = open_annotated_images(data, images=images)
    if limit is not None and limit < len(annotated):
        annotated = Subset(annotated, range(limit))
    student = load_sam(model_type, checkpoint, "--checkpoint", device)
    reference = None if teacher is None else load_sam(teacher_type, teacher, "--teacher", device)
    with tqdm(total=len(annotated), unit="image", disable=None) as bar:
        evaluation = evaluate_model(
            student,
            annotated,
            teacher=reference,
            measures=wanted,
            masks_per_image=masks_per_image,
            seed=seed,
            strict=strict,
            journal=out and out / "images.jsonl",
            progress=lambda done, _: bar.update(done - bar.n),
        )
    evaluation = replace(evaluation, costs=count_costs(student))
    typer.echo(evaluation.format_table())
    if out is not None:
        evaluation.save(out)
        picture = out / "worst_and_best.png"
        if find_drawable(evaluation) is not None:
            draw_worst_and_best(evaluation, student, annotated, picture)
        else:
            picture.unlink(missing_ok=True)
            typer.echo(
                f"mobile-sam: no {picture.name}: no mask has a score of click, click_best, box or "
                "a pair",
                err=True,
            )
        typer.echo(out / "evaluation.json")
