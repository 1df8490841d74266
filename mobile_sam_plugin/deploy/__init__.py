"""MobileSAM as two files for other runtimes, and predictors that run ONNX files without torch.

Only the exports import torch, and only when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .automatic_mask_generator import OnnxAutomaticMaskGenerator
from .predictor import OnnxPredictor, OpenVinoPredictor

if TYPE_CHECKING:
    from .comparison import Export
    from .onnx_export import export
    from .phones import export_for_phones

__all__ = [
    "Export",
    "OnnxAutomaticMaskGenerator",
    "OnnxPredictor",
    "OpenVinoPredictor",
    "export",
    "export_for_phones",
]

_MODULES = {"Export": "comparison", "export": "onnx_export", "export_for_phones": "phones"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
