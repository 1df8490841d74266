"""The inputs of a run: files, folders, lists of paths, COCO's boxes or the frames of a video.

A source lists its images in an order that depends only on their names, on every machine. A name is
looked up before it is interpreted: a folder may be called ``clip.mp4``, and a file with ``[1]`` in
its name is not a pattern. Only the content of a file is inferred from its suffix.
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

from typing_extensions import override

from ..errors import UserError
from ..files import digest_source
from ..images import describe_kinds, is_image_name, skipped_kind
from ..videos import VIDEO_SUFFIXES, VideoFile
from . import writers
from .coco import CocoSource
from .items import (
    Item,
    Listed,
    Source,
    Wanted,
    checksum,
    output_names,
    read_text,
    refuse_duplicates,
    with_slashes,
)
from .storage import PARTIAL, RUN_FILE, Location, ask, is_url, local_path, open_filesystem

_LONGEST_QUERY = 80  # characters of a URL's query in a key

_IsResult = Callable[[str], bool]


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    images: str | os.PathLike[str] | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens the input of a run. One warning counts what is left out of it, by kind.

    Args:
        source: an image, a glob, a folder (searched recursively, without hidden files and links to
            folders), a ``.txt`` with one path per line, a COCO ``.json``, a video, or a URL of any
            of these except a video; or several images, globs and folders.
        images: the folder of a COCO data set's images; that of the JSON if None.
        exclude: a folder for results, whose files are not taken for images.

    Raises:
        FileNotFoundError: if the source does not exist.
        UserError: if it has no images or is invalid.
        OSError: if a file system does not answer.
    """
    given = [source] if isinstance(source, str | os.PathLike) else source
    names = [os.fspath(name) for name in given]
    if not names:
        raise UserError("there is nothing to annotate: give images, a folder or a list of paths")
    opened = _open(names, None if images is None else os.fspath(images), exclude)
    opened.inputs = names
    if opened.skipped:
        skipped = describe_kinds(opened.skipped, "annotation" if opened.kind == "coco" else "file")
        warnings.warn(f"{', '.join(names)[:200]}: {skipped}", stacklevel=2)
    return opened


def _open(names: list[str], images: str | None, exclude: str | os.PathLike[str] | None) -> Source:
    kind = _find_kind(names[0]) if len(names) == 1 else "images"
    if kind == "coco":
        return CocoSource(names[0], images)
    if images is not None:
        raise UserError(f"--images (images=) needs a COCO JSON as input, not {names[0]!r}")
    if kind == "video":
        return _VideoSource(local_path(names[0]))
    if kind == "list":
        paths = _read_list(names[0])
        if not paths:
            raise UserError(f"there is no path in {names[0]!r}: write one per line")
        return _ListSource(paths, names[0])
    if kind == "folder" and not is_url(names[0]):
        return _FolderSource(local_path(names[0]), exclude)
    skipped: Counter[str] = Counter()
    paths = [path for name in names for path in _find(name, exclude, skipped)]
    # Keys are relative to a single folder or glob, even if all of its images are deeper.
    root = _find_base(names[0]) if len(names) == 1 and paths != names else None
    return _ListSource(paths, "the input", root, skipped)


def _find_kind(name: str) -> str:
    """Returns what a name refers to: "folder", "coco", "list", "video" or "images"."""
    if _is_folder(name):
        return "folder"
    suffix = posixpath.splitext(Location.of(name).path)[1].lower()
    if suffix in VIDEO_SUFFIXES and not is_url(name):
        return "video"
    return {".json": "coco", ".txt": "list"}.get(suffix, "images")


def _is_folder(name: str) -> bool:
    if not is_url(name):
        return local_path(name).is_dir()
    if posixpath.splitext(Location.of(name).path)[1].lower() not in (".json", ".txt"):
        return False  # makes no difference then, and asking takes time
    fs, path = open_filesystem(name)
    return not ask(name, fs.isfile, path) and ask(name, fs.isdir, path)


class _FolderSource(Source):
    """A folder and all below it; holds the names of one folder at a time."""

    def __init__(self, root: Path, exclude: str | os.PathLike[str] | None) -> None:
        super().__init__("images", str(root.resolve()))
        self._is_result = _result_filter(exclude)
        self._scanned = checksum(key for key, _ in self._walk("", self.skipped))
        if not self._scanned[0]:
            reason = describe_kinds(self.skipped)
            raise UserError(
                f"there is no image in the folder {str(root)!r}{reason and ': ' + reason}"
            )

    @override
    def scan(self) -> tuple[int, str]:
        return self._scanned

    @override
    def listing(self) -> Iterator[Listed]:
        for index, (key, name) in enumerate(self._walk("", Counter())):
            yield Listed(index, key, name)

    @override
    def item(self, listed: Listed) -> Item:
        return listed.at(f"{self.root}/{listed.key}")

    def _walk(self, folder: str, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
        """Lists the keys and names of a folder's images, then of those in its subfolders."""
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
                skipped[kind] += 1
            elif kind := skipped_kind(entry.name):
                skipped[kind] += 1
            elif is_image_name(entry.name):
                keys.append(folder + entry.name)
        yield from zip(keys, output_names(keys), strict=True)
        for name in folders:
            yield from self._walk(f"{folder}{name}/", skipped)


class _ListSource(Source):
    """Paths or URLs that were given one by one; each is opened as it was given."""

    def __init__(
        self,
        paths: Sequence[str],
        origin: str,
        root: str | None = None,
        skipped: Counter[str] | None = None,
    ) -> None:
        """Makes keys of the paths or URLs.

        Args:
            paths: of the images.
            origin: the list that they come from, for messages.
            root: the folder or URL that keys are relative to; if None, the deepest that holds all.
            skipped: other files that were found.
        """
        urls = [path for path in paths if is_url(path)]
        if urls and len(urls) < len(paths):
            local = next(path for path in paths if not is_url(path))
            raise UserError(f"URLs and paths cannot be mixed: {urls[0]!r} and {local!r}")
        if urls:
            locations = [Location.of(url) for url in urls]
            first = locations[0]
            for location in locations:
                if (location.head, location.chain) != (first.head, first.chain):
                    raise UserError(
                        f"the images are on several file systems: {urls[0]!r} and {str(location)!r}"
                    )
            normal = [_normalize(location.path) for location in locations]
            base = _normalize(Location.of(root).path) if root else _common_folder(normal)
            super().__init__("images", str(replace(first, path=base, query="")))
        else:
            paths = [os.path.join(os.getcwd(), local_path(path)) for path in paths]
            normal = [os.path.abspath(path) for path in paths]
            base = os.path.abspath(local_path(root)) if root else _common_folder(normal)
            super().__init__("images", base)
        keys = [path[len(base) :].lstrip("/") for path in normal]
        if urls:
            keys = _add_queries(keys, [location.query for location in locations])
        refuse_duplicates("path", keys, origin)
        self._paths = dict(zip(keys, paths, strict=True))
        self.skipped += skipped or Counter()

    @override
    def listing(self) -> Iterator[Listed]:
        return map(Listed, itertools.count(), self._paths, output_names([*self._paths]))

    @override
    def item(self, listed: Listed) -> Item:
        return listed.at(self._paths[listed.key])


class _VideoSource(Source):
    """The frames of a video, decoded when they are requested."""

    def __init__(self, path: Path) -> None:
        self._file = VideoFile(path.resolve())
        super().__init__("video", str(self._file.path))

    @override
    def scan(self) -> tuple[int, str]:
        return self._file.length, digest_source(self._file.path)

    @override
    def listing(self) -> Iterator[Listed]:
        return map(list_frame, range(self._file.length))

    @override
    def items(self, wanted: Wanted, end: int | None = None) -> Iterator[Item]:
        frames = self._file.read(lambda index: index == end or wanted(list_frame(index)))
        for index, pixels in frames:
            if index == end:
                return
            yield list_frame(index).at(self.root, pixels=pixels)


def list_frame(index: int) -> Listed:
    """Returns a frame of a video by its index."""
    return Listed(index, f"{index:06}", f"{index:06}")


def _find(name: str, exclude: str | os.PathLike[str] | None, skipped: Counter[str]) -> list[str]:
    """Lists the images of a file, folder or glob, sorted."""
    if is_url(name):
        return _find_urls(name, exclude, skipped)
    local = local_path(name)
    if local.is_dir():
        folder = _FolderSource(local, exclude)
        skipped.update(folder.skipped)
        return [f"{folder.root}/{listed.key}" for listed in folder.listing()]
    if local.exists():
        return [name]
    if not glob.has_magic(name):
        raise FileNotFoundError(f"there is no image or folder {name!r}")
    is_result, real = _result_filter(exclude), lru_cache(os.path.realpath)
    found = [
        path
        for path in glob.glob(str(local), recursive=True)
        if not os.path.isdir(path)
        and not is_result(f"{real(os.path.dirname(path))}/{os.path.basename(path)}")
    ]
    return _take_images(name, found, skipped)


def _find_urls(
    name: str, exclude: str | os.PathLike[str] | None, skipped: Counter[str]
) -> list[str]:
    location = Location.of(name)
    fs, path = open_filesystem(name)
    if ask(name, fs.isfile, path):
        return [name]
    if location.head.startswith("http") and location.query:
        return [name]  # whether it is an image shows when it is read
    found = ask(name, fs.glob if glob.has_magic(location.path) else fs.find, path)
    base = Location.of(_find_base(name))
    inner = open_filesystem(str(base))[1]
    # The file system's paths cannot always be converted to URLs, so these are made from the input.
    relative = [each.removeprefix(inner).lstrip("/") for each in found]
    is_result = _result_filter(exclude, fs)
    relative = [
        each
        for each in relative
        if not is_result(f"{inner}/{each}".replace("//", "/"))
        and not any(step.startswith(".") for step in each.split("/")[:-1])
    ]
    return [base.join(each) for each in _take_images(name, relative, skipped)]


def _take_images(name: str, found: list[str], skipped: Counter[str]) -> list[str]:
    """Returns the files that are images, sorted, and counts the others in ``skipped``."""
    kinds = Counter(filter(None, map(skipped_kind, found)))
    images = sorted(filter(is_image_name, found), key=_order)
    if not images:
        reason = describe_kinds(kinds)
        raise FileNotFoundError(f"no image matches {name!r}{reason and ': ' + reason}")
    skipped.update(kinds)
    return images


def _result_filter(exclude: str | os.PathLike[str] | None, fs: Any = None) -> _IsResult:
    """Returns a function that tells whether a path is a result of a run into a folder.

    Args:
        exclude: the folder; no path is a result if None.
        fs: the file system of the paths; that of this machine if None.
    """
    if exclude is None or is_url(exclude) != (fs is not None):
        return lambda path: False
    if fs is None:
        root = os.path.realpath(local_path(exclude))
    else:
        other, root = open_filesystem(os.fspath(exclude))
        if other != fs:
            return lambda path: False
    start = root.rstrip("/") + "/"
    written = {*writers.WRITTEN, RUN_FILE, PARTIAL, "view.html"}

    def is_result(path: str) -> bool:
        return path.startswith(start) and path[len(start) :].partition("/")[0] in written

    return is_result


def _order(path: str) -> list[tuple[bool, str]]:
    """Sort key of a path, in the order of walking: images of a folder, then its subfolders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _find_base(name: str) -> str:
    """Returns a folder's name, or that of the folder before the first pattern in a glob."""
    location = Location.of(name)
    pattern = re.search(r"[*?[]", location.path)
    if pattern is None:
        return name
    folder = posixpath.dirname(location.path[: pattern.start()])
    return str(replace(location, path=folder)) or "."


def _read_list(location: str) -> list[str]:
    """Reads the paths in a text file; relative ones are relative to its folder."""
    folder = Location.of(location).parent()

    def locate(name: str) -> str:
        if is_url(name) or os.path.isabs(local_path(name)):
            return name
        return folder.join(name) if is_url(location) else os.path.join(folder.path, name)

    paths = []
    for line in map(str.strip, re.split(r"\r\n|\r|\n", read_text(location))):
        # A line that is a file's name means that file, even if it looks like a comment.
        if not line or (not is_url(location) and os.path.lexists(local_path(locate(line)))):
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


def _normalize(path: str) -> str:
    """Removes empty steps and dots, which keys cannot have, from the path of a URL."""
    normal = posixpath.normpath(path).lstrip("/") if path else ""
    return ("/" if path.startswith("/") else "") + ("" if normal == "." else normal)


def _common_folder(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _add_queries(keys: list[str], queries: list[str]) -> list[str]:
    """Adds the queries of URLs to keys if they identify the image.

    They do if the path does not have an image's suffix, or if several URLs share a path. Other
    queries are signatures, which change from day to day.
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
