"""Everything mode with torch: upstream's records, in a fraction of the time and memory."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from .errors import UserError
from .everything import MaskGenerator, Progress
from .inputs import as_pixels
from .mask_postprocessing import FloatArray
from .model import MaskDecoder
from .predictor import SamPredictor, eval_mode
from .records import Record

# Indices of prompts (K,), predicted IoU (K,) and low-res logits (K, h, w) of some masks.
Decoded = tuple[Tensor, Tensor, Tensor]

_PROMPTS_AT_ONCE = 8  # the fastest of upstream's decoder on a CPU


class SamAutomaticMaskGenerator(MaskGenerator[Sam], segment_anything.SamAutomaticMaskGenerator):
    """Segments everything in an image; subclass of upstream's, same options and records.

    Works with any ``segment_anything.modeling.Sam``. Memory does not depend on the number of
    points, and hardly on the image; several threads may share a generator. ``points_per_batch`` is
    the number of points between two progress reports and hardly affects speed or memory.

    :class:`.model.MaskDecoder` takes the place of a mask decoder with upstream's code. Any other
    decoder is called as a module, which takes longer: one that is adapted, compiled or patched, or
    has forward hooks.

    Example:
        >>> generator = SamAutomaticMaskGenerator(sam_model_registry["vit_t"]("mobile_sam.pt"))
        >>> masks = generator.generate(Image.open("dog.jpg"))
        >>> masks[0]["segmentation"], masks[0]["predicted_iou"]
    """

    def _predictor_of(self, model: Sam) -> SamPredictor:
        return SamPredictor(model)

    @torch.no_grad()
    def generate(
        self,
        image: NDArray[np.uint8] | Image.Image | None,
        progress: Progress | None = None,
        predictor: SamPredictor | None = None,
    ) -> list[Record]:
        """Generates masks for an image, as upstream's ``generate``, in eval mode.

        Args:
            image: anything that ``SamPredictor.set_image`` takes, in RGB order. With a predictor it
                may be None, unless there are crops, which are encoded.
            progress: called after every ``points_per_batch`` points with the number of points done
                and of all points.
            predictor: one that has this image set, by ``set_image_batch`` or ``load_embedding``
                for example; so only the crops of the image are encoded.

        Returns:
            One record per mask, none if nothing passed the thresholds: ``segmentation`` (bool
            (H, W), or RLE, by ``output_mode``), ``bbox`` (XYWH; last minus first pixel, so each
            side is 1 less than COCO's), ``area`` in pixels, ``predicted_iou``, ``point_coords``
            (XY), ``stability_score`` and ``crop_box`` (XYWH).

        Raises:
            TypeError, ValueError: as ``SamPredictor.set_image``.
            RuntimeError: if the predictor has no image set.
            UserError: if its image has another size or its model is another one; or if there is no
                image where one is needed.

        Example:
            >>> predictor.load_embedding("dog.safetensors")
            >>> masks = generator.generate(None, predictor=predictor)
        """
        model = self.predictor.model
        if predictor is not None:
            image = self._check_predictor(predictor, image)
        elif image is None:
            raise UserError("give an image, or a predictor that has one set")
        decoder = MaskDecoder.standing_in(model.mask_decoder)
        set_crop = partial(_CropDecoder, model, decoder, predictor)
        with eval_mode(model):
            return self._generate(image, set_crop, model.image_encoder.img_size, progress)

    def _check_predictor(
        self, predictor: SamPredictor, image: NDArray[np.uint8] | Image.Image | None
    ) -> NDArray[np.uint8]:
        """Returns the pixels of the image that a predictor has set; if unknown, all 0."""
        if predictor.model is not self.predictor.model:
            raise UserError("the predictor must have the generator's own model")
        if image is None:
            predictor.get_image_embedding()  # raises RuntimeError if no image is set
            if self.crop_n_layers:
                raise UserError(
                    f"crop_n_layers is {self.crop_n_layers}: give the image, to encode its crops"
                )
            # Only its size is used.
            return np.broadcast_to(np.uint8(0), (*predictor.original_size, 3))
        pixels = as_pixels(image)
        predictor.check_image(pixels)
        return pixels


class _CropDecoder:
    """See :class:`~mobile_sam_plugin.everything.CropDecoder`."""

    def __init__(
        self,
        model: Sam,
        decoder: MaskDecoder | None,
        encoded: SamPredictor | None,
        pixels: NDArray[np.uint8],
    ) -> None:
        self._model = model
        self._decoder = decoder
        if encoded is not None and tuple(encoded.original_size) == pixels.shape[:2]:
            self._predictor = encoded  # a crop of that size is the whole image
        else:
            # A new one: neither other threads nor a client's generator.predictor may share it.
            self._predictor = SamPredictor(model)
            self._predictor.set_image(pixels)
        self.mask_threshold: float = model.mask_threshold
        self.upscaler = self._predictor.upscaler

    def masks_above(
        self, points: NDArray[np.float64], pred_iou_thresh: float
    ) -> Iterator[tuple[int, float, FloatArray]]:
        predictor = self._predictor
        coords = predictor.transform.apply_coords(points, predictor.original_size)
        coords = torch.as_tensor(coords, dtype=torch.float, device=predictor.device)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int, device=predictor.device)
        decode = self._decode_by_module if self._decoder is None else self._decode
        for prompts, scores, low_res_logits in decode(coords, labels, pred_iou_thresh):
            yield from zip(
                prompts.tolist(),
                scores.float().tolist(),
                low_res_logits.float().cpu().numpy(),
                strict=True,
            )

    def _decode(self, coords: Tensor, labels: Tensor, pred_iou_thresh: float) -> Iterator[Decoded]:
        assert self._decoder is not None
        prompt_encoder = self._model.prompt_encoder
        sparse, dense = prompt_encoder((coords, labels), None, None)
        return self._decoder.predict_masks_above(
            self._predictor.features, prompt_encoder.get_dense_pe(), sparse, dense, pred_iou_thresh
        )

    def _decode_by_module(
        self, coords: Tensor, labels: Tensor, pred_iou_thresh: float
    ) -> Iterator[Decoded]:
        # A few prompts at a time: upstream's decoder copies the image for each.
        step = _PROMPTS_AT_ONCE if coords.device.type == "cpu" else len(coords)
        for start in range(0, len(coords), step):
            some = slice(start, start + step)
            logits, scores = self._predictor.predict_low_res_torch(coords[some], labels[some])
            above = (scores > pred_iou_thresh) | (pred_iou_thresh <= 0)
            prompts, masks = above.nonzero(as_tuple=True)
            yield prompts + start, scores[prompts, masks], logits[prompts, masks]
