"""MobileSAM in the registry of segment_anything, or of a project's own copy of it.

segment_anything is imported late: it may be calling this module while it is imported itself.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .build import builder_for
from .checkpoint import (
    DEFAULT_CHECKPOINT,
    is_sam_hq,
    locate_checkpoint,
    model_type_of,
    read_checkpoint,
    resolve_default,
)
from .errors import UserError
from .sam_hq import unpacks_pairs

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

    Examples:
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
    by_checkpoint: bool = False,
) -> ExitStack:
    """Makes a module build MobileSAM where its callers ask for another type of SAM.

    For code that hard-codes or asserts the type. It takes effect at once, and replaces the function
    that builds the type everywhere in the module and its loaded submodules: in
    ``sam_model_registry``, under all of its types, and as ``build_sam_vit_h`` or ``build_sam``. So
    upstream's ``"vit_h"`` and ``"default"``, which are one function, are replaced together. Names
    that other modules have already imported from there are not. The checkpoint that such code
    passes belongs to the other model: it is ignored, with a line in the log.

    With `by_checkpoint` the file that the caller passes decides instead: MobileSAM's builds
    MobileSAM, SAM's builds SAM with the ViT that it is of, under whatever type it was passed. A
    call without a file builds what it asks for.

    Args:
        model_types: ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"default"``, one or more. With
            `by_checkpoint`, all types of the registry if there are none.
        into: the module, with a dict ``sam_model_registry``; ``segment_anything`` if None.
        checkpoint: the weights that MobileSAM loads instead, see :func:`build_sam_vit_t`. Not with
            `by_checkpoint`.
        by_checkpoint: whether to build what the caller's checkpoint holds. The call raises
            UserError if it is SAM-HQ's and the module is not.

    Returns:
        A context manager that restores the original functions at its end, or on ``close()``.

    Raises:
        UserError: if no type is given, the module's registry does not have one of them, or there
            are both `checkpoint` and `by_checkpoint`.
        TypeError: if the module has no such registry.

    Examples:
        >>> with replace("vit_h", checkpoint="mobile_sam.pt"):
        ...     sam = segment_anything.sam_model_registry["vit_h"]("sam_vit_h_4b8939.pth")
        >>> with replace(by_checkpoint=True):
        ...     sam = segment_anything.sam_model_registry["vit_b"]("mobile_sam.pt")
    """
    if into is None:
        into = import_module("segment_anything")
    registry = _registry_of(into)
    known = ", ".join(registry)
    if by_checkpoint:
        if checkpoint is not DEFAULT_CHECKPOINT:
            raise UserError(
                "checkpoint names weights for all calls, and by_checkpoint goes by those of each "
                "call: give one of the two"
            )
        model_types = model_types or tuple(registry)
    if not model_types:
        raise UserError(f"name at least one model type to replace: {known}")
    for model_type in model_types:
        if model_type not in registry:
            raise UserError(f"{into.__name__} has no model type {model_type!r}, only {known}")
    # "default" has the builder of another type, whose name says more.
    ordered = sorted(reversed(model_types), key=lambda model_type: model_type != "default")
    replaced = {registry[model_type]: model_type for model_type in ordered}
    builders = _Builders(into) if by_checkpoint else None
    restore = ExitStack()
    for builder, model_type in replaced.items():
        if builders is None:
            replacement = _replacement(model_type, checkpoint, builder_for(into))
        else:
            replacement = builders.by_checkpoint(model_type, builder)
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


class _Builders:
    """The builders of a module before they are replaced, by what a checkpoint holds."""

    def __init__(self, module: ModuleType) -> None:
        self._name = module.__name__
        self._for_hq = unpacks_pairs(module)
        registry = _registry_of(module)
        # SAM-HQ's builders leave its additions untrained if they get a file of SAM.
        plain = getattr(module, "sam_model_registry_baseline", registry)
        self._plain = {"vit_t": builder_for(module), **registry, **plain}
        self._hq = {**registry, "vit_t": registry.get("vit_tiny")} if self._for_hq else {}

    def by_checkpoint(self, model_type: str, asked: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a builder that goes by the file; without a file, it is the one asked for."""

        @wraps(asked)
        def build_by_checkpoint(*arguments: Any, **options: Any) -> Any:
            given = arguments[0] if arguments else options.get("checkpoint")
            if not isinstance(given, str | os.PathLike):
                return asked(*arguments, **options)
            path = locate_checkpoint(given)
            builder = self._builder_of(path) or asked
            if builder is not asked:
                logger.warning("building what %s holds in place of %s", path, model_type)
            rest = arguments[1:]
            options.pop("checkpoint", None)
            if path.suffix != ".safetensors" or builder is self._plain["vit_t"]:
                return builder(path, *rest, **options)
            # segment_anything's own builders read pickles alone.
            model = builder(None, *rest, **options)
            model.load_state_dict(read_checkpoint(path))
            return model

        return build_by_checkpoint

    def _builder_of(self, path: Path) -> Callable[..., Any] | None:
        """The builder for a file; None if it is of no known model."""
        tensors = read_checkpoint(path, "meta")
        model_type = model_type_of(tensors)
        if model_type is None:
            if path.suffix == ".safetensors":
                raise UserError(
                    f"checkpoint {str(path)!r} holds neither MobileSAM nor SAM: name a file of "
                    "their weights"
                )
            return None
        if not is_sam_hq(tensors):
            return self._plain.get(model_type)
        builder = self._hq.get(model_type)
        if builder is None:
            raise UserError(
                f"checkpoint {str(path)!r} is SAM-HQ's {model_type}, which {self._name} cannot "
                "build: use segment_anything_hq"
            )
        return builder


def _registry_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    registry = getattr(module, "sam_model_registry", None)
    if not isinstance(registry, dict):
        name = getattr(module, "__name__", repr(module))
        raise TypeError(
            f"{name} has no dict sam_model_registry: pass the module that does, as segment_anything"
        )
    return registry
