"""Models of the transformers library, loaded with errors that say what to do."""

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

# The base class of the errors of huggingface_hub's HTTP library, which is requests or httpx.
_HTTP_ERROR: type[BaseException] = [
    base
    for base in HfHubHTTPError.__mro__
    if base.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
][-1]


def load_pretrained(
    auto_class: str | tuple[str, ...],
    name: str | os.PathLike[str],
    device: str | torch.device,
    extra: str,
) -> tuple[Any, Any]:
    """Returns a model of transformers in eval mode, and its processor.

    Args:
        auto_class: class of transformers that loads this kind of model, for example
            ``"AutoModelForZeroShotObjectDetection"``; of several the first that knows it.
        name: repository on the Hub, ``"owner/repo"``, or a folder that ``save_pretrained`` has
            written.
        device: device of the model.
        extra: extra of this package that installs transformers.

    Raises:
        MissingExtra: if transformers, or a library that this model needs, is not installed.
        FileNotFoundError: if there is no such repository or folder, or a file is missing in it.
        PermissionError: if the repository is gated, or the Hub's cache is not writable.
        ConnectionError: if the Hub cannot be reached and the model is not in its cache, or the
            transfer was interrupted.
        OSError: if the disk is full or fails.
        UserError: if it is another kind of model, or damaged.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra.of("transformers", extra) from error
    source = os.fspath(name)
    try:
        model = _find_class(auto_class, source).from_pretrained(source)
        processor = transformers.AutoProcessor.from_pretrained(source)
    except ImportError as error:
        raise MissingExtra(
            f"the model {source!r} needs a library that is not installed: {_first_line(error)}",
            name=error.name,
        ) from error
    except (OSError, ValueError, SafetensorError, _HTTP_ERROR) as error:
        raise _explain(source, error) from error
    return model.to(device).eval(), processor


def _find_class(names: str | tuple[str, ...], source: str) -> Any:
    """Returns the class of transformers by its name; of several the first that knows the model."""
    import transformers

    if isinstance(names, str):
        return getattr(transformers, names)
    config = type(transformers.AutoConfig.from_pretrained(source))
    classes = [getattr(transformers, name) for name in names]
    return next((each for each in classes if config in each._model_mapping), classes[-1])


def place_inputs(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Returns the tensors of a processor on the device and in the precision of a model.

    Args:
        inputs: tensors by name.
        model: model of transformers, whose weights may be in half precision.
    """
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _explain(source: str, error: BaseException) -> Exception:
    """Returns the error to raise when a model cannot be loaded.

    transformers raises OSError for nearly everything, with the actual error as its cause.
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
                "transfer was interrupted, and the Hub's cache does not hold the whole model: "
                f"connect and try again, or give a folder ({_first_line(cause)})"
            )
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, f"{message}{cause.strerror}")
    if isinstance(error, OSError):
        return FileNotFoundError(message + _first_line(error))
    return UserError(message + _first_line(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def check_length(texts: Iterable[str], limit: int, tokenizer: Any) -> None:
    """Refuses texts that a model would cut off.

    Args:
        texts: the texts that the tokenizer gets.
        limit: number of tokens that the model reads, with those that the tokenizer adds.
        tokenizer: tokenizer of transformers.

    Raises:
        UserError: if a text has more tokens.
    """
    for text in texts:
        length = len(tokenizer(text, verbose=False)["input_ids"])
        if length > limit:
            raise UserError(
                f"the text {text if len(text) <= 60 else text[:57] + '...'!r} has {length} "
                f"tokens, the model reads only {limit}: shorten it"
            )
