"""MobileSAM as a plug-in for everything that was built on Segment Anything.

Importing this package adds ``vit_t`` to ``segment_anything.sam_model_registry``. It imports torch
and segment_anything only when one of its names, or segment_anything itself, is asked for.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .annotation import annotate
    from .automatic_mask_generator import SamAutomaticMaskGenerator
    from .build import build_sam_vit_t
    from .checkpoint import DEFAULT_CHECKPOINT
    from .finetuning import finetune
    from .import_hooks import provide
    from .mobile_sam import MobileSam
    from .model import use_fast_decoder
    from .predictor import SamPredictor
    from .registry import sam_model_registry
    from .replacement import register, replace

_MODULES = {
    "DEFAULT_CHECKPOINT": "checkpoint",
    "MobileSam": "mobile_sam",
    "SamAutomaticMaskGenerator": "automatic_mask_generator",
    "SamPredictor": "predictor",
    "annotate": "annotation",
    "build_sam_vit_t": "build",
    "finetune": "finetuning",
    "provide": "import_hooks",
    "register": "replacement",
    "replace": "replacement",
    "sam_model_registry": "registry",
    "use_fast_decoder": "model",
}

__all__ = [
    "DEFAULT_CHECKPOINT",
    "MobileSam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "annotate",
    "build_sam_vit_t",
    "finetune",
    "provide",
    "register",
    "replace",
    "sam_model_registry",
    "use_fast_decoder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("segment_anything")
def _register_upstream(module: ModuleType) -> None:
    from .build import build_sam_vit_t

    module.sam_model_registry.setdefault("vit_t", build_sam_vit_t)
