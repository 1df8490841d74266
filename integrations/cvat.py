r"""MobileSAM as an auto-annotation function of CVAT: masks for boxes, for text, of everything.

CVAT's command line creates the function from this module, with parameters, and calls it for each
frame of a task::

    cvat-cli task auto-annotate 137 --function-module mobile_sam_plugin.integrations.cvat \
        -p text=str:"dog, red car"

The labels of the function are matched with those of the task by their names.
"""

import json
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import DEFAULT_CHECKPOINT, build_sam_vit_t
from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.inputs import as_pixels
from mobile_sam_plugin.polygons import outer_polygons

from .detectors import DEFAULT_DETECTOR, Detector
from .grounded_sam import GroundedMobileSam
from .instances import Instances, as_predictor, boxes_of, everything_mode
from .texts import split_text

if TYPE_CHECKING:
    from cvat_sdk import models
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec

try:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk.masks import encode_mask
except ImportError as error:
    raise MissingExtra.of("cvat-sdk", "cvat") from error

_AT_ONCE = 16  # boxes, whose masks of the image's size are in memory together


class CvatFunction:
    """A detection function, as ``cvat_sdk.auto_annotation.DetectionFunction`` describes it.

    Attributes:
        spec: the labels.

    Examples:
        >>> function = CvatFunction(build_sam_vit_t(), text="dog, red car")
        >>> cvat_sdk.auto_annotation.annotate_task(client, 137, function)
    """

    def __init__(
        self,
        model: segment_anything.modeling.Sam,
        text: str | None = None,
        boxes: str | os.PathLike[str] | None = None,
        label: str = "object",
        detector: str | os.PathLike[str] | Detector = DEFAULT_DETECTOR,
        **options: Any,
    ) -> None:
        """Takes what to look for: a text or boxes, or everything if neither is given.

        Args:
            model: any SAM.
            text: names of the objects, with full stops or commas between them, for a detector; each
                is a label.
            boxes: path of a COCO JSON, such as CVAT exports, whose boxes become masks; its
                categories are the labels. Images are recognised by their file names.
            label: the label of everything.
            detector: for the text, as ``GroundedMobileSam`` takes it.
            options: of everything mode, as ``SamAutomaticMaskGenerator`` takes them; with a text,
                ``text_threshold`` and ``nms_thresh`` of ``GroundedMobileSam.predict``.

        Raises:
            UserError: if both a text and boxes are given, or the JSON is not COCO's.
            FileNotFoundError: if there is no such JSON.
            TypeError, ValueError: as ``GroundedMobileSam`` and ``SamAutomaticMaskGenerator``.
        """
        if text is not None and boxes is not None:
            raise UserError("give text or boxes, not both")
        self._model = model
        self._options = options
        self._grounded = self._boxes = None
        if text is not None:
            self._names = split_text(text)
            self._grounded = GroundedMobileSam(model, detector)
        elif boxes is not None:
            self._names, self._boxes = _read_boxes(boxes)
        else:
            self._names = [label]
            self._generator = everything_mode(model, output_mode="coco_rle", **options)
        labels = [cvataa.label_spec(name, number) for number, name in enumerate(self._names)]
        self.spec: DetectionFunctionSpec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: "DetectionFunctionContext", image: Image.Image
    ) -> "list[models.LabeledShapeRequest]":
        """Returns the shapes of an image: masks, or polygons where CVAT asks for them.

        Args:
            context: names the frame, and tells the threshold of scores, 0.25 for a text if it is
                None. Boxes have no scores.
            image: the frame.
        """
        pixels = as_pixels(image)
        if self._grounded is not None:
            threshold = 0.25 if context.conf_threshold is None else context.conf_threshold
            found = self._grounded.predict(pixels, self._names, threshold, **self._options)
            assert found.class_ids is not None
            class_ids = found.class_ids.tolist()
        elif self._boxes is not None:
            found, class_ids = self._segment_boxes(context.frame_name, pixels)
        else:
            found = Instances.from_records(self._generator.generate(pixels), pixels.shape[:2])
            found = found[found.scores >= (context.conf_threshold or 0)]
            class_ids = [0] * len(found)
        shapes = []
        for class_id, mask in zip(class_ids, found.masks, strict=True):
            if class_id < 0 or not mask.any():  # of none of the phrases; CVAT takes no empty masks
                continue
            if context.conv_mask_to_poly:
                parts = [polygon.ravel().astype(float).tolist() for polygon in outer_polygons(mask)]
                shapes += [cvataa.polygon(class_id, points) for points in parts]
            else:
                shapes.append(cvataa.mask(class_id, encode_mask(mask)))
        return shapes

    def _segment_boxes(
        self, frame_name: str, pixels: NDArray[np.uint8]
    ) -> tuple[Instances, list[int]]:
        assert self._boxes is not None
        given = self._boxes.get(frame_name) or self._boxes.get(PurePosixPath(frame_name).name, [])
        class_ids = [class_id for class_id, _ in given]
        masks = np.zeros((len(given), *pixels.shape[:2]), bool)
        scores = np.zeros(len(given), np.float32)
        if given:
            predictor = as_predictor(self._model)
            predictor.set_image(pixels)
            corners = np.array([box for _, box in given], float)
            corners = predictor.transform.apply_boxes(corners, predictor.original_size)
            boxes = torch.as_tensor(corners, dtype=torch.float, device=predictor.device)
            for start in range(0, len(given), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                found, ious, _ = predictor.predict_torch(
                    None, None, boxes[some], multimask_output=False
                )
                masks[some], scores[some] = found[:, 0].cpu().numpy(), ious[:, 0].cpu().numpy()
        names = [self._names[class_id] for class_id in class_ids]
        return Instances(pixels.shape[:2], boxes_of(masks), masks, scores, names), class_ids


def create(
    checkpoint: str = DEFAULT_CHECKPOINT, device: str = "cpu", **options: Any
) -> CvatFunction:
    """Creates the function from the parameters (``-p``) of ``cvat-cli``.

    Args:
        checkpoint: of MobileSAM, as ``build_sam_vit_t`` takes it.
        device: such as ``cpu`` or ``cuda``.
        options: of :class:`CvatFunction`.
    """
    return CvatFunction(build_sam_vit_t(checkpoint).to(device), **options)


def _read_boxes(
    path: str | os.PathLike[str],
) -> tuple[list[str], dict[str, list[tuple[int, Sequence[float]]]]]:
    """Returns the labels of a COCO JSON and, by image, their indices and boxes XYXY in pixels."""
    with open(path, "rb") as file:
        try:
            content = json.load(file)
            names = {each["id"]: str(each["name"]) for each in content["categories"]}
            labels = list(dict.fromkeys(names.values()))
            files = {each["id"]: str(each["file_name"]) for each in content["images"]}
            boxes: dict[str, list[tuple[int, Sequence[float]]]] = {}
            for each in content["annotations"]:
                x, y, width, height = map(float, each["bbox"])
                box = labels.index(names[each["category_id"]]), (x, y, x + width, y + height)
                boxes.setdefault(files[each["image_id"]], []).append(box)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{os.fspath(path)!r} is not a COCO JSON with boxes: {error!r}"
            ) from error
    if not labels:
        raise UserError(f"{os.fspath(path)!r} has no category, of which labels are made")
    return labels, boxes
