"""The end of SAM's mask decoder: upscaled pixels times the hypernetworks' weights, channels last.

In shapes, B is prompts, M masks per prompt, P = h w pixels and C channels.
"""

from collections.abc import Iterable
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

CPU_BAND_BYTES = 1 << 20
"""Size of the pieces that a CPU takes through several steps; malloc recycles their temporaries."""


class Upscaling:
    """``output_upscaling`` and the product with the hypernetwork.

    A transposed convolution whose stride is its kernel's size is a matrix product: every pixel
    becomes the places of the kernel. On a CPU a few rows of one prompt go through all steps at a
    time, in buffers that its cache holds.

    Args:
        layers: the five modules of ``output_upscaling``.
        dtype: that of the pixels.
    """

    def __init__(self, layers: Iterable[Any], dtype: torch.dtype) -> None:
        first, self._norm, self._first_activation, second, self._second_activation = layers
        self._first_weight, self._first_bias = _as_product(first, dtype)
        self._second_weight, self._second_bias = _as_product(second, dtype)
        self._once = self._twice = torch.empty(0)

    def __call__(self, pixels: Tensor, hypernetwork: Tensor, logits: Tensor) -> None:
        """Writes logits (B, M, 4h, 4w) for pixels (B, P, C) and hypernetwork (B, M, C / 8)."""
        batch, masks, height, width = (*logits.shape[:2], *(side // 4 for side in logits.shape[2:]))
        # Both kernels split rows and columns in two: (B, M, h, 2, 2, w, 2, 2).
        by_pixel = logits.view(batch, masks, height, 2, 2, width, 2, 2)
        by_pixel = by_pixel.permute(0, 1, 2, 5, 3, 6, 4, 7)
        rows = pixels.view(batch, height, width, -1)
        prompts_at_once, rows_at_once = batch, height
        if logits.device.type == "cpu":
            prompts_at_once, rows_at_once = 1, max(1, CPU_BAND_BYTES // rows[0, 0].nbytes)
        for start in range(0, batch, prompts_at_once):
            prompts = slice(start, start + prompts_at_once)
            for top in range(0, height, rows_at_once):
                band = prompts, slice(top, top + rows_at_once)
                upscaled = self._upscale(rows[band].flatten(0, 2))
                upscaled = upscaled.view(len(hypernetwork[prompts]), -1, upscaled.shape[-1])
                some = by_pixel[prompts, :, top : top + rows_at_once]
                some.copy_((hypernetwork[prompts] @ upscaled.transpose(1, 2)).view(some.shape))

    def only(self, above: Tensor, pixels: Tensor, hypernetwork: Tensor, logits: Tensor) -> None:
        """Writes logits (K, 4h, 4w) of the K masks that ``above`` (B, M) marks.

        ``above`` lies on the CPU: the host has read it already.
        """
        prompts = above.any(dim=1).nonzero()[:, 0]
        start = 0
        for some in prompts.split(1) if logits.device.type == "cpu" else (prompts,):
            # A slice of pixels is not a copy of them.
            chosen = slice(int(some[0]), int(some[0]) + 1) if len(some) == 1 else some
            columns = above[chosen].any(dim=0).nonzero()[:, 0]
            selected = above[chosen][:, columns]
            upscaled = logits.new_empty(*selected.shape, *logits.shape[1:])
            self(pixels[chosen], hypernetwork[chosen][:, columns], upscaled)
            stop = start + int(selected.sum())
            logits[start:stop] = upscaled[selected]
            start = stop

    def _upscale(self, pixels: Tensor) -> Tensor:
        """Upscales pixels (N, C) to (16 N, C / 8), valid until the next call."""
        if len(self._once) != len(pixels) or self._once.device != pixels.device:
            self._once = pixels.new_empty(len(pixels), self._first_weight.shape[1])
            self._twice = pixels.new_empty(4 * len(pixels), self._second_weight.shape[1])
        once = torch.mm(pixels, self._first_weight, out=self._once).view(-1, len(self._first_bias))
        normalise_(self._norm, once.add_(self._first_bias))
        _activate_(self._first_activation, once)
        twice = torch.mm(once, self._second_weight, out=self._twice)
        twice = twice.view(-1, len(self._second_bias))
        _activate_(self._second_activation, twice.add_(self._second_bias))
        return twice


def _as_product(convolution: nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The matrix (in, 2 * 2 * out) of a 2x2 kernel, and its bias (out,)."""
    assert convolution.bias is not None
    weight = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1)
    return weight.to(dtype).contiguous(), convolution.bias.detach().to(dtype)


def normalise_(norm: nn.LayerNorm | LayerNorm2d, rows: Tensor) -> None:
    """Normalises the last axis in place: ``nn.LayerNorm``, or channels last ``LayerNorm2d``."""
    weight, bias = norm.weight.to(rows.dtype), norm.bias.to(rows.dtype)
    rows.copy_(F.layer_norm(rows, weight.shape, weight, bias, norm.eps))


def _activate_(activation: nn.Module, rows: Tensor) -> None:
    if isinstance(activation, nn.GELU):
        torch.ops.aten.gelu_(rows, approximate=activation.approximate)
    else:
        torch.relu_(rows)
