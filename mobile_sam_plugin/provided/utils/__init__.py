"""``mobile_sam.utils``."""

import sys

from segment_anything.utils import amg

__all__ = ["amg"]

sys.modules[f"{__name__}.amg"] = amg
