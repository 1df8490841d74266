"""``mobile_sam.utils.transforms``."""

import segment_anything.utils.transforms
from torch import Tensor
from torch.nn.functional import interpolate


class ResizeLongestSide(segment_anything.utils.transforms.ResizeLongestSide):
    """segment_anything's, with a mistake of its release 1.0 corrected, as in the original."""

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Resizes images so that their longer side is ``target_length``.

        Release 1.0 of segment_anything takes the number of images and channels for the size.

        Args:
            image: (B, C, H, W) float.

        Returns:
            (B, C, h, w), of the same dtype.
        """
        size = self.get_preprocess_shape(*image.shape[2:], self.target_length)
        resized: Tensor = interpolate(image, size, mode="bilinear", antialias=True)
        return resized
