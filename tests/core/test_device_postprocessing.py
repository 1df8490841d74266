"""Masks from an accelerator's path, tried on the CPU, are those of the CPU's own path."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator
from mobile_sam_plugin import automatic_mask_generator as generator_module
from mobile_sam_plugin import device_postprocessing as device
from mobile_sam_plugin.inputs import input_size
from mobile_sam_plugin.mask_postprocessing import MaskUpscaler
from mobile_sam_plugin.records import decode_mask

SIZES = [(48, 64), (64, 48), (37, 101), (200, 150), (1, 5)]


def blobs(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Smooth logits, some of them all negative or all positive."""
    noise = torch.randn(count, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    logits = torch.nn.functional.interpolate(noise * 4, (64, 64), mode="bicubic")[:, 0].numpy()
    logits[1] = -5
    logits[2] = 5
    return np.asarray(logits, np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("thresh", [0.0, 0.7])
@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_masks_are_those_of_the_upscaler(
    size: tuple[int, int], thresh: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, resized = blobs(12), input_size(*size, 128)
    monkeypatch.setattr(device, "_masks_at_once", lambda *_: at_once)
    found = device.extract_masks(torch.from_numpy(logits), resized, size, 128, 0.1, 0.5, thresh)

    upscaler = MaskUpscaler(resized, size, (64, 64), 128)
    expected = [upscaler.extract_mask(mask, 0.1, 0.5, thresh) for mask in logits]
    assert [mask is None for mask in found] == [mask is None for mask in expected]
    assert not thresh or None in expected
    for ours, theirs in zip(found, expected, strict=True):
        if ours is None or theirs is None:
            continue
        assert ours.crop_size == size
        assert ours.box == theirs.box and ours.area == theirs.area
        whole = [0, 0, size[1], size[0]]
        assert ours.to_rle(whole, size) == theirs.to_rle(whole, size)
        np.testing.assert_equal(ours.stability_score, theirs.stability_score)


def test_no_masks() -> None:
    assert device.extract_masks(torch.empty(0, 64, 64), (96, 128), (48, 64), 128, 0, 1, 0.5) == []


def test_everything_mode_by_the_path_of_an_accelerator(
    small_sam: MobileSam, coffee: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = coffee[::2, ::2]
    options: Any = {
        "points_per_side": 4,
        "pred_iou_thresh": 0.1,
        "stability_score_thresh": 0.3,
        "stability_score_offset": 0.3,
        "output_mode": "coco_rle",
    }
    expected = SamAutomaticMaskGenerator(small_sam, **options).generate(image)
    calls = []

    def on_device(*arguments: Any) -> Any:
        calls.append(arguments)
        return device.extract_masks(*arguments)

    monkeypatch.setattr(generator_module, "extract_masks", on_device)
    decoder = generator_module._CropDecoder
    build = decoder.__init__

    def build_as_on_device(self: Any, *arguments: Any) -> None:
        build(self, *arguments)
        self._on_cpu, self.prompts_at_once = False, 256

    monkeypatch.setattr(decoder, "__init__", build_as_on_device)
    found = SamAutomaticMaskGenerator(copy.deepcopy(small_sam), **options).generate(image)
    assert calls and len(found) == len(expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["bbox"] == theirs["bbox"] and ours["predicted_iou"] == theirs["predicted_iou"]
        # Both add the same four products, in another order.
        assert (decode_mask(ours) != decode_mask(theirs)).sum() <= 2
