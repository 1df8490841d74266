"""Everything mode with torch: upstream's records, in a fraction of the time and memory."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from .device_postprocessing import extract_masks
from .errors import UserError
from .everything import Decoded, MaskGenerator, Progress
from .inputs import as_pixels
from .mask_postprocessing import CropMask, FloatArray, IntArray
from .model import MaskDecoder
from .predictor import SamPredictor, eval_mode
from .records import Record

# Indices of prompts (K,), predicted IoU (K,) and low-res logits (K, h, w) of some masks.
LowRes = tuple[Tensor, Tensor, Tensor]

# Points (N, 1, 2) with their labels (N, 1), or boxes (N, 4), in the frame of the model's input.
Prompts = tuple[tuple[Tensor, Tensor] | None, Tensor | None]

_PROMPTS_AT_ONCE = 8  # the fastest of upstream's decoder on a CPU
_PROMPTS_OF_ACCELERATOR = 256  # it takes longer to start its kernels than to run them on fewer


class SamAutomaticMaskGenerator(MaskGenerator[Sam], segment_anything.SamAutomaticMaskGenerator):
    """Segments everything in an image; subclass of upstream's, same options and records.

    Works with any ``segment_anything.modeling.Sam``. Memory does not depend on the number of
    points, and hardly on the image; several threads may share a generator. ``points_per_batch`` is
    the number of points between two progress reports and hardly affects speed or memory.

    :class:`.model.MaskDecoder` takes the place of a mask decoder with upstream's code. Any other
    decoder is called as a module, which takes longer: one that is adapted, compiled or patched, or
    has forward hooks.

    Examples:
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
        proposals: ArrayLike | None = None,
    ) -> list[Record]:
        """Generates masks for an image, as upstream's ``generate``, in eval mode.

        Args:
            image: anything that ``SamPredictor.set_image`` takes, in RGB order. With a predictor it
                may be None, unless there are crops, which are encoded.
            progress: called after every ``points_per_batch`` points with the number of points done
                and of all points.
            predictor: one that has this image set, by ``set_image_batch`` or ``load_embedding``
                for example; so only the crops of the image are encoded.
            proposals: for ``search="proposals"``, the prompts: boxes (N, 4), XYXY, with one mask
                each, or points (N, 2), XY, with three; in pixels of the image. Boxes are cut at its
                edges; what lies outside of it is left out.

        Returns:
            One record per mask, none if nothing passed the thresholds: ``segmentation`` (bool
            (H, W), or RLE, by ``output_mode``), ``bbox`` (XYWH; last minus first pixel, so each
            side is 1 less than COCO's), ``area`` in pixels, ``predicted_iou``, ``point_coords``
            (XY; empty if the prompt was a box), ``stability_score`` and ``crop_box`` (XYWH).

        Raises:
            TypeError, ValueError: as ``SamPredictor.set_image``.
            RuntimeError: if the predictor has no image set.
            UserError: if its image has another size or its model is another one; if there is no
                image where one is needed; or if proposals are malformed, or are missing or given
                against ``search``.

        Examples:
            >>> predictor.load_embedding("dog.safetensors")
            >>> masks = generator.generate(None, predictor=predictor)
            >>> generator = SamAutomaticMaskGenerator(sam, search="proposals")
            >>> masks = generator.generate(pixels, proposals=find_boxes(pixels))
        """
        model = self.predictor.model
        if predictor is not None:
            image = None if image is None else as_pixels(image)
            self._check_predictor(predictor, image)
        if image is None:
            image = self._stand_in(predictor)
        decoder = MaskDecoder.standing_in(model.mask_decoder)
        set_crop = partial(_CropDecoder, model, decoder, predictor)
        with eval_mode(model):
            return self._generate(
                image, set_crop, model.image_encoder.img_size, progress, proposals
            )

    def _check_predictor(self, predictor: SamPredictor, pixels: NDArray[np.uint8] | None) -> None:
        """Raises an error unless a predictor has the generator's model, and the image set."""
        if predictor.model is not self.predictor.model:
            raise UserError("the predictor must have the generator's own model")
        if pixels is not None:
            predictor.check_image(pixels)


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
        self.upscaler = self._predictor.upscaler
        self._on_cpu = self._predictor.device.type == "cpu"
        self.prompts_at_once = 1 if self._on_cpu else _PROMPTS_OF_ACCELERATOR

    def masks_above(
        self,
        prompts: NDArray[np.float64],
        pred_iou_thresh: float,
        stability_score_thresh: float,
        stability_score_offset: float,
    ) -> Iterator[Decoded]:
        predictor = self._predictor
        are_points = prompts.shape[1] == 2
        resized = predictor.transform.apply_coords(
            prompts.reshape(-1, 2), predictor.original_size
        ).reshape(prompts.shape)
        coords = torch.as_tensor(resized, dtype=torch.float, device=predictor.device)
        labels = torch.ones(len(prompts), 1, dtype=torch.int, device=predictor.device)
        given: Prompts = ((coords[:, None], labels), None) if are_points else (None, coords)
        decode = self._decode_by_module if self._decoder is None else self._decode
        for indices, scores, low_res_logits in decode(given, pred_iou_thresh):
            logits = low_res_logits.float()
            masks = self._extract(logits, stability_score_offset, stability_score_thresh)
            for index, score, mask, of_mask in zip(
                indices.tolist(), scores.float().tolist(), masks, logits, strict=True
            ):
                if mask is not None:
                    yield Decoded(index, score, mask, partial(_at, of_mask))

    def _extract(
        self, logits: Tensor, stability_score_offset: float, stability_score_thresh: float
    ) -> Iterable[CropMask | None]:
        thresholds = self._model.mask_threshold, stability_score_offset, stability_score_thresh
        if self._on_cpu:
            return (self.upscaler.extract_mask(mask, *thresholds) for mask in logits.numpy())
        return extract_masks(
            logits,
            self._predictor.input_size,
            self._predictor.original_size,
            self._model.image_encoder.img_size,
            *thresholds,
        )

    def _decode(self, prompts: Prompts, pred_iou_thresh: float) -> Iterator[LowRes]:
        assert self._decoder is not None
        prompt_encoder = self._model.prompt_encoder
        points, boxes = prompts
        sparse, dense = prompt_encoder(points, boxes, None)
        return self._decoder.predict_masks_above(
            self._predictor.features,
            prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            pred_iou_thresh,
            multimask_output=points is not None,
        )

    def _decode_by_module(self, prompts: Prompts, pred_iou_thresh: float) -> Iterator[LowRes]:
        # A few prompts at a time: upstream's decoder copies the image for each.
        points, boxes = prompts
        coords, labels = points or (None, None)
        given = boxes if coords is None else coords
        assert given is not None
        step = _PROMPTS_AT_ONCE if given.device.type == "cpu" else len(given)
        for start in range(0, len(given), step):
            some = slice(start, start + step)
            logits, scores = self._predictor.predict_low_res_torch(
                None if coords is None else coords[some],
                None if labels is None else labels[some],
                None if boxes is None else boxes[some],
                multimask_output=boxes is None,
            )
            above = (scores > pred_iou_thresh) | (pred_iou_thresh <= 0)
            indices, masks = above.nonzero(as_tuple=True)
            yield indices + start, scores[indices, masks], logits[indices, masks]


def _at(logits: Tensor, places: tuple[IntArray, IntArray]) -> FloatArray:
    """Returns logits (h, w) at some rows and columns."""
    rows, columns = (torch.from_numpy(place).to(logits.device) for place in places)
    values: FloatArray = logits[rows, columns].cpu().numpy()
    return values
