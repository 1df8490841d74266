"""Grounded-SAM on MobileSAM: a detector finds boxes by text, MobileSAM their masks.

Follows Grounded-Segment-Anything (https://github.com/IDEA-Research/Grounded-Segment-Anything).
Importing this module also lets the ``groundingdino`` package, which was written for transformers 4,
run with transformers 5.
"""

import inspect
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, overload

import cv2
import numpy as np
import segment_anything
import torch
import wrapt
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from mobile_sam_plugin import MobileSam, build_sam_vit_t
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import ImageSource, load_image

from .instances import Instances, as_predictor, check_thresholds, path_of
from .pretrained import check_length, load_pretrained, place_inputs
from .texts import split_prompts as split_prompts

DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-tiny"

# What the masks of so many boxes take at once stays small beside the model, also at 12 megapixels.
_BOXES_PER_BATCH = 8


class Detections(NamedTuple):
    """What a detector found in one image.

    Attributes:
        boxes: (N, 4), XYXY in pixels of the image.
        scores: (N,), in [0, 1].
        phrases: N texts, of the prompts or parts of them.
        class_ids: (N,), indices into the prompts; if None, :func:`match_phrases` finds them.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    phrases: list[str]
    class_ids: NDArray[np.int64] | None = None


class Detector(Protocol):
    """Finds what phrases name. A function with these arguments is one, too."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        prompts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
        /,
    ) -> Detections:
        """Detects objects.

        Args:
            image: (H, W, 3) RGB.
            prompts: phrases, none of them empty.
            box_threshold: the lowest score, in [0, 1].
            text_threshold: the score from which on a word belongs to a box's phrase, in [0, 1]. A
                detector that scores whole phrases has no use for it.
        """


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


class TransformersDetector:
    """A zero-shot detector of transformers: Grounding DINO, OWLv2 and others.

    That is, whatever ``AutoModelForZeroShotObjectDetection`` loads. Of Grounding DINO, a box
    belongs to the prompt of its best word, and no word of another prompt gets into its phrase.

    Example:
        >>> detector = TransformersDetector("google/owlv2-base-patch16-ensemble", "cuda")
        >>> GroundedMobileSam(sam, detector).predict("dog.jpg", ["a photo of a dog"], 0.1)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_DETECTOR,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads model and processor.

        Args:
            model: a repository on the Hub, or a folder that ``save_pretrained`` wrote.
            device: where to compute.

        Raises:
            As :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self.model, self.processor = load_pretrained(
            "AutoModelForZeroShotObjectDetection", model, device, extra="grounded"
        )
        post_process = self.processor.post_process_grounded_object_detection
        self._scores_words = "text_threshold" in inspect.signature(post_process).parameters

    @torch.no_grad()
    def __call__(
        self,
        image: NDArray[np.uint8],
        prompts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Detects objects, see :class:`Detector`.

        Raises:
            ValueError: a prompt is longer than the model reads.
        """
        self._check_length(prompts)
        text = _caption(prompts) if self._scores_words else [list(prompts)]
        inputs = place_inputs(
            self.processor(images=Image.fromarray(image), text=text, return_tensors="pt"),
            self.model,
        )
        outputs = self.model(**inputs)
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                outputs[name] = value.float()  # in half precision boxes would be off by pixels
        if self._scores_words:
            return self._read_word_scores(
                outputs, inputs["input_ids"][0], image, prompts, box_threshold, text_threshold
            )
        (result,) = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=box_threshold,
            target_sizes=[image.shape[:2]],
            text_labels=[list(prompts)],
        )
        phrases = list(result["text_labels"])
        return Detections(
            _to_numpy(result["boxes"]),
            _to_numpy(result["scores"]),
            phrases,
            np.array([prompts.index(phrase) for phrase in phrases], dtype=np.int64),
        )

    def _check_length(self, prompts: Sequence[str]) -> None:
        """Refuses what the model would cut off."""
        config = self.model.config
        if self._scores_words:
            texts, limit = [_caption(prompts)], config.max_text_len
        else:
            texts, limit = list(prompts), config.text_config.max_position_embeddings
        check_length(texts, limit, self.processor.tokenizer)

    def _read_word_scores(
        self,
        outputs: Any,
        tokens: Tensor,
        image: NDArray[np.uint8],
        prompts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Boxes and phrases of Grounding DINO, as its ``predict`` with ``remove_combined``."""
        tokenizer = self.processor.tokenizer
        stop, *around = tokenizer.convert_tokens_to_ids([".", "[CLS]", "[SEP]"])
        ends = tokens == stop
        prompt_of_token = (ends.cumsum(0) - ends.long()).clamp(max=len(prompts) - 1)
        is_word = ~torch.isin(tokens, torch.tensor([stop, *around], device=tokens.device))

        scores = outputs.logits[0, :, : len(tokens)].sigmoid()
        best, best_token = scores.max(dim=1)
        kept = best > box_threshold
        classes = prompt_of_token[best_token[kept]]
        in_phrase = (scores[kept] > text_threshold) & is_word
        in_phrase &= prompt_of_token == classes[:, None]
        phrases = [
            tokenizer.decode(tokens[words].tolist()) or prompts[index]
            for words, index in zip(in_phrase, classes.tolist(), strict=True)
        ]
        return Detections(
            _to_numpy(cxcywh_to_xyxy(outputs.pred_boxes[0][kept], image.shape[:2])),
            _to_numpy(best[kept]),
            phrases,
            classes.cpu().numpy(),
        )


class GroundingDinoDetector:
    """The original Grounding DINO: a ``groundingdino.util.inference.Model``.

    The package ``rf-groundingdino`` installs it without compiling anything.

    Example:
        >>> from groundingdino.util.inference import Model
        >>> model = Model("GroundingDINO_SwinT_OGC.py", "groundingdino_swint_ogc.pth", "cpu")
        >>> GroundedMobileSam(sam, GroundingDinoDetector(model)).predict("dog.jpg", "a dog")
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self,
        image: NDArray[np.uint8],
        prompts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Detects objects, see :class:`Detector`.

        Raises:
            ValueError: the prompts are longer than the model reads.
        """
        caption = _caption(prompts)
        network = self.model.model
        check_length([caption], network.max_text_len, network.tokenizer)
        detections, phrases = self.model.predict_with_caption(
            image=np.ascontiguousarray(image[..., ::-1]),
            caption=caption,
            box_threshold=box_threshold,
            text_threshold=text_threshold,
        )
        return Detections(detections.xyxy, detections.confidence, phrases)


def match_phrases(phrases: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Finds the class that a detector's phrase means, as ``Model.phrases2classes``, but by words.

    A phrase is of the class that shares most words with it, the shorter one of several such, the
    earlier one of several of those; or else of the first class with the phrase in a word, since
    Grounding DINO reads pieces of words. Case does not matter.

    Args:
        phrases: what a detector returned: classes, parts of them, or parts of several.
        classes: what it was asked for.

    Returns:
        (N,) indices into the classes, -1 where a phrase has nothing in common with any.
    """
    return np.array([_match_phrase(phrase, classes) for phrase in phrases], dtype=np.int64)


def _match_phrase(phrase: str, classes: Sequence[str]) -> int:
    words = _words(phrase)
    shared = {i: len(words & _words(name)) for i, name in enumerate(classes)}
    if any(shared.values()):
        return min(shared, key=lambda i: (-shared[i], len(_words(classes[i]))))
    piece = "".join(re.findall(r"\w+", phrase.lower()))
    return next((i for i, name in enumerate(classes) if piece and piece in name.lower()), -1)


def cxcywh_to_xyxy(boxes: Tensor, image_size: tuple[int, ...]) -> Tensor:
    """Turns Grounding DINO's boxes into pixels.

    Args:
        boxes: (N, 4), centre X and Y, width and height, as fractions of the image's.
        image_size: (height, width) in pixels.

    Returns:
        (N, 4), XYXY in pixels.
    """
    height, width = image_size
    return box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])


def setup_model() -> MobileSam:
    """Returns MobileSAM untrained, as ``MobileSAM.setup_mobile_sam.setup_model`` of Grounded-SAM.

    The demo then loads ``mobile_sam.pt`` into it. With this import in place of that one it runs.
    """
    return build_sam_vit_t(None)


def _check_thresholds(box_threshold: float, text_threshold: float, nms_threshold: float) -> None:
    check_thresholds(
        box_threshold=box_threshold, text_threshold=text_threshold, nms_threshold=nms_threshold
    )


def _caption(prompts: Sequence[str]) -> str:
    """The form in which Grounding DINO was trained to read several phrases.

    It takes full stops and question marks for the ends of phrases, so none may be within one.
    """
    phrases = (" ".join(re.sub("[.?]", " ", prompt).lower().split()) for prompt in prompts)
    return ". ".join(phrases) + "."


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


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _to_numpy(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


@wrapt.when_imported("groundingdino.models.GroundingDINO.groundingdino")
def _support_transformers_5(module: ModuleType) -> None:
    """Replaces groundingdino's copy of BERT's ``forward``, whose helpers transformers 5 dropped.

    All that its copy was for is a mask between the prompts, of a matrix a caption, and BERT itself
    takes that now.
    """
    from transformers import BertModel

    if not hasattr(BertModel, "get_extended_attention_mask"):
        module.BertModelWarper = _take_attention_matrix  # type: ignore[attr-defined]


def _take_attention_matrix(bert_model: nn.Module) -> nn.Module:
    bert_model.register_forward_pre_hook(_add_head_axis, with_kwargs=True)
    return bert_model


def _add_head_axis(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs["attention_mask"]
    return args, {**kwargs, "attention_mask": mask[:, None] if mask.ndim == 3 else mask}
