"""Files that are either wholly there or not at all."""

import errno
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from umbel.shared.errors import BusyError, ConfigError

_CHUNK_BYTES = 1 << 20
_UNFINISHED = ".unfinished"


def sha256_bytes(data: bytes) -> str:
    """Returns the sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file as 64 hex digits, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with plain_file(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


_MARKS = {
    "run.json": "a run of 'umbel simulate'",
    "manifest.json": "a release",
    "training.json": "a training",
    "cells": "a comparison",
    "metadata/timestamp.json": "a channel",
    "coordinator.json": "a coordinator",
    "rounds.json": "what rounds have reached",
    "people.json": "a table of people",
}


def refuse_taken(folder: Path, own: str = "") -> None:
    """Keeps what one command writes out of a folder that another one has filled.

    Args:
        folder: Where somebody wants to write; it need not exist.
        own: The mark of what may be there: "run.json", "training.json", "rounds.json" or "cells".

    Raises:
        ConfigError: The folder holds something else.
    """
    found = [what for mark, what in _MARKS.items() if mark != own and (folder / mark).exists()]
    if found:
        raise ConfigError(f"{folder} holds {' and '.join(found)}", hint="Name another folder to write to.")


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Writes `data` to `path` so that readers see the old file or the whole new one, even after a power loss.

    Args:
        path: Where to write; its folder is made if it is missing.
        data: The whole content.
        mode: Permission bits of the new file; private files use 0o600.
        durable: Whether to wait until it is on the disk; without, a power loss may leave an empty file.

    Raises:
        OSError: The folder cannot be written, the disk is full, or something that is no plain file (a folder,
            a device) is there; the old file is then untouched. The error names `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "Not a plain file, so it is not replaced", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, data, mode, durable)
    except OSError as error:
        if error.errno is None:
            raise
        # A full disk's error names no file, and the others a temporary one that nobody has asked for.
        raise OSError(error.errno, error.strerror, str(path)) from error
    if durable:
        sync_folder(path.parent)


def plain_file(path: Path) -> IO[bytes]:
    """Opens a plain file to read it; what is there instead, such as a pipe, is not waited for.

    Raises:
        OSError: It is no plain file, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a plain file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def plain_bytes(path: Path, most: int) -> bytes:
    """Returns what a plain file holds; of a longer one, one byte more than `most`.

    Raises:
        OSError: It is no plain file, or cannot be read.
    """
    with plain_file(path) as stream:
        # The number is how much memory is taken first, however little there is to read.
        return stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)[: most + 1]


def first_bytes(path: Path, count: int) -> bytes | None:
    """Returns what a file begins with; None where there is nothing, or what no file can replace.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_file():
        return None
    with plain_file(path) as stream:
        return stream.read(count)


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keeps every other process that asks for the same folder out of it.

    The system lets go of it when the process ends, however it ends. Nothing is left in the folder, and if it
    was made here and the work failed before its first file, no folder either. Where the system or the disk
    knows no such locks, nobody is kept out.

    Raises:
        BusyError: Another process is at work in the folder.
        OSError: The folder cannot be made.
    """
    missing = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            yield
    except BaseException:
        if missing:
            _remove_empty(folder)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BusyError(
            f"another umbel is at work in {folder}", hint="Wait until it has ended, or name another folder."
        ) from None
    except OSError:
        pass  # a disk without locks
    try:
        yield
    finally:
        os.close(handle)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # work was left in it
        folder.rmdir()


def clear_unfinished(folder: Path, name: str = "") -> None:
    """Removes what writers that were killed have left in a folder; what is being written stays.

    Args:
        folder: The folder.
        name: The file that they were writing; any if empty.
    """
    for left in folder.glob(f".{glob.escape(name) or '*'}.*{_UNFINISHED}"):
        with suppress(OSError), left.open("rb") as stream:
            if _hold(stream.fileno()):
                left.unlink()


def _hold(handle: int) -> bool | None:
    """Holds a file until it is closed; says whether that worked, None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _unfinished(path: Path) -> tuple[int, str]:
    """Returns a new file beside a path, held, so that nobody takes it for a leftover."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        held = _hold(handle)
        if held is None or (held and os.fstat(handle).st_nlink):
            return handle, temporary
        os.close(handle)  # another process has cleared it away before it was held


def _replace(path: Path, data: bytes, mode: int, durable: bool) -> None:
    clear_unfinished(path.parent, path.name)
    handle, temporary = _unfinished(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system lets a folder be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
