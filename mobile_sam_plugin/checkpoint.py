"""From the name of a checkpoint to verified tensors, and back to a file.

A checkpoint is named by

- a path to a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file,
- ``"hf://owner/repo"``, ``"hf://owner/repo/file"`` or either followed by ``"@revision"``: a file on
  the Hugging Face Hub, by default ``model.safetensors``,
- ``"bundled"``: the checkpoint that comes with this package.

Only this module opens files of weights. It never unpickles objects, and what it hands out has been
checked tensor by tensor, so that a model is either loaded whole or not at all.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import Tensor

from .errors import UserError
from .files import digest_contents, replaced

logger = logging.getLogger(__name__)

HUB_FILE = "model.safetensors"
AUTHORS_CHECKPOINT = "hf://dhkim2810/MobileSAM/mobile_sam.pt"
"""The authors' own upload."""
AUTHORS_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
"""Of their ``mobile_sam.pt``, there and in their repository ChaoningZhang/MobileSAM."""
BUNDLED_FILE = Path(__file__).parent / "weights" / "mobile_sam.safetensors"

# What an interrupted transfer raises: the Hub's own error, the root of those of the HTTP library
# below it (httpx or requests, by its release), and what hf_xet raises.
_TRANSFER_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins"),
    RuntimeError,
)

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HUB_NAME = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(/(?P<file>[^@]+))?(@(?P<revision>.+))?")
_VIT_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_POSITIONS_KEY = "image_encoder.pos_embed"
_TINY_VIT_KEY = "image_encoder.patch_embed.seq.0.c.weight"
_SAM_HQ_KEY = "mask_decoder.hf_token.weight"
_HEAD_SHAPES = {
    "image_encoder.norm_head.weight": (320,),
    "image_encoder.norm_head.bias": (320,),
    "image_encoder.head.weight": (1000, 320),
    "image_encoder.head.bias": (1000,),
}


class _DefaultCheckpoint(str):
    """A name that ``MOBILE_SAM_CHECKPOINT`` overrides; the same name as a plain str is not."""


DEFAULT_CHECKPOINT = _DefaultCheckpoint("hf://nielsr/mobilesam")
"""MobileSAM's weights on the Hub, unless ``MOBILE_SAM_CHECKPOINT`` names others.

Where that repository is gone or gated, :data:`AUTHORS_CHECKPOINT` takes its place.
"""


def resolve_default(checkpoint: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns the name of a checkpoint; for the default, the one in the environment if it is set.

    Args:
        checkpoint: any name of a checkpoint, or :data:`DEFAULT_CHECKPOINT`.
    """
    if isinstance(checkpoint, _DefaultCheckpoint):
        return os.environ.get("MOBILE_SAM_CHECKPOINT") or str(checkpoint)
    return checkpoint


def locate_checkpoint(checkpoint: str | os.PathLike[str] = DEFAULT_CHECKPOINT) -> Path:
    """Returns the file that a checkpoint's name stands for, downloaded if necessary.

    Where the Hub no longer gives out the default, because its repository or file is gone or gated,
    the authors' own upload of the same weights takes its place, if it has the SHA-256 that they
    published; a line in the log says so. A name that the caller or the environment gives stands for
    nothing else.

    Args:
        checkpoint: a path, ``"hf://owner/repo[/file][@revision]"`` or ``"bundled"``.

    Returns:
        The path of an existing file.

    Raises:
        FileNotFoundError: if there is no such path, repository, file or revision.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the repository is gated, or the file may not be read.
        ConnectionError: if the Hub cannot be reached and the file is not in its cache.
        UserError: if an ``hf://`` name is malformed, or the file in place of the default is not the
            authors'.
    """
    default = isinstance(checkpoint, _DefaultCheckpoint)
    if default and not os.environ.get("MOBILE_SAM_CHECKPOINT"):
        return _locate_default(str(checkpoint))
    checkpoint = resolve_default(checkpoint)
    if checkpoint == "bundled":
        return BUNDLED_FILE
    if isinstance(checkpoint, str) and checkpoint.startswith("hf:"):
        match = _HUB_NAME.fullmatch(checkpoint)
        if match is None:
            raise UserError(
                f"{checkpoint!r} names nothing on the Hub: write hf://owner/repo, "
                "hf://owner/repo/file or hf://owner/repo/file@revision"
            )
        return download(match["repo"], match["file"] or HUB_FILE, match["revision"])
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        found = f"name one of its files ({', '.join(files)})" if files else "it holds no checkpoint"
        raise IsADirectoryError(f"checkpoint {str(path)!r} is a folder: {found}")
    if not path.exists():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(checkpoint)) and path.suffix not in _SUFFIXES:
            hint = f"; for the repository of that name on the Hub write 'hf://{checkpoint}'"
        raise FileNotFoundError(f"there is no checkpoint at {str(path)!r}{hint}")
    return path


def _locate_default(name: str) -> Path:
    try:
        return locate_checkpoint(name)
    except (FileNotFoundError, PermissionError) as error:
        if error.errno is not None:  # of this machine's disk, not the Hub's answer
            raise
        logger.warning("%s is not to be had (%s): taking %s", name, error, AUTHORS_CHECKPOINT)
    path = locate_checkpoint(AUTHORS_CHECKPOINT)
    if (found := digest_contents(path)) != AUTHORS_SHA256:
        raise UserError(
            f"{str(path)!r}, downloaded from {AUTHORS_CHECKPOINT}, is not the authors' file: its "
            f"sha256 is {found}, expected {AUTHORS_SHA256}; delete it and try again, or name "
            "another checkpoint"
        )
    return path


def download(
    repo_id: str, filename: str = HUB_FILE, revision: str | None = None, **hub_options: Any
) -> Path:
    """Downloads one file with huggingface_hub: its cache, resumption, variables, offline mode.

    Args:
        repo_id: ``"owner/repo"``.
        filename: the file's path in the repository.
        revision: a branch, tag or commit; the default branch if None.
        hub_options: further arguments of ``huggingface_hub.hf_hub_download``.

    Returns:
        The path of the file in the Hub's cache.

    Raises:
        FileNotFoundError: if there is no such repository, file or revision.
        PermissionError: if the repository is gated.
        ConnectionError: if the Hub cannot be reached, or the transfer was interrupted.
        UserError: if a name is malformed.
    """
    at = f" at revision {revision!r}" if revision else ""
    # `from None`: the client's own traceback fills a screen and says no more than these messages.
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision, **hub_options))
    except GatedRepoError:
        raise PermissionError(
            f"repository {repo_id!r} on the Hub is gated: accept its terms at {ENDPOINT}/{repo_id} "
            "and log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"there is no repository {repo_id!r} on the Hub, or it is private: check its name, "
            "or log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise FileNotFoundError(
            f"repository {repo_id!r} on the Hub has no revision {revision!r}: "
            "name a branch, a tag or a full commit hash"
        ) from None
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{filename!r} of {repo_id!r}{at} is not in the Hub's cache, and the Hub at {ENDPOINT} "
            "cannot be reached or offline mode is on: connect and try again, or name a local file "
            f"or 'bundled' as the checkpoint ({_first_line(error.__cause__ or error)})"
        ) from None
    except EntryNotFoundError:
        raise FileNotFoundError(
            f"repository {repo_id!r} on the Hub{at} has no file {filename!r}: "
            f"name one that it has, as hf://{repo_id}/FILE"
        ) from None
    except ValueError as error:
        cause = error.__cause__
        if cause is not None and isinstance(cause, (OSError, *_TRANSFER_ERRORS)):  # force_download
            raise _broken_off(repo_id, filename, at, cause) from None
        raise UserError(
            f"{repo_id!r} and {filename!r} name no file on the Hub: {_first_line(error)}"
        ) from None
    except _TRANSFER_ERRORS as error:
        raise _broken_off(repo_id, filename, at, error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # a full disk or a cache that may not be written, not the network
        raise _broken_off(repo_id, filename, at, error) from error  # of the wrong size, say


def read_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file, whatever its layout, without running code from it.

    The content decides on the kind, not the suffix. Tensors wrapped in ``model`` or ``state_dict``
    are unwrapped, and a ``module.`` in front of every key is removed.

    Args:
        path: a file that ``torch.save`` or safetensors wrote.
        device: ``"cpu"``, or ``"meta"`` if values are not needed; that takes no time and memory.

    Returns:
        Key to tensor, on the device, in the file's order, dtypes and shapes.

    Raises:
        UserError: if the file is empty, damaged, not a checkpoint (a web page, for example), or a
            pickle that holds more than tensors.
        OSError: if the file cannot be read.
        MemoryError: if there is too little memory for its tensors.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"checkpoint {str(path)!r} is empty (0 bytes): download it again")
    is_safetensors = _starts_safetensors(start)
    if start.lstrip().startswith(b"<") and not is_safetensors:
        raise UserError(
            f"checkpoint {str(path)!r} is a web page, not weights: download the file itself, "
            "not the page that shows it"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"checkpoint {str(path)!r} is a Git LFS pointer, not weights: run `git lfs pull`"
        )
    content: Any
    if is_safetensors:
        try:
            content = safetensors.torch.load_file(path)  # maps the file and reads no values yet
            content = {key: value.to(device) for key, value in content.items()}
        except SafetensorError as error:
            raise UserError(_damaged(path, error)) from error
    elif start.startswith((b"PK", b"\x80")):
        content = _read_torch(path, device)
    else:
        raise UserError(
            f"checkpoint {str(path)!r} is neither a PyTorch nor a safetensors file: "
            f"it starts with {start[:16]!r}"
        )
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"checkpoint {str(path)!r} holds {_describe(content)}, expected tensors by name"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"checkpoint {str(path)!r} holds {_describe(value)} at {key!r}, expected a tensor"
            )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def read_backbone(path: str | os.PathLike[str]) -> str | None:
    """Returns the timm backbone that a checkpoint file's metadata names.

    Args:
        path: a file, as :func:`read_checkpoint` takes it. Only safetensors files have metadata.

    Returns:
        The name; None if there is none, as for TinyViT and for files of other kinds.

    Raises:
        UserError: if the file is damaged.
    """
    path = Path(path)
    with open(path, "rb") as file:
        if not _starts_safetensors(file.read(64)):
            return None
    try:
        with safetensors.safe_open(path, "pt") as content:
            return (content.metadata() or {}).get("backbone")
    except SafetensorError as error:
        raise UserError(_damaged(path, error)) from error


def model_type_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the model type that tensors are of, by the names in SAM's registry.

    Args:
        tensors: those of a checkpoint, on any device.

    Returns:
        ``"vit_t"`` for MobileSAM, with TinyViT or another backbone; ``"vit_b"``, ``"vit_l"`` or
        ``"vit_h"``; None if it is none of them. SAM-HQ's are told by :func:`is_sam_hq`.
    """
    if _TINY_VIT_KEY in tensors or _has_backbone(tensors):
        return "vit_t"
    positions = tensors.get(_POSITIONS_KEY)
    return None if positions is None else _VIT_WIDTHS.get((0, *positions.shape)[-1])


def is_sam_hq(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are of SAM-HQ, whose mask decoder has a token and layers of its own."""
    return _SAM_HQ_KEY in tensors


def verify_checkpoint(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str
) -> None:
    """Checks that tensors are complete, finite, and those that a model expects.

    Args:
        tensors: those of a checkpoint; the unused classification head is allowed.
        expected: the model's own ``state_dict()``.
        name: of the checkpoint, for messages.

    Raises:
        UserError: if they are not.
    """
    if _POSITIONS_KEY in tensors:
        entry = model_type_of(tensors)
        kind = f"SAM's {entry}" if entry else "a SAM with a ViT of unknown width"
        way_out = f": load it with sam_model_registry[{entry!r}]" if entry else ""
        raise UserError(f"checkpoint {name!r} is {kind}, not MobileSAM's vit_t{way_out}")
    if _has_backbone(tensors) and not _has_backbone(expected):
        raise UserError(
            f"checkpoint {name!r} has another image encoder than TinyViT and does not say which: "
            "MobileSam.untrained(BACKBONE) takes it with load_state_dict, and save_pretrained then "
            "writes a .safetensors file that names its backbone"
        )
    problems = []
    missing = [key for key in expected if key not in tensors]
    unexpected = [key for key in tensors if key not in expected and key not in _HEAD_SHAPES]
    misshapen = [
        f"{key} is {_describe(tensors[key])}, expected {_describe(value)}"
        for key, value in expected.items()
        if key in tensors
        and (
            tensors[key].shape != value.shape
            or tensors[key].is_floating_point() != value.is_floating_point()
            or tensors[key].layout != value.layout
        )
    ]
    for count, what, keys in (
        (len(missing), "missing", missing),
        (len(unexpected), "unexpected", unexpected),
        (len(misshapen), "misshapen", misshapen),
    ):
        if count:
            more = ", ..." if count > 3 else ""
            problems.append(f"{count} {what} ({', '.join(keys[:3])}{more})")
    if problems:
        hint = ""
        if any(key.startswith("vision_encoder.") for key in unexpected):
            hint = "; it is of transformers' layout: name the checkpoint that it was made from"
        raise UserError(
            f"checkpoint {name!r} does not fit MobileSAM, of whose {len(expected)} tensors it has "
            f"{len(expected) - len(missing)}: {'; '.join(problems)}{hint}"
        )
    for key, value in tensors.items():
        if not torch.isfinite(value.float()).all():
            raise UserError(
                f"checkpoint {name!r} is damaged: {key} holds NaN or infinity; download it again, "
                "or take one from before the training diverged"
            )


def load_checkpoint(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a checkpoint file into a MobileSAM, or raises and leaves the model as it was.

    Args:
        model: a ``Sam`` with the image encoder of MobileSAM.
        path: see :func:`read_checkpoint`; any float dtype, converted to the model's.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if :func:`read_checkpoint` or :func:`verify_checkpoint` rejects it.
    """
    tensors = read_checkpoint(path)
    verify_checkpoint(tensors, model.state_dict(), str(path))
    model.load_state_dict(tensors)
    logger.info("MobileSAM weights: %s", path)


def require_suffix(path: Path) -> None:
    """Raises UserError unless :func:`save_checkpoint` can write a file of that name."""
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"{str(path)!r} has no suffix of a checkpoint: end it in {', '.join(_SUFFIXES)}"
        )


def save_checkpoint(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    for_upstream: bool = False,
    backbone: str | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes tensors to a file, which appears whole or not at all.

    Args:
        tensors: key to tensor, in upstream's layout.
        path: of the file: ``.safetensors``, or ``.pt``, ``.pth`` or ``.bin`` for ``torch.save``.
        dtype: that floating-point tensors are converted to; None keeps theirs.
        for_upstream: whether to add the unused classification head, zeros but for its norm, without
            which the strict loader of the original ``mobile_sam`` refuses a file.
        backbone: the timm backbone of the image encoder, for the metadata; None for TinyViT.
        metadata: further metadata of a safetensors file.

    Raises:
        UserError: if the suffix is unknown, a value is too large for the dtype, or there is a
            backbone that the format or the original ``mobile_sam`` cannot have.
    """
    path = Path(path)
    require_suffix(path)
    if backbone is not None and path.suffix != ".safetensors":
        raise UserError(
            f"{str(path)!r} cannot name the backbone {backbone!r}, without which it could not be "
            "loaded: end it in .safetensors"
        )
    tensors = dict(tensors)
    if for_upstream:
        if backbone is not None:
            raise UserError(
                f"the original mobile_sam has no image encoder but TinyViT, not {backbone!r}"
            )
        for key, shape in _HEAD_SHAPES.items():
            fill = 1.0 if key.endswith("norm_head.weight") else 0.0
            tensors.setdefault(key, torch.full(shape, fill))
    if dtype is not None:
        for key, value in tensors.items():
            if value.is_floating_point():
                tensors[key] = value.to(dtype)
                if not torch.isfinite(tensors[key]).all():
                    raise UserError(f"{key} holds values too large for {dtype}: choose float32")
    own_metadata = {"format": "pt"} | ({} if backbone is None else {"backbone": backbone})
    # safetensors refuses tensors that share memory, as parameters do that layers share.
    tensors = {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        if path.suffix == ".safetensors":
            # Not by save_file, whose files no other user may read.
            partial.write_bytes(encode_tensors(tensors, {**metadata, **own_metadata}))
        else:
            with open(partial, "wb") as file:  # by its path, torch would put its name into it
                torch.save(tensors, file)


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file, which are the same each time.

    The library writes metadata in an order of chance, so that no file could be compared with one of
    another run.

    Args:
        tensors: contiguous, none of them sharing memory.
        metadata: sorted in the file.
    """
    content = safetensors.torch.save(dict(tensors), dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the library aligns the tensors
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[start:]])


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Returns a checksum that depends on the weights alone, not on the file they came from.

    Args:
        tensors: key to tensor, as ``state_dict()`` returns them, in any order, on any device.

    Returns:
        SHA-256 of the keys, dtypes, shapes and values, as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        values = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _starts_safetensors(start: bytes) -> bool:
    # First comes the length of the JSON header, as 8 bytes; the limit is the library's own.
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _has_backbone(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("image_encoder.backbone.") for key in tensors)


def _read_torch(path: Path, device: str) -> Any:
    failure: Exception
    try:
        with open(path, "rb") as file:  # given a path, torch.load goes by its suffix
            return torch.load(file, map_location=device, weights_only=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged file sends the reader before its start
            raise
        failure = error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(_damaged(path, error)) from error
        raise UserError(
            f"checkpoint {str(path)!r} is a pickle that holds code or objects ({found[1]}), which "
            "is not loaded: if you trust it, save its state_dict() alone, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle makes the reader stumble in any way
        failure = error.with_traceback(None)  # lets go of the tensors that were read
    if isinstance(failure, MemoryError | RuntimeError) and not _fits_memory(path):
        raise MemoryError(
            f"checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) needs more memory than "
            "there is"
        ) from failure
    raise UserError(_damaged(path, failure)) from failure


def _fits_memory(path: Path) -> bool:
    """Whether there is memory for the file's tensors: torch has no error class of its own for it.

    A damaged file may ask for any amount, a whole one for its size, and for a part once more.
    """
    try:
        torch.empty(2 * path.stat().st_size, dtype=torch.uint8)
    except RuntimeError:
        return False
    return True


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) is damaged or truncated: "
        f"delete it and download it again ({_first_line(error)})"
    )


def _broken_off(repo_id: str, filename: str, at: str, error: BaseException) -> ConnectionError:
    return ConnectionError(
        f"{filename!r} of {repo_id!r}{at} could not be downloaded: try again ({_first_line(error)})"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"an object of type {type(value).__name__}"
