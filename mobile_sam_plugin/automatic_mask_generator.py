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

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.predictor = SamPredictor(model)

    def generate(self, image: NDArray[np.uint8] | Image.Image) -> list[dict[str, Any]]:
        """As upstream's; takes all images that ``SamPredictor.set_image`` takes, in RGB order."""
        records: list[dict[str, Any]] = super().generate(as_pixels(image))
        return records
