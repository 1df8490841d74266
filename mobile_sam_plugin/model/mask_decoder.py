"""Segment Anything's mask decoder: the same function with half of the arithmetic.

Upstream copies the image tokens for every prompt and projects them again in every attention.
Two observations remove most of that work without approximating anything:

* Before the first layer the image tokens are the same for every prompt without a mask prompt, so
  all that the first layer projects from them is computed once per image.
* Afterwards, and with a mask prompt from the first layer on, attention is computed on the side of
  the few prompt tokens, see ``two_way_transformer.py``.

Words and letters of shapes are those of that file; M is masks per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from segment_anything.modeling import MaskDecoder as UpstreamMaskDecoder
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..threads import ordered_map, torch_pool
from . import differentiable_decoder
from .tensors import all_equal, free_bytes, gradients_wanted, no_autocast
from .two_way_transformer import ImageTokens, Positions, by_head, transform_
from .upscaling import Upscaling
from .upstream import is_hooked, is_upstreams, parts_never_called

# On a CPU, first touches of fresh memory cost more than the arithmetic: a chunk of prompts works in
# buffers that the next one uses again. An accelerator wants few large kernels instead.
_CPU_CHUNK_BYTES = 8 << 20
_ACCELERATOR_CHUNK_BYTES = 1 << 30
_ACCELERATOR_SHARE = 16  # a chunk's buffers take some times its bytes
# Of fewer prompts, upstream's code takes a third fewer kernels, and the work hardly counts.
_ACCELERATOR_LEAST_PROMPTS = 8

_IMAGES_KEPT = 2  # enough to alternate between two

Made = TypeVar("Made")


class _Chunk(NamedTuple):
    """A few prompts after the transformer."""

    prompts: slice
    mask_tokens: Tensor  # (B, M, C)
    iou_predictions: Tensor  # (B, M)
    pixels: Tensor  # (B, P, C)
    upscale: Upscaling


class MaskDecoder(UpstreamMaskDecoder):
    """``segment_anything.modeling.MaskDecoder``, exact and faster.

    Parameters, state dict and calls are upstream's. Where gradients are wanted,
    ``differentiable_decoder.py`` computes the same with them. Upstream's own code runs instead
    whenever the shortcuts do not apply: several images come in one call, a prompt has very many
    points, an accelerator gets few prompts, the module is traced, exported or compiled,
    or a part that would be skipped was replaced, runs other code than upstream's or carries a
    forward hook.

    Where a copy of segment_anything for SAM-HQ is installed, its predictors pass two more
    arguments. Its own plain decoder ignores them, and so does this one.

    On a CPU, work that depends only on the image is kept between calls, and used again only after
    the inputs and weights that it came from compared equal, value by value: it is never stale,
    however they were changed. On an accelerator this work takes less time than waiting for such a
    comparison, and every call repeats it. What is kept is neither copied nor pickled with the
    module. Several threads may call one decoder.
    """

    _kept_positions: Positions | None = None
    _kept_images: tuple[ImageTokens, ...] = ()

    @classmethod
    def sharing(cls, decoder: nn.Module) -> MaskDecoder:
        """Returns a new decoder on the submodules of ``decoder``, which is left untouched.

        Args:
            decoder: upstream's mask decoder, or the copy of it in a vendored segment-anything.

        Raises:
            TypeError: if ``decoder``, or a part of it, runs other code than upstream's.
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
        """Returns a decoder whose methods may be called in place of the module ``decoder``.

        That is ``decoder`` itself where it is one of these, or one that shares its submodules.

        Returns:
            None if calling the module does anything else: it or a part runs other code than
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
        """Predicts masks, as ``segment_anything.modeling.MaskDecoder.forward`` does.

        Args:
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
        """Predicts the single mask and the multimask outputs together.

        Follows ``segment_anything.modeling.MaskDecoder.predict_masks``. The arguments are those of
        ``forward``; returns logits (B, ``num_mask_tokens``, 4h, 4w) and predicted IoU
        (B, ``num_mask_tokens``).
        """
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        if self._applies(*inputs):
            return self._predict(*inputs, slice(0, self.num_mask_tokens))
        if self._holds(*inputs) and not self._has_backward_hooks():
            return differentiable_decoder.predict_masks(self, *inputs)
        upstream: tuple[Tensor, Tensor] = super().predict_masks(*inputs)
        return upstream

    def predict_masks_above(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        pred_iou_thresh: float,
        multimask_output: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Predicts only the masks whose predicted IoU is above a threshold, a few at a time.

        Keeps what ``SamAutomaticMaskGenerator._process_batch`` keeps, in its order (prompts, then
        masks): a threshold of zero or less keeps all. Masks that are dropped are never upscaled.
        The other arguments are those of ``forward``.

        Yields:
            Prompt indices (K,) int64, predicted IoU (K,) and low-resolution logits (K, 4h, 4w) of
            at least one mask. The tensors are the caller's own.
        """
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        if not self._applies(*inputs):
            logits, iou_predictions = self(*inputs, multimask_output)
            kept = _above(iou_predictions, pred_iou_thresh).nonzero(as_tuple=True)
            if len(kept[0]) > 0:
                yield kept[0], iou_predictions[kept], logits[kept]
            return

        masks = self._output_masks(multimask_output)
        height, width = image_embeddings.shape[-2:]

        def finish(chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor]:
            iou_predictions = chunk.iou_predictions[:, masks]
            above = _above(iou_predictions, pred_iou_thresh).cpu()
            kept = above.nonzero(as_tuple=True)
            logits = chunk.pixels.new_empty(len(kept[0]), 4 * height, 4 * width)
            if len(logits) > 0:
                hypernetwork = self._hypernetwork(chunk.mask_tokens, masks).to(logits.dtype)
                chunk.upscale.only(above, chunk.pixels, hypernetwork, logits)
            prompts = kept[0].to(logits.device) + chunk.prompts.start
            return prompts, iou_predictions[kept], logits

        for found in self._by_chunk(*inputs, finish):
            if len(found[0]) > 0:
                yield found

    def _output_masks(self, multimask_output: bool) -> slice:
        return slice(1, self.num_mask_tokens) if multimask_output else slice(0, 1)

    def _applies(self, *inputs: Tensor) -> bool:
        """Whether the shortcuts hold for these inputs and modules, and no gradients are wanted."""
        return self._holds(*inputs) and not gradients_wanted(self.modules(), inputs)

    def _holds(self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor) -> bool:
        """Whether the shortcuts hold for these inputs and modules; reads no device memory."""
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or torch.jit.is_scripting()
            or torch.onnx.is_in_onnx_export()
        ):
            return False
        inputs = image, image_pe, sparse, dense
        if image.is_meta:
            return False
        if image.device.type != "cpu" and len(sparse) < _ACCELERATOR_LEAST_PROMPTS:
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
        parts = parts_never_called(self)
        if parts is None or not all(
            is_upstreams(part, kind) and not is_hooked(part) for part, kind in parts
        ):
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

    def _has_backward_hooks(self) -> bool:
        return any(part._backward_hooks or part._backward_pre_hooks for part in self.modules())

    def _predict(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, masks: slice
    ) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        prompts = sparse.shape[0]
        dtype = _pixel_dtype(image)
        iou_predictions = image.new_empty(prompts, masks.stop - masks.start, dtype=dtype)
        logits = image.new_empty(*iou_predictions.shape, 4 * height, 4 * width, dtype=dtype)

        def finish(chunk: _Chunk) -> None:
            iou_predictions[chunk.prompts] = chunk.iou_predictions[:, masks]
            hypernetwork = self._hypernetwork(chunk.mask_tokens, masks).to(dtype)
            chunk.upscale(chunk.pixels, hypernetwork, logits[chunk.prompts])

        for _ in self._by_chunk(image, image_pe, sparse, dense, finish):
            pass
        return logits, iou_predictions

    def _by_chunk(
        self,
        image_embedding: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        finish: Callable[[_Chunk], Made],
    ) -> Iterator[Made]:
        """Runs the transformer and ``finish`` on a few prompts at a time.

        On a CPU every thread takes prompts of its own: products this small gain less from several.
        """
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
        budget = _CPU_CHUNK_BYTES
        if device.type != "cpu":
            budget = min(_ACCELERATOR_CHUNK_BYTES, free_bytes(device) // _ACCELERATOR_SHARE)
        step = max(1, budget // (area * rows * dtype.itemsize))
        chunks = [slice(start, start + step) for start in range(0, len(sparse), step)]
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        workers = min(threads, len(chunks))
        # Memory that a chunk works in, and that the next one uses again.
        free: SimpleQueue[tuple[Tensor, Upscaling]] = SimpleQueue()
        for _ in range(workers):
            buffer = image_embedding.new_empty(min(step, len(sparse)), area, channels, dtype=dtype)
            free.put((buffer, Upscaling(self.output_upscaling, dtype)))
        inference = torch.is_inference_mode_enabled()

        def compute(prompts: slice) -> Made:
            buffer, upscale = workspace = free.get()
            try:
                with torch.inference_mode(inference), _plain_arithmetic(device):
                    pixels = buffer[: len(sparse[prompts])]
                    if image is None:
                        _write_pixels(image_embedding, dense[prompts], pixels)
                    tokens = transform_(
                        self.transformer, prompt_tokens[prompts], positions, image, pixels
                    )
                    iou_predictions = self.iou_prediction_head(tokens[:, 0]).to(dtype)
                    mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
                    return finish(_Chunk(prompts, mask_tokens, iou_predictions, pixels, upscale))
            finally:
                free.put(workspace)

        if workers == 1:
            yield from map(compute, chunks)
            return
        with torch_pool(workers, threads // workers) as pool:
            yield from ordered_map(compute, chunks, pool, 2 * workers)

    def _hypernetwork(self, mask_tokens: Tensor, masks: slice) -> Tensor:
        """Maps mask tokens (B, all, C) to the weights of some masks on upscaled channels."""
        networks = self.output_hypernetworks_mlps
        return torch.stack(
            [networks[i](mask_tokens[:, i]) for i in range(masks.start, masks.stop)], dim=1
        )

    def _image(self, embedding: Tensor, dense: Tensor, positions: Positions) -> ImageTokens:
        """Does the work that depends only on the image, or finds it done."""
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
        image = ImageTokens(
            sources,
            positions,
            pixels,
            positions.keys[0] + by_head(key_weight @ pixels.t(), heads),
            positions.queries[0] + by_head(query_weight @ pixels.t(), heads),
            by_head(value_weight @ pixels.t(), heads).transpose(1, 2).contiguous(),
        )
        # A mask prompt is a new one each time, and would only push images out.
        if keep and dense.shape[-2:] == (1, 1):
            self._kept_images = (image, *kept_images)[:_IMAGES_KEPT]
        return image

    def _positions(self, image_pe: Tensor, dtype: torch.dtype) -> Positions:
        """Projects the positional encoding for every attention, or finds that done."""
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
        projected = Positions(
            sources,
            [by_head(w @ positions, heads) for w in weights[: len(keys)]],
            [
                by_head(torch.addmm(bias[:, None], weight, positions), heads)
                for weight, bias in zip(
                    weights[len(keys) : -len(queries)], weights[-len(queries) :], strict=True
                )
            ],
        )
        if keep:
            self._kept_positions = projected
        return projected


def use_fast_decoder(model: Sam) -> Sam:
    """Gives a Segment Anything model the faster decoder, in place, on the same parameters.

    Args:
        model: any with upstream's mask decoder: vit_b, vit_l, vit_h, or one of a vendored copy of
            segment-anything. Its decoder's training mode and forward hooks are kept.

    Returns:
        The same model.

    Raises:
        TypeError: if the decoder is not upstream's but SAM-HQ's, for example, or has an adapter in
            a block of its transformer. The message names it.
    """
    if not isinstance(model.mask_decoder, MaskDecoder):
        model.mask_decoder = MaskDecoder.sharing(model.mask_decoder)
    return model


def _write_pixels(image_embedding: Tensor, dense: Tensor, pixels: Tensor) -> None:
    """Writes the sums of an embedding (1, C, h, w) and dense ones (B, C, h, w) to (B, P, C)."""
    for prompt, rows in zip(dense, pixels, strict=True):
        # Sum first: a transposed copy is quick, a transposed sum is not.
        rows.copy_((image_embedding[0] + prompt).flatten(1).t())


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
    parts = parts_never_called(decoder)
    if parts is None:
        return decoder
    return next((part for part, kind in parts if not is_upstreams(part, kind)), None)


def _method(module: nn.Module, name: str) -> Any:
    """A method as it is called: that of the class, or one set on the module itself."""
    return vars(module).get(name, getattr(type(module), name))


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
