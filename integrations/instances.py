"""What the pipelines share: predictors of any model, and the objects found in an image."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import Self

from mobile_sam_plugin import SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.coco import coco_annotation, coco_dataset
from mobile_sam_plugin.drawing import draw_overlay
from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.files import encode_image, write_file
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_number
from mobile_sam_plugin.polygons import Losses, labelme_content, relative_path
from mobile_sam_plugin.records import Record, decode_masks
from mobile_sam_plugin.results import write_masks

if TYPE_CHECKING:
    import supervision

_UNNAMED = "instances.png"
"""The name of an image that came from no file."""
_NO_CLASS = "none of them"


def as_predictor(
    model: nn.Module | segment_anything.SamPredictor, device: str | torch.device | None = None
) -> SamPredictor:
    """Returns this package's predictor for a model.

    Args:
        model: a ``Sam``, or a predictor that holds one. This package's predictor is returned as it
            is.
        device: device that the model is moved to; it stays where it is if None.

    Raises:
        TypeError: if ``model`` is neither.
    """
    sam = getattr(model, "model", model)
    if not isinstance(sam, nn.Module) or not hasattr(sam, "mask_decoder"):
        raise TypeError(
            f"the model must be a Sam or a SamPredictor, not {type(model).__name__}: "
            'for example sam_model_registry["vit_t"]()'
        )
    if device is not None:
        sam.to(device)
    return model if isinstance(model, SamPredictor) else SamPredictor(sam)


def everything_mode(
    model: nn.Module | segment_anything.SamPredictor, **options: Any
) -> SamAutomaticMaskGenerator:
    """Returns a mask generator for a model.

    Args:
        model: a ``Sam``, or a predictor that holds one.
        options: of :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`.

    Raises:
        TypeError: if ``model`` is neither, or a threshold is not a number.
        ValueError: if a threshold is outside [0, 1], or the generator refuses an option.
    """
    for name, value in options.items():
        if name.endswith("_thresh"):
            check_number(name, value, 0, 1)
    return SamAutomaticMaskGenerator(as_predictor(model).model, **options)


@dataclass(eq=False)
class Instances:
    """Objects found in one image.

    Attributes:
        image_size: (height, width) of the image in pixels.
        boxes: (N, 4) float32, XYXY in pixels; right and bottom are the edges after the last pixel.
        masks: (N, H, W) bool.
        scores: (N,) float32 in [0, 1]: of the detector, the classifier or the mask.
        labels: N phrases or names of classes.
        class_ids: (N,) int64, indices into ``classes``, -1 for none of them.
        tracker_id: (N,) int64, the same for an object in all frames of a video.
        image: (H, W, 3) uint8 RGB, the image, not copied.
        classes: names of the classes or the phrases that were requested.
        image_path: path of the image, if it came from a file.

    Examples:
        >>> objects = GroundedMobileSam(sam).predict("street.jpg", "a dog. the red car.")
        >>> objects.save("out")
        >>> objects[objects.class_ids == 0].overlay()  # the dogs only
        >>> sv.MaskAnnotator().annotate(objects.image, objects.to_supervision())
    """

    image_size: tuple[int, int]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    labels: list[str]
    class_ids: NDArray[np.int64] | None = None
    tracker_id: NDArray[np.int64] | None = None
    image: NDArray[np.uint8] | None = None
    classes: Sequence[str] = ()
    image_path: str | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        expected = {
            "boxes": (count, 4),
            "masks": (count, *self.image_size),
            "scores": (count,),
            "class_ids": (count,),
            "tracker_id": (count,),
            "image": (*self.image_size, 3),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise UserError(
                    f"{name} must have the shape {shape} for {count} labels and an image of "
                    f"{self.image_size[0]} x {self.image_size[1]}, not {values.shape}"
                )

    @classmethod
    def from_records(
        cls,
        records: Sequence[Record],
        image_size: tuple[int, int],
        image: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Returns the masks of ``SamAutomaticMaskGenerator``, with the predicted IoU as score.

        Args:
            records: what the generator returns. The label is the record's ``category``, or else
                "object".
            image_size: (height, width) of the image.
            image: (H, W, 3) uint8 RGB, kept for :meth:`overlay` and :meth:`save`.
        """
        masks = decode_masks(records, image_size)
        return cls(
            image_size,
            boxes_of(masks),
            masks,
            np.array([record["predicted_iou"] for record in records], np.float32),
            [record.get("category", "object") for record in records],
            image=image,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | NDArray[Any] | Sequence[int]) -> Self:
        """Returns some of the objects, by an index, a slice, indices or N booleans."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"there is no object {index}, there are {len(self)}")
            index = [int(index)]
        chosen = np.arange(len(self))[index]
        return replace(
            self,
            boxes=self.boxes[chosen],
            masks=self.masks[chosen],
            scores=self.scores[chosen],
            labels=[self.labels[i] for i in chosen],
            class_ids=None if self.class_ids is None else self.class_ids[chosen],
            tracker_id=None if self.tracker_id is None else self.tracker_id[chosen],
        )

    def __iter__(self) -> Iterator[Self]:
        """Yields each object as :class:`Instances` of one."""
        return (self[index] for index in range(len(self)))

    def to_supervision(self) -> "supervision.Detections":
        """Returns the objects for ``supervision``, with the labels as ``data["class_name"]``.

        Without ``class_ids``, ``class_id`` numbers the distinct labels, since supervision's
        annotators choose colours by it.

        Raises:
            MissingExtra: if supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtra.of("supervision", "grounded") from error
        class_ids = self.class_ids
        if class_ids is None:
            names = list(dict.fromkeys(self.labels))
            class_ids = np.array([names.index(label) for label in self.labels], dtype=np.int64)
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=class_ids,
            tracker_id=self.tracker_id,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_coco(
        self,
        image_id: int = 1,
        first_annotation_id: int = 1,
        file_name: str | None = None,
        polygons: bool = False,
    ) -> dict[str, Any]:
        """Returns the objects as a COCO data set of one image, which ``json`` can write.

        Categories are ``classes``, numbered from 1, whether found or not, so that the categories of
        several images agree. Without ``classes`` they are the distinct labels.

        Args:
            image_id: number of the image in the data set.
            first_annotation_id: number of the first object; the others follow.
            file_name: of the image; if None, that of ``image_path``, or else "instances.png".
            polygons: write masks as polygons instead of RLE. This loses holes and empty masks; a
                warning reports how many.

        Returns:
            ``images``, ``categories`` and ``annotations``, with masks as compressed RLE or
            polygons, boxes as XYWH, ``label``, ``score``, and ``track_id`` if tracked.
        """
        categories, category_ids = self._categories()
        losses = Losses()
        annotations = []
        for index, (box, mask) in enumerate(zip(self.boxes.tolist(), self.masks, strict=True)):
            x0, y0, x1, y1 = box
            more = {} if self.tracker_id is None else {"track_id": int(self.tracker_id[index])}
            annotations.append(
                coco_annotation(
                    mask,
                    image_id,
                    first_annotation_id + index,
                    category_ids[index],
                    losses if polygons else None,
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    label=self.labels[index],
                    score=float(self.scores[index]),
                    **more,
                )
            )
        losses.warn()
        if file_name is None:
            file_name = _UNNAMED if self.image_path is None else Path(self.image_path).name
        return coco_dataset(self.image_size, file_name, categories, annotations, image_id)

    def _categories(self) -> tuple[dict[int, str], list[int]]:
        """The names of all categories by id, from 1, and the category id of each object."""
        if self.class_ids is None:
            ids = {label: place for place, label in enumerate(dict.fromkeys(self.labels), 1)}
            return {place: label for label, place in ids.items()}, [ids[x] for x in self.labels]
        names = dict(enumerate(self.classes, 1))
        class_ids = self.class_ids.tolist()
        for class_id, label in zip(class_ids, self.labels, strict=True):
            if class_id >= 0:
                names.setdefault(1 + class_id, label)
        none = 1 + max(names, default=0)
        if -1 in class_ids:
            names[none] = _NO_CLASS
        return dict(sorted(names.items())), [none if x < 0 else 1 + x for x in class_ids]

    def overlay(self, image: ImageSource | None = None) -> NDArray[np.uint8]:
        """Returns the image with masks, boxes, labels and scores drawn over it, (H, W, 3) RGB.

        The colour of an object depends on its ``tracker_id`` if it has one, else on its index.

        Args:
            image: image to draw on, of the same size; ``self.image`` if None.

        Raises:
            UserError: if there is no image, or it has another size than the masks.
        """
        numbers = None if self.tracker_id is None else self.tracker_id.tolist()
        captions = [
            f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)
        ]
        if numbers is not None:
            captions = [f"#{n} {caption}" for n, caption in zip(numbers, captions, strict=True)]
        return draw_overlay(
            self._load_same_size(image),
            self.masks,
            numbers=numbers,
            boxes=self.boxes,
            captions=captions,
        )

    def _load_same_size(self, image: ImageSource | None) -> NDArray[np.uint8]:
        if image is None:
            image = self.image
        if image is None:
            raise UserError("the objects have no image: pass image=")
        pixels = load_image(image)
        if pixels.shape[:2] != self.image_size:
            raise UserError(
                f"the image has {pixels.shape[0]} x {pixels.shape[1]} pixels, "
                f"the objects come from one with {self.image_size[0]} x {self.image_size[1]}"
            )
        return pixels

    def save(
        self,
        folder: str | os.PathLike[str],
        image: ImageSource | None = None,
        *,
        cutouts: bool = False,
        polygons: bool = False,
        labelme: bool = False,
    ) -> list[Path]:
        """Writes the objects to a folder, in place of earlier results in it.

        Writes ``mask_000.png`` and so on (0 and 255), ``overlay.png``, and ``instances.json`` with
        the result of :meth:`to_coco`. The JSON file names the image's file; an image without a file
        is written as ``instances.png``. Each file appears whole or not at all, ``instances.json``
        last.

        Args:
            folder: created if missing.
            image: as in :meth:`overlay`.
            cutouts: also write ``cutout_000.png`` and so on: RGBA, cropped to the mask, transparent
                around it.
            polygons: as in :meth:`to_coco`.
            labelme: also write ``labelme.json``, which labelme opens. It loses holes.

        Returns:
            The paths of these files, the masks first.

        Raises:
            UserError: as in :meth:`overlay`.
        """
        pixels = self._load_same_size(image)  # once, since it may be a file
        pictures = self._encode_pictures(pixels)
        source = self.image_path or path_of(image)
        if source is None:
            pictures[_UNNAMED] = encode_image(".png", pixels)
        target = Path(folder)
        coco = self.to_coco(file_name=Path(source or _UNNAMED).name, polygons=polygons)
        masks = write_masks(target, self.masks, pixels if cutouts else None)
        paths = masks + sorted(target.glob("cutout_*.png"))
        for name, png in pictures.items():
            paths.append(target / name)
            write_file(paths[-1], png)
        if labelme:
            names, category_ids = self._categories()
            labels = (names[number] for number in category_ids)
            path = _UNNAMED if source is None else relative_path(source, target)
            losses = Losses()
            content = labelme_content(
                zip(labels, self.masks, strict=True), self.image_size, path, losses
            )
            if not polygons:  # else to_coco has warned
                losses.warn()
            paths.append(target / "labelme.json")
            write_file(paths[-1], json.dumps(content).encode())
        paths.append(target / "instances.json")
        write_file(paths[-1], json.dumps(coco, allow_nan=False).encode())
        return paths

    def _encode_pictures(self, image: NDArray[np.uint8]) -> dict[str, bytes]:
        """The pictures that :meth:`save` writes beside the masks, as PNG by file name."""
        return {"overlay.png": encode_image(".png", self.overlay(image))}


def path_of(image: ImageSource | None) -> str | None:
    """Returns the path of an image's file, None if there is none or PIL does not know it."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "")) or None


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns the boxes around masks.

    Args:
        masks: (N, H, W).

    Returns:
        (N, 4), XYXY in pixels; right and bottom are the edges after the last pixel. All 0 for an
        empty mask.
    """
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box[:] = x, y, x + width, y + height
    return boxes
