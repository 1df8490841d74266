"""``mobile_sam.automatic_mask_generator``."""

from mobile_sam_plugin import SamAutomaticMaskGenerator

__all__ = ["SamAutomaticMaskGenerator"]
