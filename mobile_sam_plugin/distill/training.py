"""The training loop of all objectives, on accelerate.

A run is a folder. Whatever stops it, the same call goes on from the state saved last, with the same
losses and to the same weights (on a GPU, but for the order in which it adds).
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..build import build_sam_vit_t
from ..checkpoint import locate_checkpoint, read_checkpoint, save_checkpoint
from ..errors import MissingExtra, UserError
from ..inputs import list_images
from ..mobile_sam import MobileSam
from .batches import EmbeddedImages, EmbeddingExamples, MaskExamples, Steps
from .data import AnnotatedImages, Readable, open_annotated_images
from .embeddings import Embeddings
from .objectives import Batch, Coupled, Decoupled, Losses, Objective, Supervised, set_image_size
from .options import PARTS, Options
from .scenes import Scenes

try:
    import tensorboard  # noqa: F401, which accelerate would miss only later
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
except ImportError as error:
    raise MissingExtra.of("accelerate and tensorboard", "distill") from error

BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
_OPTIONS_FILE = "options.json"
_STATE_FILE = "state.pt"
_LOG_FOLDER = "log"

_EVALUATED = ("click_best", "box")
_ENDLESS = 1 << 40


def train(options: Options, folder: str | os.PathLike[str], restart: bool = False) -> Path:
    """Trains a student, or goes on with a run that was stopped.

    Into the folder come ``best.safetensors`` and ``last.safetensors``, the averaged weights that
    scored best and those of the last evaluation, which ``sam_model_registry["vit_t"]`` loads;
    ``log``, for TensorBoard; ``options.json``; and ``state.pt``, to go on from. Each file appears
    whole or not at all.

    Several processes, as ``accelerate launch`` starts them, share the work of a step; what comes
    out depends on their number only by corrective clicks, which each draws on its own, and by the
    batch norms, each of which sees its own images.

    Args:
        options: what to train, on what, and how.
        folder: of the run; made if need be.
        restart: forget a run that the folder holds, and begin anew.

    Returns:
        The path of ``best.safetensors``.

    Raises:
        ValueError: the folder's run has other options, which are named; or a value that fits
            nothing, or data without an image.
        FileNotFoundError, OSError: no such checkpoint or data.
        FloatingPointError: the loss is not finite. The state saved last is from before.

    Example:
        >>> options = Options("supervised", "scenes", steps=1000, image_size=256)
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
    if not restart:
        _check_options(folder, options)
    run = _Run(options, folder, accelerator)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if restart:
            for name in (_STATE_FILE, _OPTIONS_FILE, BEST_FILE, LAST_FILE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / _LOG_FOLDER, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        run.load_state()
        run.train()
    finally:
        accelerator.end_training()
    return folder / BEST_FILE


def _check_options(folder: Path, options: Options) -> None:
    """Raises ValueError if a folder holds a run with options that may not change."""
    if not (folder / _STATE_FILE).exists():
        return
    known = json.loads((folder / _OPTIONS_FILE).read_text())
    for option in dataclasses.fields(options):
        before, now = known.get(option.name), getattr(options, option.name)
        if before != now and not option.metadata.get("may_change"):
            raise UserError(
                f"the run in {str(folder)!r} has {option.name} = {before!r}, not {now!r}: go on"
                " with its own options, choose another folder, or restart it"
            )


class _Run:
    """A run in one process: models, optimizer and data, and where it stands."""

    def __init__(self, options: Options, folder: Path, accelerator: Accelerator) -> None:
        self.options = options
        self.folder = folder
        self.accelerator = accelerator
        torch.manual_seed(options.seed)
        self.sam = _build_student(options).to(memory_format=torch.channels_last)
        if accelerator.device.type == "cpu":
            _unfuse_attention(self.sam)
        objective, self.examples = _build_objective(options, self.sam)
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
            self.sam, multi_avg_fn=ramped_average(options.ema_decay), use_buffers=True
        )
        self.evaluation_data = (
            open_annotated_images(options.evaluation_data)
            if options.evaluation_data is not None and accelerator.is_main_process
            else None
        )
        self.step = 0
        self.best_score = -math.inf
        self.losses_since_evaluation = [0.0, 0]

    def train(self) -> None:
        options, accelerator = self.options, self.accelerator
        # What a run that broke off had logged behind its last state is about to come again.
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
        steps = Steps(
            self.step,
            options.steps,
            options.batch_size,
            options.accumulate,
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
        """One step. Its random numbers depend on nothing but the seed, the step and the process."""
        options, accelerator = self.options, self.accelerator
        entropy = (options.seed, self.step, accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self.scheduler.step_update(self.step)
        total: Losses = {}
        for index in range(options.accumulate):
            is_last = index == options.accumulate - 1
            with nullcontext() if is_last else accelerator.no_sync(self.objective):
                batch = {
                    name: value.to(accelerator.device, non_blocking=True)
                    for name, value in next(batches).items()
                }
                losses = self.objective(batch)
                accelerator.backward(losses["loss"] / options.accumulate)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / options.accumulate
        accelerator.clip_grad_norm_(self.objective.parameters(), options.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.sam)
        return total

    def _log(self, recent: list[Losses]) -> float:
        """Logs the mean losses of the last steps and returns that of the whole loss."""
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
        self.accelerator.log(means, step=self.step)
        self.losses_since_evaluation[0] += loss * len(recent)
        self.losses_since_evaluation[1] += len(recent)
        return loss

    def _evaluate(self, bar: Any) -> None:
        """Scores the averaged weights, and keeps them."""
        total, count = self.losses_since_evaluation
        self.losses_since_evaluation = [0.0, 0]
        if self.accelerator.is_main_process:
            scores = {"mean training loss": total / count}
            score = -scores["mean training loss"]
            if self.evaluation_data is not None:
                from .evaluation import evaluate

                evaluation = evaluate(
                    self.average.module, self.evaluation_data, measures=_EVALUATED
                )
                scores = {name: score.mean for name, score in evaluation.scores.items()}
                score = sum(scores.values()) / len(scores)
                self.accelerator.log(scores, step=self.step)
            if score > self.best_score:
                self.best_score = score
                self._save_weights(BEST_FILE)
            self._save_weights(LAST_FILE)
            described = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            bar.write(f"step {self.step}: {described}")
        self.accelerator.wait_for_everyone()

    def _save_weights(self, name: str) -> None:
        sam = self.average.module
        save_checkpoint(sam.state_dict(), self.folder / name, backbone=self.sam.backbone)

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        # Else a kill could take what the log has from before this state.
        self.accelerator.get_tracker("tensorboard", unwrap=True).flush()
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "best_score": self.best_score,
            "losses_since_evaluation": self.losses_since_evaluation,
            "model": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        options = json.dumps(dataclasses.asdict(self.options), indent=1)
        _write_whole(self.folder / _OPTIONS_FILE, lambda path: path.write_text(options))
        _write_whole(self.folder / _STATE_FILE, lambda path: torch.save(state, path))

    def load_state(self) -> None:
        """Goes on from the state that was saved last, if there is one."""
        path = self.folder / _STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.step = state["step"]
        self.best_score = state["best_score"]
        self.losses_since_evaluation = state["losses_since_evaluation"]
        self.sam.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def _build_student(options: Options) -> MobileSam:
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
                    f"the teacher {options.teacher!r} has no {name} as SAM's: {error}"
                ) from error
    return student


def _build_objective(options: Options, sam: MobileSam) -> tuple[Objective, Dataset[Batch]]:
    """What is trained, and the stream of examples for it."""
    if options.objective == "supervised":
        set_image_size(sam, options.image_size)
        if options.data == "scenes":
            # Other scenes than those of "scenes:COUNT", which are there to measure on.
            photographs = (
                list_images(options.photographs, recursive=True) if options.photographs else ()
            )
            images: AnnotatedImages = Scenes(
                _ENDLESS, options.image_size, options.seed + 1, photographs
            )
        else:
            source = open_annotated_images(options.data, images=options.images)
            images = Readable(source, strict=options.strict)
        return Supervised(
            sam, PARTS[options.parts], options.corrective_clicks, options.mask_only_rounds
        ), MaskExamples(images, options.image_size, options.prompts_per_image, options.seed)
    embeddings = Embeddings(options.data, options.images)
    set_image_size(sam, embeddings.img_size)
    side = sam.prompt_encoder.image_embedding_size
    if embeddings.shape != (sam.prompt_encoder.embed_dim, *side):
        raise UserError(
            f"the embeddings in {options.data!r} have the shape {embeddings.shape}, those of a SAM "
            f"are {(sam.prompt_encoder.embed_dim, *side)}"
        )
    # It reads any set of which an item may be broken.
    readable: Any = Readable(cast(Any, EmbeddedImages(embeddings)), strict=options.strict)
    examples = EmbeddingExamples(readable, embeddings.img_size, options.seed)
    if options.objective == "decoupled":
        return Decoupled(sam), examples
    parts = PARTS["both" if options.objective == "coupled" else "encoder"]
    return Coupled(sam, parts, options.prompts_per_image), examples


def _use_one_thread(_: int) -> None:
    """As torch does by itself in workers, of which there are enough to keep all cores busy."""
    cv2.setNumThreads(0)  # with 1, OpenCV waits for ever where its threads ended in a fork


def _unfuse_attention(sam: MobileSam) -> None:
    """Makes timm's attention spell itself out, which with a learned bias is faster on a CPU."""
    for module in sam.image_encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters; biases, norms and the like, which have one dimension, do not decay."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def ramped_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Returns an exponential moving average, for ``AveragedModel``, that soon forgets its start.

    After n updates the decay is (1 + n) / (10 + n), as in TensorFlow, until it reaches ``decay``.
    Whole numbers, such as tables of indices and counters, are copied: their mean means nothing.
    """

    def update(averages: Any, values: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # AveragedModel gives tensors of one dtype a time
            torch._foreach_copy_(averages, values)
            return
        steps = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, values, count)

    return update
