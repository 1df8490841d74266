"""Images and prompts in memory, checked: what every predictor takes. Free of torch."""

import math
import numbers
import warnings
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from .errors import UserError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Mean and deviation of ImageNet's pixels, RGB in [0, 255], by which SAM normalises images."""

MAX_COORDINATE = 2.0**24
"""Beyond it float32, in which coordinates are encoded, cannot separate neighbouring pixels."""
MAX_VALUE = 1e4
"""Far above any pixel or logit, and still finite in half precision."""


def as_pixels(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """Returns the pixels of an image as segment-anything takes them.

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
        raise UserError(
            f"the image must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"not {image.shape}"
        )
    if image.size == 0:
        raise UserError(f"the image is empty: its shape is {image.shape}")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return image[..., :3]


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
    if upright.mode == "La":  # premultiplied, which Pillow converts to its own kind alone
        upright = upright.convert("LA")
    return np.asarray(upright.convert("RGB"))


def input_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Returns the size (h, w) to which segment-anything resizes an image, by its long side.

    Raises:
        UserError: if nothing is left of the short side.
    """
    scale = long_side / max(height, width)
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(size) < 1:
        raise UserError(
            f"the image is too thin, {width} x {height} pixels: nothing of its short side is "
            f"left when the long side is resized to {long_side}"
        )
    return size


def resize(image: NDArray[np.uint8], img_size: int) -> NDArray[np.uint8]:
    """Resizes an image, (H, W, 3) uint8, as ``ResizeLongestSide.apply_image`` does.

    Raises:
        UserError: if nothing is left of the short side.
    """
    height, width = input_size(image.shape[0], image.shape[1], img_size)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.array(resized)


def preprocess(image: NDArray[np.uint8], img_size: int) -> NDArray[np.float32]:
    """Resizes, normalises and pads an image as ``SamPredictor`` and ``Sam.preprocess`` do.

    The padding, zeros, is on the right and at the bottom.

    Args:
        image: (H, W, 3) uint8 RGB.
        img_size: side of the model's square input in pixels, 1024 for SAM.

    Returns:
        (1, 3, img_size, img_size) float32.

    Raises:
        ValueError: if nothing is left of the short side.
    """
    resized = resize(image, img_size)
    height, width = resized.shape[:2]
    padded = np.zeros((1, 3, img_size, img_size), np.float32)
    mean, std = (np.array(values, np.float32) for values in (PIXEL_MEAN, PIXEL_STD))
    normalised = (resized.astype(np.float32) - mean) / std
    padded[0, :, :height, :width] = normalised.transpose(2, 0, 1)
    return padded


def check_points(
    coords: ArrayLike | None, labels: ArrayLike | None, batched: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Checks and returns the points and labels of a prompt, or of a batch of prompts.

    Args:
        coords: (N, 2), or (B, N, 2) if batched; XY in pixels of the image.
        labels: (N,), or (B, N) if batched; 1, 0 or -1.
        batched: whether there are several prompts.

    Raises:
        UserError: if one comes without the other, if a shape or label is invalid, or if the model
            cannot compute with a number.
    """
    if coords is None or labels is None:
        refuse_half(coords)
    points = as_finite("point_coords", coords)
    if points.ndim != 2 + batched or points.shape[-1] != 2:
        expected = "(B, N, 2)" if batched else "(N, 2)"
        raise UserError(f"point_coords must have the shape {expected}, not {points.shape}")
    kinds = as_finite("point_labels", labels)
    if kinds.shape != points.shape[:-1]:
        raise UserError(
            f"point_labels must hold one label per point, {points.shape[:-1]}, not {kinds.shape}"
        )
    unknown = kinds[~np.isin(kinds, (-1, 0, 1))]
    if unknown.size:
        refuse_label(unknown[0])
    return points, kinds


def refuse_half(coords: object | None) -> NoReturn:
    """Raises the UserError for points without labels, or labels without points."""
    given, absent = ("labels", "coords") if coords is None else ("coords", "labels")
    raise UserError(f"point_{given} came without point_{absent}: give both or neither")


def refuse_label(label: object) -> NoReturn:
    """Raises the UserError for a point label that SAM does not have."""
    raise UserError(
        f"point_labels must be 1 (object), 0 (background) or -1 (no point), not {label}"
    )


def check_box(box: ArrayLike) -> NDArray[np.float64]:
    """Checks and returns the box (4,) of a prompt; raises as :func:`check_points`."""
    corners = as_finite("box", box)
    if corners.size != 4:
        raise UserError(
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


def check_mask(
    mask: ArrayLike,
    low_res_size: tuple[int, int],
    original_size: tuple[int, int],
    input_size: tuple[int, int],
    batched: bool = False,
) -> NDArray[np.floating[Any]]:
    """Checks the mask of a prompt, or of a batch of prompts, and returns its low-res logits.

    Args:
        mask: low-res logits of the shape (1, *low_res_size), or a bool or uint8 mask of the shape
            (1, *original_size), which :func:`mask_to_logits` converts. The 1 may be left out. If
            batched, the number of prompts comes before the 1.
        low_res_size: (rows, columns) of the model's low-res logits.
        original_size: (H, W) of the image.
        input_size: (h, w) to which it was resized.
        batched: whether there are several prompts.

    Returns:
        (1, *low_res_size), or (B, 1, *low_res_size) if batched.

    Raises:
        UserError: if the shape is another, or if the model cannot compute with a number.
    """
    try:
        given = np.asarray(mask)
    except ValueError as error:  # of rows of different lengths
        raise UserError(f"mask_input must be an array: {error}") from error
    binary = given.dtype in (np.bool_, np.uint8)
    size = tuple(original_size if binary else low_res_size)
    front = given.shape[:-2]
    if given.shape[-2:] != size or not (front[1:] == (1,) if batched else front in ((), (1,))):
        shapes = [
            f"({'B, ' if batched else ''}1, {height}, {width})"
            for height, width in (low_res_size, original_size)
        ]
        raise UserError(
            f"mask_input must be low-res logits of the shape {shapes[0]}, as predictions return "
            f"them, or a bool or uint8 mask of the image's size, {shapes[1]}, not {given.dtype} "
            f"of the shape {given.shape}"
        )
    if binary:
        masks = [as_mask(each) for each in given.reshape(-1, *size)]
        logits = [mask_to_logits(each, low_res_size, input_size) for each in masks]
        given = np.array(logits, np.float32).reshape(-1, 1, *low_res_size)
    else:
        given = as_finite("mask_input", given, MAX_VALUE).reshape(-1, 1, *low_res_size)
    return given if batched else given[0]


def bright_half(values: NDArray[Any], highest: int) -> tuple[NDArray[np.bool_], str]:
    """Returns the pixels in the upper half of a range, and what makes that doubtful.

    If all values are in the lower half, they are taken for ids, and those above 0 are returned.
    """
    if values.max(initial=0) <= highest // 2:
        ids = np.unique(values)
        several = f"holds the values {ids[0]} to {ids[-1]}, which are taken for ids"
        return values > 0, several if len(ids) > 2 else ""
    mask = values > highest // 2
    between = np.mean((values > highest // 8) & (values < highest - highest // 8))
    doubt = f"has {between:.1%} of pixels neither dark nor bright, of which the brighter half count"
    return mask, doubt if between > 0.05 else ""


def as_mask(pixels: NDArray[np.bool_] | NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns a bool or uint8 mask (H, W) as bool; for uint8 see :func:`bright_half`."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.bool_, copy=False)
    mask, doubt = bright_half(pixels, 255)
    if doubt:
        warnings.warn(f"the mask {doubt}: {mask.mean():.1%} of its pixels are taken", stacklevel=4)
    return mask


def mask_to_logits(
    mask: NDArray[np.bool_], low_res_size: tuple[int, int], input_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Returns the low-res logits of a binary mask: 10 for covered pixels, -10 for others.

    A pixel that is covered in part gets a value between, in proportion, so that the outline of the
    upscaled logits is that of the mask. SAM's own logits have such values inside of objects; their
    distance from 0 hardly matters, because the prompt encoder normalises them. Padding counts as
    uncovered.

    Args:
        mask: (H, W) bool.
        low_res_size: (rows, columns) of the logits, each a quarter of the model's input.
        input_size: (h, w) to which the image was resized.

    Returns:
        low_res_size, float32.
    """
    rows, columns = low_res_size
    height, width = input_size
    covered = np.zeros((4 * rows, 4 * columns), np.uint8)
    covered[:height, :width] = cv2.resize(
        mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA
    )
    share = covered.reshape(rows, 4, columns, 4).mean(axis=(1, 3), dtype=np.float32) / 255
    return 20 * share - 10


def as_finite(name: str, values: ArrayLike, highest: float = MAX_COORDINATE) -> NDArray[np.float64]:
    """Returns an array of numbers that the model can compute with.

    Args:
        name: name of the argument, for messages.
        values: its value.
        highest: largest magnitude allowed.

    Raises:
        UserError: if it is not an array of numbers, or holds NaN, infinity or a larger magnitude.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{name} must be an array of numbers: {error}") from error
    beyond = array[~(np.abs(array) <= highest)]
    if beyond.size:
        refuse_number(name, float(beyond[0]), highest)
    return array


def as_flag(name: str, value: object) -> bool:
    """Returns an option that is on or off; raises TypeError for an array, say, by its name."""
    try:
        return bool(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} must be True or False, not {value!r:.60}") from error


def check_number(
    name: str, value: float, lowest: float = -math.inf, highest: float = math.inf
) -> None:
    """Checks an option that must be a number from ``lowest`` to ``highest``.

    Raises:
        TypeError: if it is not a number; by the name of the option.
        UserError: if it is NaN or outside of the bounds; by the name of the option.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r:.60}")
    if lowest <= value <= highest:
        return
    if lowest == -math.inf:
        allowed = "a number" if math.isnan(value) else f"at most {highest:g}"
    else:
        allowed = f"at least {lowest:g}" if highest == math.inf else f"in [{lowest:g}, {highest:g}]"
    raise UserError(f"{name} must be {allowed}, not {value}")


def check_integer(name: str, value: int, lowest: float = -math.inf) -> None:
    """Checks an option that must be an integer of at least ``lowest``; raises as `check_number`."""
    check_number(name, value, lowest)
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, not {value!r}")


def refuse_number(name: str, value: float, highest: float) -> NoReturn:
    """Raises the UserError for a number that is not finite, or too large."""
    if not np.isfinite(value):
        raise UserError(f"{name} holds NaN or infinity: {value}")
    raise UserError(
        f"{name} holds {value:g}, which the model cannot compute with: give no more than "
        f"{highest:,.0f}, and no less than {-highest:,.0f}"
    )
