"""``mobile_sam.utils.onnx``."""

from typing import Any

import segment_anything.utils.onnx
import torch
from torch import Tensor
from torch.nn.functional import interpolate


class SamOnnxModel(segment_anything.utils.onnx.SamOnnxModel):
    """segment_anything's, with a mistake of its release 1.0 corrected, as in the original."""

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Resizes low-res logits to the size of the image.

        Release 1.0 of segment_anything makes the size a number of Python. Then an exporter takes
        the aspect ratio that it traces for a constant.

        Args:
            masks: logits (B, C, h, w).
            orig_im_size: (H, W) of the image, in a tensor of shape (2,).

        Returns:
            Logits (B, C, H, W).
        """
        padded = interpolate(masks, (self.img_size, self.img_size), mode="bilinear")
        inner = self.resize_longest_image_size(orig_im_size, self.img_size).to(torch.int64)
        unpadded = padded[..., : inner[0], : inner[1]]
        size: Any = orig_im_size.to(torch.int64)
        resized: Tensor = interpolate(unpadded, (size[0], size[1]), mode="bilinear")
        return resized
