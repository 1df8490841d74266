"""Everything mode on exported ONNX files."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..everything import MaskGenerator, Progress
from ..mask_postprocessing import FloatArray
from ..records import Record
from .predictor import MASK_THRESHOLD, OnnxPredictor


class OnnxAutomaticMaskGenerator(MaskGenerator[OnnxPredictor]):
    """Segments everything in an image: ``SamAutomaticMaskGenerator`` without torch.

    Same options and records. ``points_per_batch`` is how often progress is reported.

    Example:
        >>> predictor = OnnxPredictor("mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx")
        >>> masks = OnnxAutomaticMaskGenerator(predictor).generate(Image.open("dog.jpg"))
        >>> masks[0]["segmentation"], masks[0]["predicted_iou"]
    """

    predictor: OnnxPredictor

    def generate(
        self, image: NDArray[np.uint8] | Image.Image, progress: Progress | None = None
    ) -> list[Record]:
        """Generates masks for an image, as ``SamAutomaticMaskGenerator.generate``.

        Args:
            image: anything that ``OnnxPredictor.set_image`` takes, in RGB order.
            progress: called after every ``points_per_batch`` points with the number of points done
                and of all points.

        Returns:
            One record per mask, with the fields of ``SamAutomaticMaskGenerator``.

        Raises:
            TypeError, ValueError: as ``OnnxPredictor.set_image``.
        """
        set_crop = partial(_CropDecoder, self.predictor)
        return self._generate(image, set_crop, self.predictor.img_size, progress)


class _CropDecoder:
    """See :class:`~mobile_sam_plugin.everything.CropDecoder`."""

    mask_threshold = MASK_THRESHOLD

    def __init__(self, predictor: OnnxPredictor, pixels: NDArray[np.uint8]) -> None:
        # A predictor of its own on the same graphs, so that the client's keeps its image.
        self._predictor = copy.copy(predictor)
        self._predictor.set_image(pixels)
        self.upscaler = self._predictor.upscaler

    def masks_above(
        self, points: NDArray[np.float64], pred_iou_thresh: float
    ) -> Iterator[tuple[int, float, FloatArray]]:
        prompts = 0
        for low_res_logits, scores in self._predictor.decode_clicks(points):
            for prompt, mask in np.argwhere((scores > pred_iou_thresh) | (pred_iou_thresh <= 0)):
                score = float(scores[prompt, mask])
                yield prompts + int(prompt), score, low_res_logits[prompt, mask]
            prompts += len(scores)
