"""MobileSAM in the registry of segment_anything, or of a project's own copy of it.

segment_anything is imported late: it may be calling this module while it is imported itself.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .build import builder_for
from .checkpoint import DEFAULT_CHECKPOINT, resolve_default
from .errors import UserError

if TYPE_CHECKING:
    from .mobile_sam import MobileSam

logger = logging.getLogger(__name__)


def register(module: ModuleType, override: bool = False) -> None:
    """Adds ``vit_t`` to the registry of a module, such as a vendored copy of segment_anything.

    Importing this package does this for ``segment_anything`` itself.

    Args:
        module: a module with a dict ``sam_model_registry``.
        override: whether to replace a ``vit_t`` that the module already has, as the original
            ``mobile_sam`` does, under all names that the module has for it.

    Raises:
        TypeError: if the module has no such dict.

    Example:
        >>> import sam.segment_anything
        >>> register(sam.segment_anything)
    """
    registry = _registry_of(module)
    if "vit_t" not in registry:
        registry["vit_t"] = builder_for(module)
    elif override:
        _exchange(registry["vit_t"], builder_for(module), module)


def replace(
    *model_types: str,
    into: ModuleType | None = None,
    checkpoint: str | os.PathLike[str] | None = DEFAULT_CHECKPOINT,
) -> ExitStack:
    """Makes a module build MobileSAM where its callers ask for another type of SAM.

    For code that hard-codes or asserts the type. It takes effect at once, and replaces the function
    that builds the type everywhere in the module and its loaded submodules: in
    ``sam_model_registry``, under all of its types, and as ``build_sam_vit_h`` or ``build_sam``. So
    upstream's ``"vit_h"`` and ``"default"``, which are one function, are replaced together. Names
    that other modules have already imported from there are not. The checkpoint that such code
    passes belongs to the other model: it is ignored, with a line in the log.

    Args:
        model_types: ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"default"``, one or more.
        into: the module, with a dict ``sam_model_registry``; ``segment_anything`` if None.
        checkpoint: the weights that MobileSAM loads instead, see :func:`build_sam_vit_t`.

    Returns:
        A context manager that restores the original functions at its end, or on ``close()``.

    Raises:
        UserError: if no type is given, or the module's registry does not have one of them.
        TypeError: if the module has no such registry.

    Example:
        >>> with replace("vit_h", checkpoint="mobile_sam.pt"):
        ...     sam = segment_anything.sam_model_registry["vit_h"]("sam_vit_h_4b8939.pth")
    """
    if into is None:
        into = import_module("segment_anything")
    registry = _registry_of(into)
    known = ", ".join(registry)
    if not model_types:
        raise UserError(f"name at least one model type to replace: {known}")
    for model_type in model_types:
        if model_type not in registry:
            raise UserError(f"{into.__name__} has no model type {model_type!r}, only {known}")
    replaced = {registry[model_type]: model_type for model_type in reversed(model_types)}
    restore = ExitStack()
    for builder, model_type in replaced.items():
        replacement = _replacement(model_type, checkpoint, builder_for(into))
        _exchange(builder, replacement, into)
        restore.callback(_exchange, replacement, builder, into)
    return restore


def _exchange(old: Callable[..., Any], new: Callable[..., Any], module: ModuleType) -> None:
    """Replaces a function by another in a module, its loaded submodules and their dicts.

    It is found by identity, since one function has several names.
    """
    parts = [module]
    parts += [
        part for name, part in list(sys.modules.items()) if name.startswith(f"{module.__name__}.")
    ]
    for part in parts:
        namespace = getattr(part, "__dict__", {})
        for table in (namespace, *namespace.values()):
            if isinstance(table, dict):
                table.update({name: new for name, value in table.items() if value is old})


def _replacement(
    model_type: str,
    weights: str | os.PathLike[str] | None,
    build: "Callable[..., MobileSam]",
) -> "Callable[..., MobileSam]":
    def build_mobile_sam(checkpoint: str | os.PathLike[str] | None = None) -> "MobileSam":
        logger.warning(
            "building MobileSAM (%s) in place of %s%s",
            "untrained" if weights is None else resolve_default(weights),
            model_type,
            f", ignoring its checkpoint {os.fspath(checkpoint)!r}" if checkpoint else "",
        )
        return build(weights)

    return build_mobile_sam


def _registry_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    registry = getattr(module, "sam_model_registry", None)
    if not isinstance(registry, dict):
        name = getattr(module, "__name__", repr(module))
        raise TypeError(
            f"{name} has no dict sam_model_registry: pass the module that does, as segment_anything"
        )
    return registry
