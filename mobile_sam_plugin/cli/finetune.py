"""``mobile-sam finetune``: images and labels in, one file of weights out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..distill.options import TrainingOptions
from .distill_train import (
    FOCAL_WEIGHT,
    Learning,
    MixedPrecision,
    given_options,
    is_first_process,
    reporting_divergence,
)
from .inputs import Checkpoint, MaxPixels, with_groups

Memory = Literal["cpu", "4gb", "8gb", "24gb"]

_FROM_PRESET = "by the preset"


def _parse_validation(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


@with_groups
def finetune(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images with masks: a COCO instances JSON, a folder of SA-1B, of labelme, or of "
            "images with PNG masks.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Output folder.")],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of the images, if not beside the JSON or the masks."
        ),
    ] = None,
    validation: Annotated[
        str,
        typer.Option(
            metavar="DATA|SHARE",
            callback=_parse_validation,
            help="Images to score on after every epoch, never trained on: other data, or a share "
            "of DATA, drawn by --seed.",
        ),
    ] = "0.2",
    validation_images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the images of --validation, if not beside its JSON or masks.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images, at most.")] = 20,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after this many epochs that are not better.")
    ] = 5,
    preset: Annotated[
        Memory | None,
        typer.Option(
            help="The memory that a step must fit into. It sets image size, batch size and "
            "precision.",
            show_default="the largest for this machine",
        ),
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Side of the square input, a multiple of 16. Models are used at 1024; small sizes "
            "train faster and need less memory.",
            show_default=_FROM_PRESET,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per optimizer step.", show_default=_FROM_PRESET),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches per optimizer step; more take less memory.",
            show_default=_FROM_PRESET,
        ),
    ] = None,
    mixed_precision: Annotated[
        MixedPrecision | None, typer.Option(show_default=_FROM_PRESET, help="Precision.")
    ] = None,
    learning: Learning,
    focal_weight: Annotated[
        float | None, typer.Option(min=0, help=FOCAL_WEIGHT, show_default="10")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of AdamW, at its highest.", show_default="1e-4; 3e-4 with --lora"),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the split, order, crops and prompts.")
    ] = TrainingOptions.seed,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare data.")
    ] = TrainingOptions.workers,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of skipping it.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the run in DIR and start over.")
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Fine-tune MobileSAM on your own images with masks.

    Checks the data, trains, and keeps the weights that score best on images set aside. Prints the
    scores before and after, and writes to DIR: model.safetensors, which --checkpoint takes
    everywhere, with a card (README.md); worst_and_best.png; and training, with a log for
    TensorBoard. Ctrl-C keeps the best weights so far; the same command goes on.
    """
    from .. import DEFAULT_CHECKPOINT
    from .. import finetune as finetune_model

    left_open: dict[str, Any] = {
        "img_size": img_size,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "mixed_precision": mixed_precision,
        "focal_weight": focal_weight,
        "learning_rate": learning_rate,
    }
    given = {
        name: value
        for name, value in given_options(ctx).items()
        if value is not None or name not in left_open
    }
    try:
        with reporting_divergence():
            finetuned = finetune_model(
                out=out,
                preset=preset,
                restart=restart,
                **given | {"checkpoint": checkpoint or DEFAULT_CHECKPOINT},
            )
    except KeyboardInterrupt:
        typer.echo(
            f"mobile-sam: interrupted; {str(out)!r} holds the best weights so far, and the same "
            "command goes on",
            err=True,
        )
        raise
    if is_first_process():
        typer.echo(finetuned.format_table())
        typer.echo(finetuned.path)
