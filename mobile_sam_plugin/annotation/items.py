"""Images as sources list them, and the base class of all sources."""

import codecs
import hashlib
import io
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..images import open_file, read_image
from ..results import name_folders
from .storage import ask, is_url, local_path, open_filesystem

_BYTE_ORDER_MARKS = (  # UTF-32 before UTF-16, whose mark begins alike
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class BoxPrompt:
    """A box of a COCO data set.

    Attributes:
        id: of its annotation, as in the JSON.
        number: the same as a number; None if the masks are numbered instead.
        category_id: of its category.
        bbox: XYWH as in the JSON, in pixels of the image size given there.
    """

    id: Any
    number: int | None
    category_id: int
    bbox: Any


@dataclass(frozen=True, eq=False)
class Item:
    """An image to annotate.

    Attributes:
        index: its place among all images of the run, from 0.
        image_id: its number in the results, unique and the same in every run.
        key: its path relative to the source's root, with ``/``; for a frame of a video its number
            in six digits.
        name: of its result files, without suffix; distinct even if file names ignore case.
        path: the path or URL of the file.
        boxes: its prompts, from a COCO data set.
        size: (width, height) by the JSON, in whose pixels the boxes are; None if not given.
        pixels: (H, W, 3) uint8 RGB, for a frame of a video.
    """

    index: int
    image_id: int
    key: str
    name: str
    path: str
    boxes: tuple[BoxPrompt, ...] = ()
    size: tuple[float, float] | None = None
    pixels: NDArray[np.uint8] | None = None

    def open(self) -> BinaryIO:
        """Opens the file; raises OSError or UserError if that is impossible."""
        if is_url(self.path):
            fs, path = open_filesystem(self.path)
            return io.BytesIO(ask(self.path, fs.cat_file, path))
        try:
            mode = os.stat(self.path).st_mode
        except ValueError as error:  # half a character, or a null
            raise UserError(f"{self.path!r} cannot be the path of a file: {error}") from error
        if not stat.S_ISREG(mode):  # reading a pipe would never end
            raise UserError(f"{self.path!r} is not a regular file")
        return open_file(self.path)

    def load(self) -> NDArray[np.uint8]:
        """Returns the pixels, (H, W, 3) uint8 RGB, turned upright.

        Raises:
            OSError, UserError: if the file cannot be read or is not an image.
        """
        if self.pixels is not None:
            return self.pixels
        with self.open() as file:
            return read_image(file, self.path)


@dataclass(frozen=True)
class Listed:
    """An image that has not been opened; see :class:`Item`.

    Attributes:
        image_id: by the COCO JSON; None if images are numbered.
        boxes_checksum: changes if the image's boxes or their categories do.
    """

    index: int
    key: str
    name: str
    image_id: int | None = None
    boxes_checksum: str = ""

    def at(self, path: str, **more: Any) -> Item:
        """Returns the item, whose file is at a path or URL."""
        image_id = 1 + self.index if self.image_id is None else self.image_id
        return Item(self.index, image_id, self.key, self.name, path, **more)


Wanted = Callable[[Listed], bool]


class Source:
    """A sequence of images that need not fit into memory; subclasses list and describe them.

    Attributes:
        inputs: the paths, globs and URLs that it was opened with.
        kind: "images", "coco" or "video".
        root: the folder or URL that keys are relative to; for a video its file.
        categories: id to name, of a COCO data set.
        skipped: files or annotations that were found but are left out, counted by kind.
    """

    inputs: list[str]

    def __init__(self, kind: str, root: str) -> None:
        """Starts without categories and skipped files."""
        self.kind = kind
        self.root = root
        self.categories: dict[int, str] = {}
        self.skipped: Counter[str] = Counter()

    def scan(self) -> tuple[int, str]:
        """Returns the number of images and a checksum of their list.

        For a video these are the number of frames by its header, and a checksum of the file.
        """
        return checksum(
            listed.key if listed.image_id is None and not listed.boxes_checksum else repr(listed)
            for listed in self.listing()
        )

    def listing(self) -> Iterator[Listed]:
        """Lists all images; for a video, as many frames as its header promises."""
        raise NotImplementedError

    def item(self, listed: Listed) -> Item:
        """Returns an image of the listing, ready to load; its index and name may have changed."""
        raise NotImplementedError

    def items(self, wanted: Wanted, end: int | None = None) -> Iterator[Item]:
        """Lists the wanted images, ready to load, in the order of :meth:`listing`.

        Args:
            wanted: returns whether an image is wanted.
            end: the index to stop before; None for no end.
        """
        return map(self.item, filter(wanted, islice(self.listing(), end)))


def read_text(location: str) -> str:
    """Reads a text file: UTF-8, or the encoding of its byte order mark.

    Bytes that are not UTF-8 are kept as file names keep them (surrogateescape).
    """
    if is_url(location):
        fs, path = open_filesystem(location)
        content = ask(location, fs.cat_file, path)
    else:
        content = local_path(location).read_bytes()
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{location!r} begins with the byte order mark of {encoding.upper()}, but "
                    f"cannot be decoded as that: {error}"
                ) from error
    return content.decode("utf-8", "surrogateescape")


def with_slashes(name: str, path: str) -> str:
    """Replaces the backslashes in a relative name from Windows, unless such a file exists.

    Args:
        name: as written.
        path: the path or URL that the name, as written, refers to.
    """
    if "\\" not in name:
        return name
    if is_url(path):
        fs, inner = open_filesystem(path)
        return name if ask(path, fs.exists, inner) else name.replace("\\", "/")
    return name if os.path.lexists(path) else name.replace("\\", "/")


def output_names(keys: Sequence[str]) -> list[str]:
    """Returns the keys without suffixes, or with them where two would otherwise be the same."""
    by_folder: dict[str, list[PurePosixPath]] = {}
    for key in keys:
        by_folder.setdefault(posixpath.dirname(key), []).append(PurePosixPath(key))
    names = {}
    for folder, paths in by_folder.items():
        for path, name in name_folders(paths).items():
            names[str(path)] = posixpath.join(folder, name)
    return [names[key] for key in keys]


def checksum(lines: Iterable[str]) -> tuple[int, str]:
    """Returns the number of lines and their SHA-256."""
    count, digest = 0, hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line) + b"\0")
        count += 1
    return count, digest.hexdigest()


def refuse_duplicates(kind: str, values: Sequence[Any], where: str) -> None:
    """Raises UserError if a value occurs twice, naming the kind of value and where it is listed."""
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"the {kind} {value!r} is listed twice in {where}")
        seen.add(value)
