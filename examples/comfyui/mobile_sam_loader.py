"""A node for ComfyUI that gives a SAM_MODEL from any MobileSAM file, as Impact-Pack takes it.

Copy this file into ComfyUI's ``custom_nodes`` folder, and MobileSAM files into ``models/sams``. In
the environment of ComfyUI: ``pip install mobile-sam-plugin``.
"""

from typing import Any

import comfy.model_management
import folder_paths
import numpy as np

from mobile_sam_plugin import SamPredictor, build_sam_vit_t

BUNDLED = "bundled"
DEVICES = ("AUTO", "Prefer GPU", "CPU")


class SamWrapper:
    """What Impact-Pack expects at ``sam_wrapper`` of a model.

    Attributes:
        model: the model.
        is_auto_mode: whether the model is on the GPU only while it is used.
    """

    def __init__(self, model: Any, is_auto_mode: bool) -> None:
        self.model = model
        self.is_auto_mode = is_auto_mode

    def prepare_device(self) -> None:
        if self.is_auto_mode:
            self.model.to(comfy.model_management.get_torch_device())

    def release_device(self) -> None:
        if self.is_auto_mode:
            self.model.to("cpu")

    def predict(
        self, image: Any, points: Any, plabs: Any, bbox: Any, threshold: float
    ) -> list[np.ndarray[Any, Any]]:
        """Segments one object.

        Args:
            image: (H, W, 3) uint8 RGB.
            points: (x, y) in pixels, or None or empty.
            plabs: 1 or 0 for each point.
            bbox: XYXY in pixels, or None.
            threshold: of the predicted IoU.

        Returns:
            The candidates, (H, W) bool, that reach the threshold; the best one if none does.
        """
        predictor = SamPredictor(self.model)
        predictor.set_image(image)
        masks, scores, _ = predictor.predict(
            points if points is not None and len(points) else None,
            plabs if plabs is not None and len(plabs) else None,
            bbox,
        )
        chosen = [mask for mask, score in zip(masks, scores, strict=True) if score >= threshold]
        return chosen or [masks[scores.argmax()]]


class MobileSamLoader:
    """The node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [BUNDLED, *folder_paths.get_filename_list("sams")]
        return {"required": {"model_name": (names,), "device_mode": (list(DEVICES),)}}

    RETURN_TYPES = ("SAM_MODEL",)
    FUNCTION = "load"
    CATEGORY = "MobileSAM"
    DESCRIPTION = "MobileSAM for the nodes that take a SAM_MODEL, such as those of Impact-Pack."

    def load(self, model_name: str, device_mode: str) -> tuple[Any]:
        path = BUNDLED
        if model_name != BUNDLED:
            path = folder_paths.get_full_path("sams", model_name)
        model = build_sam_vit_t(path)
        if device_mode == "Prefer GPU":
            model.to(comfy.model_management.get_torch_device())
        model.sam_wrapper = SamWrapper(model, is_auto_mode=device_mode == "AUTO")
        return (model,)


NODE_CLASS_MAPPINGS = {"MobileSamLoader": MobileSamLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"MobileSamLoader": "SAMLoader (MobileSAM)"}
