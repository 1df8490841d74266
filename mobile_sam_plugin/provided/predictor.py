"""``mobile_sam.predictor``."""

from segment_anything.modeling import Sam

import mobile_sam_plugin

from .utils.transforms import ResizeLongestSide


class SamPredictor(mobile_sam_plugin.SamPredictor):
    """This package's predictor, with the original's ``transform``, which clients call."""

    def __init__(self, sam_model: Sam) -> None:
        super().__init__(sam_model)
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
