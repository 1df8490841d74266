"""A teacher's image embeddings in a folder: its layout, and a data set that reads them.

The folder holds

- ``store.json``: the images, teacher and shard size of the embeddings;
- ``000000.safetensors`` and so on, the shards: the embeddings of consecutive images, each under
  its image's name;
- ``000000.json`` and so on, the shards' parts of the index: images and their sizes, images that
  could not be read, and the shard's checksum. Each is written after its shard, so a shard without
  one does not count.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors import SafetensorError
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import fingerprint
from ..errors import UserError

STORE_FILE = "store.json"
FORMAT = 1
"""Version of the folder, and of the preprocessing of images."""

IDENTITY = ("format", "teacher_sha256", "img_size", "shape", "images_sha256", "shard_size")
"""Keys of ``store.json`` whose values must not change when a store is resumed."""


class Embedding(NamedTuple):
    """An image and its embedding, as :class:`Embeddings` returns them."""

    path: Path
    """Of the image file."""
    size: tuple[int, int]
    """(H, W) of the upright image, in pixels."""
    embedding: Tensor
    """(256, 64, 64) float16 for a SAM of 1024 x 1024 pixels."""


class Embeddings:
    """The embeddings that :func:`~.embed.embed` stored, read from disk on request.

    It can be pickled, and shared by the workers of a ``DataLoader``.

    Args:
        folder: output folder of `embed`.
        images: the folder of the images, if they have been moved.

    Attributes:
        names (list[str]): paths of the images within their folder, with slashes.
        sizes (list[tuple[int, int]]): (H, W) of each image.
        skipped (dict[str, str]): name and reason of each image that could not be read.
        teacher (str): the name that `embed` was given.
        img_size (int): side of the teacher's input, in pixels.
        shape (tuple[int, int, int]): of an embedding, (256, 64, 64) for SAM.
        decoder (str | None): fingerprint of the teacher's prompt encoder and mask decoder; None if
            the teacher was in half precision.
        identity (str): identifies these embeddings.

    Raises:
        FileNotFoundError: if the folder holds no embeddings.
        ValueError: if some are not computed yet, or if files are damaged or of another store.

    Examples:
        >>> embeddings = Embeddings("embeddings", images="/data/sa1b")
        >>> path, (height, width), embedding = embeddings[0]
    """

    def __init__(
        self, folder: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        description = _read_description(self.folder)
        self.images = Path(images if images is not None else description["image_folder"])
        self.teacher: str = description["teacher"]
        self.img_size: int = description["img_size"]
        self.shape: tuple[int, int, int] = tuple(description["shape"])
        self.decoder: str | None = description["decoder"]
        self.identity = identify(description)
        self._checksums: dict[Path, str] = {}
        self._shards: list[Path] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.skipped: dict[str, str] = {}
        shards = -(-description["images"] // description["shard_size"])
        entries = [read_entry(self.folder, shard, description) for shard in range(shards)]
        for shard, entry in enumerate(entries):
            if entry is None:
                continue
            path = shard_path(self.folder, shard)
            self._checksums[path] = entry["sha256"]
            for image in entry["images"]:
                self._shards.append(path)
                self.names.append(image["name"])
                self.sizes.append((image["height"], image["width"]))
            self.skipped |= {image["name"]: image["reason"] for image in entry["skipped"]}
        if missing := entries.count(None):
            raise UserError(
                f"{missing:,} of {shards:,} shards in {str(self.folder)!r} are missing or damaged, "
                f"the first is {entries.index(None):06}: rerun `mobile-sam distill embed` with the "
                "same options"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Embedding:
        """Reads an embedding from disk.

        Raises:
            IndexError: if there is no such embedding.
            ValueError: if its shard is damaged.
        """
        name = self.names[index]
        shard = self._shards[index]
        try:
            with safetensors.safe_open(shard, "pt") as file:
                embedding = file.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise self._damaged([shard]) from error
        return Embedding(self.images / name, self.sizes[index], embedding)

    def verify(self) -> None:
        """Reads all shards and compares their checksums, with a progress bar.

        Raises:
            ValueError: if shards are damaged; the message names them.
        """
        damaged = []
        sizes = {path: path.stat().st_size for path in self._checksums}
        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=None) as bar:
            for path, checksum in self._checksums.items():
                digest = hashlib.sha256()
                with open(path, "rb") as file:
                    while block := file.read(2**24):
                        digest.update(block)
                        bar.update(len(block))
                if digest.hexdigest() != checksum:
                    damaged.append(path)
        if damaged:
            raise self._damaged(damaged)

    def _damaged(self, shards: list[Path]) -> UserError:
        names = ", ".join(path.name for path in shards[:10]) + ", ..." * (len(shards) > 10)
        return UserError(
            f"{len(shards):,} shards in {str(self.folder)!r} are damaged ({names}): delete them, "
            "and rerun `mobile-sam distill embed` with the same options"
        )


def fingerprint_decoder(model: Sam) -> str:
    """Returns the checksum of the weights of a prompt encoder and mask decoder."""
    parts = ("prompt_encoder.", "mask_decoder.")
    tensors = model.state_dict().items()
    return fingerprint({key: tensor for key, tensor in tensors if key.startswith(parts)})


def shard_path(folder: Path, shard: int) -> Path:
    """Returns the path of a shard; its part of the index has the suffix ``.json``."""
    return folder / f"{shard:06}.safetensors"


def identify(description: dict[str, Any]) -> str:
    """Returns the checksum of what identifies a store, from the contents of ``store.json``."""
    return hashlib.sha256(to_json({key: description[key] for key in IDENTITY})).hexdigest()


def read_entry(folder: Path, shard: int, description: dict[str, Any]) -> dict[str, Any] | None:
    """Reads a shard's part of the index.

    Returns:
        It; None unless both it and the shard are there, and the shard has the right length.

    Raises:
        ValueError: if the shard is of another store.
    """
    path = shard_path(folder, shard)
    try:
        entry: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
        whole = path.stat().st_size == entry["bytes"]
    except (FileNotFoundError, ValueError):
        return None
    if entry["store"] != identify(description):
        raise UserError(
            f"{str(path)!r} is a shard of other embeddings than those of the {STORE_FILE} beside "
            "it: move it back to where it came from"
        )
    return entry if whole else None


def to_json(content: dict[str, Any]) -> bytes:
    """Returns the bytes of a JSON file."""
    return json.dumps(content, indent=1).encode()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / STORE_FILE
    try:
        description: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"there are no teacher embeddings in {str(folder)!r}: it has no {STORE_FILE}"
        ) from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error
    if description.get("format") != FORMAT:
        raise UserError(
            f"{str(folder)!r} has format {description.get('format')}, and this version of "
            f"mobile-sam-plugin reads {FORMAT}: compute the embeddings again in another folder"
        )
    return description
