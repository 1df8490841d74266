"""The end of SAM's mask decoder: upscaled pixels times the hypernetworks' weights, channels last.

In shapes, B is prompts, M masks per prompt, P = h w pixels and C channels.
"""

from collections.abc import Iterable, Iterator
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
    becomes the places of the kernel. A row of both kernels gives every fourth row of the logits,
    whole, so the kernels' rows take turns. On a CPU a few rows of one prompt go through all steps
    at a time, in buffers that its cache holds.

    Args:
        layers: the five modules of ``output_upscaling``.
        dtype: that of the pixels.
    """

    def __init__(self, layers: Iterable[Any], dtype: torch.dtype) -> None:
        first, self._norm, self._first_activation, second, self._second_activation = layers
        self._first_rows, self._first_bias = _as_products(first, dtype)
        self._second_rows, self._second_bias = _as_products(second, dtype)
        self._once = self._twice = torch.empty(0)

    def __call__(self, pixels: Tensor, hypernetwork: Tensor, logits: Tensor) -> None:
        """Writes logits (B, M, 4h, 4w) for pixels (B, P, C) and hypernetwork (B, M, C / 8)."""
        batch, height, width = len(logits), *(side // 4 for side in logits.shape[2:])
        rows = pixels.view(batch, height, width, -1)
        prompts_at_once, rows_at_once = batch, height
        if logits.device.type == "cpu":
            prompts_at_once, rows_at_once = 1, max(1, CPU_BAND_BYTES // rows[0, 0].nbytes)
        for start in range(0, batch, prompts_at_once):
            prompts = slice(start, start + prompts_at_once)
            for top in range(0, height, rows_at_once):
                band = rows[prompts, top : top + rows_at_once].flatten(0, 2)
                below = logits[prompts, :, 4 * top : 4 * (top + rows_at_once)]
                for row, upscaled in enumerate(self._upscale(band)):
                    some = below[:, :, row::4]
                    some.copy_(_products(hypernetwork[prompts], upscaled).view(some.shape))

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

    def _upscale(self, pixels: Tensor) -> Iterator[Tensor]:
        """Upscales pixels (N, C) to four rows (4 N, C / 8) each, valid until the next."""
        if len(self._once) != len(pixels) or self._once.device != pixels.device:
            self._once = pixels.new_empty(len(pixels), self._first_rows[0].shape[1])
            self._twice = pixels.new_empty(2 * len(pixels), self._second_rows[0].shape[1])
        for first in self._first_rows:
            once = torch.mm(pixels, first, out=self._once).view(-1, len(self._first_bias))
            normalise_(self._norm, once.add_(self._first_bias))
            _activate_(self._first_activation, once)
            for second in self._second_rows:
                twice = torch.mm(once, second, out=self._twice).view(-1, len(self._second_bias))
                _activate_(self._second_activation, twice.add_(self._second_bias))
                yield twice


def _as_products(
    convolution: nn.ConvTranspose2d, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The matrix (in, 2 * out) of each row of a 2x2 kernel, and the bias (out,)."""
    assert convolution.bias is not None
    rows = convolution.weight.detach().to(dtype).permute(2, 0, 3, 1).flatten(2)
    return tuple(row.contiguous() for row in rows), convolution.bias.detach().to(dtype)


def _products(hypernetwork: Tensor, upscaled: Tensor) -> Tensor:
    """Masks (B, M, N) of hypernetwork (B, M, C) and upscaled pixels (B N, C)."""
    if len(hypernetwork) == 1:
        # A batched product of bfloat16 copies its transposed pixels on a CPU.
        return torch.mm(hypernetwork[0], upscaled.t())
    return hypernetwork @ upscaled.view(len(hypernetwork), -1, upscaled.shape[-1]).transpose(1, 2)


def normalise_(norm: nn.LayerNorm | LayerNorm2d, rows: Tensor) -> None:
    """Normalises the last axis in place: ``nn.LayerNorm``, or channels last ``LayerNorm2d``."""
    weight, bias = norm.weight.to(rows.dtype), norm.bias.to(rows.dtype)
    rows.copy_(F.layer_norm(rows, weight.shape, weight, bias, norm.eps))


def _activate_(activation: nn.Module, rows: Tensor) -> None:
    if isinstance(activation, nn.GELU):
        torch.ops.aten.gelu_(rows, approximate=activation.approximate)
    else:
        torch.relu_(rows)
