"""``vit_t`` in SAM's registry: ours, upstream's, and that of a project with its own copy."""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import segment_anything

from .build import build_sam_vit_t
from .checkpoint import DEFAULT_CHECKPOINT
from .errors import UserError
from .mobile_sam import MobileSam

logger = logging.getLogger(__name__)

sam_model_registry: dict[str, Callable[..., Any]] = {
    name: segment_anything.sam_model_registry[name]
    for name in ("default", "vit_h", "vit_l", "vit_b")
} | {"vit_t": build_sam_vit_t}
"""Model type to builder: upstream's four entries, and ``vit_t`` for MobileSAM."""


def register(module: ModuleType, override: bool = False) -> None:
    """Adds ``vit_t`` to the registry of a module, such as a vendored copy of segment_anything.

    Importing this package does it for ``segment_anything`` itself.

    Args:
        module: a module with a dict ``sam_model_registry``.
        override: replace a ``vit_t`` that the module already has; it is left alone otherwise.

    Raises:
        TypeError: the module has no such dict.

    Example:
        >>> import sam.segment_anything
        >>> register(sam.segment_anything)
    """
    registry = _registry_of(module)
    if override or "vit_t" not in registry:
        registry["vit_t"] = build_sam_vit_t


def replace(
    *model_types: str,
    into: ModuleType = segment_anything,
    checkpoint: str | os.PathLike[str] | None = DEFAULT_CHECKPOINT,
) -> ExitStack:
    """Makes a module build MobileSAM where its callers ask for another type of SAM.

    For code that hard-codes or asserts the type. It takes effect at once, for
    ``into.sam_model_registry[type]`` and ``into.build_sam_<type>`` (``into.build_sam`` for
    ``"default"``); names that other modules imported from there before keep what they were. The
    checkpoint that such code passes belongs to the other model, so it is ignored, which one line
    in the log says.

    Args:
        model_types: ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"default"``, one or more.
        into: the module, with a dict ``sam_model_registry``.
        checkpoint: the weights that MobileSAM loads instead, see :func:`build_sam_vit_t`.

    Returns:
        A context manager that restores what was there on leaving, as its ``close()`` does.

    Raises:
        ValueError: no type, or one that the module's registry does not have.
        TypeError: the module has no such registry.

    Example:
        >>> with replace("vit_h", checkpoint="mobile_sam.pt"):
        ...     sam = segment_anything.sam_model_registry["vit_h"]("sam_vit_h_4b8939.pth")
    """
    registry = _registry_of(into)
    known = ", ".join(registry)
    if not model_types:
        raise UserError(f"name at least one model type to replace: {known}")
    for model_type in model_types:
        if model_type not in registry:
            raise UserError(f"{into.__name__} has no model type {model_type!r}, only {known}")
    restore = ExitStack()
    for model_type in dict.fromkeys(model_types):
        builder = _replacement(model_type, checkpoint)
        restore.callback(registry.__setitem__, model_type, registry[model_type])
        registry[model_type] = builder
        function = "build_sam" if model_type == "default" else f"build_sam_{model_type}"
        if callable(getattr(into, function, None)):
            restore.callback(setattr, into, function, getattr(into, function))
            setattr(into, function, builder)
    return restore


def _replacement(
    model_type: str, weights: str | os.PathLike[str] | None
) -> Callable[..., MobileSam]:
    def build_mobile_sam(checkpoint: str | os.PathLike[str] | None = None) -> MobileSam:
        logger.warning(
            "building MobileSAM (%s) in place of %s%s",
            weights or "untrained",
            model_type,
            f", ignoring its checkpoint {os.fspath(checkpoint)!r}" if checkpoint else "",
        )
        return build_sam_vit_t(weights)

    return build_mobile_sam


def _registry_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    registry = getattr(module, "sam_model_registry", None)
    if not isinstance(registry, dict):
        name = getattr(module, "__name__", repr(module))
        raise TypeError(
            f"{name} has no dict sam_model_registry: pass the module that does, as segment_anything"
        )
    return registry
