"""What a training run is made of. Without torch, since the command line shows the defaults."""

import math
from dataclasses import dataclass, field

from ..errors import UserError

OBJECTIVES = ("decoupled", "semi-coupled", "coupled", "supervised")
PARTS = {"encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder")}

_MAY_CHANGE = {"may_change": True}


@dataclass(frozen=True)
class Options:
    """What a run is made of. All but the last few decide what comes out of it.

    Attributes:
        objective: ``"decoupled"``, ``"semi-coupled"``, ``"coupled"`` or ``"supervised"``.
        data: for ``"supervised"`` what :func:`~.data.open_annotated_images` takes, where
            ``"scenes"`` are endless and of the image size; else a folder of teacher's embeddings.
        steps: updates of the weights.
        images: the folder of the images, if they are not beside the json, or not any more where
            the embeddings were made of them.
        photographs: a folder of images, patches of which become surfaces in ``"scenes"``.
        checkpoint: the weights to start from, as :func:`~mobile_sam_plugin.build_sam_vit_t` takes
            them; random ones if None.
        backbone: a timm backbone for the student's encoder, if it starts from random weights.
        teacher: a checkpoint of any SAM, whose prompt encoder and mask decoder the student starts
            with a copy of.
        parts: what ``"supervised"`` trains: ``"encoder"``, ``"decoder"`` or ``"both"``.
        image_size: the side of the square input, in pixels; distillation takes that of the
            embeddings.
        batch_size: images a step, over all processes and accumulated batches together.
        accumulate: batches a step whose gradients each process adds up.
        prompts_per_image: not for ``"decoupled"``.
        corrective_clicks, mask_only_rounds: see :class:`~.objectives.Supervised`.
        learning_rate: of AdamW, at the end of the warm-up; from there a cosine leads to 0.
        warmup_steps: in which the learning rate rises; if None, 100, or half of a shorter run.
        weight_decay: of AdamW, for matrices only.
        gradient_clip: the norm that gradients are scaled down to.
        ema_decay: of the exponential moving average of weights, which is what is evaluated and
            saved; smaller in the first steps.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        seed: of weights, order, crops, prompts and clicks.
        evaluation_data: measured on with each evaluation, what :func:`~.data.open_annotated_images`
            takes; if None, the best weights are those before which the mean training loss was
            lowest. Scenes to measure on are never among those to train on.
        evaluate_every: steps.
        strict: a broken image or mask to train on ends the run; else it is skipped with a warning.
        evaluation_images: the folder of its images, where they are not beside the json.
        save_every: steps.
        log_every: steps.
        workers: processes that prepare data.

    Raises:
        ValueError: a value that is none of those.
    """

    objective: str
    data: str
    steps: int
    images: str | None = None
    photographs: str | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    teacher: str | None = None
    parts: str = "both"
    image_size: int = 1024
    batch_size: int = 8
    accumulate: int = 1
    prompts_per_image: int = 8
    corrective_clicks: int = 1
    mask_only_rounds: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int | None = None
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    seed: int = 0
    evaluation_data: str | None = None
    evaluate_every: int = 1000
    strict: bool = False
    evaluation_images: str | None = field(default=None, metadata=_MAY_CHANGE)
    save_every: int = field(default=100, metadata=_MAY_CHANGE)
    log_every: int = field(default=10, metadata=_MAY_CHANGE)
    workers: int = field(default=2, metadata=_MAY_CHANGE)

    def __post_init__(self) -> None:
        for name, choices in {
            "objective": OBJECTIVES,
            "parts": tuple(PARTS),
            "mixed_precision": ("no", "fp16", "bf16"),
        }.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = min(100, self.steps // 2)
            object.__setattr__(self, "warmup_steps", warmup_steps)
        least = {
            1: (
                *("steps", "batch_size", "accumulate", "prompts_per_image"),
                *("evaluate_every", "save_every", "log_every"),
            ),
            0: ("corrective_clicks", "mask_only_rounds", "warmup_steps", "seed", "workers"),
        }
        for lowest, names in least.items():
            for name in names:
                if not getattr(self, name) >= lowest:
                    raise UserError(f"{name} must be {lowest} or more, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be a number above 0, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay must be 0 or more, not {self.weight_decay}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be 0 or more and less than 1, not {self.ema_decay}")
        if warmup_steps >= self.steps:
            raise UserError(
                f"warmup_steps must be less than the {self.steps} steps of the run, not "
                f"{warmup_steps}"
            )
        if self.photographs is not None and self.data.partition(":")[0] != "scenes":
            raise UserError(
                f"photographs become surfaces in 'scenes', and the data are {self.data!r}"
            )
        if self.evaluation_images is not None and self.evaluation_data is None:
            raise UserError("evaluation_images are those of evaluation_data, which is not given")
        if self.backbone is not None and self.checkpoint is not None:
            raise UserError(
                "give a checkpoint or a backbone, not both: a checkpoint names its own backbone"
            )
