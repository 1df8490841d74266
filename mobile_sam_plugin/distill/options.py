"""The options of a training run. Free of torch, because the command line shows the defaults."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError

OBJECTIVES = ("decoupled", "semi-coupled", "coupled", "supervised")
PARTS = ("encoder", "prompt_encoder", "mask_decoder")
PROMPTS = ("both", "point", "box")
AUGMENTATIONS = ("flip", "rotate", "crop", "color", "quality")
"""What :class:`~.batches.MaskExamples` varies; ``rotate`` is for images without an up and down."""
DEFAULT_AUGMENTATION = ("flip", "crop", "color", "quality")
DEFAULT_EVALUATE_EVERY = 1000
DEFAULT_FOCAL_WEIGHT = 20.0  # of SAM's paper

_MAY_CHANGE = {"may_change": True}


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training run. All but the last four decide what it produces.

    Attributes:
        objective: ``"decoupled"``, ``"semi-coupled"``, ``"coupled"`` or ``"supervised"``.
        data: a folder of a teacher's embeddings; for ``"supervised"``, one or more of ``"scenes"``
            and ``"composites"``, which are endless and of the input size, and what
            :func:`~mobile_sam_plugin.scenes.scenes.open_images_or_scenes` takes. Kept as a tuple.
        steps: optimizer steps; or give `epochs`.
        epochs: passes over the images of a single `data`, without those that are set aside for
            validation.
        weights: the share of each of the `data` among the examples; if None, equal shares.
        images: the folder of the images of a single `data`, if they are not beside the JSON file,
            or no longer where their embeddings were computed.
        texture_images: a folder of images whose patches become surfaces in ``"scenes"``.
        objects: for ``"composites"``, the things to paste, see
            :func:`~mobile_sam_plugin.scenes.composites.open_cut_outs`.
        photographs: for ``"composites"``, the folder of the backgrounds.
        on_device: whether ``"supervised"`` keeps all pictures in the memory of the device and makes
            its batches there, see :class:`~.device_examples.DeviceExamples`. For a GPU that would
            wait for the CPU otherwise.
        checkpoint: initial weights, as :func:`~mobile_sam_plugin.build_sam_vit_t` takes them;
            random weights if None.
        backbone: a timm backbone for the student's encoder, if it starts from random weights.
        teacher: a checkpoint of any SAM, whose prompt encoder and mask decoder are copied to the
            student.
        freeze: the :data:`PARTS` that ``"supervised"`` leaves as they are.
        lora: rank of low-rank adapters (arXiv 2106.09685) that ``"supervised"`` trains in the
            attention and the MLPs of the image encoder, in place of the encoder's own weights. They
            are merged into the weights that are saved.
        img_size: side of the square input, in pixels; distillation takes that of the embeddings.
        batch_size: images per optimizer step, over all processes and accumulated batches.
        gradient_accumulation_steps: batches per optimizer step and process.
        fixed_batch_norms: whether the batch norms of the encoder keep their statistics, which suits
            small batches; their weights are trained all the same.
        prompts_per_image: not for ``"decoupled"``.
        prompts: the first prompts of ``"supervised"``: ``"point"``, ``"box"``, or ``"both"`` with
            equal probability.
        augmentation: what ``"supervised"`` varies at random in photographs and composites, some of
            :data:`AUGMENTATIONS`, see :class:`~.batches.MaskExamples`.
        corrective_clicks, mask_only_rounds: see :class:`~.objectives.Supervised`.
        focal_weight: weight of the focal loss, relative to the dice loss; not for ``"decoupled"``.
        learning_rate: of AdamW, at the end of the warm-up; a cosine then leads to 0.
        warmup_steps: steps in which the learning rate rises; if None, 100, or a tenth of a run
            below 1000 steps.
        weight_decay: of AdamW, for matrices only.
        gradient_clip: maximum norm of the gradients, which are scaled down to it.
        ema_decay: of the exponential moving average of the weights, which is evaluated and saved;
            smaller in the first steps.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        seed: random seed of weights, order, crops, prompts and clicks.
        validation: evaluated regularly, to choose the best weights: what `open_images_or_scenes`
            takes, or a share, above 0 and below 1, of the images of a single `data`, which is drawn
            by the seed and not trained on. A run that starts from a checkpoint evaluates it first,
            and the best weights are then never worse than these. If None, the best weights are
            those with the lowest mean training loss since the previous evaluation. Scenes to
            evaluate on are never among those to train on.
        validation_size: side of the square input in an evaluation; `img_size` if None.
        evaluate_every: steps between two evaluations; if None, an epoch where epochs are counted,
            else 1000 steps.
        patience: the run ends after this many evaluations without a better score; None: it does
            not end early.
        strict: end the run at a broken image or mask, instead of skipping it with a warning.
        validation_images: the folder of the images to evaluate on, if they are not beside their
            JSON file.
        save_every: steps between two states to resume from.
        log_every: steps between two entries of the log.
        workers: processes that prepare data.

    Raises:
        ValueError: if a value is invalid, or does not go with another.
    """

    objective: str
    data: str | Sequence[str]
    steps: int | None = None
    epochs: int | None = None
    weights: Sequence[float] | None = None
    images: str | None = None
    texture_images: str | None = None
    objects: str | None = None
    photographs: str | None = None
    on_device: bool = False
    checkpoint: str | None = None
    backbone: str | None = None
    teacher: str | None = None
    freeze: Sequence[str] = ()
    lora: int | None = None
    fixed_batch_norms: bool = False
    img_size: int = 1024
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    prompts_per_image: int = 8
    prompts: str = "both"
    augmentation: Sequence[str] = DEFAULT_AUGMENTATION
    corrective_clicks: int = 1
    mask_only_rounds: int = 0
    focal_weight: float = DEFAULT_FOCAL_WEIGHT
    learning_rate: float = 1e-3
    warmup_steps: int | None = None
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    seed: int = 0
    validation: str | float | None = None
    validation_size: int | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    strict: bool = False
    validation_images: str | None = field(default=None, metadata=_MAY_CHANGE)
    save_every: int = field(default=100, metadata=_MAY_CHANGE)
    log_every: int = field(default=10, metadata=_MAY_CHANGE)
    workers: int = field(default=2, metadata=_MAY_CHANGE)

    def __post_init__(self) -> None:
        for name, choices in {
            "objective": OBJECTIVES,
            "prompts": PROMPTS,
            "mixed_precision": ("no", "fp16", "bf16"),
        }.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        self._check_data()
        self._check_parts()
        if (self.steps is None) == (self.epochs is None):
            raise UserError("give steps or epochs, one of them")
        if self.warmup_steps is None and self.steps is not None:
            object.__setattr__(self, "warmup_steps", default_warmup(self.steps))
        minimum = {
            1: (
                *("steps", "epochs", "batch_size", "gradient_accumulation_steps", "lora"),
                *("prompts_per_image", "evaluate_every", "patience", "save_every", "log_every"),
            ),
            0: ("corrective_clicks", "mask_only_rounds", "warmup_steps", "seed", "workers"),
        }
        for lowest, names in minimum.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not value >= lowest:
                    raise UserError(f"{name} must be {lowest} or more, not {value}")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be a number above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "focal_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be 0 or more and less than 1, not {self.ema_decay}")
        if self.steps is not None:
            check_warmup(self.warmup_steps, self.steps)
        if self.validation_images is not None and not isinstance(self.validation, str):
            raise UserError("validation_images applies only with a data set for validation")
        if self.patience is not None and self.validation is None:
            raise UserError("patience applies only with validation")
        if self.backbone is not None and self.checkpoint is not None:
            raise UserError(
                "give a checkpoint or a backbone, not both: a checkpoint names its own backbone"
            )

    def _check_data(self) -> None:
        data = (self.data,) if isinstance(self.data, str) else tuple(self.data)
        object.__setattr__(self, "data", data)
        if not data or (self.objective != "supervised" and len(data) > 1):
            raise UserError(f"{self.objective} training takes one data set, not {len(data)}")
        if isinstance(self.validation, float):
            if not 0 < self.validation < 1:
                raise UserError(
                    "validation must be a data set or a share of the images above 0 and below 1, "
                    f"not {self.validation}"
                )
            if self.objective != "supervised":
                raise UserError("distillation has no masks to set aside: give validation data")
            if len(data) > 1 or data[0] == "composites" or data[0].partition(":")[0] == "scenes":
                raise UserError(
                    "a share for validation is set aside from a single data set of photographs: "
                    "name the data to validate on"
                )
        if self.epochs is not None and (len(data) > 1 or data[0] in ("scenes", "composites")):
            raise UserError("epochs count the images of a single data set of known length")
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
        has_scenes = any(each.partition(":")[0] == "scenes" for each in data)
        if self.on_device and has_scenes:
            raise UserError("scenes are drawn by the CPU: leave out the scenes, or on_device")
        if self.texture_images is not None and not has_scenes:
            raise UserError(
                f"texture_images applies only to data 'scenes', not {', '.join(map(repr, data))}"
            )
        for name in ("objects", "photographs"):
            if (getattr(self, name) is None) == ("composites" in data):
                raise UserError(f"{name} is required for data 'composites', and only for it")

    def _check_parts(self) -> None:
        """Checks what is trained, and with which prompts and images."""
        for name, choices in {"freeze": PARTS, "augmentation": AUGMENTATIONS}.items():
            values = getattr(self, name)
            if isinstance(values, str):
                raise UserError(f"{name} must be a list of names, such as ['{values}']")
            # In the order of the choices, so that a run is recognised in whatever order they come.
            object.__setattr__(self, name, tuple(each for each in choices if each in values))
            for each in values:
                if each not in choices:
                    raise UserError(f"{name} has {each!r}, which is none of {', '.join(choices)}")
        if self.on_device and self.objective != "supervised":
            raise UserError("on_device applies only to supervised training")
        if self.objective != "supervised" and (self.freeze or self.lora is not None):
            raise UserError("freeze and lora apply only to supervised training")
        if len(self.freeze) == len(PARTS):
            raise UserError(f"freeze names all parts, {', '.join(PARTS)}: nothing is left to train")
        if self.lora is not None and "encoder" in self.freeze:
            raise UserError("lora trains adapters in the encoder: do not freeze the encoder")


def default_warmup(steps: int) -> int:
    """Returns the warm-up steps of a run: 100, or a tenth of a run below 1000 steps."""
    return min(100, steps // 10)


def check_warmup(warmup_steps: int | None, steps: int) -> None:
    """Raises UserError unless the warm-up is shorter than the run."""
    if warmup_steps is not None and warmup_steps >= steps:
        raise UserError(
            f"warmup_steps must be less than the {steps} steps of the run, not {warmup_steps}"
        )
