"""Everything mode without a model: grids of points, crops, thresholds, duplicates and records.

The torch and the ONNX generator share it; only their decoding of points differs. It needs numpy and
OpenCV alone, and its results equal those of ``segment_anything.SamAutomaticMaskGenerator``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .errors import UserError
from .inputs import as_finite, as_pixels, check_integer, check_number, input_size
from .mask_postprocessing import (
    BoolArray,
    CropMask,
    FloatArray,
    IntArray,
    MaskUpscaler,
    UncompressedRLE,
    compress_rle,
    mask_from_rle,
    rle_from_mask,
)
from .records import Record

Model = TypeVar("Model")

Progress = Callable[[int, int], None]
"""Called with the number of points done and of all points."""

SEARCHES = ("grid", "hierarchical", "proposals")
"""Where a generator prompts: see ``search`` of :class:`MaskGenerator`."""

_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_MOST_POINTS = 10_000  # per side; more would take days
_EDGE = 20  # pixels; a mask this close to the edge of a crop counts as cut off
_COARSE = 4  # of this many rows and columns of a grid one is coarse, as in TinySAM
# TinySAM takes logits above 8.5, which fits its own weights. A share of the logit at the point that
# was asked fits any: measured in docs/measurements/search.md.
_CONFIDENT = 0.6


class Decoded(NamedTuple):
    """A mask that passed the thresholds.

    Attributes:
        prompt: the index of its prompt.
        predicted_iou: by the model.
        mask: in the frame of its crop.
        logits_at: returns its low-res logits at some rows and columns.
    """

    prompt: int
    predicted_iou: float
    mask: CropMask
    logits_at: Callable[[tuple[IntArray, IntArray]], FloatArray]


class CropDecoder(Protocol):
    """A model with a crop of an image set."""

    upscaler: MaskUpscaler
    prompts_at_once: int
    """Fewer prompts take hardly less time."""

    def masks_above(
        self,
        prompts: NDArray[np.float64],
        pred_iou_thresh: float,
        stability_score_thresh: float,
        stability_score_offset: float,
    ) -> Iterator[Decoded]:
        """Decodes prompts of their own: points with three masks each, or boxes with one.

        Args:
            prompts: points (N, 2), XY, or boxes (N, 4), XYXY, in pixels of the crop.
            pred_iou_thresh, stability_score_thresh, stability_score_offset: those of
                :class:`MaskGenerator`.

        Yields:
            The masks that pass these thresholds.
        """


@dataclass(frozen=True)
class _Candidate:
    """A mask that passed the thresholds, in the frame of its crop."""

    mask: CropMask
    predicted_iou: float
    point_coords: list[list[float]]  # XY; none if the prompt was a box
    crop_box: list[int]  # XYXY

    @property
    def box(self) -> list[int]:
        """XYXY in the image, both ends inclusive."""
        x, y = self.crop_box[:2]
        x0, y0, x1, y1 = self.mask.box
        return [x0 + x, y0 + y, x1 + x, y1 + y]


class MaskGenerator(Generic[Model]):
    """Options and procedure of everything mode; subclasses bring the model."""

    def __init__(
        self,
        model: Model,
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
        search: str = "grid",
    ) -> None:
        """Keeps the options.

        Args:
            model: a ``Sam``; for ``OnnxAutomaticMaskGenerator`` an ``OnnxPredictor``.
            points_per_side: points along each side of the image; None if point_grids is given.
            points_per_batch: number of points between two calls of ``progress``.
            pred_iou_thresh: masks with this predicted IoU or a lower one are dropped; at most 1.
                0 or less drops none.
            stability_score_thresh: masks with a lower stability score are dropped; at most 1. 0 or
                less drops none.
            stability_score_offset: shift of the mask threshold, in logits, for that score.
            box_nms_thresh: box IoU above which two masks of a crop are duplicates.
            crop_n_layers: number of layers of crops; layer N splits each side into 2^N.
            crop_nms_thresh: box IoU above which two masks from different crops are duplicates.
            crop_overlap_ratio: overlap of the crops in layer 1, as a fraction of the image's
                shorter side, 0 to 1; smaller in later layers.
            crop_n_points_downscale_factor: in layer N points_per_side is divided by this^N.
            point_grids: points for the image and for each layer of crops, (N, 2), XY in [0, 1].
            min_mask_region_area: islands and holes with fewer pixels are removed.
            output_mode: form of the segmentations: "binary_mask", "uncompressed_rle" or "coco_rle".
            search: where to prompt. "grid": at every point of the grid, as upstream. The others
                find other masks with fewer prompts. "hierarchical": first at every fourth row and
                column of the grid, then at those other points that are in no mask found with high
                confidence (TinySAM, https://arxiv.org/abs/2312.13789). "proposals": at the boxes or
                points that ``generate`` is given, whatever points_per_side is (MobileSAMv2,
                https://arxiv.org/abs/2312.09579).

        Raises:
            TypeError: if an option that must be a number is not one.
            UserError: if both or neither of points_per_side and point_grids are given, an option
                is out of range, or the search does not go with another option. The message gives
                its name.
        """
        if (points_per_side is None) == (point_grids is None):
            raise UserError("give either points_per_side or point_grids, and None for the other")
        if output_mode not in _OUTPUT_MODES:
            raise UserError(
                f"output_mode must be one of {', '.join(_OUTPUT_MODES)}, not {output_mode!r}"
            )
        if search not in SEARCHES:
            raise UserError(f"search must be one of {', '.join(SEARCHES)}, not {search!r}")
        if search != "grid" and point_grids is not None:
            raise UserError(f"search {search!r} takes no point_grids: give points_per_side")
        if search == "proposals" and crop_n_layers:
            raise UserError(
                f"search 'proposals' prompts in the whole image alone: crop_n_layers must be 0, "
                f"not {crop_n_layers}"
            )
        check_integer("points_per_batch", points_per_batch, 1)
        check_integer("crop_n_layers", crop_n_layers, 0)
        check_number("pred_iou_thresh", pred_iou_thresh, highest=1)
        check_number("stability_score_thresh", stability_score_thresh, highest=1)
        check_number("stability_score_offset", stability_score_offset)
        check_number("box_nms_thresh", box_nms_thresh)
        check_number("crop_nms_thresh", crop_nms_thresh)
        check_number("crop_overlap_ratio", crop_overlap_ratio, lowest=0, highest=1)
        check_number("min_mask_region_area", min_mask_region_area)
        self.predictor = self._predictor_of(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.search = search
        self.point_grids: Sequence[NDArray[Any]]
        if point_grids is not None:
            self.point_grids = _check_grids(point_grids, crop_n_layers)
        else:
            sides = _grid_sides(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
            self.point_grids = [_point_grid(side) for side in sides]

    def _predictor_of(self, model: Model) -> Any:
        """Returns the predictor of a model, which may be one already."""
        return model

    def _stand_in(self, predictor: Any) -> NDArray[np.uint8]:
        """Returns pixels, all 0, for the image of a predictor, of which only the size is needed.

        Raises:
            RuntimeError: if the predictor has no image set.
            UserError: if there is no predictor, or there are crops to encode.
        """
        if predictor is None:
            raise UserError("give an image, or a predictor that has one set")
        predictor.get_image_embedding()  # raises RuntimeError if no image is set
        if self.crop_n_layers:
            raise UserError(
                f"crop_n_layers is {self.crop_n_layers}: give the image, to encode its crops"
            )
        return np.broadcast_to(np.uint8(0), (*predictor.original_size, 3))

    def _generate(
        self,
        image: NDArray[np.uint8] | Image.Image,
        set_crop: Callable[[NDArray[np.uint8]], CropDecoder],
        img_size: int,
        progress: Progress | None,
        proposals: ArrayLike | None,
    ) -> list[Record]:
        """Does what the ``generate`` of a subclass promises.

        Args:
            image, progress, proposals: those of ``generate``.
            set_crop: encodes a crop, (H, W, 3) uint8 RGB.
            img_size: the side of the model's input in pixels.
        """
        pixels = as_pixels(image)
        image_size = pixels.shape[:2]
        tell = progress or (lambda done, total: None)
        if (proposals is None) == (self.search == "proposals"):
            raise UserError(
                "search is 'proposals': give the boxes or points in the image as proposals"
                if proposals is None
                else f"proposals go with search 'proposals', not {self.search!r}"
            )
        if proposals is None:
            candidates = self._find(pixels, set_crop, img_size, tell)
        else:
            prompts = _check_proposals(proposals, image_size)
            candidates = self._find_proposed(pixels, set_crop, prompts, tell)
        rles = [found.mask.to_rle(found.crop_box, image_size) for found in candidates]
        boxes = [found.box for found in candidates]
        if self.min_mask_region_area > 0:
            nms_thresh = max(self.box_nms_thresh, self.crop_nms_thresh)
            kept = remove_small_regions(rles, boxes, self.min_mask_region_area, nms_thresh)
            rles, boxes = [rles[i] for i in kept], [boxes[i] for i in kept]
            candidates = [candidates[i] for i in kept]
        return [
            {
                "segmentation": self._segmentation(rle),
                "area": sum(rle["counts"][1::2]),
                "bbox": _as_xywh(box),
                "predicted_iou": candidate.predicted_iou,
                "point_coords": candidate.point_coords,
                "stability_score": candidate.mask.stability_score,
                "crop_box": _as_xywh(candidate.crop_box),
            }
            for rle, box, candidate in zip(rles, boxes, candidates, strict=True)
        ]

    def _segmentation(self, rle: UncompressedRLE) -> Any:
        if self.output_mode == "coco_rle":
            return compress_rle(rle)
        return mask_from_rle(rle) if self.output_mode == "binary_mask" else rle

    def _find(
        self,
        pixels: NDArray[np.uint8],
        set_crop: Callable[[NDArray[np.uint8]], CropDecoder],
        img_size: int,
        progress: Progress,
    ) -> list[_Candidate]:
        """Returns the masks of all crops without duplicates."""
        height, width = pixels.shape[:2]
        crops = [
            (crop_box, layer)
            for crop_box, layer in _crop_boxes(
                height, width, self.crop_n_layers, self.crop_overlap_ratio
            )
            if layer == 0 or _can_hold_masks(crop_box, img_size)
        ]
        total, done = sum(len(self.point_grids[layer]) for _, layer in crops), 0
        candidates: list[_Candidate] = []
        for crop_box, layer in crops:
            x0, y0, x1, y1 = crop_box
            decoder = set_crop(pixels[y0:y1, x0:x1])
            grid = self.point_grids[layer] * [x1 - x0, y1 - y0]
            found: list[_Candidate] = []
            rounds, covered = [np.arange(len(grid))], None
            if self.search == "hierarchical":
                rounds = _coarse_and_fine(math.isqrt(len(grid)))
                covered = _Covered(grid, decoder.upscaler, img_size)
            for chosen in rounds:
                left = chosen if covered is None else chosen[~covered.points[chosen]]
                if len(left) < len(chosen):
                    done += len(chosen) - len(left)
                    progress(done, total)
                step = max(self.points_per_batch, decoder.prompts_at_once)
                for start in range(0, len(left), step):
                    few = left[start : start + step]
                    found += self._find_at(grid, few, decoder, crop_box, (height, width), covered)
                    done += len(few)
                    progress(done, total)
            candidates += self._without_duplicates(found)
        if len(crops) > 1:
            # Prefer masks from smaller crops, as upstream.
            crop_boxes = [candidate.crop_box for candidate in candidates]
            scores = [1 / ((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in crop_boxes]
            boxes = [candidate.box for candidate in candidates]
            kept = nms(boxes, scores, self.crop_nms_thresh)
            candidates = [candidates[i] for i in kept]
        return candidates

    def _find_proposed(
        self,
        pixels: NDArray[np.uint8],
        set_crop: Callable[[NDArray[np.uint8]], CropDecoder],
        proposals: NDArray[np.float64],
        progress: Progress,
    ) -> list[_Candidate]:
        """Returns the masks of proposals in the image without duplicates."""
        if len(proposals) == 0:
            return []
        height, width = pixels.shape[:2]
        decoder = set_crop(pixels)
        found: list[_Candidate] = []
        for start in range(0, len(proposals), self.points_per_batch):
            few = np.arange(start, min(start + self.points_per_batch, len(proposals)))
            found += self._find_at(proposals, few, decoder, [0, 0, width, height], (height, width))
            progress(start + len(few), len(proposals))
        return self._without_duplicates(found)

    def _find_at(
        self,
        prompts: NDArray[np.float64],
        few: NDArray[np.int64],
        decoder: CropDecoder,
        crop_box: list[int],
        image_size: tuple[int, int],
        covered: "_Covered | None" = None,
    ) -> Iterator[_Candidate]:
        """Yields the masks that pass the thresholds, of a few prompts.

        Args:
            prompts: points (N, 2) or boxes (N, 4) in pixels of the crop.
            few: indices of those to decode.
            decoder: with the crop set.
            crop_box: XYXY.
            image_size: (H, W).
            covered: if given, it is told of these masks.
        """
        thresholds = self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset
        for index, score, mask, logits_at in decoder.masks_above(prompts[few], *thresholds):
            if _is_cut_off(mask.box, crop_box, image_size):
                continue
            if covered is not None:
                covered.add(int(few[index]), score, logits_at)
            prompt = prompts[few[index]]
            points = [(prompt + crop_box[:2]).tolist()] if len(prompt) == 2 else []
            yield _Candidate(mask, score, points, crop_box)

    def _without_duplicates(self, found: list[_Candidate]) -> list[_Candidate]:
        """Returns the masks of a crop that are left by non-maximum suppression."""
        scores = [candidate.predicted_iou for candidate in found]
        boxes = [candidate.mask.box for candidate in found]
        return [found[i] for i in nms(boxes, scores, self.box_nms_thresh)]


class _Covered:
    """Which points of a grid are in masks that were found with high confidence.

    Of the masks of a point that was asked, the one with the highest predicted IoU counts, where its
    logits are at least :data:`_CONFIDENT` of that at the point itself.
    """

    def __init__(self, grid: NDArray[np.float64], upscaler: MaskUpscaler, img_size: int) -> None:
        """Finds the low-res logit of each point.

        Args:
            grid: (N, 2), XY in pixels of the crop.
            upscaler: of the crop's logits.
            img_size: the side of the model's input in pixels.
        """
        (height, width), low_res_size = upscaler.crop_size, upscaler.low_res_size
        resized_height, resized_width = input_size(height, width, img_size)
        scale = np.array([resized_width / width, resized_height / height]) / img_size
        columns, rows = (grid * scale * low_res_size[::-1]).astype(np.int64).T
        self._cells = rows.clip(0, low_res_size[0] - 1), columns.clip(0, low_res_size[1] - 1)
        self._best: dict[int, tuple[float, BoolArray]] = {}

    def add(
        self,
        point: int,
        predicted_iou: float,
        logits_at: Callable[[tuple[IntArray, IntArray]], FloatArray],
    ) -> None:
        """Takes in a mask of the point with this index in the grid."""
        if point in self._best and self._best[point][0] >= predicted_iou:
            return
        at = logits_at(self._cells)
        self._best[point] = predicted_iou, (at > 0) & (at >= _CONFIDENT * at[point])

    @property
    def points(self) -> BoolArray:
        """(N,) bool."""
        covered = np.zeros(len(self._cells[0]), dtype=bool)
        for _, inside in self._best.values():
            covered |= inside
        return covered


def _coarse_and_fine(side: int) -> list[NDArray[np.int64]]:
    """Returns the indices of every fourth row and column of a grid, and those of other points."""
    places = np.arange(side) % _COARSE == _COARSE // 2  # in the middle of four
    coarse = np.outer(places, places).ravel()
    return [np.flatnonzero(coarse), np.flatnonzero(~coarse)]


def _check_proposals(proposals: ArrayLike, image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Returns boxes (N, 4), cut at the image's edges, or points (N, 2), those inside of it."""
    prompts = as_finite("proposals", proposals)
    if prompts.size == 0:
        return prompts.reshape(0, 4)
    if prompts.ndim != 2 or prompts.shape[1] not in (2, 4):
        raise UserError(
            "proposals must be boxes (N, 4), XYXY, or points (N, 2), XY, in pixels of the image, "
            f"not of the shape {prompts.shape}"
        )
    height, width = image_size
    if prompts.shape[1] == 2:
        return prompts[((prompts >= 0) & (prompts <= [width, height])).all(axis=1)]
    swapped = prompts[(prompts[:, :2] > prompts[:, 2:]).any(axis=1)]
    if len(swapped):
        raise UserError(
            f"proposals hold the box {swapped[0].tolist()}, which is not XYXY: left, top, right, "
            "bottom"
        )
    cut = prompts.clip(0, [width, height, width, height])
    return cut[(cut[:, :2] < cut[:, 2:]).all(axis=1)]


def drop_empty(records: Iterable[Record]) -> list[Record]:
    """Returns the records whose masks have pixels.

    With both thresholds at 0 a generator also returns empty masks, as upstream's does.
    """
    return [record for record in records if record["area"]]


def remove_small_regions(
    rles: list[UncompressedRLE], boxes: Any, min_area: int, nms_thresh: float
) -> list[int]:
    """Fills small holes and drops small islands of masks, one mask at a time, then runs NMS.

    Args:
        rles: the masks; changed in place.
        boxes: their boxes (N, 4), XYXY; changed in place.
        min_area: in pixels; smaller holes and islands are removed.
        nms_thresh: if two boxes have an IoU above it, one is dropped, preferably a changed one.

    Returns:
        The indices of the masks to keep.
    """
    cleaned, unchanged = [], []
    for index, rle in enumerate(rles):
        mask, holes_filled = _without_small_regions(mask_from_rle(rle), min_area, holes=True)
        mask, islands_dropped = _without_small_regions(mask, min_area, holes=False)
        unchanged.append(float(not holes_filled and not islands_dropped))
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        cleaned.append([x, y, max(x + width - 1, 0), max(y + height - 1, 0)])
        if not unchanged[-1]:
            rles[index] = rle_from_mask(mask)
            boxes[index] = cleaned[-1]
    # Prefer masks that were not changed.
    return nms(cleaned, unchanged, nms_thresh)


def _without_small_regions(mask: BoolArray, min_area: int, holes: bool) -> tuple[BoolArray, bool]:
    """Returns the mask and whether it was changed, as upstream's ``remove_small_regions``.

    If all islands are small, the largest one stays.
    """
    count, regions, stats, _ = cv2.connectedComponentsWithStats((holes ^ mask).astype(np.uint8), 8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # the first is what lies around the regions
    small = np.flatnonzero(areas < min_area) + 1
    if len(small) == 0:
        return mask, False
    if holes:
        return np.isin(regions, [0, *small]), True
    large = np.setdiff1d(np.arange(1, count), small)
    return np.isin(regions, large if len(large) else np.argmax(areas) + 1), True


def nms(boxes: ArrayLike, scores: Sequence[float], iou_threshold: float) -> list[int]:
    """Non-maximum suppression as torchvision's ``nms``, in float32.

    Args:
        boxes: (N, 4), XYXY.
        scores: (N,); if two boxes overlap, the one with the higher score is kept, or the first one
            if the scores are equal.
        iou_threshold: boxes overlap if their IoU is above it.

    Returns:
        The indices of the boxes to keep, best first.
    """
    corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    first, last = corners[:, :2], corners[:, 2:]
    areas = np.prod(last - first, axis=1)
    left = np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        sides = np.minimum(last[best], last[left]) - np.maximum(first[best], first[left])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        with np.errstate(invalid="ignore"):  # boxes without an area overlap none
            overlap = shared / (areas[best] + areas[left] - shared)
        left = left[~(overlap > np.float64(iou_threshold))]
    return kept


def _grid_sides(points_per_side: float | None, layers: int, downscale_factor: float) -> list[int]:
    """Returns the points along each side of the image, and of the crops of each layer."""
    assert points_per_side is not None
    check_number("points_per_side", points_per_side, 1, _MOST_POINTS)
    check_number("crop_n_points_downscale_factor", downscale_factor)
    if downscale_factor <= 0:
        raise UserError(f"crop_n_points_downscale_factor must be above 0, not {downscale_factor}")
    sides = [int(points_per_side / downscale_factor**layer) for layer in range(layers + 1)]
    if min(sides) < 1:
        raise UserError(
            f"no point is left in layer {sides.index(0)} of the crops: raise points_per_side "
            f"({points_per_side}), or lower crop_n_points_downscale_factor ({downscale_factor}) or "
            "crop_n_layers"
        )
    return sides


def _check_grids(point_grids: Sequence[ArrayLike], layers: int) -> Sequence[NDArray[Any]]:
    """Returns the points of the image and of each layer, checked."""
    if len(point_grids) <= layers:
        raise UserError(
            "point_grids must hold a grid for the image and one for each layer of crops "
            f"(crop_n_layers is {layers}), not {len(point_grids)} in all"
        )
    grids = []
    for index, grid in enumerate(point_grids):
        points = as_finite(f"point_grids[{index}]", grid)
        if points.ndim != 2 or points.shape[1] != 2:
            raise UserError(f"point_grids[{index}] must have the shape (N, 2), not {points.shape}")
        outside = points[(points < 0) | (points > 1)]
        if outside.size:
            raise UserError(
                f"point_grids[{index}] must lie in [0, 1], fractions of the image, not at "
                f"{outside[0]:g}"
            )
        grids.append(points)
    return grids


def _point_grid(points_per_side: int) -> NDArray[np.float64]:
    """Returns points in the middle of squares, (N * N, 2), XY in [0, 1], row by row."""
    offset = 1 / (2 * points_per_side)
    places = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)


def _crop_boxes(
    height: int, width: int, layers: int, overlap_ratio: float
) -> list[tuple[list[int], int]]:
    """Returns the box, XYXY, and layer of each crop, as upstream's ``generate_crop_boxes``."""
    crops = [([0, 0, width, height], 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        crop_width, crop_height = (
            math.ceil((overlap * (per_side - 1) + length) / per_side) for length in (width, height)
        )
        for column, row in product(range(per_side), repeat=2):
            x0, y0 = (crop_width - overlap) * column, (crop_height - overlap) * row
            x1, y1 = min(x0 + crop_width, width), min(y0 + crop_height, height)
            crops.append(([x0, y0, x1, y1], layer))
    return crops


def _can_hold_masks(crop_box: list[int], img_size: int) -> bool:
    """Whether a crop is neither empty nor too thin for the model: some of small images are."""
    x0, y0, x1, y1 = crop_box
    if x0 >= x1 or y0 >= y1:
        return False
    try:
        input_size(y1 - y0, x1 - x0, img_size)
    except UserError:
        return False
    return True


def _is_cut_off(box: list[int], crop_box: list[int], image_size: tuple[int, int]) -> bool:
    """Whether a box touches an edge of the crop inside of the image.

    As segment-anything's ``is_box_near_crop_edge``.
    """
    origin = np.array([*crop_box[:2], *crop_box[:2]])
    corners = np.array(box) + origin
    image_box = [0, 0, image_size[1], image_size[0]]
    near_crop, near_image = (np.abs(corners - edges) <= _EDGE for edges in (crop_box, image_box))
    return bool((near_crop & ~near_image).any())


def _as_xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = map(int, box)
    return [x0, y0, x1 - x0, y1 - y0]
