"""The mask decoder for training: attention on the side of the few tokens, out of place.

The same function as upstream's, gradients included. Upstream projects all pixels of a prompt in
every attention, and keeps the projections for the backward pass; here neither happens, see
``two_way_transformer.py``, whose words and letters of shapes these are.
"""

from collections.abc import Iterable
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from .two_way_transformer import (
    by_head,
    by_prompt,
    scaled_heads,
    self_attend,
    token_contributions,
    token_output,
)


def predict_masks(
    decoder: MaskDecoder, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes ``segment_anything.modeling.MaskDecoder.predict_masks``.

    Args:
        decoder: upstream's, or one with its parts.
        image: (1, C, h, w), added to `dense`.
        image_pe: (1, C, h, w).
        sparse: (B, N, C).
        dense: (B or 1, C, h, w).

    Returns:
        Low-resolution logits (B, M, 4h, 4w) of all M masks, and predicted IoU (B, M).
    """
    batch, (height, width) = len(sparse), image.shape[-2:]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)
    pixels = (image + dense).flatten(2).transpose(1, 2).contiguous().expand(batch, -1, -1)
    tokens, pixels = _transform(decoder.transformer, tokens, image_pe[0].flatten(1).t(), pixels)

    networks = decoder.output_hypernetworks_mlps
    weights = torch.stack([each(tokens[:, 1 + i]) for i, each in enumerate(networks)], dim=1)
    logits = upscale(decoder.output_upscaling, pixels, weights, (height, width))
    return logits, decoder.iou_prediction_head(tokens[:, 0])


def _transform(
    transformer: TwoWayTransformer, prompt_tokens: Tensor, positions: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes ``TwoWayTransformer.forward``.

    Args:
        transformer: upstream's.
        prompt_tokens: (B, T, C).
        positions: (P, C).
        pixels: (B, P, C).

    Returns:
        Tokens and pixels after the last layer, in the same shapes.
    """
    tokens = prompt_tokens
    for layer in transformer.layers:
        tokens = self_attend(layer, tokens, prompt_tokens)
        attention = layer.cross_attn_token_to_image
        attended = _attend_to_pixels(attention, tokens + prompt_tokens, positions, pixels)
        tokens = layer.norm2(tokens + attended)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        placed = tokens + prompt_tokens
        attended = _pixels_attend_to_tokens(attention, placed, tokens, positions, pixels)
        pixels = layer.norm4(attended).to(pixels.dtype)  # autocast's norm is in float32
    attention = transformer.final_attn_token_to_image
    attended = _attend_to_pixels(attention, tokens + prompt_tokens, positions, pixels)
    return transformer.norm_final_attn(tokens + attended), pixels


def _attend_to_pixels(
    attention: Attention, tokens: Tensor, positions: Tensor, pixels: Tensor
) -> Tensor:
    """Token-to-image attention of tokens (B, T, C)."""
    heads, batch = attention.num_heads, len(tokens)
    queries = scaled_heads(attention, attention.q_proj(tokens), pixels.dtype)
    of_positions = by_prompt(queries @ by_head(attention.k_proj(positions).t(), heads), batch)
    in_image = by_prompt(queries @ by_head(attention.k_proj.weight, heads), batch)
    weights = torch.baddbmm(of_positions, in_image, pixels.transpose(1, 2)).softmax(dim=-1)
    seen = (weights.to(pixels.dtype) @ pixels).view(-1, heads, pixels.shape[-1]).transpose(0, 1)
    values = seen @ by_head(attention.v_proj.weight, heads).transpose(1, 2)
    return token_output(attention, values, tokens)


def _pixels_attend_to_tokens(
    attention: Attention, keys: Tensor, values: Tensor, positions: Tensor, pixels: Tensor
) -> Tensor:
    """Image-to-token attention and its residual, (B, P, C)."""
    heads, batch = attention.num_heads, len(keys)
    scaled_keys = scaled_heads(attention, attention.k_proj(keys), pixels.dtype)
    of_positions = by_prompt(scaled_keys @ by_head(attention.q_proj(positions).t(), heads), batch)
    in_image = by_prompt(scaled_keys @ by_head(attention.q_proj.weight, heads), batch)
    scores = torch.baddbmm(of_positions, in_image, pixels.transpose(1, 2))
    # Softmax over the tokens T of (B, T H, P).
    weights = scores.unflatten(1, (-1, heads)).softmax(dim=1).flatten(1, 2)
    outputs = token_contributions(attention, values, pixels.dtype)
    return torch.baddbmm(pixels, weights.to(pixels.dtype).transpose(1, 2), outputs)


def upscale(
    layers: nn.Sequential, pixels: Tensor, weights: Tensor, size: torch.Size | tuple[int, int]
) -> Tensor:
    """Computes ``output_upscaling``, and weighs its channels: four times as many rows and columns.

    A transposed convolution whose stride is its kernel's size is a matrix product, in which every
    pixel becomes the places of the kernel. It can be traced, and its sizes stay dynamic.

    Args:
        layers: upstream's ``output_upscaling``.
        pixels: (B, P, C).
        weights: of the upscaled channels, (B, M, C / 8).
        size: height and width of the P pixels.

    Returns:
        (B, M, 4 height, 4 width).
    """
    parts: Iterable[Any] = layers
    first, norm, first_activation, second, second_activation = parts
    x = _as_places(first, pixels)
    x = first_activation(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    x = second_activation(_as_places(second, x))
    logits = weights @ x.flatten(1, 3).transpose(1, 2)
    height, width = size
    # Both kernels split rows and columns in two. One after the other: XNNPACK's tensors have
    # six dimensions at most.
    logits = logits.reshape(-1, height, width, 2, 2, 4).transpose(2, 3)
    logits = logits.reshape(-1, 2 * height, 2 * width, 2, 2).transpose(2, 3)
    return logits.reshape(-1, weights.shape[1], 4 * height, 4 * width)


def _as_places(convolution: Any, pixels: Tensor) -> Tensor:
    """A transposed convolution with a stride of its 2x2 kernel: (..., in) to (..., 4, out)."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(pixels, weight, convolution.bias.repeat(4)).unflatten(-1, (4, -1))
