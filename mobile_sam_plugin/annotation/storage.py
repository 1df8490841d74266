"""A folder of results: on this machine, or wherever fsspec can write.

A file in it appears whole or not at all. On a disk it is written elsewhere and renamed; an object
store shows no object before all of it is there.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

_PARTIAL = ".partial"


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name stands for something that is not a path on this machine."""
    return "://" in os.fspath(name) and not os.fspath(name).startswith("file://")


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path in a name that is no URL, or one of ``file://``."""
    return Path(os.fspath(name).removeprefix("file://")).expanduser()


class Folder:
    """Files by their POSIX paths relative to a folder, which need not exist."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        """Takes the place: a path, or a URL that fsspec understands.

        Raises:
            ValueError: fsspec knows no such protocol.
            ImportError: the protocol needs a package that is not installed.
        """
        self.place = os.fspath(place)
        self._fs: Any = None
        if is_url(place):
            self._fs, self._root = open_filesystem(self.place)
        else:
            self._root = str(local_path(place))

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.place,)

    @property
    def local(self) -> Path | None:
        """The path, if the folder is on this machine."""
        return None if self._fs else Path(self._root)

    def path(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.place.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """Returns the content of a file; FileNotFoundError if there is none."""
        if self._fs:
            content: bytes = self._fs.cat_file(f"{self._root}/{name}")
            return content
        return Path(self._root, name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, in place of an earlier one, and the folders that it is in."""
        if self._fs:
            self._fs.pipe_file(self._prepare(name), content)
            return
        with self.create(name) as file:
            file.write(content)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file that appears under its name when the block ends without an error.

        Raises:
            OSError: it cannot be written; with the path.
        """
        if self._fs:
            # Uploaded when it is whole, since not every file system can take an upload back.
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                self._fs.put_file(file.name, self._prepare(name))
            return
        target = Path(self._root, name)
        partial = Path(self._root, _PARTIAL, uuid.uuid4().hex)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                yield file
            try:
                os.replace(partial, target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial, target)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            # A full disk does not tell which file did not fit.
            if isinstance(error, OSError) and error.errno and error.filename is None:
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise

    def scratch(self) -> IO[bytes]:
        """Opens a file that is gone when it is closed, where there is room for the results."""
        if self._fs:
            return tempfile.TemporaryFile()
        partial = Path(self._root, _PARTIAL)
        partial.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=partial)

    def _prepare(self, name: str) -> str:
        """Makes the folder of a file on a file system that has folders, and returns its path."""
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        if self._fs:
            return bool(self._fs.exists(f"{self._root}/{name}"))
        return os.path.isfile(Path(self._root, name))  # also where the name is too long

    def names(self, folder: str) -> set[str]:
        """The files in a folder and all below it."""
        if self._fs:
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._root}/{folder}")
            return {path[path.index(self._root) + len(self._root) + 1 :] for path in found}
        root = Path(self._root)
        return {path.relative_to(root).as_posix() for path in root.joinpath(folder).rglob("*")}

    def remove(self, *names: str) -> None:
        """Removes files, and folders with all that is in them; those that exist."""
        for name in names:
            if self._fs:
                if self._fs.exists(f"{self._root}/{name}"):
                    self._fs.rm(f"{self._root}/{name}", recursive=True)
            elif Path(self._root, name).is_dir():
                shutil.rmtree(Path(self._root, name))
            else:
                Path(self._root, name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes what a process that was killed has left of files."""
        if not self._fs:
            self.remove(_PARTIAL)


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        ValueError: no such protocol.
        ImportError: it needs a package that is not installed.
    """
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path.rstrip("/")
