"""``mobile-sam embed``: the image embeddings of a folder, for commands that then encode nothing."""

import errno
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import Checkpoint, Device, Dtype, MaxPixels, Source, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .. import SamPredictor
    from ..annotation.items import Item, Listed

    Pixels = NDArray[np.uint8]

_READERS = 4  # threads


def embed(
    source: Source,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, help="Output folder, which may hold some already."
        ),
    ],
    dtype: Annotated[
        Dtype,
        typer.Option(help="float16 halves the files; a few pixels along outlines then differ."),
    ] = "float32",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images encoded together.", show_default="8 on a GPU, else 1"),
    ] = None,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Encode images once, so that segment, everything and app need not: see their --embeddings.

    Writes DIR/<name of the image>.safetensors, 4 MB each, with the subfolders of INPUT. Run the
    same command again to encode what is missing: after an interruption, or when images were added
    or changed. Images that cannot be read are reported, and the exit code is then 1. For
    embeddings to train on see mobile-sam distill embed.
    """
    import torch
    from tqdm import tqdm

    from .. import SamPredictor
    from ..annotation import open_source
    from ..annotation.pipeline import batches
    from ..embeddings import SUFFIX, identify_encoder, is_embedding
    from ..files import remove_partials
    from ..inputs import input_size
    from ..runs import alone_in, claim
    from ..threads import ordered_map

    opened = open_source(source, exclude=out)
    predictor = SamPredictor(load_model(checkpoint, device))
    encoder = identify_encoder(predictor.model)
    settings = {
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
        "img_size": encoder.img_size,
        "dtype": dtype,
        "image_root": opened.root,
    }

    def file_of(item: "Item | Listed") -> Path:
        return out / f"{item.key}{SUFFIX}"

    def is_missing(listed: "Listed") -> bool:
        file = file_of(listed)
        try:
            written = file.stat().st_mtime
        except OSError:
            return True
        try:
            changed = os.stat(os.path.join(opened.root, listed.key)).st_mtime > written
        except OSError:  # the image is no file of its own
            changed = False
        return changed or not is_embedding(file)

    def read(item: "Item") -> "tuple[Item, Pixels | Exception]":
        try:
            pixels = item.load()
            height, width = pixels.shape[:2]
            input_size(height, width, encoder.img_size)  # refuses images that are too thin
        except (ImportError, OSError, ValueError, TypeError, MemoryError) as error:
            return item, error
        return item, pixels

    def encode(
        batch: "Sequence[tuple[Item, Pixels | Exception]]",
    ) -> "list[tuple[Item, SamPredictor | Exception]]":
        images = [pixels for _, pixels in batch if not isinstance(pixels, Exception)]
        encoded = iter(predictor.set_image_batch(images))
        return [
            (item, found if isinstance(found, Exception) else next(encoded))
            for item, found in batch
        ]

    def save(pair: "tuple[Item, SamPredictor | Exception]") -> str:
        item, encoded = pair
        try:
            if isinstance(encoded, Exception):
                raise encoded
            encoded.save_embedding(file_of(item), getattr(torch, dtype), encoder)
        except (ImportError, ValueError, TypeError, MemoryError) as error:
            message = str(error)
        except OSError as error:
            if error is not encoded and error.errno != errno.ENAMETOOLONG:
                raise  # the disk is full, say
            message = error.strerror or str(error)
        else:
            return ""
        return message if item.path in message else f"{item.path!r}: {message}"

    total = opened.scan()[0]
    size = batch_size or (1 if predictor.device.type == "cpu" else 8)
    with ExitStack() as stack:
        stack.enter_context(alone_in(out))
        claim(out, settings)
        remove_partials(out)
        missing = sum(map(is_missing, opened.listing()))
        done, failed, start = total - missing, 0, time.perf_counter()
        reading, writing = (stack.enter_context(ThreadPoolExecutor(n)) for n in (_READERS, 2))
        bar = stack.enter_context(tqdm(total=total, initial=done, unit="image", disable=None))
        loaded = ordered_map(read, opened.items(is_missing), reading, _READERS + size)
        encoded = chain.from_iterable(map(encode, batches(loaded, size)))
        for error in ordered_map(save, encoded, writing, 2):
            bar.update()
            if error:
                failed += 1
                bar.write(f"mobile-sam: {error}", file=sys.stderr)
            else:
                done += 1
    encoded_now = missing - failed
    rate = encoded_now / (time.perf_counter() - start)
    speed = f", {rate:.3g} per second" if encoded_now else ""
    typer.echo(f"{out}  {done:,} of {total:,} images are done{speed}")
    if failed:
        typer.echo(f"{failed:,} could not be encoded")
        raise typer.Exit(1)
