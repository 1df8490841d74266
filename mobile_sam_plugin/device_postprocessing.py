"""From SAM's low-resolution logits to masks in run-length form, on an accelerator.

An accelerator upscales masks faster than they can be copied to the CPU. So everything mode does
there what upstream does, upscaling in full, and the runs of the masks that pass the thresholds are
all that is copied. ``mask_postprocessing.py`` is the same for a CPU.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .mask_postprocessing import CropMask
from .model.tensors import free_bytes

_SHARE = 4  # at most this part of the free memory is used


def extract_masks(
    low_res_logits: Tensor,
    input_size: tuple[int, int],
    crop_size: tuple[int, int],
    img_size: int,
    mask_threshold: float,
    stability_score_offset: float,
    stability_score_thresh: float,
) -> list[CropMask | None]:
    """Upscales and thresholds the logits of masks, as ``MaskUpscaler.extract_mask`` does for one.

    Follows ``Sam.postprocess_masks``, ``calculate_stability_score`` and ``mask_to_rle_pytorch``.
    The CPU waits for the device twice for some hundred masks.

    Args:
        low_res_logits: (K, h, w) floating point.
        input_size: (height, width) of the resized crop in the model's input, without padding.
        crop_size: (height, width) of the crop in the original image, in pixels.
        img_size: side of the model's square input, in pixels.
        mask_threshold, stability_score_offset, stability_score_thresh: as for ``extract_mask``.

    Returns:
        K masks; None where the stability score is too low.
    """
    found: list[CropMask | None] = []
    step = _masks_at_once(low_res_logits.device, crop_size, img_size)
    for some in low_res_logits.split(step):
        logits = F.interpolate(
            some[:, None].float(), (img_size, img_size), mode="bilinear", align_corners=False
        )
        logits = logits[..., : input_size[0], : input_size[1]]
        logits = F.interpolate(logits, crop_size, mode="bilinear", align_corners=False)[:, 0]
        found += _extract(logits, mask_threshold, stability_score_offset, stability_score_thresh)
    return found


def _extract(
    logits: Tensor, threshold: float, offset: float, stability_thresh: float
) -> list[CropMask | None]:
    """Thresholds logits (K, H, W)."""
    count, height, width = logits.shape
    above_upper, above_lower = (
        (logits > level).sum((1, 2), dtype=torch.int32)
        for level in (threshold + offset, threshold - offset)
    )
    # Divided as float32, like upstream's int32 counts; NaN if both are zero.
    stability = (above_upper / above_lower).cpu().numpy()
    if stability_thresh > 0.0:
        kept = np.flatnonzero(stability >= stability_thresh)
    else:
        kept = np.arange(count)

    masks = logits[torch.from_numpy(kept).to(logits.device)] > threshold
    # Along a column, with nothing above and below it, changes alternate between tops and bottoms.
    columns = F.pad(masks.transpose(1, 2), (1, 1))
    changes = (columns[..., 1:] != columns[..., :-1]).flatten().nonzero()[:, 0].cpu().numpy()
    column, y = np.divmod(changes.reshape(-1, 2), height + 1)
    mask, x = np.divmod(column[:, 0], width)
    ends = np.searchsorted(mask, np.arange(len(kept) + 1))

    found: list[CropMask | None] = [None] * count
    runs = x.astype(np.int32), *y.T.astype(np.int32)
    for index, start, end in zip(kept, ends, ends[1:], strict=False):
        found[index] = CropMask(
            float(stability[index]), (height, width), *(run[start:end] for run in runs)
        )
    return found


def _masks_at_once(device: torch.device, crop_size: tuple[int, int], img_size: int) -> int:
    budget = free_bytes(device) // _SHARE
    # Logits of the input and of the crop, thresholded twice, and one index of 8 bytes a pixel at
    # the very worst.
    return max(1, budget // (4 * img_size**2 + 16 * crop_size[0] * crop_size[1]))
