"""Detectors that find boxes by text, or of anything.

Importing this module also lets the ``groundingdino`` package, which was written for transformers 4,
run with transformers 5.
"""

import inspect
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import wrapt
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert, nms
from typing_extensions import Self

from .pretrained import check_length, load_pretrained, place_inputs
from .texts import split_text as split_text

DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-tiny"


class Detections(NamedTuple):
    """The objects that a detector finds in one image.

    Attributes:
        boxes: (N, 4), XYXY in pixels of the image.
        scores: (N,), in [0, 1].
        phrases: N phrases: requested texts, or parts of them.
        class_ids: (N,), indices into the texts; found by :func:`match_phrases` if None.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    phrases: list[str]
    class_ids: NDArray[np.int64] | None = None


class Detector(Protocol):
    """Finds objects by text. A function with these arguments is also a detector."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        texts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
        /,
    ) -> Detections:
        """Detects objects.

        Args:
            image: (H, W, 3) uint8 RGB.
            texts: phrases, none of them empty.
            box_threshold: minimum score of a box, in [0, 1].
            text_threshold: minimum score of a word in the phrase of a box, in [0, 1]. Detectors
                that score whole phrases ignore it.
        """


class TransformersDetector:
    """Zero-shot detector of transformers: Grounding DINO, OWLv2 and others.

    ``AutoModelForZeroShotObjectDetection`` loads it. With Grounding DINO, a box belongs to the text
    of its best word, and its phrase has no words of other texts.

    Examples:
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
            model: repository on the Hub, or a folder that ``save_pretrained`` has written.
            device: device of the model.

        Raises:
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self._take(
            *load_pretrained("AutoModelForZeroShotObjectDetection", model, device, extra="grounded")
        )

    @classmethod
    def of(cls, model: Any, processor: Any) -> Self:
        """Returns the detector of a model of transformers and its processor."""
        detector = cls.__new__(cls)
        detector._take(model, processor)
        return detector

    def _take(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        post_process = processor.post_process_grounded_object_detection
        self._scores_words = "text_threshold" in inspect.signature(post_process).parameters

    @torch.no_grad()
    def __call__(
        self,
        image: NDArray[np.uint8],
        texts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Detects objects, see :class:`Detector`.

        Raises:
            UserError: if a text is longer than the model reads.
        """
        self._check_length(texts)
        text = _caption(texts) if self._scores_words else [list(texts)]
        inputs = place_inputs(
            self.processor(images=Image.fromarray(image), text=text, return_tensors="pt"),
            self.model,
        )
        outputs = _in_float32(self.model(**inputs))
        if self._scores_words:
            return self._read_word_scores(
                outputs, inputs["input_ids"][0], image, texts, box_threshold, text_threshold
            )
        (result,) = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=box_threshold,
            target_sizes=[image.shape[:2]],
            text_labels=[list(texts)],
        )
        phrases = list(result["text_labels"])
        return Detections(
            _to_numpy(result["boxes"]),
            _to_numpy(result["scores"]),
            phrases,
            np.array([texts.index(phrase) for phrase in phrases], dtype=np.int64),
        )

    def _check_length(self, texts: Sequence[str]) -> None:
        """Refuses texts that the model would cut off."""
        config = self.model.config
        if self._scores_words:
            texts, limit = [_caption(texts)], config.max_text_len
        else:
            texts, limit = list(texts), config.text_config.max_position_embeddings
        check_length(texts, limit, self.processor.tokenizer)

    def _read_word_scores(
        self,
        outputs: Any,
        tokens: Tensor,
        image: NDArray[np.uint8],
        texts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Boxes and phrases of Grounding DINO, as in its ``predict`` with ``remove_combined``."""
        tokenizer = self.processor.tokenizer
        stop, *around = tokenizer.convert_tokens_to_ids([".", "[CLS]", "[SEP]"])
        ends = tokens == stop
        text_of_token = (ends.cumsum(0) - ends.long()).clamp(max=len(texts) - 1)
        is_word = ~torch.isin(tokens, torch.tensor([stop, *around], device=tokens.device))

        scores = outputs.logits[0, :, : len(tokens)].sigmoid()
        best, best_token = scores.max(dim=1)
        kept = best > box_threshold
        classes = text_of_token[best_token[kept]]
        in_phrase = (scores[kept] > text_threshold) & is_word
        in_phrase &= text_of_token == classes[:, None]
        phrases = [
            tokenizer.decode(tokens[words].tolist()) or texts[index]
            for words, index in zip(in_phrase, classes.tolist(), strict=True)
        ]
        return Detections(
            _to_numpy(cxcywh_to_xyxy(outputs.pred_boxes[0][kept], image.shape[:2])),
            _to_numpy(best[kept]),
            phrases,
            classes.cpu().numpy(),
        )


class ClassAgnosticDetector:
    """Boxes of objects of any class, for everything mode with ``search="proposals"``.

    Takes any detector of transformers: OWLv2 by its objectness; other zero-shot detectors, such as
    Grounding DINO, with the text "object"; RT-DETR, D-FINE and others of fixed classes with all of
    them.

    Examples:
        >>> propose = ClassAgnosticDetector("google/owlv2-base-patch16-ensemble", "cuda")
        >>> generator = SamAutomaticMaskGenerator(sam, search="proposals")
        >>> masks = generator.generate(pixels, proposals=propose(pixels))
    """

    def __init__(
        self, model: str | os.PathLike[str], device: str | torch.device = "cpu", most: int = 256
    ) -> None:
        """Loads model and processor.

        Args:
            model: repository on the Hub, or a folder that ``save_pretrained`` has written.
            device: device of the model.
            most: number of boxes that are returned at most, the best ones. Detectors score
                differently, so a number is kept rather than a score; the default is a quarter of
                the points of everything mode's grid.

        Raises:
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self.model, self.processor = load_pretrained(
            ("AutoModelForZeroShotObjectDetection", "AutoModelForObjectDetection"),
            model,
            device,
            extra="grounded",
        )
        self._by_text = None
        if hasattr(self.processor, "post_process_grounded_object_detection"):
            self._by_text = TransformersDetector.of(self.model, self.processor)
        self._most = most

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Detects objects.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (N, 4), XYXY in pixels, best first, without duplicates: of two boxes with an IoU above
            0.7 the worse one is dropped.
        """
        boxes, scores = self._detect(image)
        return _to_numpy(boxes[nms(boxes, scores, 0.7)[: self._most]])

    def _detect(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Returns all boxes (N, 4), XYXY in pixels, and their scores (N,)."""
        has_objectness = hasattr(self.model, "objectness_predictor")
        if self._by_text is not None and not has_objectness:
            found = self._by_text(image, ["object"], 0.0, 0.0)
            return torch.from_numpy(found.boxes), torch.from_numpy(found.scores)
        text = {"text": [["object"]]} if has_objectness else {}  # OWLv2 wants one, for its classes
        inputs = place_inputs(
            self.processor(images=Image.fromarray(image), return_tensors="pt", **text), self.model
        )
        outputs = _in_float32(self.model(**inputs))
        if has_objectness:
            outputs["logits"] = outputs["objectness_logits"][..., None]
        processor = getattr(self.processor, "image_processor", self.processor)
        (result,) = processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=[image.shape[:2]]
        )
        return result["boxes"], result["scores"]


class GroundingDinoDetector:
    """The original Grounding DINO: a ``groundingdino.util.inference.Model``.

    The package ``rf-groundingdino`` installs it without compiling anything.

    Examples:
        >>> from groundingdino.util.inference import Model
        >>> model = Model("GroundingDINO_SwinT_OGC.py", "groundingdino_swint_ogc.pth", "cpu")
        >>> GroundedMobileSam(sam, GroundingDinoDetector(model)).predict("dog.jpg", "a dog")
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self,
        image: NDArray[np.uint8],
        texts: Sequence[str],
        box_threshold: float,
        text_threshold: float,
    ) -> Detections:
        """Detects objects, see :class:`Detector`.

        Raises:
            UserError: if the texts are longer than the model reads.
        """
        caption = _caption(texts)
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
    """Returns the class of each phrase, as ``Model.phrases2classes`` does, but by words.

    Picks the class that shares most words with the phrase; on ties the one with fewer words, then
    the earlier. If none shares a word, picks the first class that contains the phrase, since
    Grounding DINO reads pieces of words. Case does not matter.

    Args:
        phrases: what a detector returns: classes, parts of them, or parts of several.
        classes: what was requested.

    Returns:
        (N,) indices into the classes, -1 for a phrase that no class matches.
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
    """Converts Grounding DINO's boxes to pixels.

    Args:
        boxes: (N, 4), centre X and Y, width and height, as fractions of the image's size.
        image_size: (height, width) in pixels.

    Returns:
        (N, 4), XYXY in pixels.
    """
    height, width = image_size
    return box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])


def _caption(texts: Sequence[str]) -> str:
    """The form in which Grounding DINO was trained to read several phrases.

    Full stops and question marks end a phrase, so they are removed from the inside of phrases.
    """
    phrases = (" ".join(re.sub("[.?]", " ", text).lower().split()) for text in texts)
    return ". ".join(phrases) + "."


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _in_float32(outputs: Any) -> Any:
    """Converts the outputs of a model in place: half precision would move boxes by pixels."""
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            outputs[name] = value.float()
    return outputs


def _to_numpy(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


@wrapt.when_imported("groundingdino.models.GroundingDINO.groundingdino")
def _support_transformers_5(module: ModuleType) -> None:
    """Replaces groundingdino's copy of BERT's ``forward``, whose helpers transformers 5 dropped.

    The copy only adds a mask between the texts, one matrix per caption. BERT itself now takes it.
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
