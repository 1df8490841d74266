"""Folders that hold a run: how a command resumes its own, and refuses that of another."""

import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUN_FILE = "run.json"
"""The settings of the run that a folder holds."""

WAY_OUT = "choose another folder, or delete this one"
"""What a user can do if a folder holds another run; for the message."""

LOCK_FILE = ".run.lock"
"""In a folder while a run writes to it; names the process."""

_LONGEST = 60  # characters of a value that is quoted; digests and lists are longer
_IN_USE = (errno.EACCES, errno.EAGAIN)  # what POSIX allows for a lock that another process holds
_held: set[str] = set()  # folders of this process, which its own locks would not refuse
_holding = threading.Lock()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder until the block ends.

    The lock is the operating system's: it ends with this process, however that is ended. Network
    file systems with POSIX locks, such as NFS, show it to other machines (untested). Where a file
    system has no locks, a warning says so. On Windows there is no lock.

    Args:
        folder: created if missing.

    Raises:
        UserError: if another run, of this process or another one, is in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = os.path.realpath(folder)
    with _holding:
        if name in _held:  # never open the file then: closing it would end the lock
            raise _in_use(folder, "of this process")
        _held.add(name)
    try:
        file = None if fcntl is None else _lock(folder)
        try:
            yield
        finally:
            if file is not None:
                (folder / LOCK_FILE).unlink(missing_ok=True)
                os.close(file)
    finally:
        _held.discard(name)


def _lock(folder: Path) -> int | None:
    """Returns the descriptor of the locked file; None if the file system has no locks."""
    path = folder / LOCK_FILE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):  # else the run before has removed it in between
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
        except OSError as error:
            owner = os.read(file, 200).decode(errors="replace")
            os.close(file)
            if error.errno in _IN_USE:
                raise _in_use(folder, owner) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            path.unlink(missing_ok=True)
            warnings.warn(
                f"the file system of {str(folder)!r} has no locks: make sure that no other run "
                "writes to this folder",
                stacklevel=4,
            )
            return None
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _in_use(folder: Path, owner: str) -> UserError:
    return UserError(
        f"another run ({owner}) is writing to the folder {str(folder)!r}: wait until it ends, or "
        "choose another folder"
    )


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    may_change: Container[str] = (),
    *,
    file: str = RUN_FILE,
    way_out: str = WAY_OUT,
    durable: bool = False,
) -> None:
    """Begins a run in a folder, or resumes the run of the same settings that is there.

    Args:
        folder: created if missing.
        settings: all that decides the results, such as options and fingerprints; as ``json`` takes
            them.
        may_change: names of settings in which a resumed run may differ.
        file: the name of the file with the settings.
        way_out: what the user can do if the folder holds another run; for the message.
        durable: as in :func:`~mobile_sam_plugin.files.replaced`.

    Raises:
        UserError: if the folder holds another run; the message names what differs.
    """
    find_run(folder, settings, may_change, file=file, way_out=way_out)
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, settings, file=file, durable=durable)


def write_settings(
    folder: Path, settings: Mapping[str, Any], *, file: str = RUN_FILE, durable: bool = False
) -> None:
    """Writes the settings of a run to its folder, which exists, whatever is there."""
    write_file(folder / file, json.dumps(settings, indent=1).encode() + b"\n", durable)


def find_run(
    folder: Path,
    settings: Mapping[str, Any],
    may_change: Container[str] = (),
    *,
    file: str = RUN_FILE,
    way_out: str = WAY_OUT,
) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder, or None if it holds none; writes nothing.

    Arguments and errors are those of :func:`claim`.
    """
    try:
        earlier = json.loads((folder / file).read_bytes())
    except FileNotFoundError:
        return None
    except (NotADirectoryError, ValueError):
        earlier = None
    if not isinstance(earlier, dict):
        raise UserError(f"{str(folder / file)!r} is not the file of a run: {way_out}")
    refuse_other_run(str(folder), earlier, settings, may_change, way_out)
    return earlier


def refuse_other_run(
    place: str,
    earlier: Mapping[str, Any],
    settings: Mapping[str, Any],
    may_change: Container[str] = (),
    way_out: str = WAY_OUT,
) -> None:
    """Raises UserError if two runs differ in their settings.

    Args:
        place: the folder, for the message.
        earlier: settings that were read from JSON.
        settings, may_change, way_out: as in :func:`claim`.
    """
    now = json.loads(json.dumps(settings))
    differing = [
        difference
        for name in {**earlier, **now}
        if name not in may_change
        for difference in _differences(name, earlier.get(name), now.get(name))
    ]
    if differing:
        raise UserError(
            f"the folder {place!r} holds another run ({'; '.join(differing)}): {way_out}"
        )


def _differences(name: str, earlier: Any, now: Any) -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            difference
            for key in {**earlier, **now}
            for difference in _differences(f"{name} {key}", earlier.get(key), now.get(key))
        ]
    if earlier == now:
        return []
    was, is_now = repr(earlier), repr(now)
    if max(len(was), len(is_now)) > _LONGEST:
        return [f"{name} has changed"]
    return [f"{name} was {was}, is now {is_now}"]
