"""The differences of segment_anything's copies for SAM-HQ, whose parts exchange more data.

Their image encoders return a pair: the embeddings, and features from inside the encoder. Their
predictors unpack it, and call decoders with the features and a switch. ``segment_anything_hq`` is
such a copy; Grounded-Segment-Anything installs another under the name of ``segment_anything``.
"""

import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

InnerFeatures = Sequence[Tensor]  # (B, H / 16, W / 16, channels) each


def unpack(encoded: Tensor | tuple[Tensor, InnerFeatures]) -> tuple[Tensor, InnerFeatures | None]:
    """Splits an image encoder's output into embeddings and inner features; upstream's has none."""
    return (encoded, None) if isinstance(encoded, Tensor) else encoded


def decoder_arguments(features: InnerFeatures | None) -> dict[str, Any]:
    """Returns the arguments of a decoder in addition to upstream's."""
    if features is None:
        return {}
    return {"hq_token_only": False, "interm_embeddings": features}


def unpacks_pairs(module: ModuleType) -> bool:
    """Whether the predictors of a copy of segment_anything expect pairs from image encoders."""
    predict = getattr(getattr(module, "SamPredictor", None), "predict_torch", None)
    return predict is not None and "hq_token_only" in inspect.signature(predict).parameters


def return_pairs(encoder: nn.Module, wanted: bool) -> None:
    """Makes an image encoder return pairs from now on, or embeddings alone.

    The inner features are the embeddings again: MobileSAM has none that SAM-HQ's decoder was
    trained for, and its own decoder ignores them.
    """
    for key, hook in list(encoder._forward_hooks.items()):
        if hook is _pair:
            del encoder._forward_hooks[key]
    if wanted:
        encoder.register_forward_hook(_pair)


def _pair(
    module: nn.Module, inputs: tuple[Any, ...], embeddings: Tensor
) -> tuple[Tensor, InnerFeatures]:
    return embeddings, (embeddings.permute(0, 2, 3, 1),)
