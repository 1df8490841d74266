"""Computes a teacher's image embeddings into a folder, see :mod:`~.embeddings`."""

import errno
import hashlib
import math
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import fingerprint
from ..datasets.unreadable import Skipped
from ..errors import MissingExtra, UserError
from ..files import remove_partials, write_file
from ..images import list_images, load_image
from ..inputs import PIXEL_MEAN, PIXEL_STD, preprocess
from ..predictor import eval_mode
from ..runs import alone_in, claim, find_run
from ..sam_hq import unpack
from .embeddings import (
    FORMAT,
    IDENTITY,
    STORE_FILE,
    fingerprint_decoder,
    identify,
    read_entry,
    shard_path,
    to_json,
)

_READERS = 8  # threads
_INDEX_BYTES = 1024  # more than an image takes in the index and in the header of its shard

_Pixels = tuple[Tensor, tuple[int, int]]


def process_state() -> Any:
    """Returns accelerate's ``PartialState``: the index of this process, and their number.

    Under ``accelerate launch`` it also makes ``"cuda"`` the GPU of this process.

    Raises:
        MissingExtra: if accelerate is not installed.
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
    """Computes a teacher's embeddings of images and stores them as float16.

    Called again in the same way, it resumes an interrupted run after the last complete shard.
    Under ``accelerate launch`` each process computes its part of the shards, on one machine or on
    several; the number of processes may change from one call to the next. No process waits for
    another.

    Broken images are skipped, and so are those whose embedding has values beyond float16. The index
    lists them, and a warning counts them.

    Args:
        teacher: any SAM, on the device that computes.
        images: a folder, which is searched recursively, such as SA-1B's; or paths of images.
        folder: output folder; takes 2 MB per image for a SAM of 1024 x 1024 pixels.
        teacher_name: stored with the embeddings, as information.
        batch_size: images per call of the teacher.
        shard_size: images per file.
        strict: raise an error at a broken image. Shards without some images are computed again.

    Raises:
        ValueError: if there is no image; if the folder holds embeddings by another teacher, of
            other images or in other shards, or another run is writing to it; if the teacher
            normalises pixels differently from SAM; if most images are broken; or, with `strict`, if
            one is.
        OSError: if the disk has too little space (ENOSPC), or a file cannot be written; with
            `strict`, if an image cannot be read.
        MissingExtra: if accelerate is not installed.

    Examples:
        >>> teacher = sam_model_registry["vit_h"]("sam_vit_h_4b8939.pth").cuda()
        >>> embed(teacher, "sa1b", "embeddings", batch_size=4)
        >>> path, size, embedding = Embeddings("embeddings")[0]
    """
    process = process_state()
    for values, expected in ((teacher.pixel_mean, PIXEL_MEAN), (teacher.pixel_std, PIXEL_STD)):
        # A model in half precision rounds them.
        if not torch.allclose(values.float().cpu().flatten(), torch.tensor(expected), rtol=0.01):
            raise UserError(
                f"the teacher normalises pixels by {values.flatten().tolist()}, SAM by {expected}: "
                "use a teacher that takes images as SAM does"
            )
    image_folder, names = _list_names(images)
    precision = next(teacher.mask_decoder.parameters()).dtype
    embedding_size = tuple(teacher.prompt_encoder.image_embedding_size)
    description = {
        "format": FORMAT,
        "teacher": teacher_name,
        "teacher_sha256": fingerprint(teacher.image_encoder.state_dict()),
        # In half precision it differs from the decoder in a checkpoint.
        "decoder": fingerprint_decoder(teacher) if precision == torch.float32 else None,
        "img_size": teacher.image_encoder.img_size,
        "shape": [teacher.prompt_encoder.embed_dim, *embedding_size],
        "image_folder": str(image_folder),
        "images": len(names),
        "images_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "shard_size": shard_size,
    }
    folder = Path(folder)
    may_change = description.keys() - set(IDENTITY)
    find_run(folder, description, may_change, file=STORE_FILE)
    shards = [names[start : start + shard_size] for start in range(0, len(names), shard_size)]
    entries = [read_entry(folder, shard, description) for shard in range(len(shards))]
    todo = [
        shard
        for shard, entry in enumerate(entries)
        if entry is None or (strict and entry["skipped"])
    ]
    _check_space(folder, description, sum(len(shards[shard]) for shard in todo), process)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if process.is_main_process:
            stack.enter_context(alone_in(folder))
            remove_partials(folder / STORE_FILE)
            claim(folder, description, may_change, file=STORE_FILE, durable=True)
        own = range(process.process_index, len(shards), process.num_processes)
        own_todo = [shard for shard in todo if shard in own]
        paths = [image_folder / name for shard in own_todo for name in shards[shard]]
        total = sum(len(shards[shard]) for shard in own)
        broken = Skipped(len(paths), strict=strict, what="image", told=0)  # one warning at the end
        places = iter(range(len(paths)))
        pool = stack.enter_context(ThreadPoolExecutor(_READERS))
        bar = stack.enter_context(
            tqdm(
                total=total,
                initial=total - len(paths),
                unit="image",
                # None is for terminals only.
                disable=None if process.is_local_main_process else True,
            )
        )
        read = _read_ahead(pool, paths, teacher.image_encoder.img_size, batch_size + _READERS)
        for shard in own_todo:
            images_read = zip(shards[shard], read, strict=False)
            embeddings, index = _embed_images(teacher, images_read, batch_size, broken, places, bar)
            entries[shard] = _write_shard(folder, shard, description, embeddings, index)
    skipped = [image for shard in own if (entry := entries[shard]) for image in entry["skipped"]]
    if skipped:
        warnings.warn(
            f"{len(skipped):,} of {total:,} images could not be read and were left out, such as "
            f"{skipped[0]['name']!r}: {skipped[0]['reason']}",
            stacklevel=2,
        )


def _list_names(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> tuple[Path, list[str]]:
    """Returns the folder of the images, and their paths in it."""
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
        raise UserError(f"the image {twice!r} is in the list twice: give each image once")
    return folder, names


def _check_space(folder: Path, description: dict[str, Any], images: int, process: Any) -> None:
    """Prints the space that is needed, and raises OSError if the disk has less."""
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
    """Reads images in threads, a few ahead of the one that is needed next."""

    def read(path: Path) -> _Pixels:
        image = load_image(path)
        height, width = image.shape[:2]
        return torch.from_numpy(preprocess(image, img_size)[0]), (height, width)

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
    """Returns the embeddings of the usable images, and the index's part on all of them."""
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
        except (OSError, ValueError) as error:
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
    """Returns the float16 embedding of each preprocessed image on the CPU, or an error."""
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
                f"the embedding of {name!r} reaches {embedding.abs().max().item():g}, beyond "
                "float16's 65504: check that the teacher's weights are intact and float32"
            )
    return found


def _write_shard(
    folder: Path,
    shard: int,
    description: dict[str, Any],
    embeddings: dict[str, Tensor],
    index: dict[str, Any],
) -> dict[str, Any]:
    """Writes a shard, then its part of the index; returns the latter."""
    path = shard_path(folder, shard)
    remove_partials(path)
    content = safetensors.torch.save(embeddings)
    entry = {
        "store": identify(description),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **index,
    }
    write_file(path, content, durable=True)
    write_file(path.with_suffix(".json"), to_json(entry), durable=True)
    return entry
