"""``mobile-sam distill train`` and ``supervised``: training runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..distill.options import AUGMENTATIONS, DEFAULT_EVALUATE_EVERY, TrainingOptions
from .inputs import (
    CHECKPOINT_NAMES,
    OBJECTS,
    PHOTOGRAPHS,
    MaxPixels,
    parse_numbers,
    with_groups,
)

Distillation = Literal["decoupled", "semi-coupled", "coupled"]


class Part(str, Enum):  # typer takes no list of a Literal
    """Parts of the model that can be frozen."""

    encoder = "encoder"
    prompt_encoder = "prompt_encoder"
    mask_decoder = "mask_decoder"


Prompts = Literal["both", "point", "box"]

MixedPrecision = Literal["no", "fp16", "bf16"]

Start = Annotated[
    str | None,
    typer.Option(
        metavar="C", help=f"Weights to start from. {CHECKPOINT_NAMES}", show_default="random"
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A timm backbone for the student's encoder, instead of TinyViT.",
        show_default="TinyViT",
    ),
]
LearningRate = Annotated[
    float, typer.Option(help="Of AdamW, at the end of the warm-up; a cosine then leads to 0.")
]

FOCAL_WEIGHT = "Weight of the focal loss of pixels, relative to the dice loss of overlap."


@dataclass(frozen=True)
class Run:
    """The options of every training run."""

    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Folder of the run.")]
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Images per optimizer step, over all processes and accumulated batches."
        ),
    ] = TrainingOptions.batch_size
    gradient_accumulation_steps: Annotated[
        int, typer.Option(min=1, help="Batches per optimizer step; more take less memory.")
    ] = 1
    prompts_per_image: Annotated[int, typer.Option(min=1, help="Points and boxes per image.")] = (
        TrainingOptions.prompts_per_image
    )
    warmup_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Warm-up steps.", show_default="100, or a tenth of a shorter run"),
    ] = None
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Weight decay of AdamW, matrices only.")
    ] = TrainingOptions.weight_decay
    ema_decay: Annotated[
        float,
        typer.Option(min=0, max=1, help="Decay of the moving average of weights that is saved."),
    ] = TrainingOptions.ema_decay
    mixed_precision: Annotated[
        MixedPrecision, typer.Option(help="bf16 if the hardware supports it.")
    ] = "no"
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of weights, order, crops and prompts.")
    ] = TrainingOptions.seed
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            metavar="DATA",
            help="Images with masks to evaluate on, as DATA of evaluate. The best checkpoint has "
            "the highest mean IoU of click_best and box; without --validation, the lowest training "
            "loss.",
        ),
    ] = None
    validation_images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the images of --validation, if not beside its JSON or masks.",
        ),
    ] = None
    evaluate_every: Annotated[
        int, typer.Option(min=1, help="Evaluate every N steps.", metavar="N")
    ] = DEFAULT_EVALUATE_EVERY
    save_every: Annotated[
        int, typer.Option(min=1, help="Save a resumable state every N steps.", metavar="N")
    ] = TrainingOptions.save_every
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = (
        TrainingOptions.workers
    )
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at a broken image or mask instead of skipping it."),
    ] = False
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the run in DIR and start over.")
    ] = False
    max_pixels: MaxPixels = None


def _parse_weights(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    return tuple(parse_numbers(text, "--weights", "W,W,..."))


@dataclass(frozen=True)
class Learning:
    """What is trained from masks, with which prompts, and how photographs vary."""

    freeze: Annotated[
        list[Part] | None,
        typer.Option(
            metavar="PART",
            help="A part that keeps its weights: encoder, prompt_encoder or mask_decoder. Can be "
            "given several times.",
        ),
    ] = None
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            min=1,
            help="In the image encoder, train adapters of this rank in attention and MLPs instead "
            "of its own weights: less memory. They are merged when weights are saved.",
        ),
    ] = None
    prompts: Annotated[
        Prompts, typer.Option(help="First prompts; box for a model that only gets boxes.")
    ] = "both"
    flip: Annotated[bool, typer.Option(help="Flip half of the images left to right.")] = True
    rotate: Annotated[
        bool,
        typer.Option(help="Turn images by 90 degrees, for those without an up and down."),
    ] = False
    crop: Annotated[bool, typer.Option(help="Crop photographs, to show them at any zoom.")] = True
    color: Annotated[bool, typer.Option(help="Change the colours of photographs.")] = True
    quality: Annotated[
        bool, typer.Option(help="Add blur, noise and JPEG artefacts to photographs.")
    ] = True


@dataclass(frozen=True)
class MaskTraining:
    """Further options of a run on images with masks."""

    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Images with masks, one data set or a mixture of several: a COCO instances JSON, "
            "a folder of SA-1B, of labelme, or of images with PNG masks, or scenes, endless "
            "synthetic images, none of which --validation ever has, or composites, endless as "
            "well: --objects pasted on --photographs.",
        ),
    ]
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            callback=_parse_weights,
            help="The share of each data set among the examples, in the order of DATA.",
            show_default="equal shares",
        ),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the images of a single DATA, if not beside the JSON or the masks.",
        ),
    ] = None
    texture_images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Images whose patches are used as textures in scenes."),
    ] = None
    objects: Annotated[
        str | None,
        typer.Option(metavar="DATA", help=OBJECTS),
    ] = None
    photographs: Annotated[
        str | None,
        typer.Option(metavar="DIR", help=PHOTOGRAPHS),
    ] = None
    on_device: Annotated[
        bool,
        typer.Option(
            "--on-device",
            help="Keep all pictures in the memory of the GPU, and make the batches there, so that "
            "it does not wait for the CPU. Not for scenes.",
        ),
    ] = False
    img_size: Annotated[
        int,
        typer.Option(
            min=16,
            help="Side of the square input, a multiple of 16. Models are used at 1024; small sizes "
            "train faster. TinyViT is fastest at multiples of 224.",
        ),
    ] = TrainingOptions.img_size
    corrective_clicks: Annotated[
        int, typer.Option(min=0, help="Rounds with a further point; 8 in SAM's paper.")
    ] = TrainingOptions.corrective_clicks
    mask_only_rounds: Annotated[
        int, typer.Option(min=0, help="Rounds with the previous mask only; 2 in SAM's paper.")
    ] = TrainingOptions.mask_only_rounds


@with_groups
def train(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Argument(metavar="EMBEDDINGS", help="The folder that `distill embed` wrote.")
    ],
    *,
    objective: Annotated[
        Distillation,
        typer.Option(
            help="decoupled: squared error on embeddings. semi-coupled: masks through the frozen "
            "decoder. coupled: the same, and the decoder is trained as well."
        ),
    ] = "decoupled",
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="C",
            help="The teacher's checkpoint, of any SAM. The student starts with a copy of its "
            "prompt encoder and mask decoder, which the embeddings are made for.",
            show_default="those of the checkpoint",
        ),
    ] = None,
    checkpoint: Start = None,
    backbone: Backbone = None,
    learning_rate: LearningRate = TrainingOptions.learning_rate,
    run: Run,
) -> None:
    """Train a student on a teacher's embeddings: MobileSAM's distillation.

    Run the same command again to resume an interrupted run. It writes best.safetensors and
    last.safetensors, which --checkpoint takes everywhere; log, for TensorBoard; and state.pt, to
    resume from.

    On several GPUs or machines: accelerate launch -m mobile_sam_plugin distill train ...
    """
    if teacher is None and checkpoint is None:
        raise typer.BadParameter(
            "a student needs a decoder that fits the embeddings: give the teacher's checkpoint, or "
            "a --checkpoint that has its decoder",
            param_hint="--teacher",
        )
    _run(ctx, run, objective)


@with_groups
def supervised(
    ctx: typer.Context,
    *,
    checkpoint: Start = None,
    backbone: Backbone = None,
    masks: MaskTraining,
    learning: Learning,
    focal_weight: Annotated[
        float, typer.Option(min=0, help=f"{FOCAL_WEIGHT} 20 is that of SAM's paper.")
    ] = TrainingOptions.focal_weight,
    learning_rate: LearningRate = TrainingOptions.learning_rate,
    run: Run,
) -> None:
    """Train a model from masks alone, without a teacher, by SAM's own recipe.

    The paper's optional second stage, which fits a student's decoder to its encoder, is
    --checkpoint C --freeze encoder --learning-rate 1e-4. `mobile-sam finetune` is for data of your
    own.

    The run, its files and the use of several GPUs are the same as for `distill train`.
    """
    _run(ctx, run, "supervised")


def given_options(ctx: typer.Context) -> dict[str, Any]:
    """Returns the options of a command that are fields of TrainingOptions, by their names."""
    given = dict(ctx.params)
    if "flip" in given:
        given["augmentation"] = [name for name in AUGMENTATIONS if given[name]]
        given["freeze"] = [part.value for part in given["freeze"] or ()]
    names = {option.name for option in fields(TrainingOptions)}
    return {name: value for name, value in given.items() if name in names}


def _run(ctx: typer.Context, run: Run, objective: str) -> None:
    """Trains with the options of a command."""
    from ..distill.training import train as train_student

    options = TrainingOptions(**given_options(ctx) | {"objective": objective})
    with reporting_divergence():
        best = train_student(options, run.out, run.restart)
    if is_first_process():
        typer.echo(best)


@contextmanager
def reporting_divergence() -> Iterator[None]:
    """Ends the command with one line if the training diverges."""
    try:
        yield
    except FloatingPointError as error:
        typer.echo(f"mobile-sam: {error}", err=True)
        raise typer.Exit(1) from error


def is_first_process() -> bool:
    """Whether this process is the first of those that accelerate launched, or the only one."""
    return os.environ.get("RANK", "0") == "0"
