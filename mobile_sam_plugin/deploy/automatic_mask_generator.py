"""Everything mode on exported ONNX files."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..everything import MaskSearch
from ..mask_postprocessing import FloatArray
from .predictor import MASK_THRESHOLD, OnnxPredictor


class OnnxAutomaticMaskGenerator(MaskSearch):
    """Segments everything in an image: ``SamAutomaticMaskGenerator`` without torch.

    Same options and records. ``points_per_batch`` is how often progress is reported.

    Example:
        >>> predictor = OnnxPredictor("mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx")
        >>> masks = OnnxAutomaticMaskGenerator(predictor).generate(Image.open("dog.jpg"))
        >>> masks[0]["segmentation"], masks[0]["predicted_iou"]
    """

    predictor: OnnxPredictor

    @property
    def _model_size(self) -> int:
        return self.predictor.model_size

    def _decoder(self) -> "Callable[[NDArray[np.uint8]], _CropDecoder]":
        return partial(_CropDecoder, self.predictor)


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
