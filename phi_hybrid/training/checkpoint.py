"""Checkpoints: torch files with a checksum, whole or not there at all.

A checkpoint is what `torch.save` writes, which is a zip archive, with a checksum of all of it in the place that zip
archives have for a comment, at their end. Other programs, and `torch.load`, read it as ever.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import struct
import zlib
from collections import deque
from typing import Any, BinaryIO

import numpy as np
import torch

from phi_hybrid.bridge.checks import require_path
from phi_hybrid.data import new_file
from phi_hybrid.errors import DataError, StateError

_COMMENT = b"phi_hybrid.checkpoint 1 crc32 %08x"
_PATTERN = re.compile(rb"phi_hybrid\.checkpoint 1 crc32 ([0-9a-f]{8})")
_LENGTH = len(_COMMENT % 0)
_END = b"PK\x05\x06"
"""How the last 22 bytes of a zip archive without a comment begin; the last two are the length of the comment, 0."""
_CHUNK = 2**20
_WAY_OUT = "keep tensors, numbers, strings, and dicts, lists and tuples of them in the states of solver, optimizer and scheduler"


def write_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Writes a dict of tensors and plain values; an older file of this name stays whole until the new one is complete.

    NumPy's numbers, which `torch.load(weights_only=True)` refuses, are written as Python's.

    Raises:
        DataError: if it cannot be written, e.g. on a full disk.
        StateError: for values that could not be read back.
    """
    with new_file(path) as raw:
        file = _Checked(raw)
        try:
            torch.save(plain(state), file)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StateError(f"a checkpoint cannot hold this state ({error}): {_WAY_OUT}") from error
        if file.error is not None:
            raise file.error
        raw.seek(-2, os.SEEK_END)
        raw.write(struct.pack("<H", _LENGTH) + _COMMENT % file.checksum)
        raw.flush()
        _require_readable(raw.name)


class _Checked:
    """Passes on what torch writes, and keeps its checksum.

    Errors are kept, too, and raised when torch is done: its writer, in C++, may not survive them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.checksum = 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if self.error is None:
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
        self.checksum = zlib.crc32(view, self.checksum)
        return len(view)

    def flush(self) -> None:
        """Nothing: the file is flushed when it is complete."""


def plain(value: Any) -> Any:
    """The same value with Python's numbers in place of NumPy's, anywhere in dicts, lists, tuples and sets.

    What holds none is returned as it is.
    """
    if type(value) in (float, int, str):  # nearly all of a long history
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        number = value.item()
        return float(number) if isinstance(number, np.floating) else number  # long doubles are nobody else's
    if isinstance(value, dict):
        return _plain_dict(value)
    if type(value) in (list, tuple, set, deque):
        entries = [plain(v) for v in value]
        if all(new is old for new, old in zip(entries, value)):
            return value
        return deque(entries, value.maxlen) if isinstance(value, deque) else type(value)(entries)
    return value


def _plain_dict(value: dict) -> dict:
    entries = [(plain(k), plain(v)) for k, v in value.items()]
    if all(k is old_k and v is old_v for (k, v), (old_k, old_v) in zip(entries, value.items())):
        return value
    new = copy.copy(value)  # of the same class, with the same attributes, such as the versions in a state dict
    new.clear()
    new.update(entries)
    return new


def _require_readable(path: str) -> None:
    """Raises StateError if a file holds what `read_checkpoint` will refuse. Looks at all but the values of tensors."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        names = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or str(error)
        raise StateError(f"a checkpoint would hold {names}, which is not loaded again for safety: {_WAY_OUT}") from None


def read_checkpoint(path: str | os.PathLike, device: torch.device | str | None = None) -> dict[str, Any]:
    """Reads what `write_checkpoint` wrote, and compares it with its checksum.

    Files of version 0.1, and others of `torch.save`, are read, too; they have no checksum.

    Args:
        path: of the file.
        device: where the tensors go.

    Raises:
        DataError: if the file is missing, damaged, truncated or foreign.
    """
    require_path("path", path)
    path = os.fspath(path)
    try:
        # Opened once: checked and read is the same file, also if another one takes its name meanwhile.
        with open(path, "rb") as file:
            _verify(file)
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"no checkpoint at {path}; write one with Trainer(…, checkpoint=…) or save") from None
    except DataError as error:
        raise DataError(f"{path} {error}; take another copy of it, or start anew") from error
    except Exception as error:  # whatever Python and torch make of other bytes
        raise DataError(f"{path} is no complete checkpoint ({type(error).__name__}: {error}); start anew") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} is no checkpoint: it holds a {type(state).__name__}, expected a dict")
    return state


def _verify(file: BinaryIO) -> None:
    """Checks an open file; files of `torch.save` without a checksum pass.

    Raises:
        DataError: if it is not as it was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LENGTH - 2))
    tail = file.read()
    if (match := _PATTERN.fullmatch(tail[2:])) is None:
        # Without a comment, an archive ends with its end record; a damaged comment, or half of one, does not.
        if tail[-22:].startswith(_END) and tail.endswith(b"\0\0"):
            return
        raise DataError("is no complete checkpoint: its end is damaged, truncated or foreign")
    if tail[:2] != struct.pack("<H", _LENGTH):
        raise DataError("is damaged at its end")
    found, left = 0, size - len(tail)
    file.seek(0)
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    found = zlib.crc32(b"\0\0", found)  # the length of the comment when torch had written
    if found != int(match[1], 16):
        raise DataError(f"is damaged: it has the checksum {found:08x}, that which was written had {match[1].decode()}")
