"""What the pipelines share: images in, and the objects found in them out."""

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
from mobile_sam_plugin.records import encode_mask
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
        model: a ``Sam``, or a predictor that holds one. This package's predictor comes back itself.
        device: where the model is moved; it stays where it is if None.

    Raises:
        TypeError: neither.
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
    """Returns everything mode for a model.

    Args:
        model: a ``Sam``, or a predictor that holds one.
        options: of :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`.

    Raises:
        TypeError: the model is neither.
        ValueError: a threshold outside [0, 1], or as the generator.
    """
    for name, value in options.items():
        if name.endswith("_thresh"):
            check_number(name, value, 0, 1)
    return SamAutomaticMaskGenerator(as_predictor(model).model, **options)


@dataclass(eq=False)
class Instances:
    """Objects found in one image.

    Attributes:
        image_size: (height, width) of the image.
        boxes: (N, 4) float32, XYXY in pixels of the image.
        masks: (N, H, W) bool.
        scores: (N,) float32, of the detector, the classifier or the mask.
        labels: N phrases or names of classes.
        class_ids: (N,) int64, indices into the classes that were asked for, -1 for none of them.
        classes: the names of those classes.
        ids: (N,) int64, the same for the same object in every frame of a video.
        image: (H, W, 3) uint8 RGB, what they were found in, for pictures of them; it is no copy.
        image_path: where that lies, if it came from a file.

    Example:
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
    ids: NDArray[np.int64] | None = None
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
            "ids": (count,),
            "image": (*self.image_size, 3),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise UserError(
                    f"{name} must have the shape {shape} for {count} labels and an image of "
                    f"{self.image_size[0]} x {self.image_size[1]}, not {values.shape}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | NDArray[Any] | Sequence[int]) -> Self:
        """Returns some of the objects: by an index, a slice, indices, or N booleans."""
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
            ids=None if self.ids is None else self.ids[chosen],
        )

    def __iter__(self) -> Iterator[Self]:
        """Yields each object as :class:`Instances` of one."""
        return (self[index] for index in range(len(self)))

    def to_supervision(self) -> "supervision.Detections":
        """Returns them as ``supervision`` takes them; the labels are ``data["class_name"]``.

        ``class_id`` numbers the distinct labels where there are no ``class_ids``, since
        supervision's annotators choose colours by it.

        Raises:
            MissingExtra: supervision is not installed.
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
            tracker_id=self.ids,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_coco(
        self,
        image_id: int = 1,
        first_annotation_id: int = 1,
        file_name: str | None = None,
        polygons: bool = False,
    ) -> dict[str, Any]:
        """Returns them as a COCO data set of one image, which ``json`` can write.

        Categories are what was asked for, in its order from 1, whatever was found of it, so that
        those of several images agree; where nothing was asked for, the distinct labels.

        Args:
            image_id: the image's number in the data set.
            first_annotation_id: the first object's; the next have the next.
            file_name: the image's; by default that of ``image_path``, or else "instances.png".
            polygons: whether masks are polygons in place of RLE. Holes are lost then, and masks of
                no pixel; a warning tells of how many.

        Returns:
            ``images``, ``categories`` and ``annotations``, with masks as compressed RLE or
            polygons, boxes as XYWH, ``label``, ``score``, and ``track_id`` if tracked.
        """
        categories, category_ids = self._categories()
        losses = Losses()
        annotations = []
        for index, (box, mask) in enumerate(zip(self.boxes.tolist(), self.masks, strict=True)):
            x0, y0, x1, y1 = box
            more = {} if self.ids is None else {"track_id": int(self.ids[index])}
            annotations.append(
                coco_annotation(
                    encode_mask(mask),
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
        """The names of all categories by their ids, from 1, and the id of each object's."""
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

        An object's colour goes by its id if it has one, else by its place.

        Args:
            image: another one of that size; the one that they were found in if None.

        Raises:
            ValueError: the image has another size than the masks, or there is none.
        """
        numbers = None if self.ids is None else self.ids.tolist()
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
            raise UserError("the objects came without their image: give it")
        pixels = load_image(image)
        if pixels.shape[:2] != self.image_size:
            raise UserError(
                f"the image has {pixels.shape[0]} x {pixels.shape[1]} pixels, "
                f"the objects are of one with {self.image_size[0]} x {self.image_size[1]}"
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
        """Writes the objects into a folder, in place of earlier results in it.

        ``mask_000.png`` and so on (0 and 255), ``overlay.png``, and ``instances.json``, which is
        what :meth:`to_coco` returns. It names the file that the image came from; an image that came
        from none is written beside it as ``instances.png``. A file appears whole or not at all,
        ``instances.json`` last.

        Args:
            folder: made if need be.
            image: as of :meth:`overlay`.
            cutouts: whether there is ``cutout_000.png`` and so on as well: RGBA, cropped to the
                mask, transparent around it.
            polygons: as of :meth:`to_coco`.
            labelme: whether there is ``labelme.json`` as well, which labelme opens. Holes are lost
                in it, too.

        Returns:
            The paths of all these files, those of the masks first.

        Raises:
            ValueError: as :meth:`overlay`.
        """
        pixels = self._load_same_size(image)  # once, since it may be a file
        overlay = self.overlay(pixels)
        source = self.image_path or path_of(image)
        target = Path(folder)
        coco = self.to_coco(file_name=Path(source or _UNNAMED).name, polygons=polygons)
        masks = write_masks(target, self.masks, pixels if cutouts else None)
        paths = masks + sorted(target.glob("cutout_*.png")) + [target / "overlay.png"]
        write_file(paths[-1], encode_image(".png", overlay))
        if source is None:
            paths.append(target / _UNNAMED)
            write_file(paths[-1], encode_image(".png", pixels))
        if labelme:
            names, category_ids = self._categories()
            labels = (names[number] for number in category_ids)
            path = _UNNAMED if source is None else relative_path(source, target)
            losses = Losses()
            content = labelme_content(
                zip(labels, self.masks, strict=True), self.image_size, path, losses
            )
            if not polygons:  # else it has been told
                losses.warn()
            paths.append(target / "labelme.json")
            write_file(paths[-1], json.dumps(content).encode())
        paths.append(target / "instances.json")
        write_file(paths[-1], json.dumps(coco, allow_nan=False).encode())
        return paths


def path_of(image: ImageSource | None) -> str | None:
    """The path of an image's file, None if it came from none; of PIL's images where it is known."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "")) or None


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns the boxes around masks.

    Args:
        masks: (N, H, W).

    Returns:
        (N, 4), XYXY in pixels, the right and the lower edge behind the last pixel; all 0 where a
        mask is empty.
    """
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box[:] = x, y, x + width, y + height
    return boxes
