"""A teacher's image embeddings: computed once, kept in a folder, read back one by one.

The folder holds

- ``store.json``: of which images, by which teacher and in which shards the embeddings are;
- ``000000.safetensors`` and so on, the shards: the embeddings of consecutive images, each under
  its image's name;
- ``000000.json`` and so on, the shards' parts of the index: images and their sizes, images that
  could not be read, and the shard's checksum. It is written once its shard is whole, so that a
  shard without one does not count.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import fingerprint
from ..datasets.readable import Skipped
from ..errors import MissingExtra, UserError
from ..images import list_images, load_image
from ..inputs import input_size
from ..predictor import eval_mode
from ..sam_hq import unpack

_STORE_FILE = "store.json"
_FORMAT = 1  # of the folder, and of what is done with an image before the teacher sees it
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
_READERS = 8
_INDEX_BYTES = 1024  # more than an image takes in the index and in the header of its shard

# What must be the same for a store to be continued; the keys of store.json.
_IDENTITY = {
    "format": "the format",
    "teacher_sha256": "the checksum of the teacher",
    "img_size": "the side of the teacher's input",
    "shape": "the shape of an embedding",
    "images_sha256": "the checksum of the list of images",
    "shard_size": "the number of images in a shard",
}

_Pixels = tuple[Tensor, tuple[int, int]]


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Reads an image file, turned upright, as ``SamPredictor`` takes PIL images.

    Args:
        path: any format that Pillow reads.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: it is not there, no image, or damaged; naming the file.
    """
    try:
        return load_image(path)
    except OSError as error:
        raise UserError(f"the image {os.fspath(path)!r} cannot be read: {error}") from error


def preprocess(image: NDArray[np.uint8], img_size: int = 1024) -> Tensor:
    """Makes of an image what SAM's image encoder takes, as ``SamPredictor.set_image`` does.

    It is resized so that its longer side is ``img_size``, normalised, and padded with zeros at the
    right and at the bottom.

    Args:
        image: (H, W, 3) uint8 RGB.
        img_size: the side of the square, in pixels.

    Returns:
        (3, img_size, img_size) float32.

    Raises:
        ValueError: nothing is left of its short side when it is resized.
    """
    resize = ResizeLongestSide(img_size)
    height, width = input_size(image.shape[0], image.shape[1], img_size)
    pixels = torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_PIXEL_MEAN, _PIXEL_STD))
    return F.pad((pixels - mean) / std, (0, img_size - width, 0, img_size - height))


def find_process() -> Any:
    """Returns accelerate's ``PartialState``: which of how many processes this one is.

    Under ``accelerate launch`` it also makes ``"cuda"`` the GPU of this process.

    Raises:
        MissingExtra: accelerate is not installed.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise MissingExtra.of("accelerate", "distill") from error
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def embed(
    teacher: Sam,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    teacher_name: str = "",
    batch_size: int = 1,
    shard_size: int = 64,
    strict: bool = False,
) -> None:
    """Computes the embeddings of images by a teacher and stores them as float16.

    Stopped at any point, it goes on from the last whole shard when it is called again in the same
    way. Under ``accelerate launch`` every process computes its part of the shards, on one machine
    or on several; the number of processes may change from one call to the next. No process waits
    for another.

    A broken image is left out, and the index says so; a warning counts them. So is one whose
    embedding has values that float16 has not.

    Args:
        teacher: any SAM, on the device that is to compute.
        images: a folder, of whose images those in folders inside it are part, too, as that of
            SA-1B; or the paths of images.
        folder: where the embeddings go: 2 MB an image for a SAM of 1024 x 1024 pixels.
        teacher_name: kept with the embeddings for people to read.
        batch_size: images that the teacher takes at once.
        shard_size: images in a file.
        strict: raise an error at a broken image. Shards that leave out images are computed anew.

    Raises:
        ValueError: there is no image; the folder holds embeddings by another teacher, of other
            images or in other shards; the teacher takes pixels normalised otherwise than SAM's;
            most images are broken; or, if strict, one is.
        OSError: the disk has less space than needed (ENOSPC), or what writing files may raise.
        MissingExtra: accelerate is not installed.

    Example:
        >>> teacher = sam_model_registry["vit_h"]("sam_vit_h_4b8939.pth").cuda()
        >>> embed(teacher, "sa1b", "embeddings", batch_size=4)
        >>> path, size, embedding = Embeddings("embeddings")[0]
    """
    process = find_process()
    for values, expected in ((teacher.pixel_mean, _PIXEL_MEAN), (teacher.pixel_std, _PIXEL_STD)):
        # A model in half precision rounds them.
        if not torch.allclose(values.float().cpu().flatten(), torch.tensor(expected), rtol=0.01):
            raise UserError(
                f"the teacher normalises pixels by {values.flatten().tolist()}, SAM by {expected}: "
                "give one that takes images as SAM does"
            )
    image_folder, names = _list_names(images)
    precision = next(teacher.mask_decoder.parameters()).dtype
    embedding_size = tuple(teacher.prompt_encoder.image_embedding_size)
    description = {
        "format": _FORMAT,
        "teacher": teacher_name,
        "teacher_sha256": _hash_encoder(teacher),
        # In half precision it is not the decoder that a checkpoint holds.
        "decoder": fingerprint_decoder(teacher) if precision == torch.float32 else None,
        "img_size": teacher.image_encoder.img_size,
        "shape": [teacher.prompt_encoder.embed_dim, *embedding_size],
        "image_folder": str(image_folder),
        "images": len(names),
        "images_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "shard_size": shard_size,
    }
    folder = Path(folder)
    _check_continued(folder, description)
    shards = [names[start : start + shard_size] for start in range(0, len(names), shard_size)]
    entries = [_read_entry(folder, shard, description) for shard in range(len(shards))]
    todo = [
        shard
        for shard, entry in enumerate(entries)
        if entry is None or (strict and entry["skipped"])
    ]
    _check_space(folder, description, sum(len(shards[shard]) for shard in todo), process)
    folder.mkdir(parents=True, exist_ok=True)
    if process.is_main_process:
        _remove_partials(folder, _STORE_FILE)
        _write(folder / _STORE_FILE, _to_json(description))

    own = range(process.process_index, len(shards), process.num_processes)
    own_todo = [shard for shard in todo if shard in own]
    paths = [image_folder / name for shard in own_todo for name in shards[shard]]
    total = sum(len(shards[shard]) for shard in own)
    broken = Skipped(len(paths), strict=strict, what="image", told=0)  # all are told at the end
    places = iter(range(len(paths)))
    with (
        ThreadPoolExecutor(_READERS) as pool,
        tqdm(
            total=total,
            initial=total - len(paths),
            unit="image",
            # None is for terminals only.
            disable=None if process.is_local_main_process else True,
        ) as bar,
    ):
        read = _read_ahead(pool, paths, teacher.image_encoder.img_size, batch_size + _READERS)
        for shard in own_todo:
            images_read = zip(shards[shard], read, strict=False)
            embeddings, index = _embed_images(teacher, images_read, batch_size, broken, places, bar)
            entries[shard] = _write_shard(folder, shard, description, embeddings, index)
    skipped = {name: reason for shard in own for name, reason in _skipped(entries[shard])}
    if skipped:
        name, reason = next(iter(skipped.items()))
        warnings.warn(
            f"{len(skipped):,} of {total:,} images could not be read and were left out, such as "
            f"{name!r}: {reason}",
            stacklevel=2,
        )


class Embedding(NamedTuple):
    """An image and its embedding, as :class:`Embeddings` gives them."""

    path: Path
    """Where the image is."""
    size: tuple[int, int]
    """The image's (H, W) in pixels, upright."""
    embedding: Tensor
    """(256, 64, 64) float16 for a SAM of 1024 x 1024 pixels."""


class Embeddings:
    """The embeddings that :func:`embed` stored, read from disk as they are asked for.

    It can be pickled, and shared by the workers of a ``DataLoader``.

    Args:
        folder: what :func:`embed` wrote.
        images: where the images are now, if they have been moved.

    Attributes:
        names (list[str]): the images' paths within their folder, with slashes.
        sizes (list[tuple[int, int]]): (H, W) of each image.
        skipped (dict[str, str]): name to reason of the images that could not be read.
        teacher (str): the name that :func:`embed` was given.
        img_size (int): the side of the teacher's input, in pixels.
        shape (tuple[int, int, int]): that of an embedding, (256, 64, 64) for SAM.
        decoder (str | None): the fingerprint of the teacher's prompt encoder and mask decoder,
            which a teacher in half precision does not have, nor what older releases stored.
        identity (str): tells these embeddings from others.

    Raises:
        FileNotFoundError: the folder holds no embeddings.
        ValueError: some of them are not computed yet, or files are damaged or of another store.

    Example:
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
        self.decoder: str | None = description.get("decoder")
        self.identity = _identify(description)
        self._checksums: dict[Path, str] = {}
        self._shards: list[Path] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.skipped: dict[str, str] = {}
        shards = -(-description["images"] // description["shard_size"])
        entries = [_read_entry(self.folder, shard, description) for shard in range(shards)]
        for shard, entry in enumerate(entries):
            if entry is None:
                continue
            path = _shard_path(self.folder, shard)
            self._checksums[path] = entry["sha256"]
            for image in entry["images"]:
                self._shards.append(path)
                self.names.append(image["name"])
                self.sizes.append((image["height"], image["width"]))
            self.skipped |= _skipped(entry)
        if missing := entries.count(None):
            raise UserError(
                f"{missing:,} of {shards:,} shards in {str(self.folder)!r} are missing or damaged, "
                f"the first is {entries.index(None):06}: compute them as the others were"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Embedding:
        """Reads an embedding from disk.

        Raises:
            IndexError: there is none of this index.
            ValueError: its shard is damaged.
        """
        name = self.names[index]
        shard = self._shards[index]
        try:
            with safetensors.safe_open(shard, "pt") as file:
                embedding = file.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise UserError(_damaged([shard], self.folder)) from error
        return Embedding(self.images / name, self.sizes[index], embedding)

    def verify(self) -> None:
        """Reads all shards and compares their checksums, with a progress bar.

        Raises:
            ValueError: there are damaged shards; naming them.
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
            raise UserError(_damaged(damaged, self.folder))


def _list_names(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> tuple[Path, list[str]]:
    """The folder of some images, and their paths in it."""
    if isinstance(images, (str, os.PathLike)):
        folder = Path(os.path.abspath(images))
        paths = list_images(folder, recursive=True, beside=(".json",))  # as SA-1B has it
    else:
        paths = [Path(os.path.abspath(path)) for path in images]
        if not paths:
            raise UserError("there is no image to embed: the list is empty")
        folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(folder).as_posix() for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the image {twice!r} is in the list twice: give each once")
    return folder, names


def _hash_encoder(teacher: Sam) -> str:
    """The checksum of the weights that an embedding depends on."""
    digest = hashlib.sha256()
    for key, tensor in teacher.image_encoder.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_decoder(sam: Sam) -> str:
    """The checksum of the weights of a prompt encoder and mask decoder."""
    parts = ("prompt_encoder.", "mask_decoder.")
    tensors = sam.state_dict().items()
    return fingerprint({key: tensor for key, tensor in tensors if key.startswith(parts)})


def _check_continued(folder: Path, description: dict[str, Any]) -> None:
    """Raises ValueError if a folder already holds other embeddings than those described."""
    try:
        before = _read_description(folder)
    except FileNotFoundError:
        return
    for key, meaning in _IDENTITY.items():
        if before.get(key) != description[key]:
            name = f", of the teacher {before['teacher']!r}" if before.get("teacher") else ""
            raise UserError(
                f"{str(folder)!r} holds other embeddings{name}: there {meaning} is "
                f"{before.get(key)}, here {description[key]}. Choose another folder, or go on as "
                "it was begun"
            )


def _check_space(folder: Path, description: dict[str, Any], images: int, process: Any) -> None:
    """Tells the space that is needed, and raises OSError where the disk has less."""
    bytes_each = 2 * math.prod(description["shape"]) + _INDEX_BYTES
    needed = images * bytes_each
    disk = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if process.is_local_main_process:
        tqdm.write(
            f"{images:,} of {description['images']:,} images to embed, {needed / 1e9:,.2f} GB in "
            f"{str(folder)!r}; the disk has {free / 1e9:,.2f} GB free",
            file=sys.stderr,
        )
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the embeddings of {images:,} images need {needed / 1e9:,.2f} GB, the disk has "
            f"{free / 1e9:,.2f} GB free: free some, choose another folder, or embed fewer images",
            str(folder),
        )


def _read_ahead(
    pool: ThreadPoolExecutor, paths: Iterable[Path], img_size: int, ahead: int
) -> Iterator[Future[_Pixels]]:
    """Reads images in threads, a few ahead of the one that is waited for."""

    def read(path: Path) -> _Pixels:
        image = read_image(path)
        height, width = image.shape[:2]
        return preprocess(image, img_size), (height, width)

    waiting: deque[Future[_Pixels]] = deque()
    for path in paths:
        waiting.append(pool.submit(read, path))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _embed_images(
    teacher: Sam,
    images: Iterable[tuple[str, Future[_Pixels]]],
    batch_size: int,
    broken: Skipped,
    places: Iterator[int],
    bar: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The embeddings of the usable ones of some images, and what the index has on all."""
    embeddings: dict[str, Tensor] = {}
    batch: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, int]] = {}
    reasons: dict[str, str] = {}

    def settle(name: str, error: Exception | None = None) -> None:
        place = next(places)
        if error is None:
            broken.use(place)
        else:
            broken.skip(place, error)
            reasons[name] = str(error)
        bar.update()

    def run() -> None:
        for name, found in _run_teacher(teacher, batch).items():
            if isinstance(found, Tensor):
                embeddings[name] = found
                settle(name)
            else:
                settle(name, found)
        batch.clear()

    for name, future in images:
        try:
            batch[name], sizes[name] = future.result()
        except ValueError as error:
            settle(name, error)
        if len(batch) == batch_size:
            run()
    if batch:
        run()
    index = {
        "images": [
            {"name": name, "height": sizes[name][0], "width": sizes[name][1]} for name in embeddings
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in reasons.items()],
    }
    return embeddings, index


@torch.no_grad()
def _run_teacher(teacher: Sam, batch: dict[str, Tensor]) -> dict[str, Tensor | UserError]:
    """The embeddings, in float16 on the CPU, of preprocessed images, or why there is none."""
    weight = next(teacher.image_encoder.parameters())
    pixels = torch.stack(list(batch.values())).to(weight.device, weight.dtype)
    with eval_mode(teacher):
        embeddings, _ = unpack(teacher.image_encoder(pixels))
    halves = embeddings.half().cpu()
    found: dict[str, Tensor | UserError] = {}
    for name, embedding, half in zip(batch, embeddings, halves, strict=True):
        if torch.isfinite(half).all():
            found[name] = half
        else:
            found[name] = UserError(
                f"the embedding of {name!r} reaches {embedding.abs().max().item():g}, and float16 "
                "ends at 65504: is the teacher whole, and in float32?"
            )
    return found


def _write_shard(
    folder: Path,
    shard: int,
    description: dict[str, Any],
    embeddings: dict[str, Tensor],
    index: dict[str, Any],
) -> dict[str, Any]:
    """Writes a shard, then its entry in the index, which is returned."""
    path = _shard_path(folder, shard)
    _remove_partials(folder, path.stem)
    content = safetensors.torch.save(embeddings)
    entry = {
        "store": _identify(description),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **index,
    }
    _write(path, content)
    _write(path.with_suffix(".json"), _to_json(entry))
    return entry


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06}.safetensors"


def _identify(description: dict[str, Any]) -> str:
    return hashlib.sha256(_to_json({key: description[key] for key in _IDENTITY})).hexdigest()


def _read_entry(folder: Path, shard: int, description: dict[str, Any]) -> dict[str, Any] | None:
    """A shard's entry in the index; None unless both are there and whole, by the shard's length."""
    path = _shard_path(folder, shard)
    try:
        entry: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
        whole = path.stat().st_size == entry["bytes"]
    except (FileNotFoundError, ValueError):
        return None
    if entry["store"] != _identify(description):
        raise UserError(
            f"{str(path)!r} is a shard of other embeddings than {_STORE_FILE} beside it tells of: "
            "put it back to where it came from"
        )
    return entry if whole else None


def _skipped(entry: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [(image["name"], image["reason"]) for image in entry["skipped"]] if entry else []


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _STORE_FILE
    try:
        description: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"there are no teacher embeddings in {str(folder)!r}: it has no {_STORE_FILE}"
        ) from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error
    if description.get("format") != _FORMAT:
        raise UserError(
            f"{str(folder)!r} has the format {description.get('format')}, this release of "
            f"mobile-sam-plugin reads {_FORMAT}: compute the embeddings anew in another folder"
        )
    return description


def _damaged(shards: list[Path], folder: Path) -> str:
    return (
        f"{len(shards):,} shards in {str(folder)!r} are damaged "
        f"({', '.join(path.name for path in shards[:10])}{', ...' * (len(shards) > 10)}): delete "
        "them, and compute them anew as the others were"
    )


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _remove_partials(folder: Path, name: str) -> None:
    """Removes what a process left that was killed while it wrote files of this name."""
    for partial in folder.glob(f".{name}.*partial"):
        partial.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, even when power fails."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
