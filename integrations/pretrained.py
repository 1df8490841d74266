"""Models of the transformers library, loaded as the pipelines need them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn

from mobile_sam_plugin.errors import MissingExtra, UserError

# Of the HTTP library that huggingface_hub is built on, requests or httpx, that which all its errors
# are.
_HTTP_ERROR: type[BaseException] = [
    base
    for base in HfHubHTTPError.__mro__
    if base.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
][-1]


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
        MissingExtra: transformers is not installed, or what this model needs beside it.
        FileNotFoundError: no such repository or folder, or a file is missing in it.
        PermissionError: the repository is gated, or the Hub's cache may not be written.
        ConnectionError: the Hub cannot be reached and the model is not in its cache, or the
            transfer broke off.
        OSError: the disk is full, or fails.
        UserError: it is another kind of model, or damaged.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra.of("transformers", extra) from error
    source = os.fspath(name)
    try:
        model = getattr(transformers, auto_class).from_pretrained(source)
        processor = transformers.AutoProcessor.from_pretrained(source)
    except ImportError as error:
        raise MissingExtra(
            f"the model {source!r} needs a library that is not installed: {_first_line(error)}",
            name=error.name,
        ) from error
    except (OSError, ValueError, SafetensorError, _HTTP_ERROR) as error:
        raise _explain(source, error) from error
    return model.to(device).eval(), processor


def place_inputs(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Returns what a processor made of images and texts, as a model takes it.

    Args:
        inputs: tensors by name.
        model: one of transformers. Its numbers may be in half precision, as it was saved.
    """
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _explain(source: str, error: BaseException) -> Exception:
    """What came between a model and its name: an error of the class that says so.

    transformers raises OSError for nearly all, with the one behind it as its cause.
    """
    message = f"the model {source!r} cannot be loaded: "
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return PermissionError(
                f"{message}its repository on the Hub is gated: accept its terms at "
                f"{ENDPOINT}/{source} and log in with `hf auth login` or set HF_TOKEN"
            )
        connects = isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled)
        if not connects and isinstance(
            cause, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError
        ):
            return FileNotFoundError(message + _first_line(error))
        if connects or isinstance(cause, (_HTTP_ERROR, ConnectionError, TimeoutError)):
            return ConnectionError(
                f"{message}the Hub at {ENDPOINT} cannot be reached, or offline mode is on, or the "
                "transfer broke off, and the Hub's cache does not hold the whole model: connect "
                f"and try again, or name a folder ({_first_line(cause)})"
            )
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, f"{message}{cause.strerror}")
    if isinstance(error, OSError):
        return FileNotFoundError(message + _first_line(error))
    return UserError(message + _first_line(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it arose from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def check_length(texts: Iterable[str], limit: int, tokenizer: Any) -> None:
    """Refuses texts that a model would cut off.

    Args:
        texts: as the tokenizer gets them.
        limit: how many tokens the model reads, with those that the tokenizer adds.
        tokenizer: one of transformers.

    Raises:
        UserError: a text has more tokens.
    """
    for text in texts:
        length = len(tokenizer(text, verbose=False)["input_ids"])
        if length > limit:
            raise UserError(
                f"the text {text if len(text) <= 60 else text[:57] + '...'!r} is too long: it has "
                f"{length} tokens, the model reads {limit}"
            )
