"""The options of a training run. Free of torch, because the command line shows the defaults."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError

OBJECTIVES = ("decoupled", "semi-coupled", "coupled", "supervised")
PARTS = {"encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder")}

_MAY_CHANGE = {"may_change": True}


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training run. All but the last four decide what it produces.

    Attributes:
        objective: ``"decoupled"``, ``"semi-coupled"``, ``"coupled"`` or ``"supervised"``.
        data: a folder of a teacher's embeddings; for ``"supervised"``, one or more of ``"scenes"``
            and ``"composites"``, which are endless and of the input size, and what
            :func:`~mobile_sam_plugin.scenes.scenes.open_images_or_scenes` takes. Kept as a tuple.
        steps: optimizer steps.
        weights: the share of each of the `data` among the examples; if None, equal shares.
        images: the folder of the images of a single `data`, if they are not beside the JSON file,
            or no longer where their embeddings were computed.
        texture_images: a folder of images whose patches become surfaces in ``"scenes"``.
        objects: for ``"composites"``, the things to paste, see
            :func:`~mobile_sam_plugin.scenes.composites.open_cut_outs`.
        photographs: for ``"composites"``, the folder of the backgrounds.
        checkpoint: initial weights, as :func:`~mobile_sam_plugin.build_sam_vit_t` takes them;
            random weights if None.
        backbone: a timm backbone for the student's encoder, if it starts from random weights.
        teacher: a checkpoint of any SAM, whose prompt encoder and mask decoder are copied to the
            student.
        parts: what ``"supervised"`` trains: ``"encoder"``, ``"decoder"`` or ``"both"``.
        img_size: side of the square input, in pixels; distillation takes that of the embeddings.
        batch_size: images per optimizer step, over all processes and accumulated batches.
        gradient_accumulation_steps: batches per optimizer step and process.
        prompts_per_image: not for ``"decoupled"``.
        corrective_clicks, mask_only_rounds: see :class:`~.objectives.Supervised`.
        learning_rate: of AdamW, at the end of the warm-up; a cosine then leads to 0.
        warmup_steps: steps in which the learning rate rises; if None, 100, or half of a shorter
            run.
        weight_decay: of AdamW, for matrices only.
        gradient_clip: maximum norm of the gradients, which are scaled down to it.
        ema_decay: of the exponential moving average of the weights, which is evaluated and saved;
            smaller in the first steps.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        seed: random seed of weights, order, crops, prompts and clicks.
        evaluation_data: evaluated on regularly; what `open_images_or_scenes` takes. If None, the
            best weights are those with the lowest mean training loss since the previous
            evaluation. Scenes to evaluate on are never among those to train on.
        evaluate_every: steps between two evaluations.
        strict: end the run at a broken image or mask, instead of skipping it with a warning.
        evaluation_images: the folder of the images to evaluate on, if they are not beside their
            JSON file.
        save_every: steps between two states to resume from.
        log_every: steps between two entries of the log.
        workers: processes that prepare data.

    Raises:
        ValueError: if a value is invalid, or does not go with another.
    """

    objective: str
    data: str | Sequence[str]
    steps: int
    weights: Sequence[float] | None = None
    images: str | None = None
    texture_images: str | None = None
    objects: str | None = None
    photographs: str | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    teacher: str | None = None
    parts: str = "both"
    img_size: int = 1024
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
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
        self._check_data()
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = min(100, self.steps // 2)
            object.__setattr__(self, "warmup_steps", warmup_steps)
        minimum = {
            1: (
                *("steps", "batch_size", "gradient_accumulation_steps", "prompts_per_image"),
                *("evaluate_every", "save_every", "log_every"),
            ),
            0: ("corrective_clicks", "mask_only_rounds", "warmup_steps", "seed", "workers"),
        }
        for lowest, names in minimum.items():
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
        if self.evaluation_images is not None and self.evaluation_data is None:
            raise UserError("evaluation_images applies only with evaluation_data")
        if self.backbone is not None and self.checkpoint is not None:
            raise UserError(
                "give a checkpoint or a backbone, not both: a checkpoint names its own backbone"
            )

    def _check_data(self) -> None:
        data = (self.data,) if isinstance(self.data, str) else tuple(self.data)
        object.__setattr__(self, "data", data)
        if not data or (self.objective != "supervised" and len(data) > 1):
            raise UserError(f"{self.objective} training takes one data set, not {len(data)}")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if len(self.weights) != len(data):
                raise UserError(
                    f"weights must have one number for each of the {len(data)} data sets, not "
                    f"{len(self.weights)}"
                )
            if not all(0 < weight < math.inf for weight in self.weights):
                raise UserError(f"weights must be numbers above 0, not {list(self.weights)}")
        if self.images is not None and len(data) > 1:
            raise UserError(
                f"images is the folder of one data set's images, but there are {len(data)}: keep "
                "the images of each beside its masks"
            )
        if self.texture_images is not None and not any(
            each.partition(":")[0] == "scenes" for each in data
        ):
            raise UserError(
                f"texture_images applies only to data 'scenes', not {', '.join(map(repr, data))}"
            )
        for name in ("objects", "photographs"):
            if (getattr(self, name) is None) == ("composites" in data):
                raise UserError(f"{name} is required for data 'composites', and only for it")
