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
            help="Images with masks: a COCO instances JSON, a folder of SA-1B, of labelme, or of "
            "images with PNG masks, or scenes:COUNT or scenes:COUNT:SEED, synthetic images.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Folder of the images, if not beside the JSON or the masks.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    model_type: Annotated[ModelType, typer.Option(help="Model type of --checkpoint.")] = "vit_t",
    teacher: Annotated[
        str | None, typer.Option(metavar="C", help="Also compare with this checkpoint's masks.")
    ] = None,
    teacher_type: Annotated[ModelType, typer.Option(help="Model type of --teacher.")] = "vit_h",
    metrics: Annotated[
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
        typer.Option(min=1, help="Evaluate only the first N images.", show_default="all"),
    ] = None,
    masks_per_image: Annotated[
        int, typer.Option(min=1, help="Maximum number of masks per image to prompt for.")
    ] = 5,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random seed for choosing masks and prompts and for the confidence intervals.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Output folder. An interrupted run there is resumed: images with "
            "unchanged pixels and masks are not evaluated again.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of skipping it.")
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a checkpoint's masks, with 95 % confidence intervals, and the cost of its parts.

    Prints a table, and writes to DIR: the table as evaluation.md, evaluation.json, scores.png,
    worst_and_best.png, images.jsonl with the scores of each image, and run.json.
    """
    from dataclasses import replace

    from torch.utils.data import Subset
    from tqdm import tqdm

    from ..evaluation.costs import count_costs
    from ..evaluation.evaluation import evaluate as evaluate_model
    from ..evaluation.examiner import METRICS
    from ..evaluation.worst_and_best import draw_worst_and_best, find_drawable
    from ..scenes.scenes import open_images_or_scenes

    annotated: Any = open_images_or_scenes(data, images)
    if limit is not None and limit < len(annotated):
        annotated = Subset(annotated, range(limit))
    model = load_sam(model_type, checkpoint, "--checkpoint", device)
    reference = None if teacher is None else load_sam(teacher_type, teacher, "--teacher", device)
    with tqdm(total=len(annotated), unit="image", disable=None) as bar:
        evaluation = evaluate_model(
            model,
            annotated,
            teacher=reference,
            metrics=[name.strip() for name in metrics.split(",")] if metrics else METRICS,
            masks_per_image=masks_per_image,
            seed=seed,
            strict=strict,
            folder=out,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    evaluation = replace(evaluation, costs=count_costs(model))
    typer.echo(evaluation.format_table())
    if out is not None:
        evaluation.save(out)
        figure = out / "worst_and_best.png"
        if find_drawable(evaluation) is not None:
            draw_worst_and_best(evaluation, model, annotated, figure)
        else:
            figure.unlink(missing_ok=True)
            typer.echo(
                f"mobile-sam: no {figure.name}: no mask has a score of click, click_best, box or "
                "a pair",
                err=True,
            )
        typer.echo(out / "evaluation.json")
