"""``mobile-sam distill train``, ``finetune`` and ``supervised``: training runs."""

import os
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..distill.options import TrainingOptions
from .inputs import CHECKPOINT_NAMES, MaxPixels


class Distillation(str, Enum):
    """The objectives of distillation from a teacher's embeddings."""

    decoupled = "decoupled"
    semi_coupled = "semi-coupled"
    coupled = "coupled"


class Parts(str, Enum):
    """The parts of a model that are trained."""

    encoder = "encoder"
    decoder = "decoder"
    both = "both"


class MixedPrecision(str, Enum):
    """The modes of accelerate's mixed precision."""

    no = "no"
    fp16 = "fp16"
    bf16 = "bf16"


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Images with masks: a COCO instances JSON, a folder of SA-1B, a folder of images with "
        "PNG masks, or scenes, endless synthetic images, none of which --evaluation ever has.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the images, if not beside the JSON or the masks."),
]
TextureImages = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Images whose patches are used as textures in scenes."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Folder of the run.")]
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
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
ImgSize = Annotated[
    int,
    typer.Option(
        min=16,
        help="Side of the square input, a multiple of 16. Models are used at 1024; small sizes "
        "train faster. TinyViT is fastest at multiples of 224.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="Images per optimizer step, over all processes and accumulated batches."
    ),
]
GradientAccumulation = Annotated[
    int, typer.Option(min=1, help="Batches per optimizer step; more take less memory.")
]
PromptsPerImage = Annotated[int, typer.Option(min=1, help="Points and boxes per image.")]
CorrectiveClicks = Annotated[
    int, typer.Option(min=0, help="Rounds with a further point; 8 in SAM's paper.")
]
MaskOnlyRounds = Annotated[
    int, typer.Option(min=0, help="Rounds with the previous mask only; 2 in SAM's paper.")
]
LearningRate = Annotated[
    float, typer.Option(help="Of AdamW, at the end of the warm-up; a cosine then leads to 0.")
]
WarmupSteps = Annotated[
    int | None,
    typer.Option(min=0, help="Warm-up steps.", show_default="100, or half of a shorter run"),
]
WeightDecay = Annotated[float, typer.Option(min=0, help="Weight decay of AdamW, matrices only.")]
EmaDecay = Annotated[
    float, typer.Option(min=0, max=1, help="Decay of the moving average of weights that is saved.")
]
Precision = Annotated[MixedPrecision, typer.Option(help="bf16 if the hardware supports it.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of weights, order, crops and prompts.")]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        metavar="DATA",
        help="Images with masks to evaluate on, as DATA of evaluate. The best checkpoint has the "
        "highest mean IoU of click_best and box; without --evaluation, the lowest training loss.",
    ),
]
EvaluationImages = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Folder of the images of --evaluation, if not beside its JSON or masks."
    ),
]
EvaluateEvery = Annotated[int, typer.Option(min=1, help="Evaluate every N steps.", metavar="N")]
SaveEvery = Annotated[
    int, typer.Option(min=1, help="Save a resumable state every N steps.", metavar="N")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare data.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a broken image or mask instead of skipping it.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Delete the run in DIR and start over.")]


def train(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Argument(metavar="EMBEDDINGS", help="The folder that `distill embed` wrote.")
    ],
    out: Out,
    steps: Steps,
    objective: Annotated[
        Distillation,
        typer.Option(
            help="decoupled: squared error on embeddings. semi-coupled: masks through the frozen "
            "decoder. coupled: the same, and the decoder is trained as well."
        ),
    ] = Distillation.decoupled,
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
    batch_size: BatchSize = TrainingOptions.batch_size,
    gradient_accumulation_steps: GradientAccumulation = 1,
    prompts_per_image: PromptsPerImage = TrainingOptions.prompts_per_image,
    learning_rate: LearningRate = TrainingOptions.learning_rate,
    warmup_steps: WarmupSteps = None,
    weight_decay: WeightDecay = TrainingOptions.weight_decay,
    ema_decay: EmaDecay = TrainingOptions.ema_decay,
    mixed_precision: Precision = MixedPrecision.no,
    seed: Seed = TrainingOptions.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = TrainingOptions.evaluate_every,
    save_every: SaveEvery = TrainingOptions.save_every,
    workers: Workers = TrainingOptions.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
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
    _run(ctx, out, restart, objective.value)


def finetune(
    ctx: typer.Context,
    data: Data,
    out: Out,
    steps: Steps,
    checkpoint: Annotated[
        str, typer.Option(metavar="C", help=f"The student's weights. {CHECKPOINT_NAMES}")
    ],
    images: Images = None,
    texture_images: TextureImages = None,
    parts: Annotated[
        Parts, typer.Option(help="decoder: prompt encoder and mask decoder, on the frozen encoder.")
    ] = Parts.decoder,
    img_size: ImgSize = TrainingOptions.img_size,
    batch_size: BatchSize = TrainingOptions.batch_size,
    gradient_accumulation_steps: GradientAccumulation = 1,
    prompts_per_image: PromptsPerImage = TrainingOptions.prompts_per_image,
    corrective_clicks: CorrectiveClicks = TrainingOptions.corrective_clicks,
    mask_only_rounds: MaskOnlyRounds = TrainingOptions.mask_only_rounds,
    learning_rate: LearningRate = 1e-4,
    warmup_steps: WarmupSteps = None,
    weight_decay: WeightDecay = TrainingOptions.weight_decay,
    ema_decay: EmaDecay = TrainingOptions.ema_decay,
    mixed_precision: Precision = MixedPrecision.no,
    seed: Seed = TrainingOptions.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = TrainingOptions.evaluate_every,
    save_every: SaveEvery = TrainingOptions.save_every,
    workers: Workers = TrainingOptions.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Fit a student's decoder to its encoder, from masks: the paper's optional second stage.

    The run, its files and the use of several GPUs are the same as for `distill train`.
    """
    _run(ctx, out, restart, "supervised")


def supervised(
    ctx: typer.Context,
    data: Data,
    out: Out,
    steps: Steps,
    checkpoint: Start = None,
    backbone: Backbone = None,
    images: Images = None,
    texture_images: TextureImages = None,
    img_size: ImgSize = TrainingOptions.img_size,
    batch_size: BatchSize = TrainingOptions.batch_size,
    gradient_accumulation_steps: GradientAccumulation = 1,
    prompts_per_image: PromptsPerImage = TrainingOptions.prompts_per_image,
    corrective_clicks: CorrectiveClicks = TrainingOptions.corrective_clicks,
    mask_only_rounds: MaskOnlyRounds = TrainingOptions.mask_only_rounds,
    learning_rate: LearningRate = TrainingOptions.learning_rate,
    warmup_steps: WarmupSteps = None,
    weight_decay: WeightDecay = TrainingOptions.weight_decay,
    ema_decay: EmaDecay = TrainingOptions.ema_decay,
    mixed_precision: Precision = MixedPrecision.no,
    seed: Seed = TrainingOptions.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = TrainingOptions.evaluate_every,
    save_every: SaveEvery = TrainingOptions.save_every,
    workers: Workers = TrainingOptions.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Train a model from masks alone, without a teacher, by SAM's own recipe.

    The run, its files and the use of several GPUs are the same as for `distill train`.
    """
    _run(ctx, out, restart, "supervised")


def _run(ctx: typer.Context, out: Path, restart: bool, objective: str) -> None:
    """Trains with the options of a command, whose names are those of TrainingOptions."""
    from ..distill.training import train as train_student

    names = {option.name for option in fields(TrainingOptions)}
    given = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in ctx.params.items()
        if name in names
    }
    try:
        best = train_student(TrainingOptions(**given | {"objective": objective}), out, restart)
    except FloatingPointError as error:
        typer.echo(f"mobile-sam: {error}", err=True)
        raise typer.Exit(1) from error
    if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launches
        typer.echo(best)
