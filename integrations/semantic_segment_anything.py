"""Names for the masks of everything mode, by CLIP, and the mask that fits a sentence.

Follows segment-anything-with-clip (https://github.com/Curt-Park/segment-anything-with-clip), which
shows CLIP the masked crops, and Semantic-Segment-Anything
(https://github.com/fudan-zvg/Semantic-Segment-Anything), which merges labelled masks into a map.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
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
from mobile_sam_plugin.files import encode_image, write_file
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_integer
from mobile_sam_plugin.predictor import SamPredictor
from mobile_sam_plugin.records import decode_mask

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
    """Tells how well images fit texts. A function with these arguments is one, too."""

    def __call__(
        self, images: Iterable[NDArray[np.uint8]], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Compares images with texts.

        Args:
            images: each (H, W, 3) RGB, of any size, made one by one as they are asked for.
            texts: at least one.

        Returns:
            (number of images, number of texts), logits: the higher, the better the fit. Softmax
            over texts gives an image's probabilities.
        """


@dataclass(eq=False)
class SemanticInstances(Instances):
    """Masks with a class each."""

    def semantic_map(self) -> NDArray[np.int64]:
        """Returns the class of every pixel, (H, W), -1 where there is no mask.

        Where masks overlap, the smaller one counts, as in Semantic-Segment-Anything.
        """
        assert self.class_ids is not None
        classes = np.full(self.image_size, -1, dtype=np.int64)
        for index in np.argsort([-np.count_nonzero(mask) for mask in self.masks], kind="stable"):
            classes[self.masks[index]] = self.class_ids[index]
        return classes

    def legend(self, image: ImageSource | None = None) -> NDArray[np.uint8]:
        """Returns the map over the image, with names and shares beside it, (H, W', 3) RGB.

        Only classes that occur are named, the largest first. For ``image`` see :meth:`overlay`.
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

    def save(
        self,
        folder: str | os.PathLike[str],
        image: ImageSource | None = None,
        *,
        cutouts: bool = False,
        polygons: bool = False,
        labelme: bool = False,
    ) -> list[Path]:
        """As :meth:`Instances.save`, and ``semantic_map.png`` and ``legend.png`` beside.

        The values of ``semantic_map.png`` are 1 and up for the classes, 0 for none; it has a
        palette, or 16 bits for more than 255 classes.
        """
        legend = encode_image(".png", self.legend(image))
        values = self.semantic_map() + 1
        semantic_map = (
            encode_image(".png", values.astype(np.uint8), palette=palette())
            if len(self.classes) < 256
            else encode_image(".png", values.astype(np.uint16))
        )
        paths = super().save(folder, image, cutouts=cutouts, polygons=polygons, labelme=labelme)
        for name, content in (("semantic_map.png", semantic_map), ("legend.png", legend)):
            paths.append(Path(folder) / name)
            write_file(paths[-1], content)
        return paths


class SemanticMobileSam:
    """Segments everything in an image, and names what it finds.

    Example:
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
        """Takes the two models.

        Args:
            model: a ``Sam``, or a predictor that holds one.
            classifier: a backend, or the name or the folder of a CLIP model of transformers, as
                :class:`ClipClassifier` takes it.
            device: where MobileSAM, and a classifier given by its name, compute; where MobileSAM is
                if None.
            **generator_options: options of
                :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`, such as ``points_per_side``.

        Raises:
            As :func:`~mobile_sam_plugin.integrations.instances.as_predictor` and
            :class:`ClipClassifier`.
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
        """Returns the masks of everything in an image, (N, H, W), for several calls of the others.

        Args:
            image: an array, a PIL image or a path.
            progress: called with the number of points done and of all points, again and again.
            predictor: one that has this image set, so that it need not be encoded again.
        """
        pixels = load_image(image)
        records = drop_empty(self.generator.generate(pixels, progress, predictor))
        masks = np.zeros((len(records), *pixels.shape[:2]), dtype=bool)
        for mask, record in zip(masks, records, strict=True):
            mask[:] = decode_mask(record)
        return masks

    def predict(
        self,
        image: ImageSource,
        classes: Sequence[str],
        masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]] | None = None,
    ) -> SemanticInstances:
        """Names masks.

        Args:
            image: an array, a PIL image or a path.
            classes: names; CLIP reads "a photo of a" before them.
            masks: (N, H, W), or a list of N, those of :meth:`segment` or of anything else; of
                everything if None.

        Returns:
            The masks in their order: ``labels`` and ``class_ids`` are the likeliest classes,
            ``scores`` their probabilities.

        Raises:
            TypeError: classes that are no list of texts, or masks that are not boolean.
            ValueError: no class, an empty one, one given twice or longer than the classifier reads;
                masks of another size; a classifier that returns nonsense.
            FileNotFoundError, TypeError, ValueError: an image that cannot be read, as
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
        """Finds the masks that fit a sentence best.

        Args:
            image: an array, a PIL image or a path.
            text: what CLIP reads, for example "a photo of a red cup".
            masks: (N, H, W), or a list of N, those of :meth:`segment` or of anything else; of
                everything if None.
            limit: how many masks at most.

        Returns:
            The best masks, best first; ``scores`` are their probabilities among all masks, as in
            segment-anything-with-clip.

        Raises:
            TypeError, ValueError, FileNotFoundError: as :meth:`predict`; a text that is empty or no
            text, or a limit that is no whole number or below 1.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if not text.strip():
            raise UserError("the text is empty: tell what is to be found")
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
        """The masks given, or those of everything."""
        if masks is None:
            return self.segment(pixels)
        size = pixels.shape[:2]
        expected = f"the masks must have the shape (N, {size[0]}, {size[1]}) for this image"
        try:
            found = np.asarray(masks)
        except ValueError as error:
            raise UserError(f"{expected}, not shapes of several kinds") from error
        if not found.size:
            found = np.zeros((0, *size), dtype=bool)
        if found.dtype != bool:
            raise TypeError(f"the masks must be boolean, not {found.dtype}")
        if found.ndim != 3 or found.shape[1:] != size:
            raise UserError(f"{expected}, not {found.shape}")
        empty = np.flatnonzero(~found.any(axis=(1, 2)))
        if empty.size:
            raise UserError(f"mask {empty[0]} is empty")
        return found

    def _compare(
        self, pixels: NDArray[np.uint8], masks: NDArray[np.bool_], texts: list[str]
    ) -> NDArray[np.float32]:
        if not len(masks):
            return np.zeros((0, len(texts)), dtype=np.float32)
        crops = (masked_crop(pixels, mask) for mask in masks)
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
    """CLIP, or another model of transformers that embeds images and texts alike.

    Example:
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
            model: a repository on the Hub, or a folder that ``save_pretrained`` wrote.
            device: where to compute.
            batch_size: how many images are computed at once.

        Raises:
            As :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
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
            ValueError: a text is longer than the model reads.
        """
        tokenizer, config = self.processor.tokenizer, self.model.config
        limit = config.text_config.max_position_embeddings
        check_length(texts, limit, tokenizer)
        # SigLIP was trained on texts filled up to full length, and reads what fills them.
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
            # A square, since the processor cuts the largest one out of the middle.
            pictures = self.processor(images=list(map(_pad, batch)), return_tensors="pt")
            inputs = place_inputs(pictures, self.model)
            embeddings = _normalized(self.model.get_image_features(**inputs))
            similarity = embeddings @ text_embeddings.T
            logits.append(similarity * self.model.logit_scale.exp() + bias)
        return torch.cat(logits).float().cpu().numpy()


def masked_crop(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns the part of an image that a mask covers, black around it.

    Args:
        image: (H, W, 3).
        mask: (H, W), not empty.

    Returns:
        The smallest rectangle around the mask, (h, w, 3).
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = slice(y, y + height), slice(x, x + width)
    return image[window] * mask[window][..., None]


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
    """The image in the middle of a black square."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = Image.new("RGB", (side, side))
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    return square


def _draw_column(height: int, texts: Sequence[str], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White, with a coloured square and a text a line, as many lines as there is room for."""
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
