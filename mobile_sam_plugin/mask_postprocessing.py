"""From SAM's low-resolution logits to masks in run-length form, without full-size logits.

Everything mode scores, thresholds, boxes and encodes a thousand masks per image. The reference
package upscales every mask to the full image first: gigabytes of float32 that are read only to be
compared with three thresholds. The upscaling is bilinear, so a pixel is a weighted mean of the few
low-resolution logits around it. Where all of those lie on the same side of the thresholds, so does
the pixel; logits need computing only in the tiles that a threshold passes through.

numpy only, so that it serves torch and onnxruntime predictors alike. Boxes, areas and runs equal
those of ``segment_anything`` except at pixels whose logit is within float32 rounding of a
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypedDict

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .errors import UserError

_TILE_SIZE = 64  # pixels of the upscaled mask per side
_CHUNK_PIXELS = 1 << 18  # upscaled at once: 1 MB of float32, which stays in the L2 cache

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class UncompressedRLE(TypedDict):
    """Column-major runs of a mask, as pycocotools reads them.

    ``size`` is [height, width]; ``counts`` are the lengths of alternating runs of background and
    foreground pixels, background first (0 if the mask starts with foreground).
    """

    size: list[int]
    counts: list[int]


class CocoRLE(TypedDict):
    """COCO's compressed run-length encoding: ``size`` is [height, width], ``counts`` is ASCII."""

    size: list[int]
    counts: str


def rle_from_mask(mask: BoolArray) -> UncompressedRLE:
    """Encodes one binary mask, as upstream's ``mask_to_rle_pytorch`` does for a batch.

    Args:
        mask: bool array of shape (height, width).

    Raises:
        ValueError: if the mask is not two-dimensional or has no pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise UserError(f"Expected a mask of shape (height, width), got shape {mask.shape}.")
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    if pixels[0]:
        changes = np.concatenate(([0], changes))
    return _rle_from_changes(changes, *mask.shape)


def mask_from_rle(rle: UncompressedRLE) -> BoolArray:
    """Decodes a mask: bool of shape ``size``, column-major in memory as upstream's."""
    height, width = rle["size"]
    foreground = np.arange(len(rle["counts"])) % 2 == 1
    mask: BoolArray = np.repeat(foreground, rle["counts"]).reshape(width, height).T
    return mask


def compress_rle(rle: UncompressedRLE) -> CocoRLE:
    """Compresses runs as upstream's ``coco_encode_rle`` does; needs pycocotools."""
    from pycocotools import mask as mask_utils

    compressed = mask_utils.frPyObjects(rle, *rle["size"])
    return {"size": compressed["size"], "counts": compressed["counts"].decode("ascii")}


def _rle_from_changes(changes: IntArray, height: int, width: int) -> UncompressedRLE:
    """Runs from the column-major positions of the pixels that differ from the one before."""
    counts = np.diff(changes, prepend=0, append=height * width)
    return {"size": [height, width], "counts": counts.tolist()}


@dataclass(frozen=True, eq=False)
class CropMask:
    """One thresholded mask of a crop, held as the vertical runs of its pixels.

    Attributes:
        stability_score: upstream's ``calculate_stability_score``: the number of logits above
            threshold + offset over the number above threshold - offset; NaN if both are zero.
        crop_size: (height, width) of the crop in pixels.
        columns: int32, shape (runs,), the x coordinate of each run, ascending.
        tops: int32, shape (runs,), the y coordinate of each run's first pixel; ascending within a
            column.
        bottoms: int32, shape (runs,), the y coordinate just below each run's last pixel.
    """

    stability_score: float
    crop_size: tuple[int, int]
    columns: NDArray[np.int32]
    tops: NDArray[np.int32]
    bottoms: NDArray[np.int32]

    @property
    def area(self) -> int:
        """Number of pixels in the mask."""
        return int((self.bottoms - self.tops).sum())

    @cached_property
    def box(self) -> list[int]:
        """First and last pixel indices [x0, y0, x1, y1] in the crop; zeros for an empty mask.

        Both ends are inclusive, as in upstream's ``batched_mask_to_box``.
        """
        if self.columns.size == 0:
            return [0, 0, 0, 0]
        y0, y1 = self.tops.min(), self.bottoms.max() - 1
        return [int(self.columns[0]), int(y0), int(self.columns[-1]), int(y1)]

    def to_rle(self, crop_box: Sequence[int], image_size: tuple[int, int]) -> UncompressedRLE:
        """Encode the mask in the full image, as ``uncrop_masks`` and ``mask_to_rle_pytorch`` do.

        Args:
            crop_box: the crop's [x0, y0, x1, y1] in the image, x1 and y1 exclusive.
            image_size: (height, width) of the full image.

        Raises:
            ValueError: if the box does not have the crop's size or does not lie in the image.
        """
        x0, y0, x1, y1 = crop_box
        height, width = image_size
        if (y1 - y0, x1 - x0) != self.crop_size:
            raise UserError(f"Crop box {list(crop_box)} is not of crop size {self.crop_size}.")
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UserError(f"Crop box {list(crop_box)} is not inside image size {image_size}.")

        column_starts = (self.columns.astype(np.int64) + x0) * height + y0
        changes = np.stack([column_starts + self.tops, column_starts + self.bottoms], 1).ravel()
        # A run that ends at the image's bottom goes on at the top of the next column.
        joined = changes[1:] == changes[:-1]
        kept = np.ones(changes.size, dtype=bool)
        kept[1:] &= ~joined
        kept[:-1] &= ~joined
        kept &= changes < height * width
        return _rle_from_changes(changes[kept], height, width)

    def to_coco_rle(self, crop_box: Sequence[int], image_size: tuple[int, int]) -> CocoRLE:
        """Encodes as :meth:`to_rle`, compressed; see :func:`compress_rle`."""
        return compress_rle(self.to_rle(crop_box, image_size))

    def to_binary_mask(self, crop_box: Sequence[int], image_size: tuple[int, int]) -> BoolArray:
        """The mask in the full image: bool, shape ``image_size``. Arguments as :meth:`to_rle`."""
        return mask_from_rle(self.to_rle(crop_box, image_size))


class MaskUpscaler:
    """Thresholds low-resolution logits at the resolution of one crop.

    Replaces upstream's ``Sam.postprocess_masks`` (bilinear to the model's input size, padding cut,
    bilinear to the crop's size) and the thresholding after it. Build one per crop and use it for
    every mask. It never changes once built, so threads may share it.

    A mask needs about 3 MB of scratch memory, and one byte per pixel of the tiles that a threshold
    passes through.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        crop_size: tuple[int, int],
        low_res_size: tuple[int, int] = (256, 256),
        img_size: int = 1024,
    ) -> None:
        """Prepares the interpolation for a crop.

        Args:
            input_size: (height, width) of the resized crop in the model's input, without padding.
            crop_size: (height, width) of the crop in the original image, in pixels.
            low_res_size: (height, width) of the low-resolution logits.
            img_size: side of the model's square input, in pixels.

        Raises:
            ValueError: if a size is not positive or the input size exceeds the model's.
        """
        if min(*input_size, *crop_size, *low_res_size) < 1 or max(input_size) > img_size:
            raise UserError(
                f"Cannot upscale logits of size {low_res_size} to crop size {crop_size} through "
                f"input size {input_size} of a model of input size {img_size}."
            )
        self.low_res_size = low_res_size
        self.crop_size = crop_size
        self._rows, self._columns = (
            _TiledInterpolation(low_res_size[axis], img_size, input_size[axis], crop_size[axis])
            for axis in (0, 1)
        )

    def extract_mask(
        self,
        low_res_logits: FloatArray,
        mask_threshold: float = 0.0,
        stability_score_offset: float = 1.0,
        stability_score_thresh: float = 0.0,
    ) -> CropMask | None:
        """Upscales and thresholds the logits of one mask.

        Args:
            low_res_logits: float32 array of shape ``low_res_size``, finite.
            mask_threshold: logits above it are in the mask.
            stability_score_offset: distance of the stability score's two thresholds from
                ``mask_threshold``.
            stability_score_thresh: lowest stability score that is kept; as upstream, zero keeps
                every mask, even one without a score.

        Returns:
            The mask, or None (at less cost) if its stability score is too low.

        Raises:
            ValueError: if the logits do not have the expected shape.
        """
        logits = self._checked(low_res_logits)
        lower = mask_threshold - stability_score_offset
        upper = mask_threshold + stability_score_offset
        full, tile_rows, tile_columns = self._tiles(logits, min(lower, upper), max(lower, upper))
        tile_height, tile_width = self._rows.tile_size, self._columns.tile_size

        # Full tiles are above both thresholds throughout.
        above_lower = above_upper = np.count_nonzero(full) * tile_height * tile_width
        tiles = np.empty((len(tile_rows), tile_height, tile_width), dtype=bool)
        for chunk, upscaled in self._upscale(logits, tile_rows, tile_columns):
            np.greater(upscaled, mask_threshold, out=tiles[chunk])
            above_lower += np.count_nonzero(upscaled > lower)
            above_upper += np.count_nonzero(upscaled > upper)

        # Upstream divides int32 counts, which torch does in float32.
        stability_score = (
            float(np.float32(above_upper) / np.float32(above_lower)) if above_lower else math.nan
        )
        if stability_score_thresh > 0.0 and not stability_score >= stability_score_thresh:
            return None
        runs = self._vertical_runs(full, tile_rows, tile_columns, tiles)
        return CropMask(stability_score, self.crop_size, *runs)

    def binary_mask(self, low_res_logits: FloatArray, mask_threshold: float = 0.0) -> BoolArray:
        """Upscales and thresholds the logits of one mask into an array of ``crop_size``.

        Args:
            low_res_logits: float32 array of shape ``low_res_size``, finite.
            mask_threshold: logits above it are in the mask.

        Raises:
            ValueError: if the logits do not have the expected shape.
        """
        logits = self._checked(low_res_logits)
        full, tile_rows, tile_columns = self._tiles(logits, mask_threshold, mask_threshold)
        tile_height, tile_width = self._rows.tile_size, self._columns.tile_size
        mask = np.zeros((full.shape[0], tile_height, full.shape[1], tile_width), dtype=bool)
        by_tile = mask.swapaxes(1, 2)
        by_tile[full] = True
        for chunk, upscaled in self._upscale(logits, tile_rows, tile_columns):
            by_tile[tile_rows[chunk], tile_columns[chunk]] = upscaled > mask_threshold
        height, width = self.crop_size
        whole: BoolArray = mask.reshape(full.shape[0] * tile_height, -1)
        return whole[:height, :width]

    def upscale(self, low_res_logits: FloatArray) -> FloatArray:
        """Upscales the logits of one mask to ``crop_size``, as ``Sam.postprocess_masks`` does.

        Args:
            low_res_logits: float32 array of shape ``low_res_size``, finite.

        Raises:
            ValueError: if the logits do not have the expected shape.
        """
        logits = self._checked(low_res_logits)
        rows, columns = len(self._rows.whole), len(self._columns.whole)
        tile_height, tile_width = self._rows.tile_size, self._columns.tile_size
        upscaled = np.empty((rows, tile_height, columns, tile_width), dtype=np.float32)
        tile_rows, tile_columns = np.divmod(np.arange(rows * columns), columns)
        for chunk, tiles in self._upscale(logits, tile_rows, tile_columns):
            upscaled.swapaxes(1, 2)[tile_rows[chunk], tile_columns[chunk]] = tiles
        height, width = self.crop_size
        return upscaled.reshape(rows * tile_height, -1)[:height, :width]

    def _checked(self, low_res_logits: FloatArray) -> FloatArray:
        logits = np.asarray(low_res_logits, dtype=np.float32)
        if logits.shape != self.low_res_size:
            raise UserError(f"Expected logits of shape {self.low_res_size}, got {logits.shape}.")
        return logits

    def _tiles(
        self, logits: FloatArray, lowest: float, highest: float
    ) -> tuple[BoolArray, IntArray, IntArray]:
        """Returns the tiles above all thresholds, and those that must be upscaled to know.

        The first are bool (tile rows, tile columns), the others their rows and columns.
        """
        not_empty = self._any_in_tiles(logits > lowest)
        full = ~self._any_in_tiles(~(logits > highest))  # NaN is above no threshold
        full &= np.outer(self._rows.whole, self._columns.whole)
        tile_rows, tile_columns = np.nonzero(not_empty & ~full)
        return full, tile_rows, tile_columns

    def _upscale(
        self, logits: FloatArray, tile_rows: IntArray, tile_columns: IntArray
    ) -> Iterator[tuple[slice, FloatArray]]:
        """A chunk of tiles, and their upscaled logits (tiles, tile height, tile width)."""
        rows, columns = self._rows, self._columns
        patches = sliding_window_view(logits, (rows.support_size, columns.support_size))
        for chunk in self._chunks(len(tile_rows)):
            row, column = tile_rows[chunk], tile_columns[chunk]
            patch = patches[rows.support_starts[row], columns.support_starts[column]]
            yield chunk, rows.weights[row] @ (patch @ columns.weights_transposed[column])

    def _any_in_tiles(self, condition: BoolArray) -> BoolArray:
        """Whether a low-resolution condition holds anywhere that a tile depends on."""
        by_tile_row = condition[self._rows.supports].any(axis=1)
        by_tile: BoolArray = by_tile_row[:, self._columns.supports].any(axis=2)
        return by_tile

    def _chunks(self, num_tiles: int) -> Iterator[slice]:
        """Slices of as many tiles as fit the cache at once."""
        size = _CHUNK_PIXELS // (self._rows.tile_size * self._columns.tile_size)
        return (slice(start, start + size) for start in range(0, num_tiles, size))

    def _vertical_runs(
        self, full: BoolArray, tile_rows: IntArray, tile_columns: IntArray, tiles: BoolArray
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Columns, tops and bottoms of the runs of a mask given as full, mixed and empty tiles."""
        tile_height, tile_width = self._rows.tile_size, self._columns.tile_size
        column_stride = (full.shape[0] + 1) * tile_height
        changes = []

        # Along a column the mask changes inside of mixed tiles ...
        for chunk in self._chunks(len(tiles)):
            changed = tiles[chunk, 1:] != tiles[chunk, :-1]
            tile, y, x = np.unravel_index(np.flatnonzero(changed), changed.shape)
            x += tile_columns[chunk][tile] * tile_width
            y += tile_rows[chunk][tile] * tile_height + 1
            changes.append(x * column_stride + y)

        # ... and between a tile's last row and the first of the tile below (outside is empty).
        edges = (full.shape[0] + 1, full.shape[1], tile_width)
        last_row_above, first_row_below = np.zeros(edges, bool), np.zeros(edges, bool)
        last_row_above[1:] = first_row_below[:-1] = full[:, :, None]
        last_row_above[tile_rows + 1, tile_columns] = tiles[:, -1]
        first_row_below[tile_rows, tile_columns] = tiles[:, 0]
        edge, x = np.divmod(
            np.flatnonzero(last_row_above != first_row_below), full.shape[1] * tile_width
        )
        changes.append(x * column_stride + edge * tile_height)

        # In column-major order the changes alternate between tops and bottoms.
        tops_and_bottoms = np.sort(np.concatenate(changes)).reshape(-1, 2)
        columns, y = np.divmod(tops_and_bottoms, column_stride)
        tops, bottoms = y.T.astype(np.int32)
        return columns[:, 0].astype(np.int32), tops, bottoms


# Kept, since threads and clients alternate between images of a few sizes.
cached_upscaler = lru_cache(maxsize=8)(MaskUpscaler)


class _TiledInterpolation:
    """Upscaling along one axis, cut into tiles of output pixels with the weights of each.

    Attributes:
        tile_size: pixels per tile.
        whole: bool (tiles,), whether a tile lies inside the output to its last pixel.
        support_size: number of low-resolution logits that a tile is interpolated from.
        support_starts: int64 (tiles,), the first of these logits.
        supports: int64 (tiles, support_size), all of them.
        weights: float32 (tiles, tile_size, support_size); NaN for pixels outside of the output,
            so that these are above no threshold.
        weights_transposed: the same weights as (tiles, support_size, tile_size).
    """

    def __init__(
        self, low_res_length: int, model_length: int, input_length: int, output_length: int
    ) -> None:
        # Every output pixel weighs two pixels of the model's input, these two logits each.
        model_neighbours, model_weights = _linear_neighbours(low_res_length, model_length)
        input_neighbours, input_weights = _linear_neighbours(input_length, output_length)
        neighbours = model_neighbours[input_neighbours].reshape(output_length, 4)
        weights = (input_weights[:, :, None] * model_weights[input_neighbours]).reshape(-1, 4)

        self.tile_size = min(_TILE_SIZE, output_length)
        first_pixels = np.arange(0, output_length, self.tile_size)
        last_pixels = first_pixels + self.tile_size - 1
        self.whole = last_pixels < output_length
        starts = neighbours[first_pixels].min(axis=1)
        ends = neighbours[np.minimum(last_pixels, output_length - 1)].max(axis=1) + 1
        self.support_size = int((ends - starts).max())
        self.support_starts = np.minimum(starts, low_res_length - self.support_size)
        self.supports = self.support_starts[:, None] + np.arange(self.support_size)

        padded_length = len(first_pixels) * self.tile_size
        tile_weights = np.zeros((padded_length, self.support_size))
        tile_weights[output_length:] = np.nan
        pixels = np.arange(output_length)[:, None]
        positions = neighbours - self.support_starts[pixels // self.tile_size]
        np.add.at(tile_weights, (pixels, positions), weights)
        self.weights: FloatArray = tile_weights.astype(np.float32).reshape(
            len(first_pixels), self.tile_size, self.support_size
        )
        self.weights_transposed = np.ascontiguousarray(self.weights.swapaxes(1, 2))


def _linear_neighbours(
    input_length: int, output_length: int
) -> tuple[IntArray, NDArray[np.float64]]:
    """The two input samples that each output sample is interpolated from, and their weights.

    Follows one axis of torch's ``interpolate(mode="bilinear", align_corners=False)``: samples sit
    at half-pixel centres, and coordinates are float32 and clamped to the input. Both results have
    shape (output_length, 2).
    """
    scale = np.float32(input_length) / np.float32(output_length)
    centres = np.arange(output_length, dtype=np.float32) + np.float32(0.5)
    coordinates = np.clip(scale * centres - np.float32(0.5), 0, input_length - 1)
    left = coordinates.astype(np.int64)
    right = np.minimum(left + 1, input_length - 1)
    right_weight = coordinates - left
    return np.stack([left, right], 1), np.stack([1.0 - right_weight, right_weight], 1)
