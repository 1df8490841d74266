"""What is to be annotated: files, folders, lists of paths, COCO's boxes or the frames of a video.

A source lists its images in an order that depends on nothing but their names, on every machine.
What a name stands for is looked up first: a folder is one whatever it is called, and a file with
``[1]`` in its name is no pattern. Only what a file holds is told by its suffix.
"""

import glob
import hashlib
import itertools
import os
import posixpath
import re
import urllib.parse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2

from ..errors import UserError
from ..files import digest_source
from ..images import describe_kinds, is_image_name, skipped_kind
from . import writers
from .coco import CocoSource
from .items import (
    Images,
    Item,
    Listed,
    Source,
    Wanted,
    checksum,
    output_names,
    read_text,
    refuse_twice,
    with_slashes,
)
from .storage import PARTIAL, RUN_FILE, Place, ask, is_url, local_path, open_filesystem

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)

_LONGEST_QUERY = 80  # characters of a URL's query in a key

_IsResult = Callable[[str], bool]


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    images: str | os.PathLike[str] | None = None,
    leave_out: str | os.PathLike[str] | None = None,
) -> Source:
    """Finds out what is to be annotated. One warning tells what is left out of it, by kind.

    Args:
        source: an image, a glob, a folder (with the folders in it, but hidden files and links to
            folders left out), a ``.txt`` with a path a line, a COCO ``.json``, a video, or a URL of
            any of these but a video; or several images, globs and folders.
        images: where the images of a COCO json are; beside it if None.
        leave_out: a folder for results, whose files are not taken for images.

    Raises:
        FileNotFoundError: there is no such thing.
        UserError: there is no image in it, or it cannot be understood.
        OSError: a file system does not answer.
    """
    places = [source] if isinstance(source, str | os.PathLike) else source
    names = [os.fspath(place) for place in places]
    if not names:
        raise UserError("there is nothing to annotate: name images, a folder or a list of them")
    opened = _open(names, None if images is None else os.fspath(images), leave_out)
    opened.places = names
    if opened.left_out:
        warnings.warn(f"{', '.join(names)[:200]}: {describe_left_out(opened)}", stacklevel=2)
    return opened


def describe_left_out(source: Source) -> str:
    """What a source has left out, counted by kind; "" if nothing."""
    if source.kind == "coco":
        total = source.left_out.total()
        parts = [f"{count} {kind}" for kind, count in source.left_out.most_common()]
        verb = "annotation is" if total == 1 else "annotations are"
        return f"{total} {verb} left out: {', '.join(parts)}" if total else ""
    return describe_kinds(source.left_out)


def _open(names: list[str], images: str | None, leave_out: str | os.PathLike[str] | None) -> Source:
    kind = _find_kind(names[0]) if len(names) == 1 else "images"
    if kind == "coco":
        return CocoSource(names[0], images)
    if images is not None:
        raise UserError(f"a folder of images goes with a COCO json, {names[0]!r} is none")
    if kind == "video":
        return _VideoSource(local_path(names[0]))
    if kind == "list":
        paths = _read_list(names[0])
        if not paths:
            raise UserError(f"there is no path in {names[0]!r}: write one a line")
        return _ListSource(paths)
    if kind == "folder" and not is_url(names[0]):
        return _FolderSource(local_path(names[0]), leave_out)
    left_out: Counter[str] = Counter()
    paths = [path for name in names for path in _find(name, leave_out, left_out)]
    # Of one folder or glob keys count from there, though all of its images may lie deeper.
    root = _find_base(names[0]) if len(names) == 1 and paths != names else None
    return _ListSource(paths, root, left_out)


def _find_kind(name: str) -> str:
    """What a name stands for: "folder", "coco", "list", "video", "images"."""
    if _is_folder(name):
        return "folder"
    suffix = posixpath.splitext(Place.of(name).path)[1].lower()
    if suffix in VIDEO_SUFFIXES and not is_url(name):
        return "video"
    return {".json": "coco", ".txt": "list"}.get(suffix, "images")


def _is_folder(name: str) -> bool:
    if not is_url(name):
        return local_path(name).is_dir()
    place = Place.of(name)
    if posixpath.splitext(place.path)[1].lower() not in (".json", ".txt"):
        return False  # nothing depends on it, and asking takes time
    fs, path = open_filesystem(name)
    return not ask(name, fs.isfile, path) and ask(name, fs.isdir, path)


class _FolderSource(Images):
    """A folder and all below it; of a folder at a time it holds the names."""

    def __init__(self, root: Path, leave_out: str | os.PathLike[str] | None) -> None:
        super().__init__("images", str(root.resolve()))
        self._is_result = _know_results(leave_out)
        self._scanned = checksum(key for key, _ in self._walk("", self.left_out))
        if not self._scanned[0]:
            reason = describe_kinds(self.left_out)
            raise UserError(
                f"there is no image in the folder {str(root)!r}{reason and ': ' + reason}"
            )

    def scan(self) -> tuple[int, str]:
        return self._scanned

    def listing(self) -> Iterator[Listed]:
        for index, (key, name) in enumerate(self._walk("", Counter())):
            yield Listed(index, key, name)

    def item(self, listed: Listed) -> Item:
        return listed.at(f"{self.root}/{listed.key}")

    def _walk(self, folder: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
        """The keys and names of a folder's images, then of those in its folders."""
        with os.scandir(os.path.join(self.root, folder)) as entries:
            found = sorted(
                (entry for entry in entries if not self._is_result(entry.path)),
                key=lambda entry: entry.name,
            )
        keys, folders = [], []
        for entry in found:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                folders.append(entry.name)
            elif entry.is_dir():
                kind = "hidden folder" if entry.name.startswith(".") else "link to a folder"
                left_out[kind] += 1
            elif kind := skipped_kind(entry.name):
                left_out[kind] += 1
            elif is_image_name(entry.name):
                keys.append(folder + entry.name)
        yield from zip(keys, output_names(keys), strict=True)
        for name in folders:
            yield from self._walk(f"{folder}{name}/", left_out)


class _ListSource(Images):
    """Paths, or URLs, that were named one by one: each is opened as it was given."""

    def __init__(
        self,
        paths: Sequence[str],
        root: str | None = None,
        left_out: Counter[str] | None = None,
    ) -> None:
        """Takes the paths or URLs.

        Args:
            paths: of the images.
            root: the folder or URL that keys count from; the deepest that all are in if None.
            left_out: what was found beside them.
        """
        urls = [path for path in paths if is_url(path)]
        if urls and len(urls) < len(paths):
            local = next(path for path in paths if not is_url(path))
            raise UserError(f"URLs and paths cannot be mixed: {urls[0]!r} and {local!r}")
        if urls:
            places = [Place.of(url) for url in urls]
            for place in places:
                if (place.head, place.chain) != (places[0].head, places[0].chain):
                    raise UserError(
                        f"the images are on several file systems: {urls[0]!r} and {str(place)!r}"
                    )
            straight = [_straighten(place.path) for place in places]
            base = _straighten(Place.of(root).path) if root else _common_folder(straight)
            super().__init__("images", str(replace(places[0], path=base, query="")))
        else:
            paths = [os.path.join(os.getcwd(), local_path(path)) for path in paths]
            straight = [os.path.abspath(path) for path in paths]
            base = os.path.abspath(local_path(root)) if root else _common_folder(straight)
            super().__init__("images", base)
        keys = [path[len(base) :].lstrip("/") for path in straight]
        if urls:
            keys = _add_queries(keys, [place.query for place in places])
        refuse_twice(keys)
        self._paths = dict(zip(keys, paths, strict=True))
        self.left_out += left_out or Counter()

    def listing(self) -> Iterator[Listed]:
        return map(Listed, itertools.count(), self._paths, output_names([*self._paths]))

    def item(self, listed: Listed) -> Item:
        return listed.at(self._paths[listed.key])


class _VideoSource(Images):
    """The frames of a video, decoded as they are asked for."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no video {str(path)!r}")
        super().__init__("video", str(path.resolve()))
        capture = self._open()
        self._expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()

    def scan(self) -> tuple[int, str]:
        return self._expected, digest_source(Path(self.root))

    def listing(self) -> Iterator[Listed]:
        return map(list_frame, range(self._expected))

    def items(self, wanted: Wanted, end: int | None = None) -> Iterator[Item]:
        capture = self._open()
        try:
            for index in itertools.count():
                if index == end:
                    return
                if not capture.grab():
                    break
                listed = list_frame(index)
                if wanted(listed):
                    read, frame = capture.retrieve()
                    pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if read else None
                    yield listed.at(self.root, pixels=pixels)
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


def list_frame(index: int) -> Listed:
    """A frame of a video by its place."""
    return Listed(index, f"{index:06}", f"{index:06}")


def _find(name: str, leave_out: str | os.PathLike[str] | None, left_out: Counter[str]) -> list[str]:
    """The images that a file's, folder's or glob's name stands for, sorted."""
    if is_url(name):
        return _find_urls(name, leave_out, left_out)
    local = local_path(name)
    if local.is_dir():
        folder = _FolderSource(local, leave_out)
        left_out.update(folder.left_out)
        return [f"{folder.root}/{listed.key}" for listed in folder.listing()]
    if local.exists():
        return [name]
    if not glob.has_magic(name):
        raise FileNotFoundError(f"there is no image or folder {name!r}")
    is_result, real = _know_results(leave_out), lru_cache(os.path.realpath)
    found = [
        path
        for path in glob.glob(str(local), recursive=True)
        if not os.path.isdir(path)
        and not is_result(f"{real(os.path.dirname(path))}/{os.path.basename(path)}")
    ]
    return _take_images(name, found, left_out)


def _find_urls(
    name: str, leave_out: str | os.PathLike[str] | None, left_out: Counter[str]
) -> list[str]:
    place = Place.of(name)
    fs, path = open_filesystem(name)
    if ask(name, fs.isfile, path):
        return [name]
    if place.head.startswith("http") and place.query:
        return [name]  # what it is will show when it is read
    if glob.has_magic(place.path):
        found = ask(name, fs.glob, path)
    else:
        found = ask(name, fs.find, path)
    base = Place.of(_find_base(name))
    inner = open_filesystem(str(base))[1]
    # URLs are made from what was given: of a path in a file system not all of them can be.
    relative = [each.removeprefix(inner).lstrip("/") for each in found]
    is_result = _know_results(leave_out, fs)
    relative = [
        each
        for each in relative
        if not is_result(f"{inner}/{each}".replace("//", "/"))
        and not any(step.startswith(".") for step in each.split("/")[:-1])
    ]
    return [base.join(each) for each in _take_images(name, relative, left_out)]


def _take_images(name: str, found: list[str], left_out: Counter[str]) -> list[str]:
    """Those of the files that are images, sorted; the others are counted."""
    kinds = Counter(filter(None, map(skipped_kind, found)))
    images = sorted(filter(is_image_name, found), key=_order)
    if not images:
        reason = describe_kinds(kinds)
        raise FileNotFoundError(f"no image matches {name!r}{reason and ': ' + reason}")
    left_out.update(kinds)
    return images


def _know_results(leave_out: str | os.PathLike[str] | None, fs: Any = None) -> _IsResult:
    """Says of paths whether they are results of a run into a folder.

    Args:
        leave_out: the folder; nothing is a result if None.
        fs: the file system whose paths are asked for; this machine's if None.
    """
    if leave_out is None or is_url(leave_out) != (fs is not None):
        return lambda path: False
    if fs is None:
        root = os.path.realpath(local_path(leave_out))
    else:
        other, root = open_filesystem(os.fspath(leave_out))
        if other != fs:
            return lambda path: False
    start = root.rstrip("/") + "/"
    written = {*writers.WRITTEN, RUN_FILE, PARTIAL, "view.html"}

    def is_result(path: str) -> bool:
        return path.startswith(start) and path[len(start) :].partition("/")[0] in written

    return is_result


def _order(path: str) -> list[tuple[bool, str]]:
    """Sorts as a folder is walked: the images in it first, then its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _find_base(name: str) -> str:
    """A folder's name, or that of the folder before the first pattern in a glob."""
    place = Place.of(name)
    pattern = re.search(r"[*?[]", place.path)
    if pattern is None:
        return name
    return str(replace(place, path=posixpath.dirname(place.path[: pattern.start()]))) or "."


def _read_list(place: str) -> list[str]:
    """The paths in a text, of which relative ones are relative to its folder."""
    folder = Place.of(place).parent()

    def locate(name: str) -> str:
        if is_url(name) or os.path.isabs(local_path(name)):
            return name
        return folder.join(name) if is_url(place) else os.path.join(folder.path, name)

    paths = []
    for line in map(str.strip, re.split(r"\r\n|\r|\n", read_text(place))):
        # Whoever has files with such names means them.
        if not line or not is_url(place) and os.path.lexists(local_path(locate(line))):
            name = line
        elif line.startswith("#"):
            continue
        elif len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
            name = line[1:-1].strip()
        else:
            name = line
        if name:
            paths.append(name if is_url(name) else locate(with_slashes(name, locate(name))))
    return paths


def _straighten(path: str) -> str:
    """The path in a URL without empty steps and dots, which keys have no room for."""
    straight = posixpath.normpath(path).lstrip("/") if path else ""
    return ("/" if path.startswith("/") else "") + ("" if straight == "." else straight)


def _common_folder(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _add_queries(keys: list[str], queries: list[str]) -> list[str]:
    """Keys with the queries of their URLs where those tell what the image is.

    That is where the path is not called like an image, and where several URLs have one path. The
    queries of others are signatures, which differ from day to day.
    """
    shared = Counter(keys)
    named = []
    for key, query in zip(keys, queries, strict=True):
        if query and (shared[key] > 1 or not is_image_name(key)):
            text = urllib.parse.quote(query[1:], safe="=")
            if len(text) > _LONGEST_QUERY:
                text = hashlib.sha256(query.encode()).hexdigest()[:16]
            key = f"{key}_{text}"
        named.append(key)
    return named
