"""``mobile_sam.modeling``: segment_anything's parts, and TinyViT."""

import sys
from importlib import import_module

from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from .tiny_vit_sam import TinyViT

__all__ = [
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "TinyViT",
    "TwoWayTransformer",
]

for _name in ("common", "image_encoder", "mask_decoder", "prompt_encoder", "sam", "transformer"):
    _module = import_module(f"segment_anything.modeling.{_name}")
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = _module
