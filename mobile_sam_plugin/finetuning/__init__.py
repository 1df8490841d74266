"""Fine-tuning on one's own data: images and labels in, one file of weights out.

The training is that of :mod:`~mobile_sam_plugin.distill.training`. Here is what comes before it, a
check of the data and a choice of sizes by memory (``presets``), and after it (``report``).
"""

import os
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..checkpoint import DEFAULT_CHECKPOINT, HUB_FILE, locate_checkpoint, resolve_default
from ..datasets.annotated import AnnotatedImages
from ..datasets.checks import DataCheck
from ..distill.options import TrainingOptions
from ..distill.sources import open_validation, split
from ..distill.training import BEST_FILE, BEST_FOLDER, HOW_TO_GAIN, START_FOLDER, train
from ..errors import UserError
from ..evaluation.results import Evaluation
from ..files import remove_partials
from ..runs import RUN_FILE, alone_in
from ..scenes.scenes import open_images_or_scenes
from .presets import PRESETS, Preset, choose_preset
from .report import draw_cases, format_table, write_weights

__all__ = ["Finetuned", "finetune"]

_RUN_FOLDER = "training"
_USED_SIZE = 1024  # of the input of a model that is loaded from a file
_FOCAL_WEIGHT = 10.0
"""With SAM's 20, boxes got worse even on images that were trained on, see docs/measurements."""
_LEARNING_RATE = 1e-4
_LORA_LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Finetuned:
    """The result of a fine-tuning.

    Attributes:
        path: the weights, which ``sam_model_registry["vit_t"]`` loads.
        before: the scores of the checkpoint that it started from, on the validation set.
        after: those of the weights.
    """

    path: Path
    before: Evaluation
    after: Evaluation

    def format_table(self) -> str:
        """Returns the scores before and after, and the gain, with 95 % intervals, as Markdown."""
        return format_table(self.before, self.after)


def finetune(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | float = 0.2,
    checkpoint: str | os.PathLike[str] = DEFAULT_CHECKPOINT,
    epochs: int = 20,
    patience: int | None = 5,
    preset: str | None = None,
    restart: bool = False,
    **options: Any,
) -> Finetuned:
    """Fine-tunes MobileSAM on images with masks, or resumes an interrupted fine-tuning.

    The data are read and checked before the first step. After every epoch the weights are scored on
    images that are not trained on; the best are kept, which are those of the checkpoint as long as
    no epoch is better. Writes to the folder

    - ``model.safetensors``, the weights, with "data", "base", "options" and "scores" as metadata;
    - ``README.md``, their card for the Hub, with a table of the scores before and after;
    - ``worst_and_best.png``, what they still get wrong;
    - ``training``, the folder of the run, see :func:`~mobile_sam_plugin.distill.training.train`:
      the log for TensorBoard, and the state that the same call resumes from.

    Ctrl-C ends the run after the current step, writes the best weights so far, and raises
    KeyboardInterrupt.

    Args:
        data: images with masks, as
            :func:`~mobile_sam_plugin.datasets.formats.open_annotated_images` takes them.
        out: the folder; created if missing.
        images: the folder of the images, if they are not beside the JSON file or the masks.
        validation: the share of the images that is set aside, drawn by `seed`; or other data.
        checkpoint: the weights to start from, see :func:`~mobile_sam_plugin.build_sam_vit_t`.
        epochs: passes over the images.
        patience: the run ends after this many epochs that are not better; None: it does not end
            early.
        preset: ``"cpu"``, ``"4gb"``, ``"8gb"`` or ``"24gb"``, the memory that a step must fit into;
            see :data:`~.presets.PRESETS`. The largest for this machine if None.
        restart: delete a run that the folder holds, and start over.
        options: others of :class:`~mobile_sam_plugin.distill.options.TrainingOptions`, such as
            ``freeze``, ``lora``, ``prompts``, ``augmentation``, ``focal_weight``,
            ``learning_rate``, ``seed`` and ``workers``. They take the place of the defaults here.

    Returns:
        The path of the weights, and the scores.

    Raises:
        UserError: if an argument is invalid; if the data have no usable image, the same image to
            train and to validate on, or label maps that were saved as JPEG; or if the folder holds
            another run, or one is writing to it.
        FileNotFoundError: if there are no such data or checkpoint.
        MemoryError: if a step does not fit into memory; the message names what to lower.
        FloatingPointError: if the training diverges.

    Examples:
        >>> finetuned = finetune("leaves", "leaves-sam")
        >>> print(finetuned.format_table())
        >>> predictor = SamPredictor(sam_model_registry["vit_t"](finetuned.path))
    """
    out = Path(out)
    training = _make_options(
        data, images, validation, checkpoint, epochs, patience, preset, options
    )
    locate_checkpoint(checkpoint)  # before the data are read, which takes longer
    training_images, validation_images = _open(training)
    run = out / _RUN_FOLDER
    with ExitStack() as stack:
        if PartialState().is_main_process:
            stack.enter_context(alone_in(out))
            remove_partials(out)
        if restart or not (run / RUN_FILE).exists():
            _check(training, training_images, validation_images)
        try:
            train(training, run, restart)
        except KeyboardInterrupt:
            if PartialState().is_main_process and (run / BEST_FOLDER / RUN_FILE).exists():
                _write(out, training)
            raise
        if PartialState().is_main_process:
            finetuned = _write(out, training)
            draw_cases(out, finetuned.after, validation_images, training.prompts)
        PartialState().wait_for_everyone()
        return _load(out)


def _make_options(
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    validation: str | os.PathLike[str] | float,
    checkpoint: str | os.PathLike[str],
    epochs: int,
    patience: int | None,
    preset: str | None,
    options: dict[str, Any],
) -> TrainingOptions:
    """Returns the options of the run: the given ones, before the preset's, before the defaults."""
    for name in ("objective", "steps", "backbone", "teacher", "validation_size"):
        if name in options:
            raise TypeError(f"finetune() takes no argument {name!r}")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    chosen = choose_preset(_gpu_gigabytes()) if preset is None else PRESETS[preset]
    sizes: dict[str, Any] = {
        "img_size": chosen.img_size,
        "batch_size": chosen.batch_size,
        "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
        "mixed_precision": _supported(chosen.mixed_precision),
    }
    own = {name: value for name, value in sizes.items() if options.get(name, value) != value}
    if "batch_size" in own and "gradient_accumulation_steps" not in options:
        # Parts of at most the preset's size, which decides on the memory.
        part = chosen.batch_size // chosen.gradient_accumulation_steps
        size = options["batch_size"]
        parts = (n for n in range(1, size + 1) if size % n == 0 and size // n <= part)
        sizes["gradient_accumulation_steps"] = next(parts, 1)
    is_lora = options.get("lora") is not None
    made = TrainingOptions(
        "supervised",
        os.fspath(data),
        epochs=epochs,
        patience=patience,
        images=None if images is None else os.fspath(images),
        validation=validation if isinstance(validation, float) else os.fspath(validation),
        validation_size=_USED_SIZE,
        checkpoint=os.fspath(resolve_default(checkpoint)),
        **{
            "focal_weight": _FOCAL_WEIGHT,
            "learning_rate": _LORA_LEARNING_RATE if is_lora else _LEARNING_RATE,
            "fixed_batch_norms": True,
            # Whoever only uses boxes never clicks on what is wrong.
            "corrective_clicks": 0 if options.get("prompts") == "box" else 1,
            **sizes,
            **options,
        },
    )
    if PartialState().is_main_process:
        tqdm.write(_describe_sizes(made, chosen, changed=bool(own)), file=sys.stderr)
    return made


def _gpu_gigabytes() -> float | None:
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 1e9


def _supported(precision: str) -> str:
    """Returns a precision, or fp16 for bf16 on a GPU that only emulates that."""
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return "fp16" if precision == "bf16" and emulated else precision


def _describe_sizes(options: TrainingOptions, preset: Preset, changed: bool) -> str:
    """Returns a line that says what a step is made of, and why."""
    parts = options.gradient_accumulation_steps
    precision = "float32" if options.mixed_precision == "no" else options.mixed_precision
    source = (
        f"changed from preset {preset.name}"
        if changed
        else f"preset {preset.name}, {preset.gigabytes:g} GB {preset.source}"
    )
    return (
        f"{options.img_size} x {options.img_size} pixels, {options.batch_size} images a step"
        f"{f' in {parts} parts' * (parts > 1)}, {precision} ({source})"
    )


def _open(options: TrainingOptions) -> tuple[AnnotatedImages, AnnotatedImages]:
    """Returns the images to train on and those to validate on."""
    (data,) = tuple(options.data)
    images = open_images_or_scenes(data, options.images)
    if isinstance(options.validation, float):
        return split(images, options.validation, options.seed)
    validation = open_validation(options)
    assert validation is not None  # finetune() always has one
    return images, validation


def _check(
    options: TrainingOptions, training: AnnotatedImages, validation: AnnotatedImages
) -> None:
    """Reads all images once, and tells what is wrong with them."""
    check = DataCheck(options.img_size)
    count = len(training) + len(validation)
    with tqdm(total=count, desc="checking", unit="image", leave=False, disable=None) as bar:
        check.read("to train on", training, bar.update)
        check.read("to validate on", validation, bar.update)
    told = check.tell()
    if PartialState().is_main_process:
        tqdm.write(told, file=sys.stderr)


def _load(out: Path) -> Finetuned:
    run = out / _RUN_FOLDER
    before, after = (Evaluation.load(run / name) for name in (START_FOLDER, BEST_FOLDER))
    return Finetuned(out / HUB_FILE, before, after)


def _write(out: Path, options: TrainingOptions) -> Finetuned:
    """Writes the weights and their card, and tells if they are those of the start."""
    finetuned = _load(out)
    write_weights(
        out / _RUN_FOLDER / BEST_FILE, finetuned.path, options, finetuned.before, finetuned.after
    )
    if finetuned.before.settings["model"] == finetuned.after.settings["model"]:
        warnings.warn(
            f"no epoch scored higher than the checkpoint, whose weights {str(finetuned.path)!r} "
            f"therefore holds: {HOW_TO_GAIN}",
            stacklevel=3,
        )
    return finetuned
