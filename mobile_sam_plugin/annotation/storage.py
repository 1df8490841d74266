"""A folder of results: on this machine, or wherever fsspec can write.

A file in it appears whole or not at all. On a disk it is written elsewhere and renamed; an object
store shows no object before all of it is there.
"""

import os
import posixpath
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

from ..errors import MissingExtra, UserError

Made = TypeVar("Made")

RUN_FILE = "run.json"
"""By which a folder is known to be that of a run; it is there before all others."""

PARTIAL = ".partial"
"""The folder of files that are not whole yet."""
_PROCESS = uuid.uuid4().hex  # told apart from an earlier process of the same number
_FORGOTTEN = 24 * 3600  # seconds after which a partial file of another machine is no one's
_WAITS = (0.5, 2.0)  # seconds before what a file system has failed at is tried again

# What no second attempt will change. Of other errors one cannot tell: each back end has its own.
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name stands for something that is not a path on this machine."""
    return "://" in os.fspath(name) and not os.fspath(name).startswith("file://")


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path in a name that is no URL, or one of ``file://``."""
    return Path(os.fspath(name).removeprefix("file://")).expanduser()


@dataclass(frozen=True)
class Place:
    """A path or URL in its parts, which put together give it back.

    Attributes:
        head: the protocol, ``s3://``, with whatever caches are before it; empty of a path.
        path: with the host or bucket where there is one.
        query: of ``http://``, from the question mark on.
        chain: what the file is in, ``::file.zip``, of URLs that fsspec chains.
    """

    head: str
    path: str
    query: str = ""
    chain: str = ""

    @classmethod
    def of(cls, name: str) -> "Place":
        """Takes a path or URL apart."""
        if not is_url(name):
            return cls("", str(local_path(name)))
        link, separator, rest = name.partition("::")
        if "://" not in link:
            inner = cls.of(rest)
            return replace(inner, head=link + separator + inner.head)
        protocol, _, path = link.partition("://")
        query = ""
        if protocol in ("http", "https"):
            found = re.search(r"[?#]", path)
            if found:
                path, query = path[: found.start()], path[found.start() :]
        if rest and not is_url(rest):  # a worker may be in another folder
            rest = os.path.abspath(local_path(rest))
        return cls(f"{protocol}://", path, query, separator + rest)

    def __str__(self) -> str:
        return self.head + self.path + self.query + self.chain

    def parent(self) -> "Place":
        """The folder that it is in."""
        return replace(self, path=posixpath.dirname(self.path), query="")

    def join(self, relative: str) -> str:
        """What has a name relative to this folder: double slashes stay, which are part of names."""
        steps = self.path.rstrip("/").split("/") if self.path else []
        for step in relative.split("/"):
            if step == "..":
                del steps[-1:]
            elif step != ".":
                steps.append(step)
        return str(replace(self, path="/".join(steps), query=""))


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
            # A worker may be in another folder when it takes up this object.
            self._root = os.path.abspath(local_path(place))

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.place if self._fs else self._root,)

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
            return ask(self.path(name), self._fs.cat_file, f"{self._root}/{name}")
        return Path(self._root, name).read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for reading; FileNotFoundError if there is none."""
        if self._fs:
            with tempfile.TemporaryFile() as file:
                ask(self.path(name), self._fs.get_file, f"{self._root}/{name}", file)
                file.seek(0)
                yield file
            return
        with open(Path(self._root, name), "rb") as file:
            yield file

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, in place of an earlier one, and the folders that it is in."""
        if self._fs:
            ask(self.path(name), self._fs.pipe_file, self._prepare(name), content)
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
                ask(self.path(name), self._fs.put_file, file.name, self._prepare(name))
            return
        target = Path(self._root, name)
        partial = None
        try:
            with self._open_partial() as file:
                partial = Path(file.name)
                yield file
            try:
                os.replace(partial, target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial, target)
        except BaseException as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            # A full disk does not tell which file did not fit.
            if isinstance(error, OSError) and error.errno and error.filename is None:
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise

    def scratch(self) -> IO[bytes]:
        """Opens a file that is gone when it is closed, where there is room for the results."""
        if self._fs:
            return tempfile.TemporaryFile()
        file = self._open_partial()
        with suppress(OSError):  # Windows keeps the name while the file is open
            os.unlink(file.name)
        return file

    def _open_partial(self) -> IO[bytes]:
        """Opens a new file whose name tells which process writes it."""
        folder = Path(self._root, PARTIAL)
        name = f"{_machine()}~{os.getpid()}~{_PROCESS}~{uuid.uuid4().hex}"
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # Another process may have removed the empty folder in between.
            with suppress(FileNotFoundError):
                return open(folder / name, "w+b")

    def _prepare(self, name: str) -> str:
        """Makes the folder of a file on a file system that has folders, and returns its path."""
        path = f"{self._root}/{name}"
        ask(self.path(name), self._fs.makedirs, path.rpartition("/")[0], exist_ok=True)
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        if self._fs:
            return ask(self.path(name), self._fs.exists, f"{self._root}/{name}")
        return os.path.isfile(Path(self._root, name))  # also where the name is too long

    def names(self, folder: str) -> set[str]:
        """The files in a folder and all below it."""
        if self._fs:
            self._fs.invalidate_cache()
            found = ask(self.path(folder), self._fs.find, f"{self._root}/{folder}")
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
        """Removes what processes that were killed have left of files; others may be at work."""
        folder = Path(self._root, PARTIAL)
        if self._fs or not folder.is_dir():
            return
        for path in folder.iterdir():
            if _is_left(path):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # another process is at work
            folder.rmdir()


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        UserError: no such protocol.
        MissingExtra: it needs a package that is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(f"{url!r}: {error}", name=error.name) from error
    except ValueError as error:
        raise UserError(f"{url!r}: {error}") from error
    return fs, path.rstrip("/")


def ask(url: str, function: Callable[..., Made], *arguments: Any, **options: Any) -> Made:
    """Calls a method of a file system, and calls it again where it failed for the moment.

    Args:
        url: what it is about, for messages.
        function: of fsspec's file system; with its arguments.

    Raises:
        OSError: whatever the back end has raised, each its own; with the URL.
    """
    for wait in (*_WAITS, None):
        try:
            return function(*arguments, **options)
        except Exception as error:
            if wait is not None and not _is_lasting(error):
                time.sleep(wait)
            elif isinstance(error, OSError):
                raise
            else:
                raise OSError(f"{url!r}: {type(error).__name__}: {error}") from error
    raise AssertionError


def _is_lasting(error: Exception) -> bool:
    """Whether an error will be the same at the next attempt: by its class, or HTTP's status."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return status < 500 and status not in (408, 425, 429)
    return isinstance(error, _LASTING)


def _is_left(partial: Path) -> bool:
    """Whether the process that was writing a file is no more."""
    machine, _, rest = partial.name.partition("~")
    number, _, rest = rest.partition("~")
    if machine == _machine() and number.isdecimal():
        if int(number) == os.getpid():
            return not rest.startswith(_PROCESS)
        return not _is_running(int(number))
    with suppress(FileNotFoundError):
        return time.time() - partial.stat().st_mtime > _FORGOTTEN
    return False


def _is_running(process: int) -> bool:
    try:
        if os.name == "nt":  # where signal 0 would end it
            return True
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    return socket.gethostname().replace("~", "-").replace("/", "-")
