"""MobileSAM behind the segmenter classes of Track-Anything and Segment-and-Track-Anything.

:class:`BaseSegmenter` and :class:`Segmentor` replace the classes of those names in
https://github.com/gaomingqi/Track-Anything and
https://github.com/z-x-yang/Segment-and-Track-Anything.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray

from mobile_sam_plugin import (
    MobileSam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    build_sam_vit_t,
    replace,
)
from mobile_sam_plugin.errors import UserError

Mask = NDArray[np.bool_]


class BaseSegmenter:
    """Replaces Track-Anything's ``tools.base_segmenter.BaseSegmenter``, with the same signatures.

    It always builds MobileSAM: for ``"vit_t"`` from the given checkpoint, for other model types
    from the default one, as :func:`~mobile_sam_plugin.replace` does.

    Examples:
        >>> segmenter = BaseSegmenter("mobile_sam.pt", "vit_t", device="cpu")
        >>> segmenter.set_image(image)
        >>> prompts = {"point_coords": np.array([[500, 375]]), "point_labels": np.array([1])}
        >>> masks, scores, logits = segmenter.predict(prompts, "point")
    """

    def __init__(
        self,
        SAM_checkpoint: str | os.PathLike[str] | None,
        model_type: str,
        device: str | torch.device = "cuda:0",
    ) -> None:
        """Builds MobileSAM on a device, see :func:`~mobile_sam_plugin.build_sam_vit_t`."""
        self.device = device
        self.torch_dtype = torch.float16 if "cuda" in str(device) else torch.float32
        self.model = _build_mobile_sam(model_type, SAM_checkpoint).to(device)
        self.predictor = SamPredictor(self.model)
        self.embedded = False

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encodes an image, (H, W, 3) uint8 RGB; after another one, call ``reset_image`` first."""
        self.orignal_image = image  # Track-Anything's spelling, which its other modules read
        if self.embedded:
            warnings.warn(
                "an image is set already, and stays: call reset_image first", stacklevel=2
            )
            return
        self.predictor.set_image(image)
        self.embedded = True

    def reset_image(self) -> None:
        """Forgets the image."""
        self.predictor.reset_image()
        self.embedded = False

    def predict(
        self, prompts: Mapping[str, Any], mode: str, multimask: bool = True
    ) -> tuple[Mask, NDArray[np.float32], NDArray[np.float32]]:
        """Predicts masks.

        Args:
            prompts: ``point_coords`` (N, 2), ``point_labels`` (N,) and ``mask_input``
                (1, 256, 256), those that the mode needs.
            mode: ``"point"``, ``"mask"`` or ``"both"``.
            multimask: whether to predict three masks instead of one.

        Returns:
            Masks (n, H, W), scores (n,) and low-resolution logits (n, 256, 256).

        Raises:
            RuntimeError: if no image is set.
            UserError: if ``mode`` is not "point", "mask" or "both".
            KeyError: if a prompt that the mode needs is missing.
        """
        modes = {"point": _POINTS, "mask": ("mask_input",), "both": (*_POINTS, "mask_input")}
        return _predict(self.predictor, prompts, mode, modes, multimask)


class Segmentor:
    """Replaces Segment-and-Track-Anything's ``tool.segmentor.Segmentor``, with the same signatures.

    The model is built as in :class:`BaseSegmenter`.

    Examples:
        >>> segmentor = Segmentor({"sam_checkpoint": "mobile_sam.pt", "model_type": "vit_t",
        ...     "generator_args": {"points_per_side": 16}, "gpu_id": "cpu"})
        >>> mask = segmentor.segment_with_click(frame, np.array([[320, 240]]), np.array([1]))
    """

    def __init__(self, sam_args: Mapping[str, Any]) -> None:
        """Builds MobileSAM.

        Args:
            sam_args: ``sam_checkpoint``, ``model_type``, ``generator_args`` (a dict of
                ``SamAutomaticMaskGenerator``'s options) and ``gpu_id`` (a device).
        """
        self.device = sam_args["gpu_id"]
        self.sam = _build_mobile_sam(sam_args["model_type"], sam_args["sam_checkpoint"])
        self.sam.to(self.device)
        self.everything_generator = SamAutomaticMaskGenerator(
            self.sam, **sam_args["generator_args"]
        )
        self.interactive_predictor = self.everything_generator.predictor
        self.have_embedded = False

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encodes an image, (H, W, 3) uint8 RGB, unless ``have_embedded`` is true."""
        if not self.have_embedded:
            self.interactive_predictor.set_image(image)
            self.have_embedded = True

    def interactive_predict(
        self, prompts: Mapping[str, Any], mode: str, multimask: bool = True
    ) -> tuple[Mask, NDArray[np.float32], NDArray[np.float32]]:
        """Predicts masks, as :meth:`BaseSegmenter.predict`.

        Args:
            prompts: ``point_coords`` (N, 2), ``point_modes`` (N,), ``mask_prompt`` (1, 256, 256).
            mode: ``"point"``, ``"mask"`` or ``"point_mask"``.
            multimask: whether to predict three masks instead of one.
        """
        modes = {
            "point": ("point_coords", "point_modes"),
            "mask": ("mask_prompt",),
            "point_mask": ("point_coords", "point_modes", "mask_prompt"),
        }
        return _predict(self.interactive_predictor, prompts, mode, modes, multimask)

    def segment_with_click(
        self,
        origin_frame: NDArray[np.uint8],
        coords: ArrayLike,
        modes: ArrayLike,
        multimask: bool = True,
    ) -> NDArray[np.uint8]:
        """Segments the object at points, twice, the second time with the best mask of the first.

        Args:
            origin_frame: (H, W, 3) uint8 RGB; encoded as by :meth:`set_image`.
            coords: (N, 2), XY in pixels.
            modes: (N,), 1 on the object, 0 on the background.
            multimask: whether to choose the best of three masks.

        Returns:
            (H, W), 0 and 1.
        """
        self.set_image(origin_frame)
        prompts = {"point_coords": coords, "point_modes": modes}
        _, scores, logits = self.interactive_predict(prompts, "point", multimask)
        prompts["mask_prompt"] = logits[np.argmax(scores), None]
        masks, scores, _ = self.interactive_predict(prompts, "point_mask", multimask)
        return masks[np.argmax(scores)].astype(np.uint8)

    def segment_with_box(
        self, origin_frame: NDArray[np.uint8], bbox: ArrayLike, reset_image: bool = False
    ) -> list[Mask]:
        """Segments the object in a box, twice, the second time with the best mask of the first.

        Args:
            origin_frame: (H, W, 3) uint8 RGB.
            bbox: [[x0, y0], [x1, y1]] in pixels.
            reset_image: whether to encode the frame even if one is set.

        Returns:
            One mask, (H, W) bool.
        """
        if reset_image:
            self.interactive_predictor.set_image(origin_frame)
        else:
            self.set_image(origin_frame)
        box = np.asarray(bbox).reshape(4)
        _, scores, logits = self.interactive_predictor.predict(box=box)
        masks, scores, _ = self.interactive_predictor.predict(
            box=box, mask_input=logits[np.argmax(scores), None]
        )
        return [masks[np.argmax(scores)]]


def _build_mobile_sam(model_type: str, checkpoint: str | os.PathLike[str] | None) -> MobileSam:
    if model_type == "vit_t":
        return build_sam_vit_t(checkpoint)
    with replace(model_type):
        model: MobileSam = segment_anything.sam_model_registry[model_type](checkpoint)
    return model


# The names of prompts in the two projects, where SamPredictor.predict has others.
_POINTS = ("point_coords", "point_labels")
_ARGUMENTS = {"point_modes": "point_labels", "mask_prompt": "mask_input"}


def _predict(
    predictor: SamPredictor,
    prompts: Mapping[str, Any],
    mode: str,
    modes: Mapping[str, tuple[str, ...]],
    multimask: bool,
) -> tuple[Mask, NDArray[np.float32], NDArray[np.float32]]:
    if mode not in modes:
        raise UserError(f"mode must be one of {', '.join(modes)}, not {mode!r}")
    arguments = {_ARGUMENTS.get(name, name): prompts[name] for name in modes[mode]}
    return predictor.predict(**arguments, multimask_output=multimask)
