"""Grounded-SAM on MobileSAM: a detector finds boxes by text, MobileSAM their masks.

Follows Grounded-Segment-Anything (https://github.com/IDEA-Research/Grounded-Segment-Anything).
Importing this module also lets the ``groundingdino`` package, which was written for transformers 4,
run with transformers 5.
"""

import os
from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.ops import batched_nms

from mobile_sam_plugin import MobileSam, build_sam_vit_t
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_number

from .detectors import DEFAULT_DETECTOR, Detections, Detector, TransformersDetector, match_phrases
from .instances import Instances, as_predictor, path_of
from .texts import split_prompts as split_prompts

# What the masks of so many boxes take at once stays small beside the model, also at 12 megapixels.
_BOXES_PER_BATCH = 8


class GroundedMobileSam:
    """Segments what a text names.

    Example:
        >>> grounded = GroundedMobileSam(sam_model_registry["vit_t"]())
        >>> objects = grounded.predict("street.jpg", "a dog. the red car.")
        >>> objects.boxes, objects.labels, objects.scores, objects.masks
    """

    def __init__(
        self,
        predictor: nn.Module | segment_anything.SamPredictor,
        detector: Detector | str | os.PathLike[str] = DEFAULT_DETECTOR,
        device: str | torch.device | None = None,
    ) -> None:
        """Takes the two models.

        Args:
            predictor: a ``Sam``, or a predictor that holds one.
            detector: a backend, or the name or the folder of one of transformers' models, as
                :class:`TransformersDetector` takes it.
            device: where MobileSAM, and a detector given by its name, compute; where MobileSAM is
                if None.

        Raises:
            As :func:`~mobile_sam_plugin.integrations.instances.as_predictor` and
            :class:`TransformersDetector`.
        """
        self.predictor = as_predictor(predictor, device)
        self.detector: Detector = (
            TransformersDetector(detector, self.predictor.device)
            if isinstance(detector, str | os.PathLike)
            else detector
        )

    @overload
    def predict(
        self,
        image: ImageSource,
        prompts: str | Sequence[str],
        box_threshold: float = ...,
        text_threshold: float = ...,
        nms_threshold: float = ...,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        image: list[ImageSource] | tuple[ImageSource, ...],
        prompts: str | Sequence[str],
        box_threshold: float = ...,
        text_threshold: float = ...,
        nms_threshold: float = ...,
    ) -> list[Instances]: ...

    def predict(
        self,
        image: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        prompts: str | Sequence[str],
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        nms_threshold: float = 0.8,
    ) -> Instances | list[Instances]:
        """Finds and segments objects; the thresholds' defaults are those of the original demo.

        Boxes are clipped to the image, and those wholly outside of it are dropped. Of boxes of the
        same class that overlap, the best stays.

        Args:
            image: an image, or a list of them, which are done one after another.
            prompts: phrases, as a list, or as one text with full stops, commas or line ends between
                them, see :func:`~mobile_sam_plugin.integrations.texts.split_prompts`.
            box_threshold: the lowest score of an object, in [0, 1]. OWLv2 scores lower than
                Grounding DINO: try 0.1.
            text_threshold: the score from which on a word belongs to an object's label, in [0, 1].
            nms_threshold: the IoU of two boxes from which on the worse one goes, in [0, 1].

        Returns:
            The objects, best first: ``labels`` are the phrases, ``class_ids`` are indices into the
            prompts, ``scores`` are the detector's. A list of this for a list of images.

        Raises:
            TypeError: prompts that are no text, or a threshold that is no number.
            ValueError: an empty prompt, a prompt given twice or longer than the detector reads, a
                threshold outside [0, 1], or a detector that returns nonsense.
            FileNotFoundError, TypeError, ValueError: an image that cannot be read, as
                :func:`~mobile_sam_plugin.images.load_image`.
        """
        phrases = split_prompts(prompts)
        thresholds = box_threshold, text_threshold, nms_threshold
        _check_thresholds(*thresholds)
        if isinstance(image, list | tuple):
            return [self._predict(one, phrases, *thresholds) for one in image]
        return self._predict(image, phrases, *thresholds)

    def _predict(
        self,
        image: ImageSource,
        prompts: list[str],
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
    ) -> Instances:
        pixels = load_image(image)
        found = self.detect(pixels, prompts, box_threshold, text_threshold, nms_threshold)
        return Instances(
            image_size=pixels.shape[:2],
            boxes=found.boxes,
            masks=self._segment(pixels, found.boxes),
            scores=found.scores,
            labels=found.phrases,
            class_ids=found.class_ids,
            image=pixels,
            classes=prompts,
            image_path=path_of(image),
        )

    def detect(
        self,
        image: NDArray[np.uint8],
        prompts: Sequence[str],
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        nms_threshold: float = 0.8,
    ) -> Detections:
        """Finds the boxes of :meth:`predict`, which segments them.

        Args:
            image: (H, W, 3) uint8 RGB.
            prompts: phrases, as :func:`split_prompts` returns them.
            box_threshold, text_threshold, nms_threshold: as of :meth:`predict`.

        Returns:
            The objects, best first, with ``class_ids``; boxes are clipped to the image.

        Raises:
            ValueError: a prompt longer than the detector reads, a threshold outside [0, 1], or a
                detector that returns nonsense.
        """
        _check_thresholds(box_threshold, text_threshold, nms_threshold)
        detections = self.detector(image, prompts, box_threshold, text_threshold)
        found = _check_detections(detections, prompts, type(self.detector).__name__)
        height, width = image.shape[:2]
        boxes = found.boxes.clip(0, np.array([width, height] * 2, dtype=np.float32))
        inside = np.flatnonzero((boxes[:, :2] < boxes[:, 2:]).all(axis=1))
        assert found.class_ids is not None
        kept = inside[
            batched_nms(
                torch.from_numpy(boxes[inside]),
                torch.from_numpy(found.scores[inside]),
                torch.from_numpy(found.class_ids[inside]),
                nms_threshold,
            ).numpy()
        ]
        return Detections(
            boxes[kept], found.scores[kept], [found.phrases[i] for i in kept], found.class_ids[kept]
        )

    def _segment(self, pixels: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The mask of each box, (N, H, W)."""
        size = pixels.shape[:2]
        # Memory that nothing is written to is not taken: hence only the part with the object is.
        masks = np.zeros((len(boxes), *size), dtype=bool)
        if not len(boxes):
            return masks
        self.predictor.set_image(pixels)
        prompts = self.predictor.transform.apply_boxes_torch(
            torch.as_tensor(boxes, device=self.predictor.device), size
        )
        for start in range(0, len(boxes), _BOXES_PER_BATCH):
            batch, _, _ = self.predictor.predict_torch(
                None, None, prompts[start : start + _BOXES_PER_BATCH], multimask_output=False
            )
            for index, mask in enumerate(batch[:, 0].cpu().numpy(), start):
                x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
                window = slice(y, y + height), slice(x, x + width)
                masks[index][window] = mask[window]
        return masks


def setup_model() -> MobileSam:
    """Returns MobileSAM untrained, as ``MobileSAM.setup_mobile_sam.setup_model`` of Grounded-SAM.

    The demo then loads ``mobile_sam.pt`` into it. With this import in place of that one it runs.
    """
    return build_sam_vit_t(None)


def _check_thresholds(box_threshold: float, text_threshold: float, nms_threshold: float) -> None:
    check_number("box_threshold", box_threshold, 0, 1)
    check_number("text_threshold", text_threshold, 0, 1)
    check_number("nms_threshold", nms_threshold, 0, 1)


def _check_detections(detections: Detections, prompts: Sequence[str], detector: str) -> Detections:
    """The detections as arrays, with class ids.

    Raises:
        ValueError: they are no XYXY boxes with a score and a phrase each, or class ids of no
            prompt.
    """
    boxes, scores, phrases, class_ids = detections
    boxes = np.asarray(boxes, dtype=np.float32)
    if not boxes.size:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(
            f"the detector {detector} returned boxes of the shape {boxes.shape}, expected (N, 4)"
        )
    scores = np.asarray(scores, dtype=np.float32)
    if class_ids is None:
        class_ids = match_phrases(phrases, prompts)
    class_ids = np.asarray(class_ids, dtype=np.int64)
    if not len(boxes) == len(scores) == len(phrases) == len(class_ids):
        raise UserError(
            f"the detector {detector} returned {len(boxes)} boxes, {len(scores)} scores, "
            f"{len(phrases)} phrases and {len(class_ids)} class ids"
        )
    for values, name in ((boxes, "box"), (scores, "score")):
        if not np.isfinite(values).all():
            raise UserError(f"the detector {detector} returned a {name} with NaN or infinity")
    strange = class_ids[(class_ids < -1) | (class_ids >= len(prompts))]
    if strange.size:
        raise UserError(
            f"the detector {detector} returned the class id {strange[0]}, there are "
            f"{len(prompts)} prompts"
        )
    swapped = (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if swapped.any():
        raise UserError(
            f"the detector {detector} returned the box {boxes[swapped][0].tolist()}, which is not "
            "XYXY: left, top, right, bottom"
        )
    return Detections(boxes, scores, list(phrases), class_ids)
