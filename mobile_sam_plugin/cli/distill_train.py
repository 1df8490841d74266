"""``mobile-sam distill train``, ``finetune`` and ``supervised``: training runs."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..distill.options import Options
from .inputs import CHECKPOINT_NAMES, MaxPixels


class Distillation(str, Enum):
    """What a student learns from a teacher's embeddings."""

    decoupled = "decoupled"
    semi_coupled = "semi-coupled"
    coupled = "coupled"


class Parts(str, Enum):
    """What of a model is trained."""

    encoder = "encoder"
    decoder = "decoder"
    both = "both"


class Precision(str, Enum):
    """What accelerate calls mixed precision."""

    no = "no"
    fp16 = "fp16"
    bf16 = "bf16"


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Images with masks: a COCO instances json, a folder of SA-1B, a folder of images with "
        "PNG masks, or scenes, synthetic pictures without end, which --evaluation never has.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Where the images lie, if not beside the json or the masks."),
]
Photographs = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Images, patches of which become surfaces in scenes."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="The folder of the run.")]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="C", help=f"The weights to start from. {CHECKPOINT_NAMES}", show_default="random"
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A timm backbone for the student's encoder, in place of TinyViT.",
        show_default="TinyViT",
    ),
]
StepCount = Annotated[int, typer.Option(min=1, help="Updates of the weights.")]
ImageSize = Annotated[
    int,
    typer.Option(
        min=16,
        help="The side of the square input, a multiple of 16. Users run at 1024; small ones train "
        "faster. TinyViT is fastest at multiples of 224.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Images a step, of all processes and accumulated batches.")
]
Accumulate = Annotated[
    int, typer.Option(min=1, help="Batches a step, one behind the other to save memory.")
]
PromptsPerImage = Annotated[int, typer.Option(min=1, help="Clicks and boxes on an image.")]
CorrectiveClicks = Annotated[
    int, typer.Option(min=0, help="Rounds with a further click; 8 in SAM's paper.")
]
MaskOnlyRounds = Annotated[
    int, typer.Option(min=0, help="Rounds with the previous mask only; 2 in SAM's paper.")
]
LearningRate = Annotated[
    float, typer.Option(help="Of AdamW, at the end of the warm-up; then a cosine leads to 0.")
]
WarmupSteps = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="In which the learning rate rises.",
        show_default="100, or half of a shorter run",
    ),
]
WeightDecay = Annotated[float, typer.Option(min=0, help="Of AdamW, for matrices only.")]
EmaDecay = Annotated[
    float, typer.Option(min=0, max=1, help="Of the moving average of weights that is kept.")
]
MixedPrecision = Annotated[Precision, typer.Option(help="bf16 where the hardware has it.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights, order, crops and prompts.")]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        metavar="DATA",
        help="Images with masks to measure on, as DATA of evaluate. The best checkpoint is the one "
        "of the highest mean IoU of click_best and box; without, of the lowest training loss.",
    ),
]
EvaluationImages = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Where the images of --evaluation lie, if not beside its json or masks."
    ),
]
EvaluateEvery = Annotated[int, typer.Option(min=1, help="Steps.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between the states to go on from.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare data.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a broken image or mask instead of skipping it.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget the run in DIR and begin anew.")]


def train(
    data: Annotated[
        str,
        typer.Argument(metavar="EMBEDDINGS", help="The folder that `distill embed` wrote."),
    ],
    out: Out,
    steps: StepCount,
    objective: Annotated[
        Distillation,
        typer.Option(
            help="decoupled: squared error on embeddings. semi-coupled: masks through the frozen "
            "decoder. coupled: the same, the decoder trained along."
        ),
    ] = Distillation.decoupled,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="C",
            help="The teacher's checkpoint, of any SAM: the student starts with a copy of its "
            "prompt encoder and mask decoder, without which embeddings are of no use to it.",
            show_default="those of the checkpoint",
        ),
    ] = None,
    checkpoint: Start = None,
    backbone: Backbone = None,
    batch_size: BatchSize = Options.batch_size,
    accumulate: Accumulate = Options.accumulate,
    prompts_per_image: PromptsPerImage = Options.prompts_per_image,
    learning_rate: LearningRate = Options.learning_rate,
    warmup_steps: WarmupSteps = Options.warmup_steps,
    weight_decay: WeightDecay = Options.weight_decay,
    ema_decay: EmaDecay = Options.ema_decay,
    mixed_precision: MixedPrecision = Precision.no,
    seed: Seed = Options.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = Options.evaluate_every,
    save_every: SaveEvery = Options.save_every,
    workers: Workers = Options.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Train a student on a teacher's embeddings: MobileSAM's distillation.

    A run that was stopped goes on when it is called again with the same options. It writes
    best.safetensors and last.safetensors, which --checkpoint takes everywhere; log, for
    TensorBoard; and state.pt, to go on from.

    On several GPUs or machines: accelerate launch -m mobile_sam_plugin distill train ...
    """
    if teacher is None and checkpoint is None:
        raise typer.BadParameter(
            "without a decoder that fits the embeddings the student is of no use: give the "
            "teacher's checkpoint, or a --checkpoint that has its decoder",
            param_hint="--teacher",
        )
    _train(**locals())


def finetune(
    data: Data,
    out: Out,
    steps: StepCount,
    checkpoint: Annotated[
        str, typer.Option(metavar="C", help=f"The student's weights. {CHECKPOINT_NAMES}")
    ],
    images: Images = None,
    photographs: Photographs = None,
    parts: Annotated[
        Parts,
        typer.Option(help="decoder: prompt encoder and mask decoder, on the frozen encoder."),
    ] = Parts.decoder,
    image_size: ImageSize = Options.image_size,
    batch_size: BatchSize = Options.batch_size,
    accumulate: Accumulate = Options.accumulate,
    prompts_per_image: PromptsPerImage = Options.prompts_per_image,
    corrective_clicks: CorrectiveClicks = Options.corrective_clicks,
    mask_only_rounds: MaskOnlyRounds = Options.mask_only_rounds,
    learning_rate: LearningRate = 1e-4,
    warmup_steps: WarmupSteps = Options.warmup_steps,
    weight_decay: WeightDecay = Options.weight_decay,
    ema_decay: EmaDecay = Options.ema_decay,
    mixed_precision: MixedPrecision = Precision.no,
    seed: Seed = Options.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = Options.evaluate_every,
    save_every: SaveEvery = Options.save_every,
    workers: Workers = Options.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Fit a student's decoder to its encoder, from masks: the paper's optional second stage.

    Runs, files and several GPUs are as those of `distill train`.
    """
    _train(objective="supervised", **locals())


def supervised(
    data: Data,
    out: Out,
    steps: StepCount,
    checkpoint: Start = None,
    backbone: Backbone = None,
    images: Images = None,
    photographs: Photographs = None,
    image_size: ImageSize = Options.image_size,
    batch_size: BatchSize = Options.batch_size,
    accumulate: Accumulate = Options.accumulate,
    prompts_per_image: PromptsPerImage = Options.prompts_per_image,
    corrective_clicks: CorrectiveClicks = Options.corrective_clicks,
    mask_only_rounds: MaskOnlyRounds = Options.mask_only_rounds,
    learning_rate: LearningRate = Options.learning_rate,
    warmup_steps: WarmupSteps = Options.warmup_steps,
    weight_decay: WeightDecay = Options.weight_decay,
    ema_decay: EmaDecay = Options.ema_decay,
    mixed_precision: MixedPrecision = Precision.no,
    seed: Seed = Options.seed,
    evaluation_data: Evaluation = None,
    evaluation_images: EvaluationImages = None,
    evaluate_every: EvaluateEvery = Options.evaluate_every,
    save_every: SaveEvery = Options.save_every,
    workers: Workers = Options.workers,
    strict: Strict = False,
    restart: Restart = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Train a model from masks alone, without a teacher, by SAM's own recipe.

    Runs, files and several GPUs are as those of `distill train`.
    """
    _train(objective="supervised", **locals())


def _train(out: Path, restart: bool, max_pixels: int | None, **options: Any) -> None:
    from ..distill.training import train as run

    plain = {
        name: value.value if isinstance(value, Enum) else value for name, value in options.items()
    }
    try:
        best = run(Options(**plain), out, restart)
    except FloatingPointError as error:
        typer.echo(f"mobile-sam: {error}", err=True)
        raise typer.Exit(1) from error
    if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launches
        typer.echo(best)
