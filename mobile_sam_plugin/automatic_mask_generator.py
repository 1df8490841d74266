"""Upstream's ``SamAutomaticMaskGenerator`` on this package's predictor."""

from typing import Any

import numpy as np
import segment_anything
from numpy.typing import NDArray
from PIL import Image

from .predictor import SamPredictor, as_pixels


class SamAutomaticMaskGenerator(segment_anything.SamAutomaticMaskGenerator):
    """Segments everything in an image; subclass of upstream's, same options and records.

    Example:
        >>> generator = SamAutomaticMaskGenerator(sam_model_registry["vit_t"]("mobile_sam.pt"))
        >>> masks = generator.generate(Image.open("dog.jpg"))
        >>> masks[0]["segmentation"], masks[0]["predicted_iou"]
    """

    def __init__(
        self,
        model: segment_anything.modeling.Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[NDArray[Any]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        super().__init__(
            model,
            points_per_side,
            points_per_batch,
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
            crop_n_layers,
            crop_nms_thresh,
            crop_overlap_ratio,
            crop_n_points_downscale_factor,
            point_grids,
            min_mask_region_area,
            output_mode,
        )
        self.predictor = SamPredictor(model)

    def generate(self, image: NDArray[np.uint8] | Image.Image) -> list[dict[str, Any]]:
        """As upstream's; takes all images that ``SamPredictor.set_image`` takes, in RGB order."""
        records: list[dict[str, Any]] = super().generate(as_pixels(image))
        return records
