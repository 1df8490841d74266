"""``mobile_sam.build_sam``: the builders, and the registry of model types."""

import os
from collections.abc import Callable
from typing import Any

from segment_anything import build_sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin import build_sam_vit_t as _build_sam_vit_t


def build_sam_vit_t(checkpoint: str | os.PathLike[str] | None = None) -> MobileSam:
    """Builds MobileSAM, see :func:`mobile_sam_plugin.build_sam_vit_t`.

    Args:
        checkpoint: weights; None for untrained ones, as the original has it. Clients that name
            none load a state dict afterwards.
    """
    return _build_sam_vit_t(checkpoint)


sam_model_registry: dict[str, Callable[..., Any]] = {
    "default": build_sam,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_t": build_sam_vit_t,
}
