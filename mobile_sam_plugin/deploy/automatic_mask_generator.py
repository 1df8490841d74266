"""Everything mode on exported ONNX files."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import UserError
from ..everything import Decoded, MaskGenerator, Progress
from ..inputs import as_pixels
from ..records import Record
from .predictor import MASK_THRESHOLD, OnnxPredictor


class OnnxAutomaticMaskGenerator(MaskGenerator[OnnxPredictor]):
    """Segments everything in an image: ``SamAutomaticMaskGenerator`` without torch.

    Same options and records. ``points_per_batch`` is how often progress is reported.

    Examples:
        >>> predictor = OnnxPredictor("mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx")
        >>> masks = OnnxAutomaticMaskGenerator(predictor).generate(Image.open("dog.jpg"))
        >>> masks[0]["segmentation"], masks[0]["predicted_iou"]
    """

    predictor: OnnxPredictor

    def generate(
        self,
        image: NDArray[np.uint8] | Image.Image | None,
        progress: Progress | None = None,
        predictor: OnnxPredictor | None = None,
        proposals: ArrayLike | None = None,
    ) -> list[Record]:
        """Generates masks for an image, as ``SamAutomaticMaskGenerator.generate``.

        Args:
            image: anything that ``OnnxPredictor.set_image`` takes, in RGB order. With a predictor
                it may be None, unless there are crops, which are encoded.
            progress: called after every ``points_per_batch`` points with the number of points done
                and of all points.
            predictor: one that has this image set; so only the crops of the image are encoded.
            proposals: for ``search="proposals"``, as in ``SamAutomaticMaskGenerator.generate``.

        Returns:
            One record per mask, with the fields of ``SamAutomaticMaskGenerator``.

        Raises:
            TypeError, ValueError: as ``OnnxPredictor.set_image``.
            RuntimeError: if the predictor has no image set.
            UserError: if its image has another size, or if there is no image where one is needed;
                or for proposals, as ``SamAutomaticMaskGenerator.generate``.
        """
        if image is None:
            image = self._stand_in(predictor)
        elif predictor is not None and as_pixels(image).shape[:2] != predictor.original_size:
            raise UserError("the predictor has an image of another size set")
        set_crop = partial(_CropDecoder, self.predictor, predictor)
        return self._generate(image, set_crop, self.predictor.img_size, progress, proposals)


class _CropDecoder:
    """See :class:`~mobile_sam_plugin.everything.CropDecoder`."""

    prompts_at_once = 1

    def __init__(
        self, graphs: OnnxPredictor, encoded: OnnxPredictor | None, pixels: NDArray[np.uint8]
    ) -> None:
        if encoded is not None and encoded.original_size == pixels.shape[:2]:
            self._predictor = encoded  # a crop of that size is the whole image
        else:
            # One of its own on the same graphs, so that the client's keeps its image.
            self._predictor = copy.copy(graphs)
            self._predictor.set_image(pixels)
        self.upscaler = self._predictor.upscaler

    def masks_above(
        self,
        prompts: NDArray[np.float64],
        pred_iou_thresh: float,
        stability_score_thresh: float,
        stability_score_offset: float,
    ) -> Iterator[Decoded]:
        predictor, start = self._predictor, 0
        decode = predictor.decode_clicks if prompts.shape[1] == 2 else predictor.decode_boxes
        for low_res_logits, scores in decode(prompts):
            for index, mask in np.argwhere((scores > pred_iou_thresh) | (pred_iou_thresh <= 0)):
                logits = low_res_logits[index, mask]
                found = self.upscaler.extract_mask(
                    logits, MASK_THRESHOLD, stability_score_offset, stability_score_thresh
                )
                if found is not None:
                    score = float(scores[index, mask])
                    yield Decoded(start + int(index), score, found, logits.__getitem__)
            start += len(scores)
