"""Files: written whole or not at all, encoded from images, recognised by their contents."""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import UserError

_WHOLE = 1 << 26  # bytes of the largest file that is digested whole
_END = 1 << 20  # bytes at either end of a larger one
_PIECE = 1 << 14  # bytes of each file in a folder of frames


@contextmanager
def replaced(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yields a path to write to; the file then appears at its own path, whole or not at all.

    The path is a hidden name in the same folder, with the same suffix. If the body raises, the
    partial file is removed, and an earlier file stays as it was.

    Args:
        path: of the file.
        durable: whether the contents must reach the disk before the name does, to survive a power
            failure. This takes milliseconds to seconds per file.
    """
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.partial{path.suffix}")
    try:
        yield partial
        if durable:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(path: Path) -> None:
    """Removes what killed processes left of files, in a folder that no other process writes to.

    Args:
        path: of the folder, whose subfolders are searched too; or of a file, of whose stem the
            files are.
    """
    if path.is_dir():
        found = path.rglob(".*.partial*")
    else:
        found = path.parent.glob(f".{path.stem}.*.partial*")
    for partial in found:
        if partial.is_file():
            partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Writes a file that appears whole or not at all; `durable` as in :func:`replaced`."""
    with replaced(path, durable) as partial:
        partial.write_bytes(content)


def encode_image(
    suffix: str,
    pixels: NDArray[Any],
    *options: int,
    palette: NDArray[np.uint8] | None = None,
) -> bytes:
    """Returns an image as the bytes of a file.

    Args:
        suffix: of the format, ``".png"`` or ``".jpg"``.
        pixels: (H, W) grayscale, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, or uint16 for PNG.
        options: as ``cv2.imencode`` takes them.
        palette: (N, 3) uint8 RGB, 256 colours at most, for a PNG whose pixels are indices.

    Raises:
        UserError: if the format cannot hold the image; a side of a JPEG has 65,500 pixels at most.
    """
    if palette is not None:
        picture = Image.fromarray(pixels)
        picture.putpalette(palette.tobytes())
        png = io.BytesIO()
        picture.save(png, format="png")
        return png.getvalue()
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    try:
        encoded, content = cv2.imencode(suffix, pixels, options)
    except cv2.error as error:
        encoded, reason = False, f": {error}"
    else:
        reason = ""
    if not encoded:
        raise UserError(
            f"an image of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as "
            f"{suffix}{reason}"
        )
    return bytes(content)


def digest_contents(*paths: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of the bytes of files, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def digest_source(path: Path) -> str:
    """Returns the SHA-256 by which an image, a video or a folder of frames is recognised.

    It covers the size and both ends of a file above 64 MiB. For a folder it covers the names and
    sizes of the files, and a piece from the middle of each.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.iterdir() if each.is_file()):
            size = each.stat().st_size
            digest.update(os.fsencode(f"{each.name}\0{size}\0"))
            with open(each, "rb") as file:
                file.seek(max(0, size - _PIECE) // 2)
                digest.update(file.read(_PIECE))
    elif path.is_file():
        size = path.stat().st_size
        digest.update(f"{size}\0".encode())
        with open(path, "rb") as file:
            if size > _WHOLE:
                digest.update(file.read(_END))
                file.seek(-_END, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()
