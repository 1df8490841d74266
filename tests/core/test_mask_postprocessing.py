"""The post-processing agrees with segment_anything's own functions, run at full size."""

from __future__ import annotations

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils
from segment_anything.modeling import Sam
from segment_anything.utils import amg

from mobile_sam_plugin.mask_postprocessing import (
    CropMask,
    MaskUpscaler,
    _linear_neighbours,
    _TiledInterpolation,
    rle_from_mask,
)

MODEL_SIZE = 1024
LOW_RES_SIZE = (256, 256)

# (height, width): smaller and larger than the logits and the model's input, wide, tall, one line
# high, and of sizes that do and do not divide into tiles.
SIZES = [
    (480, 640),
    (1080, 1920),
    (2500, 1700),
    (64, 64),
    (65, 128),
    (1024, 1024),
    (150, 201),
    (1, 1000),
    (1000, 1),
    (1, 1),
    (3, 2000),
    (1537, 90),
]


def input_size_of(size: tuple[int, int]) -> tuple[int, int]:
    scale = MODEL_SIZE / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def random_logits(seed: int, blur: float = 10.0, level: float = 0.0) -> np.ndarray:
    """A smooth random field in [-10, 10], with edges about as steep as those of a mask decoder."""
    noise = np.random.default_rng(seed).standard_normal(LOW_RES_SIZE).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), blur)
    return np.clip(15 * field / np.abs(field).max() + level, -10, 10).astype(np.float32)


class _UpstreamSam:
    """As much of a Sam as ``Sam.postprocess_masks`` looks at."""

    class image_encoder:
        img_size = MODEL_SIZE


def upstream_logits(low_res_logits: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    batch = torch.from_numpy(low_res_logits)[None, None]
    return Sam.postprocess_masks(_UpstreamSam(), batch, input_size_of(size), size)[0]


def upstream_box(mask: np.ndarray) -> list[int]:
    return amg.batched_mask_to_box(torch.from_numpy(mask.copy())[None])[0].tolist()


def upstream_rle(mask: np.ndarray) -> dict[str, Any]:
    return amg.mask_to_rle_pytorch(torch.from_numpy(mask.copy())[None])[0]


def extract(
    logits: np.ndarray, size: tuple[int, int], threshold: float = 0.0, offset: float = 1.0
) -> CropMask:
    mask = MaskUpscaler(input_size_of(size), size).extract_mask(logits, threshold, offset)
    assert mask is not None
    return mask


def whole_image(size: tuple[int, int]) -> list[int]:
    return [0, 0, size[1], size[0]]


def without_interpolation(mask: np.ndarray) -> CropMask:
    """The given mask as a CropMask, through logits that already have the crop's resolution."""
    height, width = mask.shape
    side = max(height, width)
    logits = np.full((side, side), -1.0, dtype=np.float32)
    logits[:height, :width] = np.where(mask, 1.0, -1.0)
    upscaler = MaskUpscaler(mask.shape, mask.shape, low_res_size=(side, side), img_size=side)
    extracted = upscaler.extract_mask(logits, stability_score_offset=0.5)
    assert extracted is not None
    return extracted


@st.composite
def binary_masks(draw: st.DrawFn) -> np.ndarray:
    """Masks of all densities, up to some tiles high and wide; empty and full ones among them."""
    height = draw(st.one_of(st.integers(1, 6), st.integers(1, 150)))
    width = draw(st.one_of(st.integers(1, 6), st.integers(1, 150)))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    block = draw(st.sampled_from([1, 7, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = rng.random((math.ceil(height / block), math.ceil(width / block))) < density
    return np.kron(blocks, np.ones((block, block), bool))[:height, :width]


class TestInterpolation:
    @given(input_length=st.integers(1, 1024), output_length=st.integers(1, 3000))
    @settings(max_examples=40, deadline=None)
    @example(input_length=256, output_length=1024)
    @example(input_length=1024, output_length=1024)
    @example(input_length=1, output_length=3000)
    @example(input_length=1024, output_length=1)
    def test_neighbours_and_weights_are_those_of_torch(
        self, input_length: int, output_length: int
    ) -> None:
        # Positions and squares of them tell apart any two pairs of adjacent samples.
        positions = torch.arange(input_length, dtype=torch.float32) / input_length
        samples = torch.stack([positions, positions**2])[:, None]
        expected = F.interpolate(
            samples[..., None, :], (1, output_length), mode="bilinear", align_corners=False
        )
        neighbours, weights = _linear_neighbours(input_length, output_length)
        actual = (samples.numpy()[:, 0, neighbours] * weights).sum(-1)
        np.testing.assert_allclose(actual, expected[:, 0, 0].numpy(), rtol=0, atol=2e-7)

    @pytest.mark.parametrize("length", [1, 3, 64, 65, 480, 1024, 4000])
    def test_weights_form_convex_combinations(self, length: int) -> None:
        axis = _TiledInterpolation(256, 1024, max(1, length * 1024 // 4000), length)
        weights = axis.weights.reshape(-1, axis.support_size)
        assert (weights[:length] >= 0).all()
        np.testing.assert_allclose(weights[:length].sum(1), 1, atol=1e-6)
        assert np.isnan(weights[length:]).all()
        assert (axis.support_starts >= 0).all() and axis.supports.max() < 256


class TestAgreementWithUpstream:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(
        ("blur", "level", "threshold", "offset"),
        [(10, 0, 0.0, 1.0), (20, -4, 0.0, 1.0), (6, 6, 0.5, 2.0), (2, 0, -0.25, 0.5)],
    )
    def test_score_box_area_and_runs(
        self, size: tuple[int, int], blur: float, level: float, threshold: float, offset: float
    ) -> None:
        logits = random_logits(seed=sum(size), blur=blur, level=level)
        mask = extract(logits, size, threshold, offset)
        reference = upstream_logits(logits, size)
        score = amg.calculate_stability_score(reference, threshold, offset).item()
        reference_mask = (reference > threshold)[0].numpy()
        actual_mask = mask.to_binary_mask(whole_image(size), size)

        # Only logits that round to the other side of the threshold may differ.
        differing = reference[0].numpy()[actual_mask != reference_mask]
        assert differing.size <= 1e-5 * actual_mask.size
        np.testing.assert_allclose(differing, threshold, rtol=0, atol=1e-5)

        assert mask.stability_score == pytest.approx(score, abs=1e-4, nan_ok=True)
        assert mask.area == np.count_nonzero(actual_mask)
        assert mask.box == upstream_box(actual_mask)
        assert mask.to_rle(whole_image(size), size) == upstream_rle(actual_mask)

        upscaler = MaskUpscaler(input_size_of(size), size)
        np.testing.assert_array_equal(upscaler.binary_mask(logits, threshold), actual_mask)

    def test_the_great_majority_is_equal_to_the_last_pixel(self) -> None:
        size = (600, 800)
        upscaler = MaskUpscaler(input_size_of(size), size)
        equal = 0
        for seed in range(40):
            logits = random_logits(seed, blur=4 + seed % 12, level=seed % 7 - 3)
            mask = upscaler.extract_mask(logits)
            assert mask is not None
            reference = upstream_logits(logits, size)
            equal += (
                mask.to_rle(whole_image(size), size) == amg.mask_to_rle_pytorch(reference > 0.0)[0]
                and mask.stability_score
                == amg.calculate_stability_score(reference, 0.0, 1.0).item()
            )
        assert equal >= 36

    @given(
        height=st.integers(1, 700),
        width=st.integers(1, 700),
        seed=st.integers(0, 10_000),
        level=st.sampled_from([-9.0, -3.0, 0.0, 3.0, 9.0]),
    )
    @settings(max_examples=60, deadline=None)
    def test_any_size(self, height: int, width: int, seed: int, level: float) -> None:
        size = height, width
        assume(min(input_size_of(size)) > 0)
        logits = random_logits(seed, level=level)
        actual = extract(logits, size).to_binary_mask(whole_image(size), size)
        reference = upstream_logits(logits, size)[0].numpy()
        np.testing.assert_allclose(reference[actual != (reference > 0)], 0, atol=1e-5)

    @given(values=arrays(np.float32, (8, 8), elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])))
    @settings(max_examples=40, deadline=None)
    def test_logits_exactly_at_a_threshold(self, values: np.ndarray) -> None:
        # Blocks of equal logits put whole regions of pixels exactly at the three thresholds.
        logits = np.kron(values, np.ones((32, 32), np.float32))
        size = (300, 400)
        mask = extract(logits, size)
        reference = upstream_logits(logits, size)
        actual = mask.to_binary_mask(whole_image(size), size)
        expected = (reference > 0)[0].numpy()
        union = np.count_nonzero(actual | expected)
        assert np.count_nonzero(actual & expected) >= 0.9999 * union
        score = amg.calculate_stability_score(reference, 0.0, 1.0).item()
        assert mask.stability_score == pytest.approx(score, abs=1e-4, nan_ok=True)

    def test_a_single_low_res_logit_above_the_threshold(self) -> None:
        size = (480, 640)
        for y, x in [(0, 0), (0, 255), (191, 100), (100, 101), (255, 255)]:
            logits = np.full(LOW_RES_SIZE, -5.0, dtype=np.float32)
            logits[y, x] = 5.0
            expected = (upstream_logits(logits, size) > 0)[0].numpy()
            mask = extract(logits, size)
            assert mask.to_rle(whole_image(size), size) == upstream_rle(expected)
            assert mask.box == upstream_box(expected)


class TestRuns:
    @given(mask=binary_masks())
    @settings(max_examples=150, deadline=None)
    @example(mask=np.zeros((1, 1), bool))
    @example(mask=np.ones((1, 1), bool))
    @example(mask=np.ones((128, 64), bool))
    @example(mask=np.eye(130, dtype=bool))
    def test_rle_from_mask(self, mask: np.ndarray) -> None:
        rle = rle_from_mask(mask)
        assert rle == upstream_rle(mask)
        encoded = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert mask_utils.frPyObjects(dict(rle), *mask.shape) == encoded

    @given(mask=binary_masks(), margins=st.tuples(*[st.integers(0, 3)] * 4))
    @settings(max_examples=150, deadline=None)
    @example(mask=np.zeros((70, 65), bool), margins=(0, 0, 0, 0))
    @example(mask=np.ones((128, 130), bool), margins=(0, 0, 0, 0))
    @example(mask=np.ones((64, 64), bool), margins=(2, 0, 2, 0))
    def test_encodings_of_a_crop(
        self, mask: np.ndarray, margins: tuple[int, int, int, int]
    ) -> None:
        left, top, right, bottom = margins
        height, width = mask.shape
        crop_box = [left, top, left + width, top + height]
        image_size = (top + height + bottom, left + width + right)
        crop_mask = without_interpolation(mask)

        full = amg.uncrop_masks(torch.from_numpy(mask.copy())[None], crop_box, *image_size)
        rle = amg.mask_to_rle_pytorch(full)[0]
        assert crop_mask.to_rle(crop_box, image_size) == rle
        assert crop_mask.to_coco_rle(crop_box, image_size) == amg.coco_encode_rle(rle)
        np.testing.assert_array_equal(crop_mask.to_binary_mask(crop_box, image_size), full[0])
        assert crop_mask.area == np.count_nonzero(mask)
        assert crop_mask.box == upstream_box(mask)
        assert crop_mask.crop_size == mask.shape

    @pytest.mark.parametrize("pixel", [(0, 0), (63, 63), (64, 64), (63, 64), (99, 129), (0, 129)])
    def test_single_pixels_at_tile_corners(self, pixel: tuple[int, int]) -> None:
        mask = np.zeros((100, 130), dtype=bool)
        mask[pixel] = True
        crop_mask = without_interpolation(mask)
        y, x = pixel
        assert crop_mask.box == [x, y, x, y]
        assert crop_mask.area == 1
        assert crop_mask.to_rle([0, 0, 130, 100], mask.shape) == upstream_rle(mask)

    def test_an_image_of_more_pixels_than_int32_counts(self) -> None:
        pixel = np.zeros(1, np.int32)
        mask = CropMask(1.0, (1, 1), columns=pixel, tops=pixel, bottoms=pixel + 1)
        rle = mask.to_rle([49_998, 9, 49_999, 10], (50_000, 50_000))
        assert rle["counts"] == [49_998 * 50_000 + 9, 1, 2 * 50_000 - 10]

    def test_runs_are_ordered_and_leave_gaps(self) -> None:
        mask = extract(random_logits(0, blur=3), (200, 300))
        positions = np.stack([mask.columns * 201 + mask.tops, mask.columns * 201 + mask.bottoms], 1)
        assert (np.diff(positions.ravel()) > 0).all()


class TestStability:
    def test_an_unstable_mask_is_skipped(self) -> None:
        upscaler = MaskUpscaler((768, 1024), (480, 640))
        logits = random_logits(1)
        mask = upscaler.extract_mask(logits)
        assert mask is not None and 0 < mask.stability_score < 1
        score = mask.stability_score
        assert upscaler.extract_mask(logits, stability_score_thresh=score) is not None
        assert upscaler.extract_mask(logits, stability_score_thresh=score + 1e-6) is None

    def test_a_mask_without_a_score_passes_only_without_a_threshold(self) -> None:
        upscaler = MaskUpscaler((768, 1024), (480, 640))
        logits = np.full(LOW_RES_SIZE, -8.0, dtype=np.float32)
        assert upscaler.extract_mask(logits, stability_score_thresh=0.01) is None
        mask = upscaler.extract_mask(logits)
        assert mask is not None and math.isnan(mask.stability_score)
        assert mask.area == 0 and mask.box == [0, 0, 0, 0]
        assert mask.to_rle([0, 0, 640, 480], (480, 640))["counts"] == [640 * 480]

    def test_not_a_number_is_above_no_threshold(self) -> None:
        upscaler = MaskUpscaler((768, 1024), (480, 640))
        logits = np.full(LOW_RES_SIZE, np.nan, dtype=np.float32)
        mask = upscaler.extract_mask(logits)
        assert mask is not None and mask.area == 0
        assert not upscaler.binary_mask(logits).any()

    def test_a_full_mask(self) -> None:
        mask = extract(np.full(LOW_RES_SIZE, 8.0, dtype=np.float32), (481, 641))
        assert mask.stability_score == 1.0
        assert mask.area == 481 * 641 and mask.box == [0, 0, 640, 480]
        assert mask.to_rle([0, 0, 641, 481], (481, 641))["counts"] == [0, 641 * 481]


def test_threads_may_share_an_upscaler() -> None:
    size = (480, 640)
    upscaler = MaskUpscaler(input_size_of(size), size)

    def encode(logits: np.ndarray) -> Any:
        mask = upscaler.extract_mask(logits)
        return mask and (mask.stability_score, mask.to_rle(whole_image(size), size))

    fields = [random_logits(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encode, fields)) == [encode(logits) for logits in fields]


@pytest.mark.parametrize("blur", [10, 1])
def test_memory_stays_near_a_byte_a_pixel_on_a_large_image(blur: float) -> None:
    size = (3000, 4000)
    logits = random_logits(3, blur)
    tracemalloc.start()
    try:
        mask = extract(logits, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert mask.area > 0.3 * 3000 * 4000
    assert peak < 3000 * 4000 + 8e6  # the logits alone would take 48 MB


class TestErrors:
    @pytest.mark.parametrize(
        "sizes", [((0, 1024), (1, 5000)), ((768, 1025), (480, 640)), ((768, 1024), (480, 0))]
    )
    def test_impossible_sizes(self, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
        with pytest.raises(ValueError, match="Cannot upscale"):
            MaskUpscaler(*sizes)

    def test_logits_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match="Expected logits"):
            MaskUpscaler((768, 1024), (480, 640)).extract_mask(np.zeros((1, 256, 256), np.float32))

    @pytest.mark.parametrize("crop_box", [[0, 0, 99, 100], [-1, 0, 99, 100], [60, 0, 160, 100]])
    def test_a_crop_box_that_does_not_fit(self, crop_box: list[int]) -> None:
        mask = extract(random_logits(0), (100, 100))
        with pytest.raises(ValueError, match="Crop box"):
            mask.to_rle(crop_box, (150, 150))

    @pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 4, 4)])
    def test_a_mask_that_is_no_image(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="Expected a mask"):
            rle_from_mask(np.zeros(shape, dtype=bool))
