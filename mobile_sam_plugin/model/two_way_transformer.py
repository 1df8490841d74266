"""SAM's two-way transformer with attention computed on the side of the few tokens.

After the first layer there are thousands of pixels per prompt but only a few tokens. A score is
``(W_q t) . (W_k x) = (W_k^T W_q t) . x``, so the tokens are projected into image space and the
pixels are never projected. Attention weights sum to one, so the projections of values and outputs
move to the tokens in the same way.

``tokens`` are a prompt's tokens (output tokens and sparse prompt embeddings), ``pixels`` are image
tokens, channels last. In shapes, B is prompts, T tokens, P pixels, C channels, H attention heads,
and D channels per head. A name that ends in ``_`` writes to its last argument.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from .upscaling import CPU_BAND_BYTES, normalise_


class Positions(NamedTuple):
    """The positional encoding of the pixels, as each attention projects it."""

    sources: tuple[Tensor, ...]
    keys: list[Tensor]  # of token-to-image attention: every layer's, then the final one; (H, D, P)
    queries: list[Tensor]  # of image-to-token attention: every layer's; (H, D, P)


class ImageTokens(NamedTuple):
    """What prompts on an image share: the pixels, and what the first layer projects from them."""

    sources: tuple[Tensor, ...]
    positions: Positions
    pixels: Tensor  # (P, C)
    keys: Tensor  # (H, D, P)
    queries: Tensor  # (H, D, P)
    values: Tensor  # (H, P, D)


def transform_(
    transformer: TwoWayTransformer,
    prompt_tokens: Tensor,
    positions: Positions,
    image: ImageTokens | None,
    pixels: Tensor,
) -> Tensor:
    """Computes ``TwoWayTransformer.forward`` for prompts on one image.

    Args:
        transformer: upstream's, whose weights are used.
        prompt_tokens: (B, T, C).
        positions: of the image.
        image: the pixels before the first layer; None if ``pixels`` holds them.
        pixels: (B, P, C), overwritten with the pixels after the last layer.

    Returns:
        The tokens after the last layer, (B, T, C).
    """
    tokens = prompt_tokens
    for index, layer in enumerate(transformer.layers):
        tokens = self_attend(layer, tokens, prompt_tokens)

        attention = layer.cross_attn_token_to_image
        placed = tokens + prompt_tokens
        if index == 0 and image:
            attended = _attend_to_image(attention, placed, image)
        else:
            attended = _attend_to_pixels(attention, placed, positions.keys[index], pixels)
        tokens = layer.norm2(tokens + attended)
        tokens = layer.norm3(tokens + layer.mlp(tokens))

        attention = layer.cross_attn_image_to_token
        placed = tokens + prompt_tokens
        if index == 0 and image:
            _image_attends_to_tokens_(attention, placed, tokens, image, pixels)
            for attended in pixels:
                for band, residual in zip(_bands(attended), _bands(image.pixels), strict=True):
                    normalise_(layer.norm4, band.add_(residual))
        else:
            queries = positions.queries[index]
            _pixels_attend_to_tokens_(attention, placed, tokens, queries, pixels)
            for band in _bands(pixels.flatten(0, 1)):
                normalise_(layer.norm4, band)

    attention = transformer.final_attn_token_to_image
    placed = tokens + prompt_tokens
    attended = _attend_to_pixels(attention, placed, positions.keys[-1], pixels)
    attended_tokens: Tensor = transformer.norm_final_attn(tokens + attended)
    return attended_tokens


def self_attend(layer: TwoWayAttentionBlock, tokens: Tensor, prompt_tokens: Tensor) -> Tensor:
    """The first step of a layer: attention among tokens (B, T, C), and its norm."""
    if layer.skip_first_layer_pe:
        attended = layer.self_attn(q=tokens, k=tokens, v=tokens)
    else:
        placed = tokens + prompt_tokens
        attended = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
    normed: Tensor = layer.norm1(attended)
    return normed


def _attend_to_image(attention: Attention, tokens: Tensor, image: ImageTokens) -> Tensor:
    """Token-to-image attention where all prompts see the same pixels."""
    queries = scaled_heads(attention, attention.q_proj(tokens), image.pixels.dtype)
    weights = _scores(queries, image.keys, len(tokens))
    torch.softmax(weights, dim=-1, out=weights)
    per_head = weights.view(-1, *image.keys.shape[::2]).transpose(0, 1)
    return token_output(attention, per_head @ image.values, tokens)


def _attend_to_pixels(
    attention: Attention, tokens: Tensor, position_keys: Tensor, pixels: Tensor
) -> Tensor:
    """Token-to-image attention with keys and values projected on the side of the tokens."""
    heads = attention.num_heads
    queries = scaled_heads(attention, attention.q_proj(tokens), pixels.dtype)
    weights = _scores(queries, position_keys, len(tokens))
    key_weight = by_head(attention.k_proj.weight.to(pixels.dtype), heads)
    weights.baddbmm_(by_prompt(queries @ key_weight, len(tokens)), pixels.transpose(1, 2))
    torch.softmax(weights, dim=-1, out=weights)
    seen = (weights @ pixels).view(-1, heads, pixels.shape[-1]).transpose(0, 1)
    value_weight = by_head(attention.v_proj.weight.to(pixels.dtype), heads)
    return token_output(attention, seen @ value_weight.transpose(1, 2), tokens)


def _image_attends_to_tokens_(
    attention: Attention, keys: Tensor, values: Tensor, image: ImageTokens, pixels: Tensor
) -> None:
    """Image-to-token attention, written to each prompt's ``pixels`` without its residual."""
    scaled_keys = scaled_heads(attention, attention.k_proj(keys), image.pixels.dtype)
    weights = _softmax_over_tokens_(_scores(scaled_keys, image.queries, len(keys)), attention)
    outputs = token_contributions(attention, values, image.pixels.dtype)
    torch.bmm(weights.transpose(1, 2), outputs, out=pixels)


def _pixels_attend_to_tokens_(
    attention: Attention, keys: Tensor, values: Tensor, position_queries: Tensor, pixels: Tensor
) -> None:
    """Image-to-token attention and its residual, added to ``pixels`` (B, P, C)."""
    scaled_keys = scaled_heads(attention, attention.k_proj(keys), pixels.dtype)
    scores = _scores(scaled_keys, position_queries, len(keys))
    query_weight = by_head(attention.q_proj.weight.to(pixels.dtype), attention.num_heads)
    scores.baddbmm_(by_prompt(scaled_keys @ query_weight, len(keys)), pixels.transpose(1, 2))
    weights = _softmax_over_tokens_(scores, attention)
    outputs = token_contributions(attention, values, pixels.dtype)
    pixels.baddbmm_(weights.transpose(1, 2), outputs)


def _scores(tokens: Tensor, pixels: Tensor, batch: int) -> Tensor:
    """Products of tokens (H, B T, D) and pixels (H, D, P), as (B, T H, P)."""
    scores = tokens.new_empty(tokens.shape[1], tokens.shape[0], pixels.shape[2])
    torch.bmm(tokens, pixels, out=scores.transpose(0, 1))
    return scores.view(batch, -1, pixels.shape[2])


def _softmax_over_tokens_(scores: Tensor, attention: Attention) -> Tensor:
    """Softmax of scores (B, T H, P) over T, in place."""
    by_token = scores.view(len(scores), -1, attention.num_heads * scores.shape[2])
    torch.softmax(by_token, dim=1, out=by_token)
    return scores


def token_output(attention: Attention, attended: Tensor, tokens: Tensor) -> Tensor:
    """Finishes token-to-image attention: attended values (H, B T, D) to outputs (B, T, C)."""
    values = attended.transpose(0, 1).reshape(*tokens.shape[:2], -1).to(tokens.dtype)
    output: Tensor = attention.out_proj(values + attention.v_proj.bias)
    return output


def token_contributions(attention: Attention, values: Tensor, dtype: torch.dtype) -> Tensor:
    """What each head of each token adds to a pixel that attends to it alone, (B, T H, C)."""
    heads = attention.num_heads
    output = attention.out_proj
    outputs = _split_heads(attention.v_proj(values), heads) @ by_head(output.weight.t(), heads)
    # A pixel's weights sum to one in each head, so the heads bring the bias together.
    return by_prompt(outputs + output.bias / heads, len(values)).to(dtype)


def scaled_heads(attention: Attention, projected: Tensor, dtype: torch.dtype) -> Tensor:
    """Splits projected tokens into heads (H, B T, D), scaled for their products with pixels."""
    per_head = _split_heads(projected, attention.num_heads)
    return (per_head / math.sqrt(per_head.shape[-1])).to(dtype)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """Splits projected tokens (B, T, H D) into heads (H, B T, D)."""
    batch, tokens, channels = projected.shape
    return projected.reshape(batch * tokens, heads, channels // heads).transpose(0, 1)


def by_head(rows: Tensor, heads: int) -> Tensor:
    """Splits rows (H D, N) into (H, D, N)."""
    return rows.reshape(heads, -1, rows.shape[-1])


def by_prompt(tokens: Tensor, batch: int) -> Tensor:
    """Rearranges tokens (H, B T, C) to (B, T H, C)."""
    return tokens.transpose(0, 1).reshape(batch, -1, tokens.shape[-1])


def _bands(rows: Tensor) -> Sequence[Tensor]:
    """Splits rows (N, C) so that a CPU's cache holds a band through several passes."""
    on_cpu = rows.device.type == "cpu"
    return rows.split(max(1, CPU_BAND_BYTES // rows[0].nbytes)) if on_cpu else (rows,)
