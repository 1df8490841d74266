"""The images and prompts that predictors take, checked; free of torch, for all of them."""

import os
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of ImageNet's pixels, R, G and B in [0, 255]; SAM's images are normalised with them."""

ImageSource = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]
"""An image: an array in RGB order, a PIL image, or the path of a file that Pillow can open."""


def as_pixels(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image as upstream wants them.

    Args:
        image: (H, W, 3), (H, W, 4), (H, W, 1) or (H, W) uint8, or a PIL image.

    Returns:
        (H, W, 3) uint8, in the channel order of the array, RGB for PIL images. 16-bit grayscale
        PIL images are scaled to 8 bits.

    Raises:
        TypeError, ValueError: as :meth:`~mobile_sam_plugin.SamPredictor.set_image`.
    """
    if isinstance(image, Image.Image):
        image = _from_pil(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"the image must be a numpy array or a PIL image, not {type(image).__name__}; "
            "open files with PIL.Image.open, and pass tensors to set_torch_image"
        )
    if image.dtype != np.uint8:
        raise TypeError(
            f"the image must hold uint8 in [0, 255], not {image.dtype}: scale it, then convert it "
            "with .astype(np.uint8)"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"the image must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"not {image.shape}"
        )
    if image.size == 0:
        raise ValueError(f"the image is empty: its shape is {image.shape}")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return image[..., :3]


def load_image(image: ImageSource) -> NDArray[np.uint8]:
    """The pixels of an image, or of an image file, turned upright.

    Args:
        image: an array as :func:`as_pixels` takes it, in RGB order, a PIL image or a path.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
        ValueError: the file is no image, or damaged, or too large to be safe; naming it.
        TypeError, ValueError: as :meth:`~mobile_sam_plugin.SamPredictor.set_image`.
    """
    if not isinstance(image, str | os.PathLike):
        return as_pixels(image)
    with open(image, "rb") as file:
        return read_image(file, os.fspath(image))


def read_image(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """The pixels of an image in an open file, turned upright.

    Of animations it is the first frame. CMYK is converted, transparency dropped, 16 bits are scaled
    to 8.

    Args:
        file: open for reading.
        name: of the file, for messages.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file is no image, or damaged, or too large to be safe; naming it.
    """
    try:
        with Image.open(file) as opened:
            # Older releases of Pillow give PNGs and PGMs of 16 bits as 32 of them.
            if opened.mode == "I" and opened.format in ("PNG", "PPM"):
                return as_pixels((np.asarray(opened) >> 8).astype(np.uint8))
            return as_pixels(opened)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{name!r} is no image that Pillow can read") from error
    except Exception as error:  # Pillow's readers raise of every kind on damaged files
        raise ValueError(f"the image {name!r} cannot be read: {error}") from error


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("F", "I"):
        raise TypeError(
            f"a PIL image of mode {image.mode!r} has no defined range: scale it to [0, 255] and "
            "convert it to mode 'L' or 'RGB'"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return (np.asarray(upright) >> 8).astype(np.uint8)
    if upright.mode == "P":  # a palette may have transparent colours, which RGB would warn about
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert("RGB"))


def input_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """The size (h, w) that upstream resizes an image to, so that its long side is as given.

    Raises:
        ValueError: nothing is left of the short side.
    """
    scale = long_side / max(height, width)
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(size) < 1:
        raise ValueError(
            f"the image is too thin, {width} x {height} pixels: nothing of its short side is "
            f"left when the long side is resized to {long_side}"
        )
    return size


def check_points(
    coords: ArrayLike | None, labels: ArrayLike | None, batched: bool = False
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """The clicks and labels of a prompt, or of a batch of prompts.

    Args:
        coords: (N, 2), or (B, N, 2) where batched; XY.
        labels: (N,) or (B, N), 1, 0 or -1.
        batched: whether there are several prompts.

    Raises:
        ValueError: one without the other, other shapes or labels, or NaN or infinity.
    """
    if coords is None or labels is None:
        given, absent = ("labels", "coords") if coords is None else ("coords", "labels")
        raise ValueError(f"point_{given} came without point_{absent}: give both or neither")
    points = as_finite("point_coords", coords)
    if points.ndim != 2 + batched or points.shape[-1] != 2:
        expected = "(B, N, 2)" if batched else "(N, 2)"
        raise ValueError(f"point_coords must have the shape {expected}, not {points.shape}")
    kinds = np.asarray(labels)
    if kinds.shape != points.shape[:-1]:
        raise ValueError(
            f"point_labels must hold one label a point, {points.shape[:-1]}, not {kinds.shape}"
        )
    unknown = kinds[~np.isin(kinds, (-1, 0, 1))]
    if unknown.size:
        raise ValueError(
            f"point_labels must be 1 (object), 0 (background) or -1 (no point), not {unknown[0]}"
        )
    return points, kinds


def check_box(box: ArrayLike) -> NDArray[np.float64]:
    """The box (4,) of a prompt; ValueError as :func:`check_points`."""
    corners = as_finite("box", box)
    if corners.size != 4:
        raise ValueError(
            f"box must be 4 numbers, XYXY, not of the shape {corners.shape}; for several boxes "
            "call predict_torch"
        )
    x0, y0, x1, y1 = corners = corners.reshape(4)
    if x0 > x1 or y0 > y1:
        warnings.warn(
            f"box {corners.tolist()} has its corners swapped: XYXY is left, top, right, bottom",
            stacklevel=3,
        )
    return corners


def check_mask(mask: ArrayLike, size: tuple[int, int]) -> NDArray[np.float64]:
    """The low-res logits (1, *size) of a prompt; ValueError as :func:`check_points`."""
    logits = as_finite("mask_input", mask)
    if logits.shape not in (size, (1, *size)):
        raise ValueError(
            f"mask_input must be low-res logits of the shape {(1, *size)}, as predict returns "
            f"them, not {logits.shape}"
        )
    return logits.reshape(1, *size)


def as_finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """An array of numbers; ValueError, by the name of the argument, if it is none or not finite."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity: {array[~np.isfinite(array)][0]}")
    return array
