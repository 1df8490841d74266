"""What is to be annotated: files, folders, lists of paths, COCO's boxes or the frames of a video.

A source lists its images in an order that depends on nothing but their names, so that an image has
the same number and the same names of its outputs in every run and on every machine.
"""

import glob
import hashlib
import io
import itertools
import json
import os
import posixpath
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..inputs import load_image, read_image
from ..results import name_folders
from .storage import is_url, local_path, open_filesystem

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class BoxPrompt:
    """A box of a COCO data set.

    Attributes:
        id: of its annotation.
        category_id: of its category.
        bbox: XYWH in pixels, as it stands there.
    """

    id: int
    category_id: int
    bbox: Any


@dataclass(frozen=True, eq=False)
class Item:
    """An image to annotate.

    Attributes:
        index: its place among all images of the source, from 0.
        image_id: its number in the results, unique and the same in every run.
        key: its path relative to the source's root, with ``/``; of a frame its number, six digits.
        name: of its outputs, without suffix; distinct also where file names ignore case.
        path: where it is, a path or URL.
        boxes: its prompts, of a COCO data set.
        pixels: (H, W, 3) uint8 RGB, of a frame.
    """

    index: int
    image_id: int
    key: str
    name: str
    path: str
    boxes: tuple[BoxPrompt, ...] = ()
    pixels: NDArray[np.uint8] | None = None

    def load(self) -> NDArray[np.uint8]:
        """Reads the pixels, (H, W, 3) uint8 RGB, turned upright.

        Raises:
            OSError, ValueError: it cannot be read; naming it.
        """
        if self.pixels is not None:
            return self.pixels
        if is_url(self.path):
            fs, path = open_filesystem(self.path)
            return read_image(io.BytesIO(fs.cat_file(path)), self.path)
        if not stat.S_ISREG(os.stat(self.path).st_mode):  # reading a pipe would never end
            raise UserError(f"{self.path!r} is no file")
        return load_image(self.path)


@dataclass(frozen=True)
class Listed:
    """What is known of an image without opening it; see :class:`Item`."""

    index: int
    key: str
    name: str


Wanted = Callable[[Listed], bool]


class Source(Protocol):
    """A sequence of images that need not fit into memory.

    Attributes:
        places: what it was opened by.
        kind: "images", "coco" or "video".
        root: what keys are relative to: a folder or URL; of a video its file.
        categories: id to name, of a COCO data set.
    """

    places: list[str]
    kind: str
    root: str
    categories: dict[int, str]

    def scan(self) -> tuple[int, str]:
        """Returns how many images there are, and a checksum that another list of them would change.

        Of a video it is the number of frames that its header tells of.
        """

    def listing(self) -> Iterator[Listed]:
        """Lists all images; of a video the frames that :meth:`items` has come by."""

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """Lists the images that are wanted, ready to be loaded, in the order of :meth:`listing`."""


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    images: str | os.PathLike[str] | None = None,
    leave_out: str | os.PathLike[str] | None = None,
) -> Source:
    """Finds out what is to be annotated.

    Args:
        source: an image, a glob, a folder (with the folders in it, but hidden files and links to
            folders left out), a ``.txt`` with a path a line, a COCO ``.json``, a video, or a URL of
            any of these but a video; or several images, globs and folders.
        images: where the images of a COCO json are; beside it if None.
        leave_out: a folder in the source that is not looked into, since results go there.

    Raises:
        FileNotFoundError: there is no such thing.
        ValueError: there is no image in it, or it cannot be understood.
    """
    places = [source] if isinstance(source, str | os.PathLike) else source
    names = [os.fspath(place) for place in places]
    if not names:
        raise UserError("there is nothing to annotate: name images, a folder or a list of them")
    opened = _open(names, images, leave_out)
    opened.places = names
    return opened


def _open(
    names: list[str],
    images: str | os.PathLike[str] | None,
    leave_out: str | os.PathLike[str] | None,
) -> Source:
    suffix = posixpath.splitext(names[0])[1].lower()
    if len(names) == 1 and suffix == ".json":
        return _CocoSource(names[0], images)
    if images is not None:
        raise UserError(f"a folder of images goes with a COCO json, {names[0]!r} is none")
    if len(names) == 1 and suffix in VIDEO_SUFFIXES and not is_url(names[0]):
        return _VideoSource(local_path(names[0]))
    if len(names) == 1 and suffix == ".txt":
        paths = _read_list(names[0])
        if not paths:
            raise UserError(f"there is no path in {names[0]!r}: write one a line")
        return _ListSource(paths)
    if len(names) == 1 and not is_url(names[0]) and local_path(names[0]).is_dir():
        return _FolderSource(local_path(names[0]), leave_out)
    paths = [path for name in names for path in _find(name, leave_out)]
    if len(names) == 1 and is_url(names[0]) and not glob.has_magic(names[0]) and paths != names:
        # Keys are relative to the folder, though all of its images may lie deeper.
        fs, path = open_filesystem(names[0])
        return _ListSource(paths, fs.unstrip_protocol(path))
    return _ListSource(paths)


class _FolderSource:
    """A folder and all below it; of a folder at a time it holds the names."""

    kind = "images"
    places: list[str]

    def __init__(self, root: Path, leave_out: str | os.PathLike[str] | None) -> None:
        self.root = str(root.resolve())
        self.categories: dict[int, str] = {}
        self._left_out = None
        if leave_out is not None and not is_url(leave_out):
            self._left_out = str(local_path(leave_out).resolve())
        if next(self._walk(""), None) is None:
            raise UserError(f"there is no image in the folder {str(root)!r}")

    def scan(self) -> tuple[int, str]:
        return _checksum(listed.key for listed in self.listing())

    def listing(self) -> Iterator[Listed]:
        for index, (key, name) in enumerate(self._walk("")):
            yield Listed(index, key, name)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        for listed in filter(wanted, self.listing()):
            yield _item(listed, f"{self.root}/{listed.key}")

    def _walk(self, folder: str) -> Iterator[tuple[str, str]]:
        """The keys and names of a folder's images, then of those in its folders."""
        with os.scandir(os.path.join(self.root, folder)) as entries:
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
        keys = [
            folder + entry.name for entry in visible if not entry.is_dir() and _is_image(entry.name)
        ]
        yield from zip(keys, _output_names(keys), strict=True)
        for entry in visible:
            if entry.is_dir(follow_symlinks=False) and entry.path != self._left_out:
                yield from self._walk(f"{folder}{entry.name}/")


class _ListSource:
    """Paths, or URLs, that were named one by one."""

    kind = "images"
    places: list[str]

    def __init__(self, paths: Sequence[str], root: str | None = None) -> None:
        urls = [path for path in paths if is_url(path)]
        if urls and len(urls) < len(paths):
            local = next(path for path in paths if not is_url(path))
            raise UserError(f"URLs and paths cannot be mixed: {urls[0]!r} and {local!r}")
        if not urls:
            paths = [os.path.abspath(local_path(path)) for path in paths]
        self.root = root or _common_folder(paths)
        self.categories: dict[int, str] = {}
        self._keys = [path[len(self.root) :].lstrip("/") for path in paths]
        _refuse_twice(self._keys)
        self._names = _output_names(self._keys)

    def scan(self) -> tuple[int, str]:
        return _checksum(self._keys)

    def listing(self) -> Iterator[Listed]:
        return map(Listed, itertools.count(), self._keys, self._names)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        root = self.root.rstrip("/")
        for listed in filter(wanted, self.listing()):
            yield _item(listed, f"{root}/{listed.key}")


class _CocoSource:
    """The images of a COCO data set, in its order, with the boxes of its annotations."""

    kind = "coco"
    places: list[str]

    def __init__(self, place: str, images: str | os.PathLike[str] | None) -> None:
        folder = os.fspath(images) if images is not None else posixpath.dirname(place) or "."
        self.root = folder if is_url(folder) else str(local_path(folder).resolve())
        try:
            content = json.loads(_read(place))
            listed = [(int(image["id"]), str(image["file_name"])) for image in content["images"]]
            self.categories = {
                int(category["id"]): str(category["name"])
                for category in content.get("categories", [])
            }
            self._boxes: dict[int, list[BoxPrompt]] = {image_id: [] for image_id, _ in listed}
            for annotation in content.get("annotations", []):
                if not annotation.get("iscrowd") and annotation["image_id"] in self._boxes:
                    self._boxes[annotation["image_id"]].append(
                        BoxPrompt(
                            int(annotation["id"]),
                            int(annotation.get("category_id", 1)),
                            annotation["bbox"],
                        )
                    )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{place!r} is not COCO's instances JSON, which holds 'images' with 'id' and "
                f"'file_name', and 'annotations' with 'id', 'image_id' and 'bbox': {error!r}"
            ) from error
        if not listed:
            raise UserError(f"there is no image in {place!r}")
        unknown = [
            box.category_id
            for boxes in self._boxes.values()
            for box in boxes
            if box.category_id not in self.categories
        ]
        if unknown:
            numbers = ", ".join(map(str, sorted(set(unknown))))
            warnings.warn(
                f"{place!r} lists no category of {len(unknown)} of its boxes ({numbers}): the "
                "numbers are taken for names",
                stacklevel=2,
            )
            self.categories |= {number: str(number) for number in sorted(set(unknown))}
        self._ids = [image_id for image_id, _ in listed]
        self._keys = [posixpath.normpath(key) for _, key in listed]
        for key in self._keys:
            if posixpath.isabs(key) or key.startswith("../"):
                raise UserError(
                    f"{place!r} names the image {key!r}, which is not below {self.root!r}: name "
                    "the folder that all its images are in"
                )
        _refuse_twice(self._keys)
        _refuse_twice(self._ids)
        _refuse_twice([box.id for boxes in self._boxes.values() for box in boxes])
        self._names = _output_names(self._keys)

    def scan(self) -> tuple[int, str]:
        return _checksum(
            repr((key, image_id, self._boxes[image_id]))
            for key, image_id in zip(self._keys, self._ids, strict=True)
        )

    def listing(self) -> Iterator[Listed]:
        return map(Listed, itertools.count(), self._keys, self._names)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        root = self.root.rstrip("/")
        for listed in filter(wanted, self.listing()):
            image_id = self._ids[listed.index]
            boxes = tuple(self._boxes[image_id])
            item = _item(listed, f"{root}/{listed.key}")
            yield replace(item, image_id=image_id, boxes=boxes)


class _VideoSource:
    """The frames of a video, decoded as they are asked for."""

    kind = "video"
    places: list[str]

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no video {str(path)!r}")
        self.root = str(path.resolve())
        self.categories: dict[int, str] = {}
        capture = self._open()
        self._expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._seen = 0
        capture.release()

    def scan(self) -> tuple[int, str]:
        _, checksum = _checksum([f"{os.path.getsize(self.root)} bytes, {self._expected} frames"])
        return self._expected, checksum

    def listing(self) -> Iterator[Listed]:
        return (Listed(index, f"{index:06}", f"{index:06}") for index in range(self._seen))

    def items(self, wanted: Wanted) -> Iterator[Item]:
        capture = self._open()
        try:
            for index in itertools.count():
                if not capture.grab():
                    break
                self._seen = max(self._seen, 1 + index)
                listed = Listed(index, f"{index:06}", f"{index:06}")
                if wanted(listed):
                    read, frame = capture.retrieve()
                    pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if read else None
                    yield replace(_item(listed, self.root), pixels=pixels)
        finally:
            capture.release()
        if index < 0.95 * self._expected - 1:
            warnings.warn(
                f"{self.root!r} could be read up to frame {index} only, though its header tells "
                f"of {self._expected}: it may be damaged",
                stacklevel=2,
            )

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self.root)
        if not capture.isOpened():
            raise UserError(f"{self.root!r} is no video that OpenCV can decode")
        return capture


def _item(listed: Listed, path: str) -> Item:
    return Item(listed.index, 1 + listed.index, listed.key, listed.name, path)


def _find(name: str, leave_out: str | os.PathLike[str] | None) -> Iterable[str]:
    """The images that a file's, folder's or glob's name stands for, sorted."""
    if is_url(name):
        fs, path = open_filesystem(name)
        if glob.has_magic(path):
            found = [each for each in fs.glob(path) if _is_image(each)]
        elif fs.isfile(path):
            return [name]
        else:
            found = [each for each in fs.find(path) if _is_image(each)]
        if not found:
            raise FileNotFoundError(f"there is no image at {name!r}")
        left_out = f"{os.fspath(leave_out).rstrip('/')}/" if leave_out is not None else None
        urls = sorted(map(fs.unstrip_protocol, found), key=_order)
        return [url for url in urls if left_out is None or not url.startswith(left_out)]
    local = local_path(name)
    if local.is_dir():
        folder = _FolderSource(local, leave_out)
        return [f"{folder.root}/{listed.key}" for listed in folder.listing()]
    if local.exists():
        return [str(local)]
    if not glob.has_magic(name):
        raise FileNotFoundError(f"there is no image or folder {name!r}")
    found = [each for each in glob.glob(str(local), recursive=True) if _is_image(each)]
    if not found:
        raise FileNotFoundError(f"no image matches {name!r}")
    return sorted(found, key=_order)


def _order(path: str) -> list[tuple[bool, str]]:
    """Sorts as a folder is walked: the images in it first, then its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _read(place: str) -> str:
    if is_url(place):
        fs, path = open_filesystem(place)
        return str(fs.cat_file(path), "utf-8")
    return local_path(place).read_text(encoding="utf-8", errors="surrogateescape")


def _read_list(place: str) -> list[str]:
    """The paths in a text, of which relative ones are relative to its folder."""
    lines = [line.strip() for line in _read(place).splitlines()]
    folder = place.rpartition("/")[0] if is_url(place) else str(local_path(place).parent)
    return [
        line if is_url(line) or os.path.isabs(line) else f"{folder}/{line}"
        for line in lines
        if line and not line.startswith("#")
    ]


def _is_image(name: str) -> bool:
    suffix = posixpath.splitext(name)[1].lower()
    return Image.registered_extensions().get(suffix) in Image.OPEN


def _common_folder(paths: Sequence[str]) -> str:
    if not is_url(paths[0]):
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    split = [path.partition("://") for path in paths]
    if len({protocol for protocol, _, _ in split}) > 1:
        raise UserError(f"the images are on several file systems: {paths[0]!r} and others")
    return f"{split[0][0]}://" + posixpath.commonpath(
        [posixpath.dirname(path) for _, _, path in split]
    )


def _output_names(keys: Sequence[str]) -> list[str]:
    """The keys without suffixes, but for those that would share a name."""
    by_folder: dict[str, list[PurePosixPath]] = {}
    for key in keys:
        by_folder.setdefault(posixpath.dirname(key), []).append(PurePosixPath(key))
    names = {}
    for folder, paths in by_folder.items():
        for path, name in name_folders(paths).items():
            names[str(path)] = posixpath.join(folder, name)
    return [names[key] for key in keys]


def _checksum(lines: Iterable[str]) -> tuple[int, str]:
    """The number of lines and their SHA-256."""
    count, digest = 0, hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line) + b"\0")
        count += 1
    return count, digest.hexdigest()


def _refuse_twice(values: Sequence[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"{value!r} is listed twice")
        seen.add(value)
