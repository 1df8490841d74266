"""Image embeddings in files: an image is encoded once, and any later program starts from there.

A file is safetensors with one image embedding. Its metadata names the image, by a digest of the
pixels that were encoded, and the image encoder, by a fingerprint of its weights. So no embedding is
taken for that of another image or of another model. ``SamPredictor.save_embedding`` and
``mobile-sam embed`` write such files. Teachers' embeddings, many to a file, are
:mod:`.distill.embeddings`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from segment_anything.modeling import Sam
from torch import Tensor

from .checkpoint import encode_tensors, fingerprint, model_type_of
from .errors import UserError
from .files import write_file

SUFFIX = ".safetensors"
FORMAT = "mobile_sam_plugin embedding 1"
"""What the metadata call the format; another number is another version."""

_DTYPES = (None, torch.float32, torch.float16, torch.bfloat16)
_WRITERS = "SamPredictor.save_embedding or mobile-sam embed"
_SHOWN = 12  # digits of a fingerprint in a message


@dataclass(frozen=True)
class EncoderIdentity:
    """What distinguishes an image encoder from others.

    Attributes:
        name: ``"vit_t"``, the name of another type of SAM or of a timm backbone, or of a class.
        sha256: fingerprint of its weights, and of the mean and deviation by which pixels are
            normalised.
        img_size: side of its square input in pixels.
    """

    name: str
    sha256: str
    img_size: int

    def __str__(self) -> str:
        return f"{self.name} for {self.img_size} pixels (weights {self.sha256[:_SHOWN]})"


@dataclass(frozen=True)
class Embedding:
    """An image embedding, and what it belongs to.

    Attributes:
        features: (1, C, h, w) floating point, C 256 and h and w 64 in SAM.
        interm_features: features from inside the encoder, which SAM-HQ's decoders take; else empty.
        original_size: (H, W) of the image in pixels.
        input_size: (h, w) to which it was resized.
        image_sha256: see :func:`digest_pixels`; None if unknown.
        encoder: what computed it.
    """

    features: Tensor
    interm_features: Sequence[Tensor]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_sha256: str | None
    encoder: EncoderIdentity


def identify_encoder(model: Sam) -> EncoderIdentity:
    """Returns the identity of a model's image encoder, for which all of its weights are read.

    That takes 0.04 s for MobileSAM, and longer for larger encoders. The prompt encoder and the mask
    decoder do not count, since they take part in no embedding.
    """
    encoder = model.image_encoder
    tensors = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
    name = getattr(encoder, "backbone_name", None) or model_type_of(tensors)
    tensors |= {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    return EncoderIdentity(name or type(encoder).__name__, fingerprint(tensors), encoder.img_size)


def digest_pixels(transformed_image: Tensor, original_size: tuple[int, int]) -> str:
    """Returns the SHA-256 by which an image is recognised, whatever its file is called or holds.

    Args:
        transformed_image: (1, 3, h, w) uint8, resized for the model: what the encoder computes of.
        original_size: (H, W) before it was resized.
    """
    pixels = transformed_image[0].permute(1, 2, 0).contiguous().cpu().numpy()
    digest = hashlib.sha256(repr((tuple(original_size), pixels.shape)).encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def write_embedding(
    path: str | os.PathLike[str], embedding: Embedding, dtype: torch.dtype | None = None
) -> None:
    """Writes an embedding to a file, which appears whole or not at all.

    Args:
        path: ends in ``.safetensors``; its folder is created if missing.
        embedding: on any device.
        dtype: that the features are converted to, ``torch.float32``, ``float16`` or ``bfloat16``;
            None keeps theirs.

    Raises:
        UserError: if the path has another suffix, the dtype is another one, or a value is not
            finite in it.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f"{str(path)!r} must end in {SUFFIX}, the format of embeddings")
    if dtype not in _DTYPES:
        raise UserError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {dtype!r}")
    tensors = {"features": embedding.features}
    for index, features in enumerate(embedding.interm_features):
        tensors[f"interm_features.{index}"] = features
    for name, tensor in tensors.items():
        # A copy where they share memory, which safetensors refuses.
        tensors[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if not torch.isfinite(tensors[name]).all():
            highest = tensor.abs().max().item()
            raise UserError(
                f"the embedding reaches {highest:g}, which {tensors[name].dtype} cannot hold: "
                "choose float32, and check that the weights are intact"
            )
    metadata = {
        "format": FORMAT,
        "tensors_sha256": fingerprint(tensors),
        "encoder": embedding.encoder.name,
        "encoder_sha256": embedding.encoder.sha256,
        "img_size": json.dumps(embedding.encoder.img_size),
        "original_size": json.dumps(list(embedding.original_size)),
        "input_size": json.dumps(list(embedding.input_size)),
        "image_sha256": embedding.image_sha256 or "",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by save_file, whose files no other user may read.
    write_file(path, encode_tensors(tensors, metadata))


def read_embedding(path: str | os.PathLike[str]) -> Embedding:
    """Reads a file that :func:`write_embedding` wrote; nothing in it is run.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if the path cannot be opened.
        UserError: if the file holds something else, such as weights, or is damaged.
    """
    return _read(Path(path), with_tensors=True)


def is_embedding(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an embedding of its full length; its values are not read."""
    try:
        _read(Path(path), with_tensors=False)
    except UserError:
        return False
    return True


def list_embeddings(
    path: str | os.PathLike[str], encoder: EncoderIdentity | None = None
) -> dict[str, Path]:
    """Finds the embeddings in a folder, and in the folders in it, hidden ones left out.

    Args:
        path: a folder, or one file.
        encoder: the identity of the encoder that all of them must be of; any if None.

    Returns:
        The paths by the digests of the images, see :func:`digest_pixels`.

    Raises:
        FileNotFoundError: if there is no such path.
        UserError: if there is none, a file holds something else, is damaged or is of another
            encoder. The message names the file.
    """
    root = Path(path)
    files = [root]
    if root.is_dir():
        files = sorted(
            each
            for each in root.rglob(f"*{SUFFIX}")
            if not any(part.startswith(".") for part in each.relative_to(root).parts)
        )
        if not files:
            raise UserError(
                f"there is no embedding in {str(root)!r}: mobile-sam embed IMAGES --out FOLDER "
                "writes them"
            )
    found = {}
    for file in files:
        embedding = _read(file, with_tensors=False)
        if encoder is not None:
            refuse_other_encoder(file, embedding, encoder)
        if embedding.image_sha256 is not None:
            found[embedding.image_sha256] = file
    return found


def refuse_other_encoder(
    path: str | os.PathLike[str], embedding: Embedding, encoder: EncoderIdentity
) -> None:
    """Raises UserError, which names both encoders, if an embedding is of another one."""
    if embedding.encoder != encoder:
        raise UserError(
            f"the embedding {os.fspath(path)!r} is of another model, {embedding.encoder}, not of "
            f"this one, {encoder}: load that model, or compute the embedding again"
        )


def _read(path: Path, with_tensors: bool) -> Embedding:
    """Reads an embedding; without its tensors, these are empty."""
    if path.is_dir():
        raise IsADirectoryError(f"the embedding {str(path)!r} is a folder: name one of its files")
    tensors: dict[str, Tensor] = {}
    try:
        with open(path, "rb"), safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            if metadata.get("format", "") == FORMAT and with_tensors:
                tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise _damaged(path, f"{path.stat().st_size:,} bytes: {error}") from error
    if metadata.get("format", "") != FORMAT:
        raise UserError(
            f"{str(path)!r} is not an image embedding of this version, but a safetensors file of "
            f"{len(names)} tensors, such as {', '.join(sorted(names)[:2])}: give a file that "
            f"{_WRITERS} wrote"
        )
    if with_tensors and fingerprint(tensors) != metadata.get("tensors_sha256"):
        raise _damaged(path, "its values are not those that were written")
    features = tensors.pop("features", torch.empty(0))
    interm = [tensors.pop(f"interm_features.{index}", None) for index in range(len(tensors))]
    if with_tensors and (
        features.ndim != 4
        or len(features) != 1
        or tensors
        or not all(
            each is not None and each.is_floating_point() and torch.isfinite(each).all()
            for each in (features, *interm)
        )
    ):
        raise _damaged(path, "its tensors are not finite features of one image")
    try:
        return Embedding(
            features=features,
            interm_features=[each for each in interm if each is not None],
            original_size=_as_size(metadata["original_size"]),
            input_size=_as_size(metadata["input_size"]),
            image_sha256=metadata["image_sha256"] or None,
            encoder=EncoderIdentity(
                metadata["encoder"], metadata["encoder_sha256"], int(metadata["img_size"])
            ),
        )
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _as_size(text: str) -> tuple[int, int]:
    size: Any = json.loads(text)
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise ValueError(f"{text!r} is no size")
    return size[0], size[1]


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{str(path)!r} is damaged, or not an image embedding that {_WRITERS} wrote ({reason}): "
        "give another file, or compute it again"
    )
