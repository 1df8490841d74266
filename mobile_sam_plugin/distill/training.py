"""The training loop of all objectives, on accelerate.

A run is a folder. However it was interrupted, the same call resumes it from the last saved state,
with the same losses and to the same weights (on a GPU, apart from the order of additions).
"""

import dataclasses
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..build import build_sam_vit_t
from ..checkpoint import locate_checkpoint, read_checkpoint, save_checkpoint
from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.unreadable import SkipUnreadable, check_fit
from ..errors import MissingExtra, UserError
from ..files import remove_partials, replaced
from ..images import list_images
from ..mobile_sam import MobileSam, set_img_size
from ..runs import RUN_FILE, find_run, write_settings
from ..scenes.composites import Composites, open_cut_outs
from ..scenes.scenes import Scenes, open_images_or_scenes
from .batches import EmbeddedImages, EmbeddingExamples, MaskExamples, StepBatchSampler
from .embeddings import Embeddings, fingerprint_decoder
from .objectives import Batch, Coupled, Decoupled, Losses, Objective, Supervised
from .options import PARTS, TrainingOptions

try:
    import tensorboard  # noqa: F401, which accelerate would miss only later
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        InitProcessGroupKwargs,
        broadcast_object_list,
        gather_object,
    )
except ImportError as error:
    raise MissingExtra.of("accelerate and tensorboard", "distill") from error

BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
_STATE_FILE = "state.pt"
_LOG_FOLDER = "log"

_EVALUATED = ("click_best", "box")
_ENDLESS = 1 << 40
_SKIPPED_IN_A_ROW = 10  # steps whose gradients are not finite
_TOLD = 5  # warnings with the number of a step; further steps are only counted
_WAY_OUT = (
    "resume it with its own options and data, choose another folder, or start over with --restart "
    "(restart=True)"
)


def train(options: TrainingOptions, folder: str | os.PathLike[str], restart: bool = False) -> Path:
    """Trains a student, or resumes an interrupted run.

    Writes to the folder ``best.safetensors`` and ``last.safetensors``, the averaged weights that
    scored best and those of the last evaluation, which ``sam_model_registry["vit_t"]`` loads;
    ``log``, for TensorBoard; ``run.json``, the options; and ``state.pt``, to resume from.

    Several processes, started by ``accelerate launch``, share the work of a step. Their number
    changes the result only through corrective clicks, which each process draws on its own, and
    batch norms, each of which sees the images of its process. On several machines the folder of the
    first process counts: the others receive its state, and need only the same data.

    Broken or unfit images are skipped and counted, and so are steps whose gradient is not finite.
    Many of either end the run.

    Args:
        options: what to train, on which data, and how.
        folder: of the run; created if missing.
        restart: delete a run that the folder holds, and start over.

    Returns:
        The path of ``best.safetensors``.

    Raises:
        ValueError: if the folder's run has other options or data, which the message names; if a
            value does not fit the data or the checkpoint; if there is no image or most are broken;
            if the embeddings are of another teacher; or if another machine has other data.
        OSError: if a checkpoint or data cannot be read.
        FloatingPointError: if the loss, or the gradients of many steps, are not finite. The last
            saved state is from before.

    Example:
        >>> options = TrainingOptions("supervised", "scenes", steps=1000, img_size=256)
        >>> sam = sam_model_registry["vit_t"](train(options, "runs/scenes"))
    """
    folder = Path(folder)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        log_with="tensorboard",
        project_dir=folder,
        kwargs_handlers=[
            # Not every part takes part in every step; and one process evaluates, others wait.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ],
    )
    run = _Run(options, folder, accelerator)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder / _STATE_FILE)
        if restart:
            for name in (_STATE_FILE, RUN_FILE, BEST_FILE, LAST_FILE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / _LOG_FOLDER, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        run.load_state()
        run.train()
    finally:
        accelerator.end_training()
    run.warn_of_skipped()
    return folder / BEST_FILE


def _of_main(accelerator: Accelerator, ask: Callable[[], Any]) -> Any:
    """Returns or raises in all processes, which wait, what a call returns or raises in the main."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except Exception as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


class _Run:
    """A run in one process: models, optimizer, data and progress."""

    def __init__(self, options: TrainingOptions, folder: Path, accelerator: Accelerator) -> None:
        self.options = options
        self.folder = folder
        self.accelerator = accelerator
        torch.manual_seed(options.seed)
        self.model = _build_student(options).to(memory_format=torch.channels_last)
        if accelerator.device.type == "cpu":
            _unfuse_attention(self.model)
        objective, self.examples, self.sources, contents = _build_objective(options, self.model)
        _check_same(accelerator, contents)
        self.settings = dataclasses.asdict(options) | contents
        optimizer = torch.optim.AdamW(
            _parameter_groups(objective, options.weight_decay), options.learning_rate
        )
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=options.steps,
            warmup_t=options.warmup_steps,
            warmup_lr_init=options.learning_rate / 100,
            t_in_epochs=False,
        )
        self.objective, self.optimizer = accelerator.prepare(objective.train(), optimizer)
        self.average = AveragedModel(
            self.model, multi_avg_fn=ramped_average(options.ema_decay), use_buffers=True
        )
        self.evaluation_data: AnnotatedImages | None = None
        _of_main(accelerator, self._open_evaluation_data)
        self.step = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.best_score = -math.inf
        self.losses_since_evaluation = [0.0, 0]

    def _open_evaluation_data(self) -> None:
        """Opens the data and reads an image, so that faults show at the start."""
        options = self.options
        if options.evaluation_data is None:
            return
        self.evaluation_data = open_images_or_scenes(
            options.evaluation_data, options.evaluation_images
        )
        check = partial(_check_image, size=self.model.image_encoder.img_size)
        SkipUnreadable(self.evaluation_data, check=check, what="evaluation image")[0]

    def warn_of_skipped(self) -> None:
        """Warns of images and steps that were skipped."""
        for source in self.sources:
            source.skipped.tell()
        if self.skipped_steps:
            warnings.warn(
                f"skipped {self.skipped_steps} of {self.step} steps, because their gradients were "
                "not finite",
                stacklevel=2,
            )

    def train(self) -> None:
        options, accelerator = self.options, self.accelerator
        # The entries of an interrupted run after its last state will be logged again.
        accelerator.init_trackers(
            _LOG_FOLDER, init_kwargs={"tensorboard": {"purge_step": self.step + 1}}
        )
        batches = self._batches()
        bar = tqdm(
            total=options.steps,
            initial=self.step,
            unit="step",
            disable=None if accelerator.is_main_process else True,
        )
        recent: list[Losses] = []
        with bar:
            while self.step < options.steps:
                recent.append(self._update(batches))
                self.step += 1
                bar.update()
                at_end = self.step == options.steps
                evaluates = at_end or self.step % options.evaluate_every == 0
                saves = evaluates or self.step % options.save_every == 0
                if saves or self.step % options.log_every == 0:
                    bar.set_postfix(loss=f"{self._log(recent):.4f}")
                    recent = []
                if evaluates:
                    self._evaluate(bar)
                if saves:
                    self._save_state()

    def _batches(self) -> Iterator[Batch]:
        options, accelerator = self.options, self.accelerator
        steps = StepBatchSampler(
            self.step,
            options.steps,
            options.batch_size,
            options.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return iter(
            DataLoader(
                self.examples,
                batch_sampler=steps,
                num_workers=options.workers,
                pin_memory=accelerator.device.type == "cuda",
                prefetch_factor=4 if options.workers else None,
                worker_init_fn=_use_one_thread,
            )
        )

    def _update(self, batches: Iterator[Batch]) -> Losses:
        """Takes a step. Its random numbers depend only on the seed, the step and the process."""
        options, accelerator = self.options, self.accelerator
        entropy = (options.seed, self.step, accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self.scheduler.step_update(self.step)
        total: Losses = {}
        count = options.gradient_accumulation_steps
        for index in range(count):
            is_last = index == count - 1
            with nullcontext() if is_last else accelerator.no_sync(self.objective):
                batch = {
                    name: value.to(accelerator.device, non_blocking=True)
                    for name, value in _next(batches).items()
                }
                losses = self.objective(batch)
                accelerator.backward(losses["loss"] / count)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / count
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), options.gradient_clip)
        # The scaler of float16 checks this itself.
        if accelerator.scaler is not None or math.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self._skip_step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        return total

    def _skip_step(self) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > _SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradients of {self.skipped_in_a_row} steps in a row are not finite, up to "
                f"step {self.step + 1}: lower the learning rate or raise the precision, and restart"
            )
        if self.skipped_steps <= _TOLD:
            warnings.warn(f"skipped step {self.step + 1}: its gradient is not finite", stacklevel=2)

    def _log(self, recent: list[Losses]) -> float:
        """Logs the mean losses of the last steps, and returns the mean of the total loss."""
        means = {
            name: self.accelerator.reduce(
                torch.stack([losses[name] for losses in recent]).mean(), "mean"
            ).item()
            for name in recent[0]
        }
        loss = means["loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step}: lower the learning rate or raise the "
                "precision, and restart"
            )
        means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        means["skipped images"] = sum(len(source.skipped) for source in self.sources)
        means["skipped steps"] = self.skipped_steps
        self.accelerator.log(means, step=self.step)
        self.losses_since_evaluation[0] += loss * len(recent)
        self.losses_since_evaluation[1] += len(recent)
        return loss

    def _evaluate(self, bar: Any) -> None:
        """Evaluates the averaged weights, and saves them."""
        total, count = self.losses_since_evaluation
        self.losses_since_evaluation = [0.0, 0]
        _of_main(self.accelerator, lambda: self._score(total / count, bar))

    def _score(self, loss: float, bar: Any) -> None:
        scores = {"mean training loss": loss}
        score = -loss
        if self.evaluation_data is not None:
            from ..evaluation.evaluation import evaluate

            evaluation = evaluate(self.average.module, self.evaluation_data, metrics=_EVALUATED)
            scores = {name: score.mean for name, score in evaluation.scores.items()}
            score = sum(scores.values()) / len(scores)
            self.accelerator.log(scores, step=self.step)
        if score > self.best_score:
            self.best_score = score
            self._save_weights(BEST_FILE)
        self._save_weights(LAST_FILE)
        described = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        bar.write(f"step {self.step}: {described}")

    def _save_weights(self, name: str) -> None:
        model = self.average.module
        _require_finite(model, self.step)
        save_checkpoint(model.state_dict(), self.folder / name, backbone=self.model.backbone)

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        _require_finite(self.model, self.step)
        # Otherwise a kill could lose entries of the log from before this state.
        self.accelerator.get_tracker("tensorboard", unwrap=True).flush()
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "best_score": self.best_score,
            "losses_since_evaluation": self.losses_since_evaluation,
            "skipped_steps": self.skipped_steps,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        write_settings(self.folder, self.settings)
        with replaced(self.folder / _STATE_FILE) as partial:
            torch.save(state, partial)

    def load_state(self) -> None:
        """Resumes from the last saved state, if the first process has one."""
        state = _of_main(self.accelerator, self._read_state)
        if state is None:
            return
        self.step = state["step"]
        self.best_score = state["best_score"]
        self.losses_since_evaluation = state["losses_since_evaluation"]
        self.skipped_steps = state["skipped_steps"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _read_state(self) -> Any:
        path = self.folder / _STATE_FILE
        if not path.exists():
            return None
        fields = dataclasses.fields(self.options)
        may_change = {option.name for option in fields if option.metadata.get("may_change")}
        find_run(self.folder, self.settings, may_change, way_out=_WAY_OUT)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, UnpicklingError) as error:
            raise UserError(
                f"{str(path)!r} is damaged: start over with --restart (restart=True) ({error})"
            ) from error


def _check_same(accelerator: Accelerator, contents: dict[str, Any]) -> None:
    """Raises UserError in all processes if their data differ."""
    everywhere = gather_object([contents])
    for name in contents:
        found = [each.get(name) for each in everywhere]
        if any(value != found[0] for value in found):
            raise UserError(
                f"the processes of this run do not have the same {name}: {found}; give all "
                "machines the same data and options"
            )


def _check_image(image: AnnotatedImage, size: int) -> None:
    check_fit(image.image, size)


def _check_embedded(embedded: tuple[NDArray[np.uint8], Tensor], size: int) -> None:
    check_fit(embedded[0], size)


def _next(batches: Iterator[Batch]) -> Batch:
    """Returns the next batch; raises the error of a worker process without its traceback."""
    try:
        return next(batches)
    except UserError as error:
        if not str(error).startswith("Caught "):
            raise
        raise UserError(str(error).rstrip().splitlines()[-1].partition(": ")[2]) from error


def _require_finite(model: nn.Module, step: int) -> None:
    """Raises FloatingPointError if weights are not finite, so that they are not saved."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"the weights {name} are not finite at step {step}: lower the learning rate or "
                "raise the precision, and restart"
            )


def _build_student(options: TrainingOptions) -> MobileSam:
    if options.checkpoint is None:
        student = MobileSam.untrained(options.backbone)
    else:
        student = build_sam_vit_t(options.checkpoint)
    if options.teacher is not None:
        tensors = read_checkpoint(locate_checkpoint(options.teacher))
        for name in ("prompt_encoder", "mask_decoder"):
            part = {
                key.removeprefix(f"{name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{name}.")
            }
            try:
                getattr(student, name).load_state_dict(part)
            except RuntimeError as error:
                raise UserError(
                    f"the teacher {options.teacher!r} has a {name} that differs from SAM's: {error}"
                ) from error
    return student


def _build_objective(
    options: TrainingOptions, model: MobileSam
) -> tuple[Objective, Dataset[Batch], list[SkipUnreadable[Any]], dict[str, Any]]:
    """Returns the objective, its examples, their sources, and what identifies the data."""
    if options.objective == "supervised":
        set_img_size(model, options.img_size)
        images, sources = _open_images(options)
        return (
            Supervised(
                model, PARTS[options.parts], options.corrective_clicks, options.mask_only_rounds
            ),
            MaskExamples(
                images,
                options.img_size,
                options.prompts_per_image,
                options.seed,
                options.weights,
            ),
            sources,
            {"number of images": [len(source) for source in sources]},
        )
    (folder,) = tuple(options.data)
    embeddings = Embeddings(folder, options.images)
    set_img_size(model, embeddings.img_size)
    side = model.prompt_encoder.image_embedding_size
    if embeddings.shape != (model.prompt_encoder.embed_dim, *side):
        raise UserError(
            f"the embeddings in {folder!r} have the shape {embeddings.shape}, SAM's have "
            f"{(model.prompt_encoder.embed_dim, *side)}"
        )
    if options.teacher is not None and embeddings.decoder not in (None, fingerprint_decoder(model)):
        raise UserError(
            f"the embeddings in {folder!r} are of the teacher {embeddings.teacher!r}, and "
            f"the decoder of {options.teacher!r} does not fit them: give the same teacher"
        )
    readable = SkipUnreadable(
        EmbeddedImages(embeddings),
        strict=options.strict,
        check=partial(_check_embedded, size=embeddings.img_size),
        what="image",
    )
    examples = EmbeddingExamples(readable, embeddings.img_size, options.seed)
    contents = {"embeddings": embeddings.identity}
    if options.objective == "decoupled":
        return Decoupled(model), examples, [readable], contents
    parts = PARTS["both" if options.objective == "coupled" else "encoder"]
    # It is not part of the state.
    contents["teacher's decoder"] = fingerprint_decoder(model)
    return Coupled(model, parts, options.prompts_per_image), examples, [readable], contents


def _open_images(
    options: TrainingOptions,
) -> tuple[list[AnnotatedImages], list[SkipUnreadable[Any]]]:
    """Returns the data sets to train on, and those whose unusable items are counted."""
    texture_images = (
        list_images(options.texture_images, recursive=True) if options.texture_images else ()
    )

    def training_scenes(count: int, size: int | tuple[int, int], seed: int) -> Scenes:
        return Scenes(count, size, seed, texture_images, training=True, strict=options.strict)

    sets: list[AnnotatedImages] = []
    counted: list[SkipUnreadable[Any]] = []
    for name in options.data:
        if name == "composites":
            assert options.objects is not None and options.photographs is not None
            composites = Composites(
                _ENDLESS,
                open_cut_outs(options.objects),
                list_images(options.photographs, recursive=True),
                options.img_size,
                options.seed,
                strict=options.strict,
            )
            sets.append(composites)
            counted += [composites.objects, composites.photographs]
            continue
        source = open_images_or_scenes(name, options.images)
        if isinstance(source, Scenes):
            if name == "scenes":
                scenes = training_scenes(_ENDLESS, options.img_size, options.seed)
            else:
                scenes = training_scenes(source.count, source.size, source.seed)
            sets.append(scenes)
            counted.append(scenes.texture_images)
        else:
            readable = SkipUnreadable(
                source,
                strict=options.strict,
                check=partial(_check_image, size=options.img_size),
                what="image",
            )
            sets.append(readable)
            counted.append(readable)
    return sets, counted


def _use_one_thread(_: int) -> None:
    """Makes OpenCV use one thread in a worker, as torch does: the workers keep all cores busy."""
    cv2.setNumThreads(0)  # with 1, OpenCV waits forever for threads that a fork ended


def _unfuse_attention(model: MobileSam) -> None:
    """Turns off timm's fused attention, which is slower on a CPU with a learned bias."""
    for module in model.image_encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the trained parameters; those with one dimension, biases and norms, do not decay."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def ramped_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Returns an exponential moving average for ``AveragedModel`` that soon forgets its start.

    After n updates the decay is (1 + n) / (10 + n), as in TensorFlow, until it reaches ``decay``.
    Integers, such as tables of indices and counters, are copied.
    """

    def update(averages: Any, values: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # AveragedModel passes tensors of one dtype
            torch._foreach_copy_(averages, values)
            return
        steps = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, values, count)

    return update
