"""The package ``mobile_sam`` on this package's code: its public names and modules.

:func:`~mobile_sam_plugin.provide` makes Python import it under the name ``mobile_sam``. Parts that
the original took over from segment_anything unchanged are segment_anything's own modules.
"""

from .automatic_mask_generator import SamAutomaticMaskGenerator
from .build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    build_sam_vit_t,
    sam_model_registry,
)
from .predictor import SamPredictor

__all__ = [
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_t",
    "sam_model_registry",
]
