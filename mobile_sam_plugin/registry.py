"""The registry of model types: upstream's and MobileSAM's."""

from collections.abc import Callable
from typing import Any

import segment_anything

from .build import build_sam_vit_t

sam_model_registry: dict[str, Callable[..., Any]] = {
    name: segment_anything.sam_model_registry[name]
    for name in ("default", "vit_h", "vit_l", "vit_b")
} | {"vit_t": build_sam_vit_t}
"""Builder of each model type: upstream's four, and ``vit_t`` for MobileSAM."""
