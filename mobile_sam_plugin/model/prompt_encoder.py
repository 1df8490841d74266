"""SAM's prompt encoder, which also works in half precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import PromptEncoder as UpstreamPromptEncoder
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor

from .tensors import no_autocast


class PromptEncoder(UpstreamPromptEncoder):
    """Upstream's prompt encoder, made to work in float16 and bfloat16.

    Coordinates are encoded in float32 whatever the dtype of the weights, since half precision
    cannot tell neighbouring pixels apart; the embeddings have the dtype of the weights. It has the
    same constructor, parameters, state-dict keys and results as upstream's.
    """

    _kept_dense_pe: "_DensePE | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pe_layer = _PositionEmbedding(self.embed_dim // 2)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts, as upstream's ``PromptEncoder.forward``.

        Args:
            points: coordinates (B, N, 2), XY in the model's input, and labels (B, N).
            boxes: (B, 4), XYXY in the model's input.
            masks: (B, 1, 4h, 4w), low-res logits, for an image embedding of h x w.

        Returns:
            Sparse embeddings (B, N, C) of points and boxes, and dense ones (B, C, h, w) of masks.
        """
        if masks is not None:
            masks = masks.to(self._dtype)
        sparse, dense = super().forward(points, boxes, masks)
        return sparse.to(self._dtype), dense.to(self._dtype)

    def get_dense_pe(self) -> Tensor:
        """Returns the positional encoding (1, C, h, w) of the image embedding. Do not write to it.

        It depends on a small matrix alone. On a CPU it is computed once and not with every prompt,
        as long as the matrix holds the same values.
        """
        frequencies = self.pe_layer.positional_encoding_gaussian_matrix
        if frequencies.device.type != "cpu" or torch.compiler.is_compiling():
            return self._compute_dense_pe()
        kept = self._kept_dense_pe
        if kept is None or not kept.serves(self):
            with torch.inference_mode(False), torch.no_grad():
                encoding = self._compute_dense_pe().contiguous()
                kept = _DensePE(encoding, encoding._version, frequencies.clone())
            self._kept_dense_pe = kept
        return kept.encoding

    def _compute_dense_pe(self) -> Tensor:
        encoding: Tensor = super().get_dense_pe()
        return encoding.to(self._dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept_dense_pe = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept_dense_pe": None}

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.no_mask_embed.weight.dtype
        return dtype


class _DensePE(NamedTuple):
    encoding: Tensor
    version: int
    frequencies: Tensor

    def serves(self, prompt_encoder: PromptEncoder) -> bool:
        return (
            self.encoding._version == self.version
            and self.encoding.dtype == prompt_encoder._dtype
            and self.encoding.shape[-2:] == prompt_encoder.image_embedding_size
            and torch.equal(
                self.frequencies, prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
            )
        )


class _PositionEmbedding(PositionEmbeddingRandom):
    """Upstream's, with random frequencies that follow the model to a device but not to a dtype.

    A caller's autocast has no effect on it either: bfloat16 is off by whole pixels.
    """

    positional_encoding_gaussian_matrix: Tensor

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        with no_autocast(coords.device):
            encoding: Tensor = super()._pe_encoding(coords)
        return encoding

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        frequencies = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        moved = self.positional_encoding_gaussian_matrix
        # On the device "meta" there are no values to keep.
        source = moved if frequencies.is_meta else frequencies
        self.positional_encoding_gaussian_matrix = source.to(moved.device, frequencies.dtype)
        return self
