"""Everything mode: upstream's records for every option, in a fraction of the time and memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.amg import (
    MaskData,
    area_from_rle,
    batch_iterator,
    batched_mask_to_box,
    box_xyxy_to_xywh,
    coco_encode_rle,
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
    rle_to_mask,
)
from torch import Tensor
from torchvision.ops.boxes import batched_nms, box_area

from .mask_postprocessing import CropMask, MaskUpscaler, UncompressedRLE, rle_from_mask
from .model import MaskDecoder
from .predictor import SamPredictor, as_pixels, eval_mode

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Candidate:
    """A mask that passed the thresholds, in the frame of its crop."""

    mask: CropMask
    predicted_iou: float
    point: NDArray[np.float64]  # XY
    crop_box: list[int]  # XYXY

    @property
    def box(self) -> list[int]:
        """XYXY in the image, both ends inclusive."""
        x, y = self.crop_box[:2]
        x0, y0, x1, y1 = self.mask.box
        return [x0 + x, y0 + y, x1 + x, y1 + y]


class SamAutomaticMaskGenerator(segment_anything.SamAutomaticMaskGenerator):
    """Segments everything in an image; subclass of upstream's, same options and records.

    Works with any ``segment_anything.modeling.Sam``. Memory does not grow with the number of
    points, and hardly with the image; several threads may share a generator. ``points_per_batch``
    is how often progress is reported; it changes neither speed nor memory much.

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

    @torch.no_grad()
    def generate(
        self, image: NDArray[np.uint8] | Image.Image, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Generates masks for an image, as upstream's ``generate``.

        Args:
            image: all that ``SamPredictor.set_image`` takes, in RGB order.
            progress: called with the number of points done and of all points, again and again.

        Returns:
            A record a mask, none if nothing passed the thresholds: ``segmentation`` (bool (H, W),
            or RLE, by ``output_mode``), ``bbox`` (XYWH), ``area`` in pixels, ``predicted_iou``,
            ``point_coords`` (XY), ``stability_score`` and ``crop_box`` (XYWH).

        Raises:
            TypeError, ValueError: as ``SamPredictor.set_image``.
        """
        pixels = as_pixels(image)
        image_size = pixels.shape[:2]
        with eval_mode(self.predictor.model):
            candidates = self._find(pixels, progress or (lambda done, total: None))
        data = MaskData(
            rles=[found.mask.to_rle(found.crop_box, image_size) for found in candidates],
            boxes=np.array([found.box for found in candidates], dtype=np.int64),
            candidates=candidates,
        )
        if self.min_mask_region_area > 0:
            data = self.postprocess_small_regions(
                data, self.min_mask_region_area, max(self.box_nms_thresh, self.crop_nms_thresh)
            )
        return [
            {
                "segmentation": self._segmentation(rle),
                "area": area_from_rle(rle),
                "bbox": box_xyxy_to_xywh(box).tolist(),
                "predicted_iou": candidate.predicted_iou,
                "point_coords": [candidate.point.tolist()],
                "stability_score": candidate.mask.stability_score,
                "crop_box": box_xyxy_to_xywh(np.array(candidate.crop_box)).tolist(),
            }
            for rle, box, candidate in zip(
                data["rles"], data["boxes"], data["candidates"], strict=True
            )
        ]

    def _segmentation(self, rle: UncompressedRLE) -> Any:
        if self.output_mode == "coco_rle":
            return coco_encode_rle(rle)
        return rle_to_mask(rle) if self.output_mode == "binary_mask" else rle

    def _find(self, pixels: NDArray[np.uint8], progress: Progress) -> list[_Candidate]:
        """The masks of all crops without duplicates."""
        crop_boxes, layers = generate_crop_boxes(
            pixels.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
        )
        total, done = sum(len(self.point_grids[layer]) for layer in layers), 0
        candidates: list[_Candidate] = []
        decoder = self.predictor.model.mask_decoder
        if not isinstance(decoder, MaskDecoder):
            decoder = MaskDecoder.sharing(decoder)
        for crop_box, layer in zip(crop_boxes, layers, strict=True):
            found: list[_Candidate] = []
            grid = self.point_grids[layer]
            for points, more in self._find_in_crop(pixels, crop_box, grid, decoder):
                found += more
                done += points
                progress(done, total)
            scores = torch.tensor([candidate.predicted_iou for candidate in found])
            boxes = [candidate.mask.box for candidate in found]
            candidates += [found[i] for i in _suppress(boxes, scores, self.box_nms_thresh)]
        if len(crop_boxes) > 1 and candidates:
            # Prefer masks from smaller crops, as upstream.
            areas = box_area(torch.tensor([candidate.crop_box for candidate in candidates]))
            boxes = [candidate.box for candidate in candidates]
            kept = _suppress(boxes, 1 / areas, self.crop_nms_thresh)
            candidates = [candidates[i] for i in kept]
        return candidates

    def _find_in_crop(
        self,
        pixels: NDArray[np.uint8],
        crop_box: list[int],
        point_grid: NDArray[Any],
        decoder: MaskDecoder,
    ) -> Iterator[tuple[int, list[_Candidate]]]:
        """Batch by batch of the grid: the number of points, and the masks found by them."""
        model = self.predictor.model
        image_box = [0, 0, pixels.shape[1], pixels.shape[0]]
        x0, y0, x1, y1 = crop_box
        # A predictor of its own, so that threads do not meet, nor a client's self.predictor.
        predictor = SamPredictor(model)
        predictor.set_image(pixels[y0:y1, x0:x1])
        upscaler = MaskUpscaler(
            predictor.input_size,
            (y1 - y0, x1 - x0),
            low_res_size=tuple(model.prompt_encoder.mask_input_size),
            model_size=model.image_encoder.img_size,
        )
        image_pe = model.prompt_encoder.get_dense_pe()
        for (points,) in batch_iterator(self.points_per_batch, point_grid * [x1 - x0, y1 - y0]):
            coords = predictor.transform.apply_coords(points, (y1 - y0, x1 - x0))
            coords = torch.as_tensor(coords, dtype=torch.float, device=predictor.device)
            labels = torch.ones(len(points), 1, dtype=torch.int, device=predictor.device)
            sparse, dense = model.prompt_encoder((coords[:, None], labels), None, None)
            found = []
            decoded = decoder.predict_masks_above(
                predictor.features, image_pe, sparse, dense, self.pred_iou_thresh
            )
            for prompts, scores, low_res_logits in decoded:
                for prompt, score, logits in zip(
                    prompts.tolist(),
                    scores.float().tolist(),
                    low_res_logits.float().cpu().numpy(),
                    strict=True,
                ):
                    mask = upscaler.extract_mask(
                        logits,
                        model.mask_threshold,
                        self.stability_score_offset,
                        self.stability_score_thresh,
                    )
                    if mask is not None and not _touches_crop_edge(mask.box, crop_box, image_box):
                        found.append(_Candidate(mask, score, points[prompt] + [x0, y0], crop_box))
            yield len(points), found

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: int, nms_thresh: float
    ) -> MaskData:
        """As upstream's, one mask at a time: fills small holes, drops small islands, runs NMS.

        Args:
            mask_data: ``rles`` and ``boxes`` (N, 4), XYXY, and any lists beside; changed in place.
            min_area: in pixels; smaller holes and islands go.
            nms_thresh: the box IoU above which the one of two masks that was changed goes.
        """
        boxes, unchanged = [], []
        for index, rle in enumerate(mask_data["rles"]):
            mask, holes_filled = remove_small_regions(rle_to_mask(rle), min_area, mode="holes")
            mask, islands_dropped = remove_small_regions(mask, min_area, mode="islands")
            unchanged.append(float(not holes_filled and not islands_dropped))
            boxes.append(_box_of(mask))
            if not unchanged[-1]:
                mask_data["rles"][index] = rle_from_mask(mask)
                mask_data["boxes"][index] = boxes[-1]
        # Prefer masks that did not need it.
        kept = _suppress(boxes, torch.tensor(unchanged), nms_thresh)
        mask_data.filter(torch.tensor(kept, dtype=torch.int64))
        return mask_data


def _suppress(boxes: list[list[int]], scores: Tensor, iou_threshold: float) -> list[int]:
    """Non-maximum suppression: indices of the boxes (XYXY) to keep, best first."""
    if not boxes:
        return []
    keep = batched_nms(
        torch.tensor(boxes, dtype=torch.float),
        scores,
        torch.zeros(len(boxes)),
        iou_threshold=iou_threshold,
    )
    indices: list[int] = keep.tolist()
    return indices


def _touches_crop_edge(box: list[int], crop_box: list[int], image_box: list[int]) -> bool:
    return bool(is_box_near_crop_edge(torch.tensor([box]), crop_box, image_box).item())


def _box_of(mask: NDArray[np.bool_]) -> list[int]:
    box: list[int] = batched_mask_to_box(torch.as_tensor(mask)).tolist()
    return box
