"""Parts of files that several formats of data sets share: JSON, pixels, and values of masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from ..errors import UserError
from ..images import open_image, opened_pixels
from .annotated import AnnotatedImage
from .unreadable import NoMask, OtherSize


def load_json(path: Path) -> Any:
    """Returns the content of a JSON file; raises UserError if it is none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}") from error


def read_pixels(
    file: Path | BinaryIO, shape: tuple[int, ...], upright: bool, name: str | None = None
) -> NDArray[np.uint8]:
    """Reads the pixels of a file, (H, W, 3) RGB, as they are stored or turned by its EXIF data.

    Args:
        file: the path of an image, or a file that is open for reading.
        shape: (H, W) of the masks: the orientation that has this shape is taken.
        upright: which orientation to take if both have it.
        name: for messages; the path if None.

    Raises:
        ValueError: if neither has it, or the file cannot be read.
    """
    name = str(file) if name is None else name
    with open_image(file, name) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        stored = (image.height, image.width)
        turned = stored[::-1] if orientation in (5, 6, 7, 8) else stored
        if shape not in (stored, turned):
            raise OtherSize(
                f"the image {name!r} is {describe_size(stored)}, not {describe_size(shape)} as its "
                "masks are"
            )
        if shape == stored and not (upright and shape == turned):
            image.getexif().pop(ExifTags.Base.Orientation, None)
        return opened_pixels(image)


def read_values(path: Path) -> NDArray[Any]:
    """Reads the (H, W) values of a PNG; with a palette, its indices."""
    with open_image(path, str(path)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(
                f"the mask {str(path)!r} must be grayscale or have a palette, but its mode is "
                f"{image.mode!r}"
            )
        return np.asarray(image)


def require_masks(item: AnnotatedImage, where: str) -> AnnotatedImage:
    """Returns the item; raises NoMask if it has no mask."""
    if not item.count:
        raise NoMask(f"{where}: no mask has a pixel")
    return item


def describe_size(shape: Sequence[int]) -> str:
    """Returns a size for messages: of the shape (H, W), "W x H pixels"."""
    return f"{shape[1]} x {shape[0]} pixels"
