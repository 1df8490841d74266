"""Image files: opening them in one place, listing them, and counting what is left out."""

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError
from .inputs import as_pixels, bright_half

# Formats of pixels that Pillow decodes itself. Those that it hands to other programs (EPS), draws
# (WMF), or of which it knows little more than the size (MPEG, HDF5) are not among them.
_RASTER_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG"),
    *("PPM", "QOI", "SGI", "TIFF", "WEBP", "TGA"),
)

ImageSource = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]
"""An image: an array in RGB order, a PIL image, or the path of a file that Pillow can open."""


def load_image(image: ImageSource) -> NDArray[np.uint8]:
    """Returns the pixels of an image or an image file, upright.

    Args:
        image: an array as :func:`as_pixels` takes it, in RGB order, a PIL image or a path.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if the path cannot be opened.
        UserError: as :func:`open_image`.
        TypeError, ValueError: as :meth:`~mobile_sam_plugin.SamPredictor.set_image`.
    """
    if not isinstance(image, str | os.PathLike):
        return as_pixels(image)
    return read_image(image, os.fspath(image))


def read_image(file: BinaryIO | str | os.PathLike[str], name: str) -> NDArray[np.uint8]:
    """Returns the pixels of an image file, upright.

    For animations, this is the first frame. CMYK is converted, transparency is dropped, and 16 bits
    are scaled to 8.

    Args:
        file: a path, or a file that is open for reading.
        name: of the file, for messages.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: as :func:`open_image`.
    """
    with open_image(file, name) as opened:
        return opened_pixels(opened)


def opened_pixels(opened: Image.Image) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of an image from :func:`open_image`, as `read_image` does."""
    # Pillow gives PGMs of 16 bits as 32 of them, older releases PNGs as well.
    if opened.mode == "I" and opened.format in ("PNG", "PPM"):
        upright = ImageOps.exif_transpose(opened)
        return as_pixels((np.asarray(upright) >> 8).astype(np.uint8))
    return as_pixels(opened)


@contextmanager
def open_image(file: BinaryIO | str | os.PathLike[str], name: str) -> Iterator[Image.Image]:
    """Opens an image; the only place in this package where Pillow reads a file.

    Only raster formats are tried, whatever the file is called, because Pillow would start
    Ghostscript for PostScript. The limit of pixels is Pillow's own, which is twice
    ``PIL.Image.MAX_IMAGE_PIXELS``.

    Args:
        file: a path, or a file that is open for reading.
        name: of the file, for messages.

    Yields:
        The image as it is stored: not yet decoded, not turned upright.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if the path cannot be opened.
        UserError: if the file is not an image of one of the :func:`image_formats`, is damaged (also
            if that shows only in the body of the ``with``), or has too many pixels. The message
            names the file.
    """
    try:
        with ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                file = stack.enter_context(open_file(file))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = stack.enter_context(Image.open(file, formats=image_formats()))
            yield opened
    except (MemoryError, UserError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name!r} is not an image that can be read here{_heic_hint([name])}; the formats are "
            f"{', '.join(image_formats())}"
        ) from error
    except Image.DecompressionBombError as error:
        assert Image.MAX_IMAGE_PIXELS is not None
        raise UserError(
            f"the image {name!r} is too large to be safe: it has more than "
            f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels; if you trust it, raise the limit with "
            "--max-pixels, or in Python with PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # on damaged files, Pillow's readers raise errors of every class
        raise UserError(f"the image {name!r} cannot be read: {error}") from error


class _FileOnDisk(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        length = os.fstat(self.fileno()).st_size  # 0 of a pipe
        return super().read(min(size, length) if size and length else size)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading, from which no more bytes are asked than it has.

    Damaged images claim blocks of gigabytes, and Python allocates what is asked for, then reads.
    """
    return _FileOnDisk(io.FileIO(path))


@lru_cache(maxsize=1)
def image_formats() -> tuple[str, ...]:
    """Returns Pillow's names of the formats that are read: rasters that it decodes itself.

    HEIF is among them if pillow-heif is installed.
    """
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _RASTER_FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of image files in lower case, such as ``".png"``."""
    formats = image_formats()  # first, since it may register more suffixes
    kinds = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in kinds if kind in formats)


@contextmanager
def limit_pixels(max_pixels: int) -> Iterator[None]:
    """Lets Pillow open images of at most this many pixels while the block runs."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = math.ceil(max_pixels / 2)  # Pillow refuses twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def is_image_name(name: str) -> bool:
    """Returns whether a file with this name is an image: by its suffix, unless it is hidden.

    Names such as ``._photo.jpg``, which macOS leaves behind, are hidden.
    """
    base = PurePath(name).name
    return not base.startswith(".") and PurePath(base).suffix.lower() in image_suffixes()


def list_images(
    folder: str | os.PathLike[str], recursive: bool = False, beside: Container[str] = ()
) -> list[Path]:
    """Returns the images in a folder, sorted; one warning counts the other files by kind.

    Args:
        folder: path of the folder.
        recursive: whether to search its subfolders also, except hidden ones.
        beside: lower-case suffixes of files that belong to the images and are not counted.

    Raises:
        NotADirectoryError: if there is no such folder.
        UserError: if there is no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {str(root)!r}")
    paths = sorted(root.rglob("*") if recursive else root.iterdir())
    files = [
        path
        for path in paths
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts[:-1])
    ]
    images = [path for path in files if is_image_name(path.name)]
    skipped = describe_skipped(path.name for path in files if path.suffix.lower() not in beside)
    if not images:
        raise UserError(
            f"there is no image in the folder {str(root)!r}{skipped and ': ' + skipped}"
        )
    if skipped:
        warnings.warn(f"in the folder {str(root)!r} {skipped}", stacklevel=2)
    return images


def describe_skipped(names: Iterable[str]) -> str:
    """Counts by kind the files that are left out because they are not images; "" if none are.

    Hidden files count if they have the suffix of an image.

    Examples:
        >>> describe_skipped(["a.jpg", "b.HEIC", "notes.txt", "._a.jpg"])
        '3 files are left out: 1 .heic (...), 1 hidden, 1 .txt'
    """
    return describe_kinds(Counter(filter(None, map(skipped_kind, names))))


def skipped_kind(name: str) -> str:
    """Returns the kind of a file that is left out: its suffix, or "hidden".

    It is "" for an image, and for a hidden file with the suffix of another kind.
    """
    path = PurePath(name)
    if path.name.startswith("."):
        return "hidden" if path.suffix.lower() in image_suffixes() else ""
    return "" if is_image_name(path.name) else path.suffix.lower() or "without a suffix"


def describe_kinds(kinds: Counter[str], noun: str = "file") -> str:
    """Describes how many files, or other things, of each kind are left out; "" if none are."""
    total = kinds.total()
    if not total:
        return ""
    subject = f"{noun} is" if total == 1 else f"{noun}s are"
    named = Counter({kind + _heic_hint([kind]): count for kind, count in kinds.items()})
    return f"{total} {subject} left out: {join_counts(named)}"


def join_counts(kinds: Counter[str]) -> str:
    """Joins counts and kinds, the most frequent first: "3 .txt, 1 hidden"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common() if count)


def _heic_hint(names: Iterable[str]) -> str:
    if "HEIF" in image_formats() or not any(
        name.lower().endswith((".heic", ".heif")) for name in names
    ):
        return ""
    return ' (which pip install "mobile-sam-plugin[heic]" reads)'


def load_mask(path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """Returns the mask that a person means by an image of a mask, upright.

    - Gray or colour: the pixels in the upper half of the range, in 8 or 16 bits. In a coloured
      image the brightest channel counts.
    - Maps of ids, as trackers and ``annotate`` write them: the ids above 0. An image is such a map
      if it has a palette of colours, or if all its values are in the lower half of the range.
    - Transparency: the opaque pixels, unless the colours are a mask of their own.

    If the image could mean another mask, a warning says which pixels were taken.

    Args:
        path: path of the file.

    Returns:
        (H, W) bool.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if the path cannot be opened.
        UserError: as :func:`open_image`.
    """
    name = os.fspath(path)
    with open_image(path, name) as opened:
        image = ImageOps.exif_transpose(opened)
        mask, doubt = _read_mask(image)
    if doubt:
        warnings.warn(
            f"the mask {name!r} {doubt}: {mask.mean():.1%} of its pixels are taken", stacklevel=2
        )
    return mask


def _read_mask(image: Image.Image) -> tuple[NDArray[np.bool_], str]:
    """Returns the mask in an image, and what makes it doubtful ("" if nothing does)."""
    if image.mode == "P" and "transparency" not in image.info:
        indices = np.asarray(image)
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
        if np.ptp(colors.astype(int), axis=1).any():  # colours, not grays
            return indices > 0, ""
    if image.mode == "F":  # probabilities, or pixels in a range of the program that wrote them
        shares = np.asarray(image)
        highest = next((each for each in (1, 255) if shares.max() <= each), 65535)
        return shares >= highest / 2, ""
    if image.mode.startswith("I"):
        return bright_half(np.asarray(image), 65535)
    if not (image.has_transparency_data and image.mode != "1"):
        return bright_half(np.asarray(image.convert("RGB")).max(axis=2), 255)
    pixels = np.asarray(image.convert("RGBA"))
    gray, alpha = pixels[..., :3].max(axis=2), pixels[..., 3]
    if alpha.min() >= 128:  # opaque everywhere
        return bright_half(gray, 255)
    opaque, _ = bright_half(alpha, 255)
    if np.ptp(pixels[..., :3].reshape(-1, 3), axis=0).max() == 0:
        return opaque, ""
    if np.isin(pixels[opaque, :3], (0, 255)).all() and gray.min(where=opaque, initial=255) == 0:
        mask = (gray >= 128) & opaque
        return mask, "has transparent pixels, and white ones: those that are white and opaque count"
    return opaque, "is a cut-out: its opaque pixels count"
