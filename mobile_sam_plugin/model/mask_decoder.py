"""Segment Anything's mask decoder: the same function with half of the arithmetic.

Upstream copies the image tokens for every prompt and projects them again in every attention.
Two observations remove most of that work without approximating anything:

* Before the first layer the image tokens are the same for every prompt without a mask prompt, so
  all that the first layer projects from them is computed once an image.
* Afterwards there are thousands of image tokens a prompt but only a few prompt tokens. A score
  is ``(W_q t) . (W_k x) = (W_k^T W_q t) . x``, so the few tokens are projected into image space
  and the image tokens are never projected. Attention weights sum to one, so the projections of
  values and outputs move to the few tokens in the same way. With a mask prompt this holds from the
  first layer on.

Below, ``tokens`` are a prompt's tokens (output tokens and sparse prompt embeddings) and ``pixels``
are image tokens, channels last. In shapes, B is prompts, T tokens, P pixels, C channels, H
attention heads, D channels a head, and M masks a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder as UpstreamMaskDecoder
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from .tensors import all_equal, gradients_wanted, no_autocast
from .upstream import is_hooked, is_upstreams

# On a CPU, first touches of fresh memory cost more than the arithmetic: a chunk of prompts works in
# buffers that the next one uses again, and temporaries are small enough for malloc to recycle. An
# accelerator wants few large kernels instead.
_CPU_CHUNK_BYTES = 16 << 20
_CPU_BAND_BYTES = 1 << 20
_ACCELERATOR_CHUNK_BYTES = 256 << 20

# Enough for two images in turn.
_IMAGES_KEPT = 2


class _Positions(NamedTuple):
    """The positional encoding of the pixels, as each attention projects it."""

    sources: tuple[Tensor, ...]
    keys: list[Tensor]  # of token-to-image attention: every layer's, then the final one; (H, D, P)
    queries: list[Tensor]  # of image-to-token attention: every layer's; (H, D, P)


class _Image(NamedTuple):
    """What prompts on an image share: the pixels, and what the first layer projects."""

    sources: tuple[Tensor, ...]
    positions: _Positions
    pixels: Tensor  # (P, C)
    keys: Tensor  # (H, D, P)
    queries: Tensor  # (H, D, P)
    values: Tensor  # (H, P, D)


class _Chunk(NamedTuple):
    """A few prompts after the transformer."""

    prompts: slice
    mask_tokens: Tensor  # (B, M, C)
    iou_predictions: Tensor  # (B, M)
    pixels: Tensor  # (B, P, C)


class MaskDecoder(UpstreamMaskDecoder):
    """``segment_anything.modeling.MaskDecoder``, exact and faster.

    Parameters, state dict and calls are upstream's. Upstream's own code runs instead whenever
    the shortcuts do not apply: gradients are wanted, several images come in one call, a prompt has
    very many points, the module is traced, exported or compiled, or a part that would be skipped
    was replaced, runs other code than upstream's or carries a forward hook.

    Where a copy of segment_anything for SAM-HQ is installed, its predictors pass two arguments
    more, which its own plain decoder ignores, too.

    On a CPU, work that depends only on the image is kept between calls, and used again only after
    the inputs and weights that it came from compared equal, value by value: it is never stale,
    however they were changed. On an accelerator this work takes less time than waiting for such a
    comparison, and every call does it anew. What is kept is neither copied nor pickled with the
    module. Several threads may call one decoder.
    """

    _kept_positions: _Positions | None = None
    _kept_images: tuple[_Image, ...] = ()

    @classmethod
    def sharing(cls, decoder: nn.Module) -> MaskDecoder:
        """Return a new decoder on the submodules of ``decoder``, which is left untouched.

        Arguments:
          decoder: upstream's mask decoder, or the copy of it in a vendored segment-anything.

        Raises:
          TypeError: ``decoder``, or a part of it, runs other code than upstream's.
        """
        other = _part_of_other_code(decoder)
        if other is not None:
            raise TypeError(
                f"{_class_name(decoder)} is not segment-anything's MaskDecoder, nor a copy of it"
                + ("" if other is decoder else f": its {_class_name(other)} runs other code")
            )
        shared = cls.__new__(cls)
        for name, value in vars(decoder).items():
            # Submodules, parameters and hooks are shared; the registries that list them are not.
            shared.__dict__[name] = value.copy() if isinstance(value, (dict, set)) else value
        return shared

    @classmethod
    def standing_in(cls, decoder: nn.Module) -> MaskDecoder | None:
        """Return a decoder whose methods may be called in place of the module ``decoder``.

        That is ``decoder`` itself where it is one of these, or one that shares its submodules.

        Returns:
          None where calling the module does anything else: it or a part runs other code than
          upstream's, or it has forward hooks.
        """
        if is_hooked(decoder) or _part_of_other_code(decoder) is not None:
            return None
        return decoder if isinstance(decoder, cls) else cls.sharing(decoder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in vars(self).items() if not name.startswith("_kept_")}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept_positions, self._kept_images = None, ()  # .half() and .to() need them no more
        return super()._apply(*args, **kwargs)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        hq_token_only: bool = False,
        interm_embeddings: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks, as ``segment_anything.modeling.MaskDecoder.forward`` does.

        Arguments:
          image_embeddings: (1, C, h, w) floating point, from the image encoder.
          image_pe: (1, C, h, w), the positional encoding of the image embedding.
          sparse_prompt_embeddings: (B, N, C), of points and boxes.
          dense_prompt_embeddings: (B or 1, C, h, w), of mask prompts.
          multimask_output: several masks, for an ambiguous prompt, or a single one.
          hq_token_only, interm_embeddings: of SAM-HQ's predictors; ignored.

        Returns:
          Low-resolution logits (B, M, 4h, 4w) and predicted IoU (B, M), where M is
          ``num_multimask_outputs`` or 1, in upstream's dtype.
        """
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        masks = self._output_masks(multimask_output)
        own = MaskDecoder.predict_masks
        if not self._applies(*inputs) or _method(self, "predict_masks") is not own:
            logits, iou_predictions = self.predict_masks(*inputs)
            return logits[:, masks], iou_predictions[:, masks]
        return self._predict(*inputs, masks)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predict the single mask and the multimask outputs together.

        Follows ``segment_anything.modeling.MaskDecoder.predict_masks``. The arguments are those of
        ``forward``; returns logits (B, ``num_mask_tokens``, 4h, 4w) and predicted IoU
        (B, ``num_mask_tokens``).
        """
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        if not self._applies(*inputs):
            upstream: tuple[Tensor, Tensor] = super().predict_masks(*inputs)
            return upstream
        return self._predict(*inputs, slice(0, self.num_mask_tokens))

    def predict_masks_above(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        pred_iou_thresh: float,
        multimask_output: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Predict only the masks whose predicted IoU is above a threshold, a few at a time.

        Keeps what ``SamAutomaticMaskGenerator._process_batch`` keeps, in its order (prompts, then
        masks): a threshold of zero or less keeps all. Masks that are dropped are never upscaled.
        The other arguments are those of ``forward``.

        Yields:
          Prompt indices (K,) int64, predicted IoU (K,) and low-resolution logits (K, 4h, 4w) of at
          least one mask. The tensors are the caller's own.
        """
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        if not self._applies(*inputs):
            logits, iou_predictions = self(*inputs, multimask_output)
            kept = _above(iou_predictions, pred_iou_thresh).nonzero(as_tuple=True)
            if len(kept[0]) > 0:
                yield kept[0], iou_predictions[kept], logits[kept]
            return

        masks = self._output_masks(multimask_output)
        upscale = _Upscaling(self.output_upscaling, _pixel_dtype(image_embeddings))
        for chunk in self._transformed(*inputs):
            iou_predictions = chunk.iou_predictions[:, masks]
            above = _above(iou_predictions, pred_iou_thresh).cpu()
            kept = above.nonzero(as_tuple=True)
            if len(kept[0]) == 0:
                continue
            height, width = image_embeddings.shape[-2:]
            logits = image_embeddings.new_empty(
                len(kept[0]), 4 * height, 4 * width, dtype=iou_predictions.dtype
            )
            with _plain_arithmetic(logits.device):
                hypernetwork = self._hypernetwork(chunk.mask_tokens, masks).to(logits.dtype)
                upscale.only(above, chunk.pixels, hypernetwork, logits)
            prompts = kept[0].to(logits.device) + chunk.prompts.start
            yield prompts, iou_predictions[kept], logits

    def _output_masks(self, multimask_output: bool) -> slice:
        return slice(1, self.num_mask_tokens) if multimask_output else slice(0, 1)

    def _applies(self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor) -> bool:
        """Whether the shortcuts hold for these inputs and modules; reads no device memory."""
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or torch.jit.is_scripting()
            or torch.onnx.is_in_onnx_export()
        ):
            return False
        inputs = image, image_pe, sparse, dense
        if image.is_meta or gradients_wanted(self.modules(), inputs):
            return False
        channels = self.transformer_dim
        if (
            image.dim() != 4
            or image.shape[:2] != (1, channels)
            or image_pe.shape != image.shape
            or sparse.dim() != 3
            or sparse.shape[0] == 0
            or sparse.shape[2] != channels
            or dense.dim() != 4
            or dense.shape[1:] != image.shape[1:]
            or dense.shape[0] not in (1, sparse.shape[0])
        ):
            return False
        parts = _skipped_parts(self)
        if parts is None or not all(_is_plain(*part) for part in parts):
            return False
        weight = self.iou_token.weight
        if any(tensor.device != weight.device for tensor in inputs):
            return False
        if not torch.is_autocast_enabled(weight.device.type) and any(
            tensor.dtype != weight.dtype for tensor in inputs
        ):
            return False
        # A matrix as wide as tokens x heads replaces a projection of C to C / 2 channels; with
        # many points there is nothing left to gain.
        tokens = 1 + self.num_mask_tokens + sparse.shape[1]
        return bool(tokens * self.transformer.num_heads <= 2 * channels)

    def _predict(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, masks: slice
    ) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        prompts = sparse.shape[0]
        dtype = _pixel_dtype(image)
        iou_predictions = image.new_empty(prompts, masks.stop - masks.start, dtype=dtype)
        logits = image.new_empty(*iou_predictions.shape, 4 * height, 4 * width, dtype=dtype)
        upscale = _Upscaling(self.output_upscaling, dtype)
        for chunk in self._transformed(image, image_pe, sparse, dense):
            iou_predictions[chunk.prompts] = chunk.iou_predictions[:, masks]
            with _plain_arithmetic(image.device):
                hypernetwork = self._hypernetwork(chunk.mask_tokens, masks).to(dtype)
                upscale(chunk.pixels, hypernetwork, logits[chunk.prompts])
        return logits, iou_predictions

    def _transformed(
        self, image_embedding: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> Iterator[_Chunk]:
        """Run the transformer on a few prompts at a time."""
        device = image_embedding.device
        dtype = _pixel_dtype(image_embedding)
        # Axes that were expanded hold one value: without mask prompts, one vector remains.
        dense = dense[tuple(slice(1 if stride == 0 else None) for stride in dense.stride())]
        shared = len(dense) == 1 and (len(sparse) > 1 or dense.shape[-2:] == (1, 1))
        with _plain_arithmetic(device):
            positions = self._positions(image_pe, dtype)
            image = self._image(image_embedding, dense, positions) if shared else None
            output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
            output_tokens = output_tokens.expand(sparse.shape[0], -1, -1)
            prompt_tokens = torch.cat([output_tokens, sparse.to(output_tokens.dtype)], dim=1)

        channels, area = self.transformer_dim, image_embedding[0, 0].numel()
        rows = max(channels, prompt_tokens.shape[1] * self.transformer.num_heads)
        budget = _CPU_CHUNK_BYTES if device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
        step = max(1, budget // (area * rows * dtype.itemsize))
        buffer = image_embedding.new_empty(min(step, len(sparse)), area, channels, dtype=dtype)
        for start in range(0, len(sparse), step):
            prompts = slice(start, start + step)
            pixels = buffer[: len(sparse[prompts])]
            with _plain_arithmetic(device):
                if image is None:
                    _write_pixels(image_embedding, dense[prompts], pixels)
                tokens = self._two_way_transformer(prompt_tokens[prompts], positions, image, pixels)
                iou_predictions = self.iou_prediction_head(tokens[:, 0]).to(dtype)
            mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
            yield _Chunk(prompts, mask_tokens, iou_predictions, pixels)

    def _two_way_transformer(
        self, prompt_tokens: Tensor, positions: _Positions, image: _Image | None, pixels: Tensor
    ) -> Tensor:
        """Follow ``TwoWayTransformer.forward`` for tokens (B, T, C) on one image.

        Pixels (B, P, C) are taken from ``image``, or where there is none from ``pixels``. Returns
        tokens (B, T, C), and changes ``pixels`` in place.
        """
        transformer = self.transformer
        tokens = prompt_tokens
        for index, layer in enumerate(transformer.layers):
            if layer.skip_first_layer_pe:
                tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
            else:
                placed = tokens + prompt_tokens
                tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
            tokens = layer.norm1(tokens)

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
                _image_attends_to_tokens(attention, placed, tokens, image, pixels)
                for attended in pixels:
                    for band, residual in zip(_bands(attended), _bands(image.pixels), strict=True):
                        _normalise_(layer.norm4, band.add_(residual))
            else:
                queries = positions.queries[index]
                _pixels_attend_to_tokens_(attention, placed, tokens, queries, pixels)
                for band in _bands(pixels.flatten(0, 1)):
                    _normalise_(layer.norm4, band)

        attention = transformer.final_attn_token_to_image
        placed = tokens + prompt_tokens
        attended = _attend_to_pixels(attention, placed, positions.keys[-1], pixels)
        attended_tokens: Tensor = transformer.norm_final_attn(tokens + attended)
        return attended_tokens

    def _hypernetwork(self, mask_tokens: Tensor, masks: slice) -> Tensor:
        """Map mask tokens (B, all, C) to the weights of some masks on upscaled channels."""
        networks = self.output_hypernetworks_mlps
        return torch.stack(
            [networks[i](mask_tokens[:, i]) for i in range(masks.start, masks.stop)], dim=1
        )

    def _image(self, embedding: Tensor, dense: Tensor, positions: _Positions) -> _Image:
        """Do the work that depends only on the image, or find it done."""
        keep = embedding.device.type == "cpu"
        dtype = positions.keys[0].dtype
        layer = self.transformer.layers[0]
        values = layer.cross_attn_token_to_image.v_proj
        sources: tuple[Tensor, ...] = (embedding, dense, values.weight)
        if keep:
            kept_images = self._kept_images
            for image in kept_images:
                if image.positions is positions and all_equal(image.sources, sources):
                    return image
            sources = tuple(source.detach().clone() for source in sources)

        embedding, dense, value_weight = (source.to(dtype) for source in sources)
        pixels = (embedding + dense).flatten(2)[0].t().contiguous()
        key_weight = layer.cross_attn_token_to_image.k_proj.weight.to(dtype)
        query_weight = layer.cross_attn_image_to_token.q_proj.weight.to(dtype)
        heads = self.transformer.num_heads
        image = _Image(
            sources,
            positions,
            pixels,
            positions.keys[0] + _by_head(key_weight @ pixels.t(), heads),
            positions.queries[0] + _by_head(query_weight @ pixels.t(), heads),
            _by_head(value_weight @ pixels.t(), heads).transpose(1, 2).contiguous(),
        )
        # A mask prompt is a new one each time, and would only push images out.
        if keep and dense.shape[-2:] == (1, 1):
            self._kept_images = (image, *kept_images)[:_IMAGES_KEPT]
        return image

    def _positions(self, image_pe: Tensor, dtype: torch.dtype) -> _Positions:
        """Project the positional encoding for every attention, or find that done."""
        keep = image_pe.device.type == "cpu"
        layers = self.transformer.layers
        keys = [layer.cross_attn_token_to_image.k_proj for layer in layers]
        keys.append(self.transformer.final_attn_token_to_image.k_proj)
        queries = [layer.cross_attn_image_to_token.q_proj for layer in layers]
        # The key bias adds one constant to all scores of a token, which softmax ignores.
        sources: tuple[Tensor, ...] = (
            image_pe,
            *(linear.weight for linear in keys),
            *(linear.weight for linear in queries),
            *(linear.bias for linear in queries),
        )
        if keep:
            kept = self._kept_positions
            if kept and kept.keys[0].dtype == dtype and all_equal(kept.sources, sources):
                return kept
            sources = tuple(source.detach().clone() for source in sources)

        positions = sources[0].to(dtype).flatten(2)[0]
        weights = [source.to(dtype) for source in sources[1:]]
        heads = self.transformer.num_heads
        projected = _Positions(
            sources,
            [_by_head(w @ positions, heads) for w in weights[: len(keys)]],
            [
                _by_head(torch.addmm(bias[:, None], weight, positions), heads)
                for weight, bias in zip(
                    weights[len(keys) : -len(queries)], weights[-len(queries) :], strict=True
                )
            ],
        )
        if keep:
            self._kept_positions = projected
        return projected


class _Upscaling:
    """``output_upscaling`` and the product with the hypernetwork, channels last.

    A transposed convolution whose stride is its kernel's size is a matrix product: every pixel
    becomes the places of the kernel. On a CPU a few rows of one prompt go through all steps at a
    time, in buffers that its cache holds.
    """

    def __init__(self, layers: Iterable[Any], dtype: torch.dtype) -> None:
        first, self._norm, self._first_activation, second, self._second_activation = layers
        self._first_weight, self._first_bias = _as_product(first, dtype)
        self._second_weight, self._second_bias = _as_product(second, dtype)
        self._once = self._twice = torch.empty(0)

    def __call__(self, pixels: Tensor, hypernetwork: Tensor, logits: Tensor) -> None:
        """Write logits (B, M, 4h, 4w) for pixels (B, P, C) and hypernetwork (B, M, C / 8)."""
        batch, masks, height, width = (*logits.shape[:2], *(side // 4 for side in logits.shape[2:]))
        # Both kernels split rows and columns in two: (B, M, h, 2, 2, w, 2, 2).
        by_pixel = logits.view(batch, masks, height, 2, 2, width, 2, 2)
        by_pixel = by_pixel.permute(0, 1, 2, 5, 3, 6, 4, 7)
        rows = pixels.view(batch, height, width, -1)
        prompts_at_once, rows_at_once = batch, height
        if logits.device.type == "cpu":
            prompts_at_once, rows_at_once = 1, max(1, _CPU_BAND_BYTES // rows[0, 0].nbytes)
        for start in range(0, batch, prompts_at_once):
            prompts = slice(start, start + prompts_at_once)
            for top in range(0, height, rows_at_once):
                band = prompts, slice(top, top + rows_at_once)
                upscaled = self._upscale(rows[band].flatten(0, 2))
                upscaled = upscaled.view(len(hypernetwork[prompts]), -1, upscaled.shape[-1])
                some = by_pixel[prompts, :, top : top + rows_at_once]
                some.copy_((hypernetwork[prompts] @ upscaled.transpose(1, 2)).view(some.shape))

    def only(self, above: Tensor, pixels: Tensor, hypernetwork: Tensor, logits: Tensor) -> None:
        """Write logits (K, 4h, 4w) of the K masks that ``above`` (B, M) marks.

        ``above`` lies on the CPU: the host has read it already.
        """
        prompts = above.any(dim=1).nonzero()[:, 0]
        start = 0
        for some in prompts.split(1) if logits.device.type == "cpu" else (prompts,):
            # A slice of pixels is no copy of them.
            chosen = slice(int(some[0]), int(some[0]) + 1) if len(some) == 1 else some
            columns = above[chosen].any(dim=0).nonzero()[:, 0]
            selected = above[chosen][:, columns]
            upscaled = logits.new_empty(*selected.shape, *logits.shape[1:])
            self(pixels[chosen], hypernetwork[chosen][:, columns], upscaled)
            stop = start + int(selected.sum())
            logits[start:stop] = upscaled[selected]
            start = stop

    def _upscale(self, pixels: Tensor) -> Tensor:
        """Upscale pixels (N, C) to (16 N, C / 8), valid until the next call."""
        if len(self._once) != len(pixels) or self._once.device != pixels.device:
            self._once = pixels.new_empty(len(pixels), self._first_weight.shape[1])
            self._twice = pixels.new_empty(4 * len(pixels), self._second_weight.shape[1])
        once = torch.mm(pixels, self._first_weight, out=self._once).view(-1, len(self._first_bias))
        _normalise_(self._norm, once.add_(self._first_bias))
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


def accelerate(sam: Sam) -> Sam:
    """Give a Segment Anything model the faster decoder, in place, on the same parameters.

    Arguments:
      sam: any model with upstream's mask decoder: vit_b, vit_l, vit_h, or of a vendored
        segment-anything. Its decoder's training mode and forward hooks are kept.

    Returns:
      The same model.

    Raises:
      TypeError: the model's decoder is not upstream's, which the message names: SAM-HQ's, for
        example, or one with an adapter in a block of its transformer.
    """
    if not isinstance(sam.mask_decoder, MaskDecoder):
        sam.mask_decoder = MaskDecoder.sharing(sam.mask_decoder)
    return sam


def _write_pixels(image_embedding: Tensor, dense: Tensor, pixels: Tensor) -> None:
    """Write the sums of an embedding (1, C, h, w) and dense ones (B, C, h, w) to (B, P, C)."""
    for prompt, rows in zip(dense, pixels, strict=True):
        # Sum first: a transposed copy is quick, a transposed sum is not.
        rows.copy_((image_embedding[0] + prompt).flatten(1).t())


def _attend_to_image(attention: Attention, tokens: Tensor, image: _Image) -> Tensor:
    """Token-to-image attention where all prompts see the same pixels."""
    queries = _scaled_heads(attention, attention.q_proj(tokens), image.pixels.dtype)
    weights = _scores(queries, image.keys, len(tokens))
    torch.softmax(weights, dim=-1, out=weights)
    by_head = weights.view(-1, *image.keys.shape[::2]).transpose(0, 1)
    return _token_output(attention, by_head @ image.values, tokens)


def _attend_to_pixels(
    attention: Attention, tokens: Tensor, position_keys: Tensor, pixels: Tensor
) -> Tensor:
    """Token-to-image attention with keys and values projected on the side of the tokens."""
    heads = attention.num_heads
    queries = _scaled_heads(attention, attention.q_proj(tokens), pixels.dtype)
    weights = _scores(queries, position_keys, len(tokens))
    key_weight = _by_head(attention.k_proj.weight.to(pixels.dtype), heads)
    weights.baddbmm_(_by_prompt(queries @ key_weight, len(tokens)), pixels.transpose(1, 2))
    torch.softmax(weights, dim=-1, out=weights)
    seen = (weights @ pixels).view(-1, heads, pixels.shape[-1]).transpose(0, 1)
    value_weight = _by_head(attention.v_proj.weight.to(pixels.dtype), heads)
    return _token_output(attention, seen @ value_weight.transpose(1, 2), tokens)


def _image_attends_to_tokens(
    attention: Attention, keys: Tensor, values: Tensor, image: _Image, pixels: Tensor
) -> None:
    """Image-to-token attention, written to each prompt's ``pixels`` without its residual."""
    batch = len(keys)
    scaled_keys = _scaled_heads(attention, attention.k_proj(keys), image.pixels.dtype)
    weights = _softmax_over_tokens_(_scores(scaled_keys, image.queries, batch), attention)
    outputs = _token_contributions(attention, values, image.pixels.dtype)
    torch.bmm(weights.transpose(1, 2), outputs, out=pixels)


def _pixels_attend_to_tokens_(
    attention: Attention, keys: Tensor, values: Tensor, position_queries: Tensor, pixels: Tensor
) -> None:
    """Image-to-token attention and its residual, added to pixels (B, P, C) in place."""
    scaled_keys = _scaled_heads(attention, attention.k_proj(keys), pixels.dtype)
    scores = _scores(scaled_keys, position_queries, len(keys))
    query_weight = _by_head(attention.q_proj.weight.to(pixels.dtype), attention.num_heads)
    scores.baddbmm_(_by_prompt(scaled_keys @ query_weight, len(keys)), pixels.transpose(1, 2))
    weights = _softmax_over_tokens_(scores, attention)
    outputs = _token_contributions(attention, values, pixels.dtype)
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


def _token_output(attention: Attention, attended: Tensor, tokens: Tensor) -> Tensor:
    """Finish token-to-image attention: attended values (H, B T, D) to outputs (B, T, C)."""
    values = attended.transpose(0, 1).reshape(*tokens.shape[:2], -1).to(tokens.dtype)
    output: Tensor = attention.out_proj(values + attention.v_proj.bias)
    return output


def _token_contributions(attention: Attention, values: Tensor, dtype: torch.dtype) -> Tensor:
    """What each head of each token adds to a pixel that attends to it alone, (B, T H, C)."""
    heads = attention.num_heads
    output = attention.out_proj
    outputs = _split_heads(attention.v_proj(values), heads) @ _by_head(output.weight.t(), heads)
    # A pixel's weights sum to one in each head, so the heads bring the bias together.
    return _by_prompt(outputs + output.bias / heads, len(values)).to(dtype)


def _scaled_heads(attention: Attention, projected: Tensor, dtype: torch.dtype) -> Tensor:
    """Split projected tokens into heads (H, B T, D), scaled for their products with pixels."""
    by_head = _split_heads(projected, attention.num_heads)
    return (by_head / math.sqrt(by_head.shape[-1])).to(dtype)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split projected tokens (B, T, H D) into heads (H, B T, D)."""
    batch, tokens, channels = projected.shape
    return projected.reshape(batch * tokens, heads, channels // heads).transpose(0, 1)


def _bands(rows: Tensor) -> Sequence[Tensor]:
    """Split rows (N, C) so that a CPU's cache holds a band through several passes."""
    on_cpu = rows.device.type == "cpu"
    return rows.split(max(1, _CPU_BAND_BYTES // rows[0].nbytes)) if on_cpu else (rows,)


def _normalise_(norm: nn.LayerNorm | LayerNorm2d, rows: Tensor) -> None:
    """Normalise the last axis in place: ``nn.LayerNorm``, or channels last ``LayerNorm2d``."""
    weight, bias = norm.weight.to(rows.dtype), norm.bias.to(rows.dtype)
    rows.copy_(F.layer_norm(rows, weight.shape, weight, bias, norm.eps))


def _activate_(activation: nn.Module, rows: Tensor) -> None:
    if isinstance(activation, nn.GELU):
        torch.ops.aten.gelu_(rows, approximate=activation.approximate)
    else:
        torch.relu_(rows)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """Split rows (H D, N) into (H, D, N)."""
    return rows.reshape(heads, -1, rows.shape[-1])


def _by_prompt(tokens: Tensor, batch: int) -> Tensor:
    """Rearrange tokens (H, B T, C) to (B, T H, C)."""
    return tokens.transpose(0, 1).reshape(batch, -1, tokens.shape[-1])


def _pixel_dtype(image_embedding: Tensor) -> torch.dtype:
    device_type = image_embedding.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return image_embedding.dtype


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, and dtypes as written: autocast leaves in-place operations alone."""
    with torch.no_grad(), no_autocast(device):
        yield


def _above(iou_predictions: Tensor, pred_iou_thresh: float) -> Tensor:
    if pred_iou_thresh > 0.0:
        return iou_predictions > pred_iou_thresh
    return torch.ones_like(iou_predictions, dtype=torch.bool)


def _skipped_parts(decoder: nn.Module) -> list[tuple[nn.Module, type[nn.Module] | str]] | None:
    """The modules below a decoder that the shortcuts never call, each with its class.

    Returns:
      None where the modules are not arranged as upstream's.
    """
    linear = "q_proj", "k_proj", "v_proj", "out_proj"
    try:
        transformer: Any = decoder.transformer
        attentions = [transformer.final_attn_token_to_image]
        parts: list[tuple[nn.Module, type[nn.Module] | str]] = [(transformer, "TwoWayTransformer")]
        for layer in transformer.layers:
            parts += [(layer, "TwoWayAttentionBlock"), (layer.norm4, nn.LayerNorm)]
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in attentions:
            parts.append((attention, "Attention"))
            parts += [(getattr(attention, name), nn.Linear) for name in linear]
        upscaling: Any = decoder.output_upscaling
        first, norm, first_activation, second, second_activation = upscaling
    except (AttributeError, TypeError, ValueError):
        return None
    parts += [
        (upscaling, nn.Sequential),
        (first, nn.ConvTranspose2d),
        (norm, "LayerNorm2d"),
        (second, nn.ConvTranspose2d),
    ]
    for activation in (first_activation, second_activation):
        parts.append((activation, nn.GELU if isinstance(activation, nn.GELU) else nn.ReLU))
    return parts if len(transformer.layers) > 0 else None


def _is_plain(module: nn.Module, kind: type[nn.Module] | str) -> bool:
    """Whether nobody could tell that a module is not called."""
    return is_upstreams(module, kind) and not is_hooked(module)


def _part_of_other_code(decoder: nn.Module) -> nn.Module | None:
    """The first module that runs other code than upstream's: a decoder, or a part of it."""
    if isinstance(decoder, MaskDecoder):
        ours = (
            _method(decoder, name) is getattr(MaskDecoder, name)
            for name in ("forward", "predict_masks")
        )
        if not all(ours):
            return decoder
    elif not is_upstreams(decoder, "MaskDecoder"):
        return decoder
    parts = _skipped_parts(decoder)
    if parts is None:
        return decoder
    return next((part for part, kind in parts if not is_upstreams(part, kind)), None)


def _method(module: nn.Module, name: str) -> Any:
    """A method as it is called: that of the class, or one set on the module itself."""
    return vars(module).get(name, getattr(type(module), name))


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
