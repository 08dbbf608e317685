"""New files that are whole or not there at all: after errors, on a full disk, and after a kill or a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from phi_hybrid.bridge.checks import require, require_path
from phi_hybrid.errors import DataError

FOREIGN_AGE = 3600.0
"""Seconds for which a temporary file of another host must not have changed, to be taken for abandoned."""

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
"""What file systems answer that cannot flush a folder."""


def require_writable(name: str, path: str | os.PathLike[str]) -> None:
    """Raises StateError where no file could be written, before the work is done that would be lost."""
    require_path(name, path)
    require(not os.path.isdir(path), name, path, "the path of a file, not of a folder, e.g. 'runs/first.pt'")
    folder = os.path.dirname(os.path.abspath(os.fspath(path)))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK)
    require(writable, name, path, f"a path in a folder that can be written to, which {folder} is not")


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives an open file to write; it takes the name `path` once all is written, see `replacing`.

    Raises:
        DataError: if it cannot be written, e.g. on a full disk; an older file of this name stays whole.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{os.fspath(path)} could not be written ({error}); an older file of this name is as it was. Free some space, or "
            "choose another folder"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a temporary name beside `path`; once all is written there, it takes the name `path`: never half a file.

    Both the file and its name are on the disk when this ends. Temporary files of the same `path` whose writers were
    killed are removed first.
    """
    require_path("path", path)
    path = os.path.abspath(os.fspath(path))
    created = _make_folder(os.path.dirname(path))
    _remove_abandoned(path)
    temporary, lock = _claim(path)
    try:
        yield temporary
        _flush(temporary, os.O_RDWR)
        if os.name == "nt":  # open files have no new names there
            lock.close()
        os.replace(temporary, path)
    except BaseException:
        lock.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    lock.close()
    for folder in created:
        _flush_folder(folder)


def _make_folder(folder: str) -> list[str]:
    """Makes a folder; returns those whose entries change when a file is made in it."""
    changed = [folder]
    while not os.path.exists(changed[-1]):
        changed.append(os.path.dirname(changed[-1]))
    os.makedirs(folder, exist_ok=True)
    return changed


def _flush(path: str, flags: int) -> None:
    """Waits until a file or folder is on the disk itself."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: str) -> None:
    if os.name == "nt":
        return
    try:
        _flush(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


# --- temporary files that others left behind ---


def _claim(path: str) -> tuple[str, BinaryIO]:
    """A new temporary file, locked for as long as it is open."""
    while True:
        temporary = f"{path}.{_HOST}-{secrets.token_hex(4)}.part"
        lock = open(temporary, "xb")
        _lock(lock, wait=True)
        if os.path.exists(temporary):  # or else another writer took it for abandoned before it was locked
            return temporary, lock
        lock.close()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Locks an open file until it is closed or the process ends, however it ends. Tells if that worked.

    The lock belongs to the open file rather than to the process, whose other files of the same name would end it, and is
    not of the kind that HDF5 takes of files it opens.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError:  # held by another, or a file system without locks
        return False
    return True


def _remove_abandoned(path: str) -> None:
    """Removes temporary files of `path` that nobody writes any more.

    A writer that lives holds the lock of its file. Some network file systems keep locks to each host: files of others
    must also be old. Without locks nothing is removed.
    """
    folder, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.(?:([0-9a-f]{8})-)?[0-9a-f]{8}\.part")  # without a host in version 0.1
    with os.scandir(folder) as entries:
        found = [(entry.path, match[1]) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for temporary, host in found:
        with contextlib.suppress(OSError):  # removed by another, or not ours to touch
            old = time.time() - os.stat(temporary).st_mtime > FOREIGN_AGE
            with open(temporary, "r+b") as file:
                if (host == _HOST or old) and _lock(file, wait=False):
                    os.unlink(temporary)
