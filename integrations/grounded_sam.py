"""Grounded-SAM on MobileSAM: a detector finds boxes by text, MobileSAM segments them.

Follows Grounded-Segment-Anything (https://github.com/IDEA-Research/Grounded-Segment-Anything).
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

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_number

from .detectors import DEFAULT_DETECTOR, Detections, Detector, TransformersDetector, match_phrases
from .instances import Instances, as_predictor, path_of
from .texts import split_text

# Even at 12 megapixels the masks of these take little memory compared with the model.
_BOXES_PER_BATCH = 8


class GroundedMobileSam:
    """Segments the objects that a text names.

    Examples:
        >>> grounded = GroundedMobileSam(sam_model_registry["vit_t"]())
        >>> objects = grounded.predict("street.jpg", "a dog. the red car.")
        >>> objects.boxes, objects.labels, objects.scores, objects.masks
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor,
        detector: Detector | str | os.PathLike[str] = DEFAULT_DETECTOR,
        device: str | torch.device | None = None,
    ) -> None:
        """Combines a model with a detector.

        Args:
            model: a ``Sam``, or a predictor that holds one.
            detector: a detector, or the name or folder of one in transformers, as
                :class:`~mobile_sam_plugin.integrations.detectors.TransformersDetector` takes it.
            device: device of the model and of a detector that is given by name; where the model is
                if None.

        Raises:
            TypeError: if ``model`` is neither.
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self.predictor = as_predictor(model, device)
        self.detector: Detector = (
            TransformersDetector(detector, self.predictor.device)
            if isinstance(detector, str | os.PathLike)
            else detector
        )

    @overload
    def predict(
        self,
        image: ImageSource,
        text: str | Sequence[str],
        box_threshold: float = ...,
        text_threshold: float = ...,
        nms_thresh: float = ...,
        predictor: SamPredictor | None = ...,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        image: list[ImageSource] | tuple[ImageSource, ...],
        text: str | Sequence[str],
        box_threshold: float = ...,
        text_threshold: float = ...,
        nms_thresh: float = ...,
    ) -> list[Instances]: ...

    def predict(
        self,
        image: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        text: str | Sequence[str],
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        nms_thresh: float = 0.8,
        predictor: SamPredictor | None = None,
    ) -> Instances | list[Instances]:
        """Finds and segments objects. The defaults are those of the original demo.

        Boxes are clipped to the image, and boxes outside it are dropped.

        Args:
            image: an array, a PIL image or a path; or a list of them.
            text: phrases, as a list or as one text with full stops, commas or line ends between
                them, see :func:`~mobile_sam_plugin.integrations.texts.split_text`.
            box_threshold: minimum score of an object, in [0, 1]. OWLv2 scores lower than Grounding
                DINO: try 0.1.
            text_threshold: minimum score of a word in an object's label, in [0, 1].
            nms_thresh: if two boxes of a class have an IoU above this, in [0, 1], the one with the
                lower score is dropped.
            predictor: predictor with this image set, which then need not be encoded again; for one
                image.

        Returns:
            The objects, best first: ``labels`` are the detector's phrases, ``class_ids`` indices
            into the requested phrases, ``scores`` the detector's. A list of these for a list of
            images.

        Raises:
            TypeError: if ``text`` is not a text or a list of texts, or a threshold not a number.
            UserError: if a phrase is empty, repeated or longer than the detector reads, a threshold
                is outside [0, 1], the detector returns malformed results, or the predictor's image
                has another size.
            RuntimeError: if the predictor has no image set.
            FileNotFoundError, TypeError, ValueError: if an image cannot be read, as in
                :func:`~mobile_sam_plugin.images.load_image`.
        """
        phrases = split_text(text)
        thresholds = box_threshold, text_threshold, nms_thresh
        _check_thresholds(*thresholds)
        if isinstance(image, list | tuple):
            if predictor is not None:
                raise UserError("a predictor has one image set: give that image, not a list")
            return [self._predict(one, phrases, *thresholds, None) for one in image]
        return self._predict(image, phrases, *thresholds, predictor)

    def _predict(
        self,
        image: ImageSource,
        texts: list[str],
        box_threshold: float,
        text_threshold: float,
        nms_thresh: float,
        predictor: SamPredictor | None,
    ) -> Instances:
        pixels = load_image(image)
        found = self.detect(pixels, texts, box_threshold, text_threshold, nms_thresh)
        return Instances(
            image_size=pixels.shape[:2],
            boxes=found.boxes,
            masks=self._segment(pixels, found.boxes, predictor),
            scores=found.scores,
            labels=found.phrases,
            class_ids=found.class_ids,
            image=pixels,
            classes=texts,
            image_path=path_of(image),
        )

    def detect(
        self,
        image: NDArray[np.uint8],
        texts: Sequence[str],
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        nms_thresh: float = 0.8,
    ) -> Detections:
        """Finds the boxes that :meth:`predict` segments.

        Args:
            image: (H, W, 3) uint8 RGB.
            texts: phrases, as ``split_text`` returns them.
            box_threshold, text_threshold, nms_thresh: as in :meth:`predict`.

        Returns:
            The objects, best first, with ``class_ids``; boxes are clipped to the image.

        Raises:
            UserError: if a phrase is longer than the detector reads, a threshold is outside [0, 1],
                or the detector returns malformed results.
        """
        _check_thresholds(box_threshold, text_threshold, nms_thresh)
        detections = self.detector(image, texts, box_threshold, text_threshold)
        found = _check_detections(detections, texts, type(self.detector).__name__)
        height, width = image.shape[:2]
        boxes = found.boxes.clip(0, np.array([width, height] * 2, dtype=np.float32))
        inside = np.flatnonzero((boxes[:, :2] < boxes[:, 2:]).all(axis=1))
        assert found.class_ids is not None
        kept = inside[
            batched_nms(
                torch.from_numpy(boxes[inside]),
                torch.from_numpy(found.scores[inside]),
                torch.from_numpy(found.class_ids[inside]),
                nms_thresh,
            ).numpy()
        ]
        return Detections(
            boxes[kept], found.scores[kept], [found.phrases[i] for i in kept], found.class_ids[kept]
        )

    def _segment(
        self,
        pixels: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        predictor: SamPredictor | None,
    ) -> NDArray[np.bool_]:
        """The mask of each box, (N, H, W)."""
        size = pixels.shape[:2]
        # np.zeros allocates lazily: write only the object's window.
        masks = np.zeros((len(boxes), *size), dtype=bool)
        if not len(boxes):
            return masks
        if predictor is None:
            predictor = self.predictor
            predictor.set_image(pixels)
        else:
            predictor.check_image(pixels)
        transformed = predictor.transform.apply_boxes_torch(
            torch.as_tensor(boxes, device=predictor.device), size
        )
        for start in range(0, len(boxes), _BOXES_PER_BATCH):
            batch, _, _ = predictor.predict_torch(
                None, None, transformed[start : start + _BOXES_PER_BATCH], multimask_output=False
            )
            for index, mask in enumerate(batch[:, 0].cpu().numpy(), start):
                x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
                window = slice(y, y + height), slice(x, x + width)
                masks[index][window] = mask[window]
        return masks


def setup_model() -> MobileSam:
    """Returns an untrained MobileSAM, like ``MobileSAM.setup_mobile_sam.setup_model``.

    Grounded-SAM's demo loads ``mobile_sam.pt`` into it, and runs with this import instead of
    that one.
    """
    return build_sam_vit_t(None)


def _check_thresholds(box_threshold: float, text_threshold: float, nms_thresh: float) -> None:
    check_number("box_threshold", box_threshold, 0, 1)
    check_number("text_threshold", text_threshold, 0, 1)
    check_number("nms_thresh", nms_thresh, 0, 1)


def _check_detections(detections: Detections, texts: Sequence[str], detector: str) -> Detections:
    """Returns the detections as arrays, with class ids.

    Raises:
        UserError: if they are not XYXY boxes with one score and one phrase each, or a class id is
            out of range.
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
        class_ids = match_phrases(phrases, texts)
    class_ids = np.asarray(class_ids, dtype=np.int64)
    if not len(boxes) == len(scores) == len(phrases) == len(class_ids):
        raise UserError(
            f"the detector {detector} returned {len(boxes)} boxes, {len(scores)} scores, "
            f"{len(phrases)} phrases and {len(class_ids)} class ids"
        )
    for values, name in ((boxes, "box"), (scores, "score")):
        if not np.isfinite(values).all():
            raise UserError(f"the detector {detector} returned a {name} with NaN or infinity")
    strange = class_ids[(class_ids < -1) | (class_ids >= len(texts))]
    if strange.size:
        raise UserError(
            f"the detector {detector} returned the class id {strange[0]} for {len(texts)} texts"
        )
    swapped = (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if swapped.any():
        raise UserError(
            f"the detector {detector} returned the box {boxes[swapped][0].tolist()}, which is not "
            "XYXY: left, top, right, bottom"
        )
    return Detections(boxes, scores, list(phrases), class_ids)
