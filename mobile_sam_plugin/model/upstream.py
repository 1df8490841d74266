"""Whether a module is upstream's, so that its function may be computed without calling it.

Class names do not show it. A project's own copy of segment_anything has classes of its own with
upstream's code, for which the shortcuts of this package are right. An adaptation keeps the names
and changes the code, even if it is installed as ``segment_anything``. So the code is compared with
fingerprints of upstream's: statements and expressions, whatever their layout, comments, annotations
and file.
"""

import ast
import hashlib
import inspect
import textwrap
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

# By class of segment_anything.modeling, all that a call of it runs of its own code.
_FINGERPRINTS: dict[str, dict[str, tuple[str, ...]]] = {
    "MaskDecoder": {
        # The second is that of SAM-HQ's copies: two arguments more, with which it does nothing.
        "forward": ("67a611a672632d7b", "a1793fdaf89aabc0"),
        "predict_masks": ("4f6d3202a1a4a127",),
    },
    "TwoWayTransformer": {"forward": ("fef35c499d454dfb",)},
    "TwoWayAttentionBlock": {"forward": ("6178c8d0d52985f5",)},
    "Attention": {
        "forward": ("75f0fa5dc548dd3e",),
        "_separate_heads": ("8db27d1fbbdd5927",),
        "_recombine_heads": ("4a3a30f19cb083fa",),
    },
    "LayerNorm2d": {"forward": ("23589c854f667cb3",)},
}

# What may differ between copies of the same code.
_IGNORED_FIELDS = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}


def is_upstreams(module: nn.Module, kind: str | type[nn.Module]) -> bool:
    """Whether the methods of a module are upstream's, or those of one class of torch.

    Methods that were set on the module itself count. Code without its source is not upstream's.

    Args:
        module: any module.
        kind: the name of a class of ``segment_anything.modeling``, or a class of torch.
    """
    if not isinstance(kind, str):
        return type(module) is kind and "forward" not in vars(module)
    return all(
        fingerprint(vars(module).get(name) or getattr(type(module), name, None)) in accepted
        for name, accepted in _FINGERPRINTS[kind].items()
    )


def parts_never_called(decoder: nn.Module) -> list[tuple[nn.Module, type[nn.Module] | str]] | None:
    """The modules below a mask decoder that :class:`.MaskDecoder` computes without calling them.

    Returns:
        Each with its class, as :func:`is_upstreams` takes it; None if the modules are not arranged
        as upstream's.
    """
    linear = "q_proj", "k_proj", "v_proj", "out_proj"
    try:
        transformer: Any = decoder.transformer
        attentions = [transformer.final_attn_token_to_image]
        parts: list[tuple[nn.Module, type[nn.Module] | str]] = [(transformer, "TwoWayTransformer")]
        for layer in transformer.layers:
            parts += [(layer, "TwoWayAttentionBlock"), (layer.norm4, nn.LayerNorm)]
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in attentions:
            parts.append((attention, "Attention"))
            parts += [(getattr(attention, name), nn.Linear) for name in linear]
        upscaling: Any = decoder.output_upscaling
        first, norm, first_activation, second, second_activation = upscaling
    except (AttributeError, TypeError, ValueError):
        return None
    parts += [
        (upscaling, nn.Sequential),
        (first, nn.ConvTranspose2d),
        (norm, "LayerNorm2d"),
        (second, nn.ConvTranspose2d),
    ]
    for activation in (first_activation, second_activation):
        parts.append((activation, nn.GELU if isinstance(activation, nn.GELU) else nn.ReLU))
    return parts if len(transformer.layers) > 0 else None


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of a module runs forward hooks, its own or those of all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )


def fingerprint(method: Any) -> str:
    """Returns a short text for the code of a plain function; "" for others and without source."""
    return _fingerprint_of(method) if isinstance(method, FunctionType) else ""


@lru_cache(maxsize=256)
def _fingerprint_of(method: FunctionType) -> str:
    try:
        # Of its code and not itself: inspect would look through functools.wraps.
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(method.__code__))).body
    except (OSError, SyntaxError, ValueError):
        return ""
    if isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is not None:
        del function.body[0]
    return hashlib.sha256(repr(_outline(function)).encode()).hexdigest()[:16]


def _outline(node: Any) -> Any:
    """The tree of a piece of code in tuples, the same in all releases of Python."""
    if isinstance(node, list):
        return tuple(map(_outline, node))
    if not isinstance(node, ast.AST):
        return node
    return (
        type(node).__name__,
        *(
            (name, _outline(value))
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and name not in _IGNORED_FIELDS
        ),
    )
