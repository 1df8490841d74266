"""The training loop of all objectives, on accelerate.

A run is a folder. Whatever stops it, the same call goes on from the state saved last, with the same
losses and to the same weights (on a GPU, but for the order in which it adds).
"""

import dataclasses
import json
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
from ..datasets.annotated import AnnotatedImage, AnnotatedImages, open_annotated_images
from ..datasets.readable import Readable, check_fit
from ..errors import MissingExtra, UserError
from ..images import list_images
from ..mobile_sam import MobileSam, set_img_size
from ..scenes.scenes import Scenes
from .batches import EmbeddedImages, EmbeddingExamples, MaskExamples, Steps
from .embeddings import Embeddings, fingerprint_decoder
from .objectives import Batch, Coupled, Decoupled, Losses, Objective, Supervised
from .options import PARTS, Options

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
_OPTIONS_FILE = "options.json"
_STATE_FILE = "state.pt"
_LOG_FOLDER = "log"

_EVALUATED = ("click_best", "box")
_ENDLESS = 1 << 40
_LEFT_OUT_IN_A_ROW = 10  # steps whose gradients are not finite
_TOLD = 5  # of them by their number


def train(options: Options, folder: str | os.PathLike[str], restart: bool = False) -> Path:
    """Trains a student, or goes on with a run that was stopped.

    Into the folder come ``best.safetensors`` and ``last.safetensors``, the averaged weights that
    scored best and those of the last evaluation, which ``sam_model_registry["vit_t"]`` loads;
    ``log``, for TensorBoard; ``options.json``; and ``state.pt``, to go on from. Each file appears
    whole or not at all.

    Several processes, as ``accelerate launch`` starts them, share the work of a step; what comes
    out depends on their number only by corrective clicks, which each draws on its own, and by the
    batch norms, each of which sees its own images. On several machines the folder of the first
    process counts: the others take its state, and need to hold nothing but the same data.

    Images that are broken, or do not fit, are left out and counted, and so are steps whose gradient
    is not finite. Many of either end the run.

    Args:
        options: what to train, on what, and how.
        folder: of the run; made if need be.
        restart: forget a run that the folder holds, and begin anew.

    Returns:
        The path of ``best.safetensors``.

    Raises:
        ValueError: the folder's run has other options or began with other data, which are named;
            or a value that fits nothing, data without an image, most images broken, another
            teacher than that of the embeddings, or other data on another machine.
        FileNotFoundError, OSError: no such checkpoint or data.
        FloatingPointError: the loss is not finite, or the gradients of many steps are not. The
            state saved last is from before.

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
        _of_main(accelerator, lambda: _check_options(folder, options))
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
    run.tell_left_out()
    return folder / BEST_FILE


def _of_main(accelerator: Accelerator, ask: Callable[[], Any]) -> Any:
    """What a call returns, or raises, in the main process: in all of them, which wait for it."""
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
        objective, self.examples, self.sources, self.contents = _build_objective(options, self.sam)
        _check_same(accelerator, self.contents)
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
        self.evaluation_data: AnnotatedImages | None = None
        _of_main(accelerator, self._open_evaluation_data)
        self.step = 0
        self.left_out_steps = 0
        self.left_out_in_a_row = 0
        self.best_score = -math.inf
        self.losses_since_evaluation = [0.0, 0]

    def _open_evaluation_data(self) -> None:
        """Opens it, and reads an image of it, so that what is wrong with it shows at the start."""
        options = self.options
        if options.evaluation_data is None:
            return
        self.evaluation_data = open_annotated_images(
            options.evaluation_data, images=options.evaluation_images
        )
        check = partial(_check_image, size=self.sam.image_encoder.img_size)
        Readable(self.evaluation_data, check=check, what="evaluation image")[0]

    def tell_left_out(self) -> None:
        """Warns of images and steps that were left out."""
        for source in self.sources:
            source.skipped.tell()
        if self.left_out_steps:
            warnings.warn(
                f"{self.left_out_steps} of {self.step} steps are left out, since their gradients "
                "were not finite",
                stacklevel=2,
            )

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
                    for name, value in _next(batches).items()
                }
                losses = self.objective(batch)
                accelerator.backward(losses["loss"] / options.accumulate)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / options.accumulate
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), options.gradient_clip)
        # A scaler of float16 looks for itself.
        if accelerator.scaler is not None or math.isfinite(norm):
            self.optimizer.step()
            self.left_out_in_a_row = 0
        else:
            self._leave_step_out()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.sam)
        return total

    def _leave_step_out(self) -> None:
        self.left_out_steps += 1
        self.left_out_in_a_row += 1
        if self.left_out_in_a_row > _LEFT_OUT_IN_A_ROW:
            raise FloatingPointError(
                f"the gradients of {self.left_out_in_a_row} steps in a row are not finite, up to "
                f"step {self.step + 1}: lower the learning rate or raise the precision, and restart"
            )
        if self.left_out_steps <= _TOLD:
            warnings.warn(
                f"step {self.step + 1} is left out: its gradient is not finite", stacklevel=2
            )

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
        means["left out, images"] = sum(len(source.skipped) for source in self.sources)
        means["left out, steps"] = self.left_out_steps
        self.accelerator.log(means, step=self.step)
        self.losses_since_evaluation[0] += loss * len(recent)
        self.losses_since_evaluation[1] += len(recent)
        return loss

    def _evaluate(self, bar: Any) -> None:
        """Scores the averaged weights, and keeps them."""
        total, count = self.losses_since_evaluation
        self.losses_since_evaluation = [0.0, 0]
        _of_main(self.accelerator, lambda: self._score(total / count, bar))

    def _score(self, loss: float, bar: Any) -> None:
        scores = {"mean training loss": loss}
        score = -loss
        if self.evaluation_data is not None:
            from ..evaluation.evaluation import evaluate

            evaluation = evaluate(self.average.module, self.evaluation_data, measures=_EVALUATED)
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
        sam = self.average.module
        _require_finite(sam, self.step)
        save_checkpoint(sam.state_dict(), self.folder / name, backbone=self.sam.backbone)

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        _require_finite(self.sam, self.step)
        # Else a kill could take what the log has from before this state.
        self.accelerator.get_tracker("tensorboard", unwrap=True).flush()
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "best_score": self.best_score,
            "losses_since_evaluation": self.losses_since_evaluation,
            "left_out_steps": self.left_out_steps,
            "contents": self.contents,
            "model": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        options = json.dumps(dataclasses.asdict(self.options), indent=1)
        _write_whole(self.folder / _OPTIONS_FILE, lambda path: path.write_text(options))
        _write_whole(self.folder / _STATE_FILE, lambda path: torch.save(state, path))

    def load_state(self) -> None:
        """Goes on from the state that was saved last, if there is one in the first process."""
        state = _of_main(self.accelerator, self._read_state)
        if state is None:
            return
        begun = state.get("contents", self.contents)  # which older releases did not save
        if different := [name for name in self.contents if begun.get(name) != self.contents[name]]:
            raise UserError(
                f"the run in {str(self.folder)!r} began with other {', '.join(different)} than are "
                "there now: put back what was there, choose another folder, or restart it"
            )
        self.step = state["step"]
        self.best_score = state["best_score"]
        self.losses_since_evaluation = state["losses_since_evaluation"]
        self.left_out_steps = state.get("left_out_steps", 0)
        self.sam.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _read_state(self) -> Any:
        path = self.folder / _STATE_FILE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, UnpicklingError) as error:
            raise UserError(f"{str(path)!r} is damaged: restart the run ({error})") from error


def _check_same(accelerator: Accelerator, contents: dict[str, Any]) -> None:
    """Raises UserError in all processes if one has other data than another."""
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
    """The next batch; of an error in a worker process its message without the traceback there."""
    try:
        return next(batches)
    except UserError as error:
        if not str(error).startswith("Caught "):
            raise
        raise UserError(str(error).rstrip().splitlines()[-1].partition(": ")[2]) from error


def _require_finite(sam: nn.Module, step: int) -> None:
    """Raises FloatingPointError rather than have such weights saved."""
    for name, tensor in sam.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"the weights {name} are not finite at step {step}: lower the learning rate or "
                "raise the precision, and restart"
            )


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


def _build_objective(
    options: Options, sam: MobileSam
) -> tuple[Objective, Dataset[Batch], list[Readable[Any]], dict[str, Any]]:
    """What is trained; the stream of examples for it, what that reads, and what tells the data."""
    if options.objective == "supervised":
        set_img_size(sam, options.image_size)
        images, sources = _open_images(options)
        return (
            Supervised(
                sam, PARTS[options.parts], options.corrective_clicks, options.mask_only_rounds
            ),
            MaskExamples(images, options.image_size, options.prompts_per_image, options.seed),
            sources,
            {"number of images": [len(source) for source in sources]},
        )
    embeddings = Embeddings(options.data, options.images)
    set_img_size(sam, embeddings.img_size)
    side = sam.prompt_encoder.image_embedding_size
    if embeddings.shape != (sam.prompt_encoder.embed_dim, *side):
        raise UserError(
            f"the embeddings in {options.data!r} have the shape {embeddings.shape}, those of a SAM "
            f"are {(sam.prompt_encoder.embed_dim, *side)}"
        )
    if options.teacher is not None and embeddings.decoder not in (None, fingerprint_decoder(sam)):
        raise UserError(
            f"the embeddings in {options.data!r} are of another teacher, {embeddings.teacher!r}, "
            f"than {options.teacher!r}, whose decoder does not fit them: give that one"
        )
    readable = Readable(
        EmbeddedImages(embeddings),
        strict=options.strict,
        check=partial(_check_embedded, size=embeddings.img_size),
        what="image",
    )
    examples = EmbeddingExamples(readable, embeddings.img_size, options.seed)
    contents = {"embeddings": embeddings.identity}
    if options.objective == "decoupled":
        return Decoupled(sam), examples, [readable], contents
    parts = PARTS["both" if options.objective == "coupled" else "encoder"]
    # The teacher's decoder is not part of the state.
    contents["teacher's decoder"] = fingerprint_decoder(sam)
    return Coupled(sam, parts, options.prompts_per_image), examples, [readable], contents


def _open_images(options: Options) -> tuple[AnnotatedImages, list[Readable[Any]]]:
    """The images to train on, and what they are read from."""
    photographs = list_images(options.photographs, recursive=True) if options.photographs else ()
    if options.data == "scenes":
        scenes = Scenes(
            _ENDLESS,
            options.image_size,
            options.seed,
            photographs,
            training=True,
            strict=options.strict,
        )
        return scenes, [scenes.photographs]
    source = open_annotated_images(options.data, images=options.images)
    if isinstance(source, Scenes):
        source = Scenes(
            source.count,
            source.size,
            source.seed,
            photographs,
            training=True,
            strict=options.strict,
        )
    readable = Readable(
        source,
        strict=options.strict,
        check=partial(_check_image, size=options.image_size),
        what="image",
    )
    more = [source.photographs] if isinstance(source, Scenes) else []
    return readable, [readable, *more]


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
