"""Models of the transformers library, loaded as the pipelines need them."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError

from mobile_sam_plugin.errors import MissingExtra, UserError


def load_pretrained(
    auto_class: str,
    name: str | os.PathLike[str],
    device: str | torch.device,
    extra: str,
) -> tuple[Any, Any]:
    """Returns a model of transformers in eval mode, and its processor.

    Args:
        auto_class: the class of transformers that knows the kind of model, for example
            ``"AutoModelForZeroShotObjectDetection"``.
        name: a repository on the Hub, ``"owner/repo"``, or a folder that ``save_pretrained`` wrote.
        device: where the model goes.
        extra: the extra of this package that brings transformers.

    Raises:
        MissingExtra: transformers is not installed.
        FileNotFoundError: no such repository or folder, or a file is missing in it.
        ConnectionError: the Hub cannot be reached and the model is not in its cache.
        ValueError: it is another kind of model, or damaged.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra.of("transformers", extra) from error
    source = os.fspath(name)
    try:
        model = getattr(transformers, auto_class).from_pretrained(source)
        processor = transformers.AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"the model {source!r} cannot be loaded: {reason}"
        if not isinstance(error, OSError):
            raise UserError(message) from error
        if "connect" in reason:
            raise ConnectionError(message) from error
        raise FileNotFoundError(message) from error
    return model.to(device).eval(), processor


def check_length(texts: Iterable[str], limit: int, tokenizer: Any) -> None:
    """Refuses texts that a model would cut off.

    Args:
        texts: as the tokenizer gets them.
        limit: how many tokens the model reads, with those that the tokenizer adds.
        tokenizer: one of transformers.

    Raises:
        ValueError: a text has more tokens.
    """
    for text in texts:
        length = len(tokenizer(text, verbose=False)["input_ids"])
        if length > limit:
            raise UserError(
                f"the text {text if len(text) <= 60 else text[:57] + '...'!r} is too long: it has "
                f"{length} tokens, the model reads {limit}"
            )
