"""Perturbations of an image that move a SAM's masks, as Attack-SAM (arXiv 2305.00866).

:func:`attack` is the attack itself, to be changed by whoever studies it: the fast gradient sign
method with one step (arXiv 1412.6572), projected gradient descent with several (arXiv 1706.06083).
It changes the pixels of the original image, so what it returns is an image like any other: it can
be saved, and given to other models.

:func:`evaluate_attack` measures it. Scores of a metric such as ``click`` and a model called vit_t:

- ``click vit_t``: the IoU of the mask of the clean image with the true mask;
- ``attacked_click vit_t``: the same of the attacked image;
- ``clean_click vit_t``: the IoU of the mask of the attacked image with that of the clean image;
- ``goal_click vit_t``: with what the attack wants.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..errors import UserError
from ..files import encode_image, write_file
from ..inputs import input_size
from ..predictor import eval_mode
from ..sam_hq import decoder_arguments, unpack
from .evaluation import check_arguments, examine_all, fingerprint_of
from .examiner import PROMPTS, choose_masks
from .predictors import Predictor, predictor_of
from .prompts import Prompt
from .results import Evaluation
from .robustness import compare, make_prompts, segment

Goal = Literal["remove", "enlarge", "target"]
GOALS: tuple[Goal, ...] = ("remove", "enlarge", "target")
"""No mask, a mask of the whole image, or the mask of another object."""

_CLIP = 10.0  # logits beyond it are as good as reached; Attack-SAM's threshold
_SCORES = ("", "attacked_", "clean_", "goal_")


def attack(
    model: Sam,
    image: NDArray[np.uint8],
    prompt: Prompt,
    goal: NDArray[np.bool_],
    epsilon: int = 8,
    steps: int = 10,
) -> NDArray[np.uint8]:
    """Returns an image that looks like another, for which a SAM predicts what it is meant to.

    Each step moves all values by 2.5 epsilon / steps, or epsilon if it is the only one, so that
    logits come closer to 10 inside of the goal and to -10 outside, in the mask that the model
    chooses at this step. The images after each step are compared, and the one returned has the
    mask with the fewest pixels that differ from the goal: a smaller loss may come with a worse one.

    Args:
        model: on any device.
        image: (H, W, 3) uint8 RGB.
        prompt: in pixels of the image.
        goal: (H, W) bool, the mask that the model shall predict; all False for none.
        epsilon: how far a value may move, of 255.
        steps: 1 for the fast gradient sign method, more for projected gradient descent.
    """
    device = model.prompt_encoder.no_mask_embed.weight.device
    clean = torch.tensor(image, device=device).permute(2, 0, 1)[None].float()
    wanted = torch.as_tensor(goal, device=device)
    sign = torch.where(wanted, 1.0, -1.0)
    step = epsilon if steps == 1 else 2.5 * epsilon / steps
    attacked, best, fewest = clean, clean, wanted.numel() + 1
    for done in range(steps + 1):
        with torch.enable_grad(), eval_mode(model):
            attacked = attacked.detach().requires_grad_()
            logits = predict_logits(model, attacked, prompt)
            differing = int(((logits > 0) != wanted).sum())
            if done and differing < fewest:
                best, fewest = attacked.detach(), differing
            if done == steps:
                break
            loss = F.relu(_CLIP - sign * logits).square().mean()
            (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() - step * gradient.sign()
        attacked = moved.clamp(clean - epsilon, clean + epsilon).clamp(0, 255)
    return best.round()[0].permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def predict_logits(model: Sam, pixels: Tensor, prompt: Prompt) -> Tensor:
    """Predicts the mask of a prompt, so that gradients reach the pixels.

    Args:
        model: in eval mode.
        pixels: (1, 3, H, W) float in [0, 255], on the model's device.
        prompt: in pixels of the image.

    Returns:
        Logits (H, W), of a single point those of the mask with the highest predicted IoU, which
        :func:`~.examiner.predict` chooses too.
    """
    height, width = pixels.shape[-2:]
    size, side = (height, width), model.image_encoder.img_size
    transform = ResizeLongestSide(side)

    def to_device(numbers: NDArray[Any]) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.float, device=pixels.device)[None]

    points = boxes = None
    if prompt.box is None:
        coords = transform.apply_coords(prompt.point_coords, size)
        points = to_device(coords), to_device(prompt.point_labels)
    else:
        boxes = to_device(transform.apply_boxes(prompt.box[None], size)[0])
    # Not by apply_image_torch, whose released version takes the batch for the height.
    resized = F.interpolate(
        pixels, input_size(*size, side), mode="bilinear", align_corners=False, antialias=True
    )
    embedding, inner = unpack(model.image_encoder(model.preprocess(resized)))
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=None)
    logits, scores = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=boxes is None and len(prompt.point_coords) == 1,
        **decoder_arguments(inner),
    )
    upscaled: Tensor = model.postprocess_masks(logits, resized.shape[-2:], size)
    return upscaled[0, scores[0].argmax()]


def evaluate_attack(
    source: Sam,
    models: Mapping[str, Sam | Predictor],
    data: AnnotatedImages,
    goal: Goal = "remove",
    *,
    epsilon: int = 8,
    steps: int = 10,
    metrics: Sequence[str] = ("click",),
    masks_per_image: int = 5,
    seed: int = 0,
    strict: bool = False,
    folder: str | os.PathLike[str] | None = None,
    save_images: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Attacks a SAM by :func:`attack`, for each mask, and measures what models make of it.

    Args:
        source: the model that is attacked, whose gradients are followed.
        models: that segment the attacked images, by name; ``source`` itself may be one of them.
        data: as in :func:`~.evaluation.evaluate`.
        goal: ``"target"`` wants the next of the masks that are prompted for in an image, and after
            the last the first; an image with one mask has no score then.
        epsilon, steps: of :func:`attack`.
        metrics: some of :data:`~.examiner.PROMPTS`; each is an attack of its own.
        masks_per_image, seed, strict, folder, progress: as in :func:`~.evaluation.evaluate`.
        save_images: whether to write the attacked images into ``attacked`` in the folder, as PNG
            whose names have the indices of the image and of the mask, and the metric.

    Returns:
        Its ``scores`` have the names that this module explains.

    Raises:
        UserError: if there is no such goal, or epsilon or steps is out of range; or as
            :func:`~.evaluation.evaluate`.
    """
    check_arguments(data, metrics, PROMPTS, masks_per_image, seed)
    if goal not in GOALS:
        raise UserError(f"there is no goal {goal!r}, only {', '.join(GOALS)}")
    if not 1 <= epsilon <= 255:
        raise UserError(f"epsilon must be 1 to 255, not {epsilon}")
    if steps < 1:
        raise UserError(f"steps must be 1 or more, not {steps}")
    if save_images and folder is None:
        raise UserError("attacked images need a folder to be saved in")
    sams = [source, *(each for each in models.values() if not isinstance(each, Predictor))]
    settings: dict[str, Any] = {
        "goal": goal,
        "epsilon": epsilon,
        "steps": steps,
        "metrics": [name for name in PROMPTS if name in metrics],
        "masks_per_image": masks_per_image,
        "seed": seed,
        "save_images": save_images,
        "img_sizes": [sam.image_encoder.img_size for sam in sams],
        "source": fingerprint_of(source),
        "models": {name: fingerprint_of(model) for name, model in models.items()},
    }
    pictures = Path(folder) / "attacked" if save_images and folder is not None else None
    return examine_all(
        data,
        _Examiner(source, models, settings, pictures),
        settings,
        sizes=settings["img_sizes"],
        strict=strict,
        folder=folder,
        progress=progress,
    )


class _Examiner:
    """Attacks one image after another, and scores models on what comes of it."""

    def __init__(
        self,
        source: Sam,
        models: Mapping[str, Sam | Predictor],
        settings: Mapping[str, Any],
        pictures: Path | None,
    ) -> None:
        self._source = source
        self._predictors = {name: predictor_of(model) for name, model in models.items()}
        self._settings = settings
        self._pictures = pictures
        self.names = [
            f"{prefix}{metric} {model}"
            for metric in settings["metrics"]
            for model in models
            for prefix in _SCORES
        ]

    def examine(
        self, index: int, item: AnnotatedImage
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        seed = self._settings["seed"]
        masks = choose_masks(item.count, self._settings["masks_per_image"], (seed, index))
        if not masks:
            return masks, {}
        truth = item.take(masks)
        goals = [self._find_goal(truth, place) for place in range(len(masks))]
        seeds = [(seed, index, number) for number in masks]
        prompts = make_prompts(self._settings["metrics"], truth, seeds)
        clean = {
            name: segment(predictor, item.image, prompts)
            for name, predictor in self._predictors.items()
        }
        scores: dict[str, list[float | None]] = {name: [] for name in self.names}
        for place, (number, mask, goal) in enumerate(zip(masks, truth, goals, strict=True)):
            for metric in self._settings["metrics"]:
                prompt = prompts[metric][place]
                if prompt is None or goal is None:
                    for name in self._predictors:
                        for prefix in _SCORES:
                            scores[f"{prefix}{metric} {name}"].append(None)
                    continue
                settings = self._settings["epsilon"], self._settings["steps"]
                attacked = attack(self._source, item.image, prompt, goal, *settings)
                if self._pictures is not None:
                    self._pictures.mkdir(parents=True, exist_ok=True)
                    file = self._pictures / f"{index:06}_{number:03}_{metric}.png"
                    write_file(file, encode_image(".png", attacked))
                for name, predictor in self._predictors.items():
                    before = [clean[name][metric][place]]
                    found = segment(predictor, attacked, {metric: [prompt]})[metric]
                    for prefix, of_kind in {
                        "": compare(before, [mask]),
                        "attacked_": compare(found, [mask]),
                        "clean_": compare(found, before),
                        "goal_": compare(found, [goal]),
                    }.items():
                        scores[f"{prefix}{metric} {name}"] += of_kind
        return masks, scores

    def _find_goal(self, truth: NDArray[np.bool_], place: int) -> NDArray[np.bool_] | None:
        """Returns the mask (H, W) that is wanted instead of a true one; None if there is none."""
        if self._settings["goal"] == "target":
            return truth[(place + 1) % len(truth)] if len(truth) > 1 else None
        return np.full(truth.shape[1:], self._settings["goal"] == "enlarge")


def format_attacks(evaluations: Mapping[str, Evaluation]) -> str:
    """Returns a table as Markdown: a row for each attacked model and each that sees the images.

    Args:
        evaluations: results of :func:`evaluate_attack` with the same arguments, by the names of the
            attacked models.
    """
    settings = next(iter(evaluations.values())).settings
    lines = [
        "| attacked | seen by | prompt | clean, true mask | attacked, true mask "
        "| attacked, clean image's mask | attacked, goal | masks |",
        "|---|" + "---|" * 7,
    ]
    for source, evaluation in evaluations.items():
        for metric in settings["metrics"]:
            for model in settings["models"]:
                scores = [evaluation.scores[f"{prefix}{metric} {model}"] for prefix in _SCORES]
                cells = [
                    f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})" if score.count else ""
                    for score in scores
                ]
                row = [source, model, metric, *cells, f"{scores[0].count:,}"]
                lines.append(f"| {' | '.join(row)} |")
    first = next(iter(evaluations.values()))
    left_out = f"; {first.left_out}" if first.left_out else ""
    lines += [
        "",
        f"Mean IoU, with 95 % intervals, of {len(first.images):,} images{left_out}. Goal "
        f"{settings['goal']}, epsilon {settings['epsilon']} of 255, steps: {settings['steps']}.",
    ]
    return "\n".join(lines)
