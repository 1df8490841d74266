"""A folder of results, on this machine or wherever fsspec can write.

A file appears whole or not at all. On a disk it is written under another name and then renamed; an
object store shows an object only when it is complete. Unlike those of :mod:`..files`, incomplete
files have a folder of their own: after a kill they are found without searching a million files, and
the names of results may be as long as the file system allows.
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
"""Marks a folder as that of a run; written before all other files."""

PARTIAL = ".partial"
"""The folder of incomplete files."""
_PROCESS = uuid.uuid4().hex  # since another process may have had the same id
_ABANDONED = 24 * 3600  # seconds after which an incomplete file of another machine is removed
_WAITS = (0.5, 2.0)  # seconds before a failed request is repeated

# Errors that repeating does not change. Others may pass: each back end has errors of its own.
_PERMANENT = (
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
    """Returns whether a name is a URL, other than one of a file on this machine."""
    return "://" in os.fspath(name) and not os.fspath(name).startswith("file://")


def local_path(name: str | os.PathLike[str]) -> Path:
    """Returns the path in a name that is not a URL, or in a ``file://`` URL."""
    return Path(os.fspath(name).removeprefix("file://")).expanduser()


@dataclass(frozen=True)
class Location:
    """A path or URL in its parts, which joined give it back.

    Attributes:
        head: the protocol such as ``s3://``, after any caching protocols; empty for a path.
        path: with the host or bucket if there is one.
        query: of ``http://``, from the question mark on.
        chain: the enclosing file, ``::file.zip``, of URLs that fsspec chains.
    """

    head: str
    path: str
    query: str = ""
    chain: str = ""

    @classmethod
    def of(cls, name: str) -> "Location":
        """Splits a path or URL."""
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
        if rest and not is_url(rest):  # a worker may have another current folder
            rest = os.path.abspath(local_path(rest))
        return cls(f"{protocol}://", path, query, separator + rest)

    def __str__(self) -> str:
        return self.head + self.path + self.query + self.chain

    def parent(self) -> "Location":
        """Returns the folder that it is in."""
        return replace(self, path=posixpath.dirname(self.path), query="")

    def join(self, relative: str) -> str:
        """Joins a relative name to this folder; double slashes, part of object names, stay."""
        steps = self.path.rstrip("/").split("/") if self.path else []
        for step in relative.split("/"):
            if step == "..":
                del steps[-1:]
            elif step != ".":
                steps.append(step)
        return str(replace(self, path="/".join(steps), query=""))


class Folder:
    """Files by their POSIX paths relative to a folder, which need not exist.

    Attributes:
        location: the folder's path or URL, as given.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        """Opens a path, or a URL that fsspec understands.

        Raises:
            UserError: if fsspec does not know the protocol.
            MissingExtra: if the protocol needs a package that is not installed.
        """
        self.location = os.fspath(location)
        self._fs: Any = None
        if is_url(location):
            self._fs, self._root = open_filesystem(self.location)
        else:
            # Absolute, since a worker that unpickles it may have another current folder.
            self._root = os.path.abspath(local_path(location))

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.location if self._fs else self._root,)

    @property
    def local(self) -> Path | None:
        """The path if the folder is on this machine, else None."""
        return None if self._fs else Path(self._root)

    def path(self, name: str) -> str:
        """Returns the path or URL of a file, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

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
        """Writes a file, replacing an earlier one, and creates its folders."""
        if self._fs:
            ask(self.path(name), self._fs.pipe_file, self._prepare(name), content)
            return
        with self.create(name) as file:
            file.write(content)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file that appears under its name when the block ends without an error.

        Raises:
            OSError: if it cannot be written; with the path.
        """
        if self._fs:
            # Uploaded when complete, since not every file system can cancel an upload.
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
            # The error of a full disk does not name the file.
            if isinstance(error, OSError) and error.errno and error.filename is None:
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise

    def scratch(self) -> IO[bytes]:
        """Opens a temporary file, on the disk of the results; it is removed when closed."""
        if self._fs:
            return tempfile.TemporaryFile()
        file = self._open_partial()
        with suppress(OSError):  # Windows keeps the name while the file is open
            os.unlink(file.name)
        return file

    def _open_partial(self) -> IO[bytes]:
        """Opens a new file whose name identifies the process that writes it."""
        folder = Path(self._root, PARTIAL)
        name = f"{_machine()}~{os.getpid()}~{_PROCESS}~{uuid.uuid4().hex}"
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # Another process may have removed the empty folder in between.
            with suppress(FileNotFoundError):
                return open(folder / name, "w+b")

    def _prepare(self, name: str) -> str:
        """Returns the path of a file, after creating its folder if the file system has folders."""
        path = f"{self._root}/{name}"
        ask(self.path(name), self._fs.makedirs, path.rpartition("/")[0], exist_ok=True)
        return path

    def exists(self, name: str) -> bool:
        """Returns whether there is such a file."""
        if self._fs:
            return ask(self.path(name), self._fs.exists, f"{self._root}/{name}")
        return os.path.isfile(Path(self._root, name))  # also where the name is too long

    def names(self, folder: str) -> set[str]:
        """Lists the files in a folder and all below it."""
        if self._fs:
            self._fs.invalidate_cache()
            found = ask(self.path(folder), self._fs.find, f"{self._root}/{folder}")
            return {path[path.index(self._root) + len(self._root) + 1 :] for path in found}
        root = Path(self._root)
        return {path.relative_to(root).as_posix() for path in root.joinpath(folder).rglob("*")}

    def remove(self, *names: str) -> None:
        """Removes files, and folders with their contents, if they exist."""
        for name in names:
            if self._fs:
                if self._fs.exists(f"{self._root}/{name}"):
                    self._fs.rm(f"{self._root}/{name}", recursive=True)
            elif Path(self._root, name).is_dir():
                shutil.rmtree(Path(self._root, name))
            else:
                Path(self._root, name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes the incomplete files of killed processes, not those of running ones."""
        folder = Path(self._root, PARTIAL)
        if self._fs or not folder.is_dir():
            return
        for path in folder.iterdir():
            if _is_abandoned(path):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # another process is at work
            folder.rmdir()


def open_filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path in it.

    Raises:
        UserError: if fsspec does not know the protocol.
        MissingExtra: if the protocol needs a package that is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(f"{url!r}: {error}", name=error.name) from error
    except ValueError as error:
        raise UserError(f"{url!r}: {error}") from error
    return fs, path.rstrip("/")


def ask(url: str, function: Callable[..., Made], *arguments: Any, **options: Any) -> Made:
    """Calls a method of a file system, up to three times if it fails for a passing reason.

    Args:
        url: the file or folder concerned, for messages.
        function: a method of fsspec's file system.
        arguments, options: of that method.

    Raises:
        OSError: if the last call fails, whatever the back end raised; with the URL.
    """
    for wait in (*_WAITS, None):
        try:
            return function(*arguments, **options)
        except Exception as error:
            if wait is not None and not _is_permanent(error):
                time.sleep(wait)
            elif isinstance(error, OSError):
                raise
            else:
                raise OSError(f"{url!r}: {type(error).__name__}: {error}") from error
    raise AssertionError


def _is_permanent(error: Exception) -> bool:
    """Returns whether repeating cannot help, by the error's class or its HTTP status."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return status < 500 and status not in (408, 425, 429)
    return isinstance(error, _PERMANENT)


def _is_abandoned(partial: Path) -> bool:
    """Returns whether the process that was writing a file has ended."""
    machine, _, rest = partial.name.partition("~")
    number, _, rest = rest.partition("~")
    if machine == _machine() and number.isdecimal():
        if int(number) == os.getpid():
            return not rest.startswith(_PROCESS)
        return not _is_running(int(number))
    with suppress(FileNotFoundError):
        return time.time() - partial.stat().st_mtime > _ABANDONED
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
