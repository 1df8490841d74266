"""Class names by CLIP for the masks of everything mode, and the masks that match a sentence.

Follows segment-anything-with-clip (https://github.com/Curt-Park/segment-anything-with-clip), which
shows CLIP the masked crops, and Semantic-Segment-Anything
(https://github.com/fudan-zvg/Semantic-Segment-Anything), which merges labelled masks into a map.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import cv2
import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mobile_sam_plugin.drawing import colors_of, palette
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.everything import drop_empty
from mobile_sam_plugin.files import encode_image
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_integer
from mobile_sam_plugin.predictor import SamPredictor
from mobile_sam_plugin.records import decode_masks
from mobile_sam_plugin.results import cut_out

from .instances import (
    Instances,
    as_predictor,
    boxes_of,
    everything_mode,
    path_of,
)
from .pretrained import check_length, load_pretrained, place_inputs
from .texts import check_texts

DEFAULT_CLASSIFIER = "openai/clip-vit-base-patch32"


class Classifier(Protocol):
    """Scores how well images match texts. A function with these arguments is also a classifier."""

    def __call__(
        self, images: Iterable[NDArray[np.uint8]], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compares images with texts.

        Args:
            images: an iterable, which makes each image when it is read: (H, W, 3) uint8 RGB, of any
                size.
            texts: at least one.

        Returns:
            Logits, (number of images, number of texts): higher for a better match. Softmax over the
            texts gives the probabilities of an image.
        """


@dataclass(eq=False)
class SemanticInstances(Instances):
    """Masks with one class each.

    :meth:`save` also writes ``semantic_map.png``, whose values are 1 and up for the classes and 0
    for none, with a palette, or 16 bits for more than 255 classes; and ``legend.png``.
    """

    def semantic_map(self) -> NDArray[np.int64]:
        """Returns the class of each pixel, (H, W), -1 outside all masks.

        Where masks overlap, the smaller one counts, as in Semantic-Segment-Anything.
        """
        assert self.class_ids is not None
        classes = np.full(self.image_size, -1, dtype=np.int64)
        for index in np.argsort([-np.count_nonzero(mask) for mask in self.masks], kind="stable"):
            classes[self.masks[index]] = self.class_ids[index]
        return classes

    def legend(self, image: ImageSource | None = None) -> NDArray[np.uint8]:
        """Returns the map over the image, beside the names and area fractions of its classes.

        The classes that occur are listed, the largest first.

        Args:
            image: as in :meth:`overlay`.

        Returns:
            (H, W', 3) uint8 RGB.
        """
        picture = self._load_same_size(image).copy()
        classes = self.semantic_map()
        found = classes >= 0
        picture[found] = (picture[found] * 0.4 + colors_of(classes[found] + 1) * 0.6).round()
        shares = np.bincount(classes[found], minlength=len(self.classes)) / classes.size
        occurring = [i for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
        texts = [f"{self.classes[i]} {shares[i]:.0%}" for i in occurring]
        return np.hstack(
            [picture, _draw_column(len(picture), texts, colors_of(1 + np.array(occurring, int)))]
        )

    def _encode_pictures(self, image: NDArray[np.uint8]) -> dict[str, bytes]:
        values = self.semantic_map() + 1
        semantic_map = (
            encode_image(".png", values.astype(np.uint8), palette=palette())
            if len(self.classes) < 256
            else encode_image(".png", values.astype(np.uint16))
        )
        legend = encode_image(".png", self.legend(image))
        pictures = super()._encode_pictures(image)
        return {**pictures, "semantic_map.png": semantic_map, "legend.png": legend}


class SemanticMobileSam:
    """Segments everything in an image, and classifies the masks.

    Examples:
        >>> semantic = SemanticMobileSam(sam_model_registry["vit_t"]())
        >>> found = semantic.predict("street.jpg", ["road", "car", "tree", "sky"])
        >>> found.labels, found.semantic_map()
        >>> best, *others = semantic.search("street.jpg", "a car with open doors", found.masks)
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor,
        classifier: Classifier | str | os.PathLike[str] = DEFAULT_CLASSIFIER,
        device: str | torch.device | None = None,
        **generator_options: Any,
    ) -> None:
        """Combines a model with a classifier.

        Args:
            model: a ``Sam``, or a predictor that holds one.
            classifier: a classifier, or the name or folder of a CLIP model in transformers, as
                :class:`ClipClassifier` takes it.
            device: device of the model and of a classifier that is given by name; where the model
                is if None.
            **generator_options: options of
                :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`, such as ``points_per_side``.

        Raises:
            TypeError: if ``model`` is neither.
            ValueError: if the generator refuses an option.
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        predictor = as_predictor(model, device)
        self.generator = everything_mode(predictor, output_mode="coco_rle", **generator_options)
        self.classifier: Classifier = (
            ClipClassifier(classifier, predictor.device)
            if isinstance(classifier, str | os.PathLike)
            else classifier
        )

    def segment(
        self,
        image: ImageSource,
        progress: Callable[[int, int], None] | None = None,
        predictor: SamPredictor | None = None,
    ) -> NDArray[np.bool_]:
        """Segments everything in an image, for several calls of :meth:`predict` or :meth:`search`.

        Args:
            image: an array, a PIL image or a path.
            progress: called repeatedly with the number of points done and of all points.
            predictor: predictor with this image set, which then need not be encoded again.

        Returns:
            The masks, (N, H, W) bool, none of them empty.
        """
        pixels = load_image(image)
        records = drop_empty(self.generator.generate(pixels, progress, predictor))
        return decode_masks(records, pixels.shape[:2])

    def predict(
        self,
        image: ImageSource,
        classes: Sequence[str],
        masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]] | None = None,
    ) -> SemanticInstances:
        """Classifies masks.

        Args:
            image: an array, a PIL image or a path.
            classes: names, which CLIP reads after "a photo of a".
            masks: (N, H, W) bool, or a list of N masks (H, W); those of :meth:`segment` if None.

        Returns:
            The masks in the same order: ``labels`` and ``class_ids`` are the most likely classes,
            ``scores`` their probabilities.

        Raises:
            TypeError: if ``classes`` is not a list of texts, or the masks are not boolean.
            UserError: if there is no class, or one is empty, repeated or longer than the classifier
                reads; if the masks have another size; or if the classifier returns malformed
                results.
            FileNotFoundError, TypeError, ValueError: if the image cannot be read, as in
                :func:`~mobile_sam_plugin.images.load_image`.
        """
        names = _check_classes(classes)
        pixels = load_image(image)
        found = self._check_masks(pixels, masks)
        logits = self._compare(pixels, found, [f"a photo of a {name}" for name in names])
        class_ids = logits.argmax(axis=1)
        return SemanticInstances(
            image_size=pixels.shape[:2],
            boxes=boxes_of(found),
            masks=found,
            scores=_softmax(logits, axis=1).max(axis=1),
            labels=[names[i] for i in class_ids],
            class_ids=class_ids,
            image=pixels,
            image_path=path_of(image),
            classes=names,
        )

    def search(
        self,
        image: ImageSource,
        text: str,
        masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]] | None = None,
        limit: int = 5,
    ) -> Instances:
        """Finds the masks that match a sentence best.

        Args:
            image: an array, a PIL image or a path.
            text: sentence that CLIP reads, for example "a photo of a red cup".
            masks: as in :meth:`predict`.
            limit: maximum number of masks.

        Returns:
            The best masks, best first; ``scores`` are their probabilities among all masks, as in
            segment-anything-with-clip.

        Raises:
            TypeError: if ``text`` is not a str, or ``limit`` not a whole number.
            UserError: if ``text`` is empty, or ``limit`` below 1.
            FileNotFoundError, TypeError, ValueError: as in :meth:`predict`.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if not text.strip():
            raise UserError("the text is empty: describe what to search for")
        check_integer("limit", limit, 1)
        pixels = load_image(image)
        found = self._check_masks(pixels, masks)
        scores = _softmax(self._compare(pixels, found, [text])[:, 0], axis=0)
        best = np.argsort(-scores, kind="stable")[:limit]
        return Instances(
            image_size=pixels.shape[:2],
            boxes=boxes_of(found[best]),
            masks=found[best],
            scores=scores[best],
            labels=[text] * len(best),
            image=pixels,
            image_path=path_of(image),
        )

    def _check_masks(
        self,
        pixels: NDArray[np.uint8],
        masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]] | None,
    ) -> NDArray[np.bool_]:
        """Checks the masks; segments everything if there are none."""
        if masks is None:
            return self.segment(pixels)
        size = pixels.shape[:2]
        expected = f"the masks must have the shape (N, {size[0]}, {size[1]}) for this image"
        try:
            found = np.asarray(masks)
        except ValueError as error:
            raise UserError(f"{expected}, not several shapes") from error
        if not found.size:
            found = np.zeros((0, *size), dtype=bool)
        if found.dtype != bool:
            raise TypeError(f"the masks must be boolean, not {found.dtype}")
        if found.ndim != 3 or found.shape[1:] != size:
            raise UserError(f"{expected}, not {found.shape}")
        empty = np.flatnonzero(~found.any(axis=(1, 2)))
        if empty.size:
            raise UserError(f"mask {empty[0]} is empty: drop empty masks")
        return found

    def _compare(
        self, pixels: NDArray[np.uint8], masks: NDArray[np.bool_], texts: list[str]
    ) -> NDArray[np.float32]:
        if not len(masks):
            return np.zeros((0, len(texts)), dtype=np.float32)
        crops = (cut_out(pixels, mask)[..., :3] for mask in masks)  # black around the mask
        logits = np.asarray(self.classifier(crops, texts), dtype=np.float32)
        if logits.shape != (len(masks), len(texts)):
            raise UserError(
                f"the classifier {type(self.classifier).__name__} returned logits of the shape "
                f"{logits.shape} for {len(masks)} images and {len(texts)} texts"
            )
        if not np.isfinite(logits).all():
            raise UserError(
                f"the classifier {type(self.classifier).__name__} returned NaN or infinity"
            )
        return logits


class ClipClassifier:
    """CLIP, or another model of transformers that embeds images and texts in one space.

    Examples:
        >>> classifier = ClipClassifier("openai/clip-vit-large-patch14", "cuda")
        >>> SemanticMobileSam(sam, classifier).predict("dog.jpg", ["dog", "grass"])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_CLASSIFIER,
        device: str | torch.device = "cpu",
        batch_size: int = 16,
    ) -> None:
        """Loads model and processor.

        Args:
            model: repository on the Hub, or a folder that ``save_pretrained`` has written.
            device: device of the model.
            batch_size: number of images per batch.

        Raises:
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self.model, self.processor = load_pretrained(
            "AutoModelForZeroShotImageClassification", model, device, extra="semantic"
        )
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(
        self, images: Iterable[NDArray[np.uint8]], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compares images with texts, see :class:`Classifier`.

        Raises:
            UserError: if a text is longer than the model reads.
        """
        tokenizer, config = self.processor.tokenizer, self.model.config
        limit = config.text_config.max_position_embeddings
        check_length(texts, limit, tokenizer)
        # SigLIP was trained on texts padded to full length, and reads the padding.
        full = config.model_type.startswith("siglip")
        tokens = place_inputs(
            tokenizer(
                list(texts),
                padding="max_length" if full else True,
                max_length=limit if full else None,
                return_tensors="pt",
            ),
            self.model,
        )
        text_embeddings = _normalized(self.model.get_text_features(**tokens))
        bias = getattr(self.model, "logit_bias", 0)
        logits = []
        for batch in _batches(images, self.batch_size):
            # Square, since the processor crops the largest square from the middle.
            pictures = self.processor(images=list(map(_pad, batch)), return_tensors="pt")
            inputs = place_inputs(pictures, self.model)
            embeddings = _normalized(self.model.get_image_features(**inputs))
            similarity = embeddings @ text_embeddings.T
            logits.append(similarity * self.model.logit_scale.exp() + bias)
        return torch.cat(logits).float().cpu().numpy()


def _check_classes(classes: Sequence[str]) -> list[str]:
    names = [name.strip() for name in check_texts("classes", classes)]
    if not names:
        raise UserError("there are no classes: name at least one")
    if "" in names:
        raise UserError(f"a class is empty: {names!r}")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"the class {repeated[0]!r} is given twice")
    return names


def _softmax(logits: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return torch.from_numpy(logits).softmax(axis).numpy()


def _normalized(features: Any) -> Tensor:
    # transformers 5 returns the whole output.
    embeddings: Tensor = getattr(features, "pooler_output", features)
    return nn.functional.normalize(embeddings.float(), dim=-1)


def _batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch


def _pad(image: NDArray[np.uint8]) -> Image.Image:
    """Pads an image to a black square, with the image in the middle."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = Image.new("RGB", (side, side))
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    return square


def _draw_column(height: int, texts: Sequence[str], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A white column with a coloured square and a text per line, as many lines as fit."""
    unit = max(10, height // 25)
    font, scale, thickness = cv2.FONT_HERSHEY_SIMPLEX, unit / 32, max(1, unit // 20)
    widths = [cv2.getTextSize(text, font, scale, thickness)[0][0] for text in texts]
    column = np.full((height, 3 * unit + max(widths, default=0), 3), 255, dtype=np.uint8)
    for line, (text, color) in enumerate(zip(texts, colors, strict=True)):
        top = round((1.5 * line + 0.5) * unit)
        column[top : top + unit, unit // 2 : unit // 2 + unit] = color
        base = (2 * unit, top + round(0.85 * unit))
        cv2.putText(column, text, base, font, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return column
