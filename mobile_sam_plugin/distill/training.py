"""The training loop of all objectives, on accelerate.

A run is a folder. However it was interrupted, the same call resumes it from the last saved state,
with the same losses and to the same weights (on a GPU, apart from the order of additions).
"""

import dataclasses
import math
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, default_convert
from tqdm import tqdm

from ..build import build_sam_vit_t
from ..checkpoint import locate_checkpoint, read_checkpoint, save_checkpoint
from ..datasets.annotated import AnnotatedImages
from ..datasets.unreadable import SkipUnreadable, check_fit
from ..errors import MissingExtra, UserError
from ..files import remove_partials, replaced
from ..mobile_sam import MobileSam, set_img_size
from ..runs import RUN_FILE, alone_in, find_run, write_settings
from .batches import EmbeddedImages, EmbeddingExamples, MaskExamples, StepBatchSampler
from .device_examples import DeviceExamples
from .embeddings import Embeddings, fingerprint_decoder
from .lora import add_lora, merge_lora
from .objectives import Batch, Coupled, Decoupled, Losses, Objective, Supervised
from .options import (
    DEFAULT_EVALUATE_EVERY,
    PARTS,
    TrainingOptions,
    check_warmup,
    default_warmup,
)
from .sources import check_image, open_sources, open_validation

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation

try:
    import tensorboard  # noqa: F401, which accelerate would miss only later
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
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

START_FOLDER = "evaluation_of_start"
BEST_FOLDER = "evaluation_of_best"

HOW_TO_GAIN = (
    "lower learning_rate, train less (freeze, or lora with a small rank), leave out augmentation "
    "that does not suit the images, or check that their masks are right"
)
"""What can be done if training makes the scores worse; for messages."""

_EVALUATED = ("click", "click_best", "box", "corrective_3")
_SKIPPED_IN_A_ROW = 10  # steps whose gradients are not finite
_TOLD = 5  # warnings with the number of a step; further steps are only counted
_FALLEN = 2  # evaluations below the score of the start, after which it is told
_WAY_OUT = (
    "resume it with its own options and data, choose another folder, or start over with --restart "
    "(restart=True)"
)


def train(options: TrainingOptions, folder: str | os.PathLike[str], restart: bool = False) -> Path:
    """Trains a student, or resumes an interrupted run.

    Writes to the folder ``best.safetensors`` and ``last.safetensors``, the averaged weights that
    scored best and those of the last evaluation, which ``sam_model_registry["vit_t"]`` loads;
    ``log``, for TensorBoard; ``run.json``, the options; and ``state.pt``, to resume from. With data
    for validation, ``evaluation_of_best`` has the scores of the best weights, and
    ``evaluation_of_start`` those of the checkpoint, if the run starts from one:
    :class:`~mobile_sam_plugin.evaluation.results.Evaluation` loads them.

    The best weights have the highest mean IoU of ``click_best`` and ``box``, or of the one that has
    the prompts that are trained.

    Ctrl-C, in a run of one process, lets the step end and saves the state; a second one does not
    wait.

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
        ValueError: if the folder's run has other options or data, which the message names, or
            another process is writing to it; if a value does not fit the data or the checkpoint; if
            there is no image or most are broken; if the embeddings are of another teacher; or if
            another machine has other data.
        OSError: if a checkpoint or data cannot be read.
        FloatingPointError: if the loss, or the gradients of many steps, are not finite. The last
            saved state is from before.
        MemoryError: if a step needs more memory than there is; the message names what to lower.
        KeyboardInterrupt: at Ctrl-C, after the state is saved.

    Examples:
        >>> options = TrainingOptions("supervised", "scenes", steps=1000, img_size=256)
        >>> sam = sam_model_registry["vit_t"](train(options, "runs/scenes"))
    """
    folder = Path(folder)
    AcceleratorState._reset_state()  # or a second run in a process could have no other precision
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
    with ExitStack() as stack:
        _of_main(accelerator, lambda: stack.enter_context(_prepared(folder, restart)))
        stack.enter_context(_log_errors_told_once())
        try:
            run.load_state()
            with run.ending_at_interrupt():
                run.train()
        finally:
            accelerator.end_training()
    run.warn_of_skipped()
    return folder / BEST_FILE


@contextmanager
def _prepared(folder: Path, restart: bool) -> Iterator[None]:
    """Keeps the folder to this run, without what is left of killed ones or of an earlier one."""
    with alone_in(folder):
        remove_partials(folder)
        if restart:
            for name in (_STATE_FILE, RUN_FILE, BEST_FILE, LAST_FILE):
                (folder / name).unlink(missing_ok=True)
            for name in (_LOG_FOLDER, START_FOLDER, BEST_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        yield


@contextmanager
def _log_errors_told_once() -> Iterator[None]:
    """TensorBoard's thread prints its error no more: the run's next entry in the log raises it."""
    before = threading.excepthook

    def tell(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            before(error)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


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
        objective, self.examples, self.sources, aside, contents = _build_objective(
            options, self.model, accelerator.device
        )
        _check_same(accelerator, contents)
        self.settings = dataclasses.asdict(options) | contents
        self.steps, self.evaluate_every, warmup_steps = self._schedule()
        optimizer = torch.optim.AdamW(
            _parameter_groups(objective, options.weight_decay), options.learning_rate
        )
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=self.steps,
            warmup_t=warmup_steps,
            warmup_lr_init=options.learning_rate / 100,
            t_in_epochs=False,
        )
        self.objective, self.optimizer = accelerator.prepare(objective.train(), optimizer)
        self.average = AveragedModel(
            self.model, multi_avg_fn=ramped_average(options.ema_decay), use_buffers=True
        )
        self.validation_size: int = options.validation_size or self.model.image_encoder.img_size
        set_img_size(self._averaged(), self.validation_size)
        self.validation: AnnotatedImages | None = aside
        _of_main(accelerator, self._open_validation)
        self.step = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.start_score: float | None = None
        self.best_score = -math.inf
        self.evaluations_since_best = 0
        self.losses_since_evaluation = [0.0, 0]
        self.interrupted = False

    def _schedule(self) -> tuple[int, int, int]:
        """Returns the steps of the run, those between evaluations, and those of the warm-up."""
        options = self.options
        steps, evaluate_every = options.steps, DEFAULT_EVALUATE_EVERY
        if options.epochs is not None:
            evaluate_every = math.ceil(self._epoch_length() / options.batch_size)
            steps = options.epochs * evaluate_every
        assert steps is not None  # or the options would have been refused
        if options.evaluate_every is not None:
            evaluate_every = options.evaluate_every
        warmup_steps = options.warmup_steps
        if warmup_steps is None:
            warmup_steps = default_warmup(steps)
        check_warmup(warmup_steps, steps)
        return steps, evaluate_every, warmup_steps

    def _epoch_length(self) -> int:
        """Returns the number of images or scenes of the single data set."""
        examples: Any = self.examples
        (images,) = getattr(examples, "images", [getattr(examples, "embedded", None)])
        return len(images)

    def _open_validation(self) -> None:
        """Opens the data and reads an image, so that faults show at the start."""
        options = self.options
        self.validation = self.validation or open_validation(options)
        if self.validation is not None:
            check = partial(check_image, size=self.validation_size)
            SkipUnreadable(self.validation, check=check, what="evaluation image")[0]

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
        try:
            accelerator.init_trackers(
                _LOG_FOLDER, init_kwargs={"tensorboard": {"purge_step": self.step + 1}}
            )
        except OSError:  # of a full disk, say
            accelerator.trackers.clear()  # what has not begun cannot be ended
            raise
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            disable=None if accelerator.is_main_process else True,
        )
        recent: list[Losses] = []
        with bar:
            if self.step == 0 and options.checkpoint is not None:
                _of_main(accelerator, lambda: self._score_start(bar))
            batches = self._batches()
            while self.step < self.steps and not self._is_out_of_patience():
                recent.append(self._update(batches))
                self.step += 1
                bar.update()
                at_end = self.step == self.steps
                evaluates = at_end or self.step % self.evaluate_every == 0
                saves = evaluates or self.step % options.save_every == 0 or self.interrupted
                if saves or self.step % options.log_every == 0:
                    bar.set_postfix(loss=f"{self._log(recent):.4f}")
                    recent = []
                if evaluates:
                    self._evaluate(bar)
                if saves:
                    self._save_state()
                if self.interrupted:
                    raise KeyboardInterrupt

    def _is_out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.evaluations_since_best >= patience

    @contextmanager
    def ending_at_interrupt(self) -> Iterator[None]:
        """Lets the first Ctrl-C end the run after the current step; the next one interrupts it."""
        in_charge = self.accelerator.num_processes == 1
        if not in_charge or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            tqdm.write("ending after this step; Ctrl-C again ends at once", file=sys.stderr)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _batches(self) -> Iterator[Batch]:
        options, accelerator = self.options, self.accelerator
        on_device = options.on_device
        workers = 0 if on_device else options.workers
        steps = StepBatchSampler(
            self.step,
            self.steps,
            options.batch_size,
            options.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return iter(
            DataLoader(
                self.examples,
                batch_sampler=steps,
                num_workers=workers,
                collate_fn=default_convert if on_device else None,
                pin_memory=accelerator.device.type == "cuda" and not on_device,
                prefetch_factor=4 if workers else None,
                worker_init_fn=_begin_worker,
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
                with _naming_what_to_lower(options):
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
        self.evaluations_since_best = _of_main(
            self.accelerator, lambda: self._score(total / count, bar)
        )

    def _score_start(self, bar: Any) -> None:
        """Evaluates the checkpoint that the run starts from, the best weights so far."""
        if self.validation is None:
            return
        evaluation = self._evaluate_model(self._averaged_model())
        evaluation.save(self.folder / START_FOLDER)
        self.start_score = self._mean_score(evaluation)
        self._keep_best(self.start_score, evaluation)
        bar.write(f"{self._place()}: {_describe_scores(evaluation)}")

    def _score(self, loss: float, bar: Any) -> int:
        """Scores and saves the averaged weights.

        Returns:
            The number of evaluations since the best one.
        """
        score, evaluation, described = -loss, None, ""
        if self.validation is not None:
            evaluation = self._evaluate_model(self._averaged_model())
            score = self._mean_score(evaluation)
            described = f", {_describe_scores(evaluation)}"
        is_best = score > self.best_score
        if is_best:
            self._keep_best(score, evaluation)
            described += ", the best so far"
        self._save_weights(LAST_FILE)
        bar.write(f"{self._place()}: mean training loss {loss:.4f}{described}")
        since_best = 0 if is_best else self.evaluations_since_best + 1
        if since_best == _FALLEN and self.best_score == self.start_score:
            warnings.warn(
                f"the score fell from {self.start_score:.4f} at the start to {score:.4f}: "
                f"{HOW_TO_GAIN}",
                stacklevel=2,
            )
        return since_best

    def _place(self) -> str:
        """Returns the step, or the epoch, for messages."""
        epochs = self.options.epochs
        if epochs is None:
            return f"step {self.step}"
        return f"epoch {self.step * epochs / self.steps:g} of {epochs}"

    def _evaluate_model(self, model: MobileSam) -> "Evaluation":
        from ..evaluation.evaluation import evaluate

        assert self.validation is not None
        _require_finite(model, self.step)
        evaluation = evaluate(model, self.validation, metrics=_EVALUATED)
        means = {name: score.mean for name, score in evaluation.scores.items()}
        self.accelerator.log(means, step=self.step)
        return evaluation

    def _mean_score(self, evaluation: "Evaluation") -> float:
        """Returns the score by which weights are chosen: for the prompts that are trained."""
        names = {"point": ("click_best",), "box": ("box",)}
        chosen = names.get(self.options.prompts, ("click_best", "box"))
        return sum(evaluation.scores[name].mean for name in chosen) / len(chosen)

    def _keep_best(self, score: float, evaluation: "Evaluation | None") -> None:
        self.best_score = score
        self._save_weights(BEST_FILE)
        if evaluation is not None:
            evaluation.save(self.folder / BEST_FOLDER)

    def _averaged(self) -> MobileSam:
        model: Any = self.average.module
        return model

    def _averaged_model(self) -> MobileSam:
        """Returns the averaged weights as a model without adapters."""
        return self._averaged() if self.options.lora is None else merge_lora(self._averaged())

    def _save_weights(self, name: str) -> None:
        model = self._averaged_model()
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
            "start_score": self.start_score,
            "best_score": self.best_score,
            "evaluations_since_best": self.evaluations_since_best,
            "losses_since_evaluation": self.losses_since_evaluation,
            "skipped_steps": self.skipped_steps,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        write_settings(self.folder, self.settings)
        with replaced(self.folder / _STATE_FILE) as partial, open(partial, "wb") as file:
            torch.save(state, file)  # by its path, torch would put its name into it

    def load_state(self) -> None:
        """Resumes from the last saved state, if the first process has one."""
        state = _of_main(self.accelerator, self._read_state)
        if state is None:
            return
        self.step = state["step"]
        self.start_score = state["start_score"]
        self.best_score = state["best_score"]
        self.evaluations_since_best = state["evaluations_since_best"]
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


def _check_embedded(embedded: tuple[NDArray[np.uint8], Tensor], size: int) -> None:
    check_fit(embedded[0], size)


def _describe_scores(evaluation: "Evaluation") -> str:
    return ", ".join(f"{name} {score.mean:.4f}" for name, score in evaluation.scores.items())


@contextmanager
def _naming_what_to_lower(options: TrainingOptions) -> Iterator[None]:
    """Turns torch's errors for too little memory into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
        batch = options.batch_size // options.gradient_accumulation_steps
        raise MemoryError(
            f"a step with {batch} images of {options.img_size} x {options.img_size} pixels and "
            f"{options.prompts_per_image} prompts each does not fit: raise "
            f"gradient_accumulation_steps, or lower batch_size, img_size or prompts_per_image "
            f"({str(error).partition(chr(10))[0][:200]})"
        ) from error


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


_Built = tuple[
    Objective,
    Dataset[Batch],
    list[SkipUnreadable[Any]],
    AnnotatedImages | None,
    dict[str, Any],
]


def _build_objective(options: TrainingOptions, model: MobileSam, device: torch.device) -> _Built:
    """Returns the objective, its examples, their sources, those set aside, and their identity."""
    if options.objective == "supervised":
        return _build_supervised(options, model, device)
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
    contents: dict[str, Any] = {"embeddings": embeddings.identity}
    if options.objective == "decoupled":
        return Decoupled(model), examples, [readable], None, contents
    parts = PARTS if options.objective == "coupled" else ["encoder"]
    # It is not part of the state.
    contents["teacher's decoder"] = fingerprint_decoder(model)
    coupled = Coupled(model, parts, options.prompts_per_image, options.focal_weight)
    return coupled, examples, [readable], None, contents


def _build_supervised(options: TrainingOptions, model: MobileSam, device: torch.device) -> _Built:
    set_img_size(model, options.img_size)
    sources = open_sources(options)
    objective = Supervised(
        model,
        [part for part in PARTS if part not in options.freeze],
        options.corrective_clicks,
        options.mask_only_rounds,
        options.focal_weight,
    )
    if options.lora is not None:
        add_lora(model.image_encoder, options.lora)
        objective.frozen.append(model.image_encoder)  # but for the adapters
    if options.fixed_batch_norms:
        encoder = model.image_encoder
        objective.frozen += [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
    make = partial(DeviceExamples, device=device) if options.on_device else MaskExamples
    examples = make(
        sources.training,
        options.img_size,
        options.prompts_per_image,
        options.seed,
        options.weights,
        options.prompts,
        options.augmentation,
    )
    contents = {"number of images": [len(source) for source in sources.counted]}
    return objective, examples, sources.counted, sources.aside, contents


def _begin_worker(_: int) -> None:
    """Makes OpenCV use one thread, as torch does, and leaves Ctrl-C to the main process."""
    cv2.setNumThreads(0)  # with 1, OpenCV waits forever for threads that a fork ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
