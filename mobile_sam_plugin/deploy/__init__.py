"""MobileSAM as two ONNX files, and predictors that run them without torch.

Only :func:`export` imports torch, and only when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .automatic_mask_generator import OnnxAutomaticMaskGenerator
from .predictor import OnnxPredictor, OpenVinoPredictor

if TYPE_CHECKING:
    from .onnx_export import Export, export

__all__ = [
    "Export",
    "OnnxAutomaticMaskGenerator",
    "OnnxPredictor",
    "OpenVinoPredictor",
    "export",
]


def __getattr__(name: str) -> Any:
    if name not in ("Export", "export"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".onnx_export", __name__), name)
