"""Scores of a SAM on one image: against true masks, and against its teacher on the same prompts.

The metrics of a mask. All prompts are in pixels of the original image:

- ``click``: the IoU for a point drawn at random from the mask. Of the three masks that SAM
  predicts, the one with the highest predicted IoU counts, as in segment-anything's
  ``predictor_example.ipynb``.
- ``click_best``: for the same point, the highest IoU of the three masks.
- ``box``: for the mask's bounding box, its first and last pixels.
- ``pair_100`` to ``pair_500``, the paper's Table 7: for the point, and a background point at a
  distance of 100 to 500 pixels, drawn at random from the pixels of that circle that are in the
  image and outside of the mask. If there is none, the prompt is skipped, and counted as skipped.
- ``corrective_1`` to ``corrective_5``: for the point, then that many more points, each in the
  middle of what is wrong, see :func:`~.prompts.corrective_click`. Each comes with the logits of
  the mask that it corrects.

For all prompts but a single point, SAM's single mask for unambiguous prompts counts, as in that
notebook.

``recall_10``, ``recall_100`` and ``recall_1000`` are COCO's average recall of the 10, 100 or 1000
masks of everything mode with the highest predicted IoU, see :func:`~.metrics.average_recall`.

The paper does not say which of three masks it compares between student and teacher. Here each
model's own choice counts: the mask with the highest predicted IoU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from ..automatic_mask_generator import SamAutomaticMaskGenerator
from ..datasets.annotated import AnnotatedImage
from ..errors import UserError
from ..everything import drop_empty
from ..inputs import MAX_VALUE
from ..predictor import SamPredictor
from ..records import encode_mask
from .metrics import average_recall, mask_iou
from .predictors import Predictor
from .prompts import PAIR_DISTANCES, Prompt, add_click, corrective_click, make_prompt

_ROUNDS = {f"corrective_{clicks}": clicks for clicks in (1, 2, 3, 4, 5)}
_RECALLS = {f"recall_{masks}": masks for masks in (10, 100, 1000)}

PROMPTS = ("click", "box", *PAIR_DISTANCES)
"""The metrics that are kinds of prompts, see :func:`~.prompts.make_prompt`."""

METRICS = ("click", "click_best", "box", *PAIR_DISTANCES, *_ROUNDS, *_RECALLS)
"""All metrics. With a teacher, ``click``, ``box`` and ``pair_...`` also give ``teacher_...``."""

OF_ONE_PROMPT = ("click", "click_best", "box", *PAIR_DISTANCES)
"""The metrics that any predictor has: no logits are handed back, and nothing is searched for."""

# All masks are kept, because the ranking decides which of them count.
_EVERYTHING: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
MASKS_AT_ONCE = 8
"""Bounds the memory for predictions."""


def choose_masks(count: int, most: int, seed: Sequence[int]) -> list[int]:
    """Returns the indices of at most so many masks of an image, drawn at random, ascending."""
    chosen = np.random.default_rng(seed).permutation(count)[:most]
    return sorted(chosen.tolist())


class Examiner:
    """Scores a model on one image after another.

    Args:
        model: any SAM, or another predictor.
        teacher: if given, the model's masks are also compared with this model's.
        metrics: some of :data:`METRICS`; recall needs a SAM.
        masks_per_image: see :func:`~.evaluation.evaluate`.
        seed: random seed of masks and prompts.

    Attributes:
        names: names of the scores.
    """

    def __init__(
        self,
        model: Sam | Predictor,
        teacher: Sam | None,
        metrics: Sequence[str],
        masks_per_image: int,
        seed: int,
    ) -> None:
        self._predictor: SamPredictor | Predictor
        if isinstance(model, Predictor):
            self._predictor = model
        else:
            self._predictor = SamPredictor(model)
            self._generator = SamAutomaticMaskGenerator(
                model, output_mode="coco_rle", **_EVERYTHING
            )
        self._teacher = None if teacher is None else SamPredictor(teacher)
        self._masks_per_image = masks_per_image
        self._seed = seed
        compared = PROMPTS if teacher is not None else ()
        self.names = [
            name
            for metric in metrics
            for name in (metric, *(f"teacher_{kind}" for kind in compared if kind == metric))
        ]
        from_clicks = {"click", "click_best", *_ROUNDS}
        self._kinds = [
            kind
            for kind in PROMPTS
            if kind in metrics or (kind == "click" and from_clicks & set(metrics))
        ]

    def examine(
        self, index: int, item: AnnotatedImage
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        """Scores the model on an image.

        Args:
            index: of the image in its data set; masks and prompts depend on it.
            item: the image and its masks.

        Returns:
            The indices of the masks that were prompted for, and the values of each score: one per
            such mask, None if there was no such prompt; for recall, one per mask of the image.
        """
        masks = choose_masks(item.count, self._masks_per_image, (self._seed, index))
        scores: dict[str, list[float | None]] = {}
        if masks and self._kinds:
            self._predictor.set_image(item.image)
            if self._teacher is not None:
                self._teacher.set_image(item.image)
            for start in range(0, len(masks), MASKS_AT_ONCE):
                few = masks[start : start + MASKS_AT_ONCE]
                for name, values in self._prompt(index, few, item.take(few)).items():
                    scores[name] = scores.get(name, []) + values
        if masks and set(self.names) & set(_RECALLS):
            scores |= self._search(item)
        return masks, scores

    def _prompt(
        self, index: int, masks: list[int], truth: NDArray[np.bool_]
    ) -> dict[str, list[float | None]]:
        """Computes all scores but recall; ``truth`` (N, H, W) are the masks of these N indices."""
        scores: dict[str, list[float | None]] = {}
        for kind in self._kinds:
            prompts = {
                row: prompt
                for row, mask in enumerate(truth)
                if (prompt := make_prompt(kind, mask, (self._seed, index, masks[row]))) is not None
            }
            rows = list(prompts)
            for name, ious in self._compare(kind, list(prompts.values()), truth[rows]).items():
                if name in self.names:
                    of_rows = dict(zip(rows, ious.tolist(), strict=True))
                    scores[name] = [of_rows.get(row) for row in range(len(truth))]
        return scores

    def _compare(
        self, kind: str, prompts: list[Prompt], truth: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float64]]:
        """Computes the IoU (N,) of all scores that start from N prompts of a kind."""
        if not prompts:
            return {kind: np.zeros(0), f"teacher_{kind}": np.zeros(0)}
        predicted = predict(self._predictor, prompts)
        if predicted.masks.shape[-2:] != truth.shape[-2:]:
            raise UserError(
                f"the predictor returned masks of the shape {predicted.masks.shape[-2:]} for an "
                f"image of {truth.shape[-2:]}"
            )
        ious = {kind: mask_iou(predicted.best_masks, truth)}
        if self._teacher is not None:
            taught = predict(self._teacher, prompts).best_masks
            ious[f"teacher_{kind}"] = mask_iou(predicted.best_masks, taught)
        if kind == "click":
            ious["click_best"] = mask_iou(predicted.masks, truth[:, None]).max(axis=1)
            ious |= self._correct(prompts, predicted, truth)
        return ious

    def _correct(
        self, prompts: list[Prompt], predicted: "Prediction", truth: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float64]]:
        """Computes the IoU (N,) after each corrective click, from N clicks and their masks."""
        ious = {}
        for round_ in range(max(_ROUNDS.get(name, 0) for name in self.names)):
            corrected = zip(prompts, predicted.best_masks, truth, strict=True)
            prompts = [
                add_click(prompt, *corrective_click(mask, true_mask))
                for prompt, mask, true_mask in corrected
            ]
            # A model that is trained badly may exceed what predictors take.
            logits = predicted.best_logits.clip(-MAX_VALUE, MAX_VALUE)
            predicted = predict(self._predictor, prompts, logits)
            ious[f"corrective_{round_ + 1}"] = mask_iou(predicted.best_masks, truth)
        return ious

    def _search(self, item: AnnotatedImage) -> dict[str, list[float | None]]:
        """Computes the recall of everything mode."""
        records = drop_empty(self._generator.generate(item.image))
        records.sort(key=lambda record: -record["predicted_iou"])
        truth = [encode_mask(item.take([mask])[0]) for mask in range(item.count)]
        ious = np.zeros((0, len(truth)))
        if records:
            found = [record["segmentation"] for record in records]
            ious = pycocotools.mask.iou(found, truth, [False] * len(truth))
        return {
            name: average_recall(ious[:limit]).tolist()
            for name, limit in _RECALLS.items()
            if name in self.names
        }


@dataclass(frozen=True)
class Prediction:
    """The masks of a model for N prompts, C masks each.

    Attributes:
        masks: (N, C, H, W) bool.
        best: (N,), the index of the mask with the highest predicted IoU.
        logits: (N, C, h, w), low-resolution, of the kind that the predictor takes as
            ``mask_input``; None if it returned none.
    """

    masks: NDArray[np.bool_]
    best: NDArray[np.int64]
    logits: Any

    @property
    def best_masks(self) -> NDArray[np.bool_]:
        """(N, H, W) bool."""
        return self.masks[np.arange(len(self.best)), self.best]

    @property
    def best_logits(self) -> Any:
        """(N, 1, h, w), low-resolution.

        Raises:
            UserError: if there are none.
        """
        if self.logits is None:
            raise UserError("the predictor returned no logits: leave out the corrective metrics")
        return self.logits[np.arange(len(self.best)), self.best][:, None]


def predict(
    predictor: SamPredictor | Predictor,
    prompts: Sequence[Prompt],
    mask_input: Any = None,
    multimask_output: bool | None = None,
) -> Prediction:
    """Predicts the masks of N prompts.

    Args:
        predictor: with the image set.
        prompts: of one kind, with the same number of points.
        mask_input: (N, 1, h, w), low-resolution logits of earlier masks, or None.
        multimask_output: whether to ask for several masks; for a single point alone if None.

    Raises:
        UserError: if another predictor than a SAM's returns something unsuitable.
    """
    if multimask_output is None:
        multimask_output = prompts[0].box is None and len(prompts[0].point_coords) == 1
    if not isinstance(predictor, SamPredictor):
        return _predict_each(predictor, prompts, mask_input, multimask_output)

    def to_device(numbers: NDArray[Any]) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.float, device=predictor.device)

    size = predictor.original_size
    point_coords = point_labels = boxes = None
    if prompts[0].box is None:
        points = np.stack([prompt.point_coords for prompt in prompts])
        point_coords = to_device(predictor.transform.apply_coords(points, size))
        point_labels = to_device(np.stack([prompt.point_labels for prompt in prompts]))
    else:
        corners = np.stack([prompt.box for prompt in prompts if prompt.box is not None])
        boxes = to_device(predictor.transform.apply_boxes(corners, size))
    masks, scores, logits = predictor.predict_torch(
        point_coords,
        point_labels,
        boxes,
        mask_input,
        multimask_output,
    )
    return Prediction(masks.cpu().numpy(), scores.argmax(dim=1).cpu().numpy(), logits)


def _predict_each(
    predictor: Predictor, prompts: Sequence[Prompt], mask_input: Any, multimask_output: bool
) -> Prediction:
    """Does what :func:`predict` promises, with any predictor, one prompt after another."""
    all_masks: list[NDArray[np.bool_]] = []
    best, all_logits = [], []
    for index, prompt in enumerate(prompts):
        given: dict[str, Any] = {"multimask_output": multimask_output}
        if prompt.box is None:
            given["point_coords"] = prompt.point_coords.astype(np.float32)
            given["point_labels"] = prompt.point_labels
        else:
            given["box"] = prompt.box.astype(np.float32)
        if mask_input is not None:
            given["mask_input"] = mask_input[index]
        masks, scores, logits = predictor.predict(**given)
        masks, scores = np.asarray(masks) > 0, np.asarray(scores)
        if masks.ndim != 3 or scores.shape != masks.shape[:1] or not len(scores):
            raise UserError(
                f"the predictor {type(predictor).__name__} must return masks (C, H, W) and scores "
                f"(C,), not of the shapes {masks.shape} and {scores.shape}"
            )
        if all_masks and masks.shape != all_masks[0].shape:
            raise UserError(
                f"the predictor {type(predictor).__name__} must return equally many masks for "
                f"equal prompts, not {masks.shape} after {all_masks[0].shape}"
            )
        all_masks.append(masks)
        best.append(int(scores.argmax()))
        all_logits.append(logits)
    has_logits = all(logits is not None for logits in all_logits)
    return Prediction(
        np.stack(all_masks), np.array(best), np.stack(all_logits) if has_logits else None
    )
