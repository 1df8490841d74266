"""Images as sources list them, and what all sources have in common."""

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
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..images import read_image
from ..results import name_folders
from .storage import ask, is_url, local_path, open_filesystem

_MARKS = (  # of UTF-32 before UTF-16, whose mark begins alike
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
        id: of its annotation, as it stands there.
        number: the same where it is a number; None where the masks are to be numbered.
        category_id: of its category.
        bbox: XYWH in pixels of the size that the json tells, as it stands there.
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
        key: its path relative to the source's root, with ``/``; of a frame its number, six digits.
        name: of its outputs, without suffix; distinct also where file names ignore case.
        path: where it is, a path or URL.
        boxes: its prompts, of a COCO data set.
        size: (width, height) that the json tells, in whose pixels the boxes are.
        pixels: (H, W, 3) uint8 RGB, of a frame.
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
        """Opens the file; OSError or UserError if it cannot be."""
        if is_url(self.path):
            fs, path = open_filesystem(self.path)
            return io.BytesIO(ask(self.path, fs.cat_file, path))
        if not stat.S_ISREG(os.stat(self.path).st_mode):  # reading a pipe would never end
            raise UserError(f"{self.path!r} is no file")
        return open(self.path, "rb")

    def load(self) -> NDArray[np.uint8]:
        """Reads the pixels, (H, W, 3) uint8 RGB, turned upright.

        Raises:
            OSError, ValueError: it cannot be read; naming it.
        """
        if self.pixels is not None:
            return self.pixels
        with self.open() as file:
            return read_image(file, self.path)


@dataclass(frozen=True)
class Listed:
    """What is known of an image without opening it; see :class:`Item`.

    Attributes:
        image_id: of the COCO json; None where images are numbered.
        prompts: a checksum that other boxes or categories would change.
    """

    index: int
    key: str
    name: str
    image_id: int | None = None
    prompts: str = ""

    def at(self, path: str, **more: Any) -> Item:
        """The item, whose file is at a path or URL."""
        image_id = 1 + self.index if self.image_id is None else self.image_id
        return Item(self.index, image_id, self.key, self.name, path, **more)


Wanted = Callable[[Listed], bool]


class Source(Protocol):
    """A sequence of images that need not fit into memory.

    Attributes:
        places: what it was opened by.
        kind: "images", "coco" or "video".
        root: what keys are relative to: a folder or URL; of a video its file.
        categories: id to name, of a COCO data set.
        left_out: how much of what was found is no part of it, by kind.
    """

    places: list[str]
    kind: str
    root: str
    categories: dict[int, str]
    left_out: Counter[str]

    def scan(self) -> tuple[int, str]:
        """Returns how many images there are, and a checksum that another list of them would change.

        Of a video it is the number of frames that its header tells of.
        """

    def listing(self) -> Iterator[Listed]:
        """Lists all images; of a video the frames that its header tells of."""

    def item(self, listed: Listed) -> Item:
        """An image of the listing, ready to be loaded; its index and name may be others by now."""

    def items(self, wanted: Wanted, end: int | None = None) -> Iterator[Item]:
        """Lists the images that are wanted, ready to be loaded, in the order of :meth:`listing`.

        Args:
            wanted: says which.
            end: the place from which on none is; all are looked at if None.
        """


class Images:
    """What sources of files have in common."""

    places: list[str]

    def __init__(self, kind: str, root: str) -> None:
        self.kind = kind
        self.root = root
        self.categories: dict[int, str] = {}
        self.left_out: Counter[str] = Counter()

    def scan(self) -> tuple[int, str]:
        return checksum(
            listed.key if listed.image_id is None and not listed.prompts else repr(listed)
            for listed in self.listing()
        )

    def listing(self) -> Iterator[Listed]:
        raise NotImplementedError

    def item(self, listed: Listed) -> Item:
        raise NotImplementedError

    def items(self, wanted: Wanted, end: int | None = None) -> Iterator[Item]:
        return map(self.item, filter(wanted, islice(self.listing(), end)))


def read_text(place: str) -> str:
    """The text in a file: UTF-8, or what its byte order mark says.

    Bytes that are no UTF-8 stay what they are in names of files.
    """
    if is_url(place):
        fs, path = open_filesystem(place)
        content = ask(place, fs.cat_file, path)
    else:
        content = local_path(place).read_bytes()
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{place!r} begins with the mark of {encoding.upper()}, but is none: {error}"
                ) from error
    return content.decode("utf-8", "surrogateescape")


def with_slashes(name: str, path: str) -> str:
    """A relative name as Windows writes it with slashes, unless there is such a file.

    Args:
        name: as it was written.
        path: the path or URL that it stands for.
    """
    if "\\" not in name:
        return name
    if is_url(path):
        fs, inner = open_filesystem(path)
        return name if ask(path, fs.exists, inner) else name.replace("\\", "/")
    return name if os.path.lexists(path) else name.replace("\\", "/")


def output_names(keys: Sequence[str]) -> list[str]:
    """The keys without suffixes, but for those that would share a name."""
    by_folder: dict[str, list[PurePosixPath]] = {}
    for key in keys:
        by_folder.setdefault(posixpath.dirname(key), []).append(PurePosixPath(key))
    names = {}
    for folder, paths in by_folder.items():
        for path, name in name_folders(paths).items():
            names[str(path)] = posixpath.join(folder, name)
    return [names[key] for key in keys]


def checksum(lines: Iterable[str]) -> tuple[int, str]:
    """The number of lines and their SHA-256."""
    count, digest = 0, hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line) + b"\0")
        count += 1
    return count, digest.hexdigest()


def refuse_twice(values: Sequence[Any]) -> None:
    """Raises a UserError if a value is there twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"{value!r} is listed twice")
        seen.add(value)
