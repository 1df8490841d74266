"""SAM's prompt encoder, also for models in half precision."""

from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import PromptEncoder as UpstreamPromptEncoder
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor


class PromptEncoder(UpstreamPromptEncoder):
    """Upstream's prompt encoder, which fails once its model is in float16 or bfloat16.

    Coordinates are encoded in float32 whatever the dtype of the weights, since half precision
    cannot tell neighbouring pixels apart; the embeddings come out in the dtype of the weights.
    Same constructor, parameters, state-dict keys and results as upstream's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pe_layer = _PositionEmbedding(self.embed_dim // 2)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As upstream's ``PromptEncoder.forward``: sparse (B, N, C) and dense (B, C, H, W)."""
        if masks is not None:
            masks = masks.to(self._dtype)
        sparse, dense = super().forward(points, boxes, masks)
        return sparse.to(self._dtype), dense.to(self._dtype)

    def get_dense_pe(self) -> Tensor:
        """As upstream's ``PromptEncoder.get_dense_pe``: (1, C, H, W)."""
        encoding: Tensor = super().get_dense_pe()
        return encoding.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.no_mask_embed.weight.dtype
        return dtype


class _PositionEmbedding(PositionEmbeddingRandom):
    """Upstream's, whose random frequencies follow the model to a device but never to a dtype."""

    positional_encoding_gaussian_matrix: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        frequencies = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        device = self.positional_encoding_gaussian_matrix.device
        self.positional_encoding_gaussian_matrix = frequencies.to(device)
        return self
