"""Checksums of all bytes of a data file, in a block in front of its HDF5 part.

HDF5 leaves room for such a block and skips it, so that other programs read these files as ever. It is looked at before
HDF5 is, which can crash or never end when its own structures are damaged. The block is text:

    phi_hybrid.trajectories 2
    <bytes of the file> <checksum of the structure> <number of tensors>
    <first byte> <bytes> <checksum>     for each tensor, in the order of the file

in hexadecimal digits, and zeros up to a power of two. The structure is all that follows the block but the tensors:
header, layouts, and what HDF5 needs to find the tensors.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from phi_hybrid.data.pieces import WAY_OUT
from phi_hybrid.errors import DataError

HDF5 = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file without a block."""

_TITLE = b"phi_hybrid.trajectories %d\n"
_VERSION = 2
_SUMMARY = re.compile(rb"([0-9a-f]{16}) ([0-9a-f]{8}) ([0-9a-f]{8})\n")
_ROW = re.compile(rb"([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{8})\n")
_HEAD, _ENTRY = len(_TITLE % _VERSION) + 35, 43
"""Bytes of title and summary, and of a row."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Part:
    """The bytes of one tensor in a file."""

    start: int
    size: int
    checksum: int = 0


def block_size(tensors: int) -> int:
    """Bytes of the block of a file with this many tensors: a power of two, at least 512, as HDF5 wants it."""
    return max(512, 1 << (_HEAD + _ENTRY * tensors - 1).bit_length())


def make_block(size: int, structure: int, parts: Sequence[Part]) -> bytes:
    """The block of a file of `size` bytes, whose structure has the checksum `structure`."""
    rows = [b"%016x %016x %08x\n" % (p.start, p.size, p.checksum) for p in parts]
    text = _TITLE % _VERSION + b"%016x %08x %08x\n" % (size, structure, len(parts)) + b"".join(rows)
    return text.ljust(block_size(len(parts)), b"\0")


def gaps(parts: Sequence[Part], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """First and last bytes, `(from, up to)`, of what lies between parts.

    Raises:
        DataError: if parts overlap or lie outside.
    """
    for part in parts:
        if not start <= part.start <= part.start + part.size <= stop:
            raise DataError(f"bytes {part.start} … {part.start + part.size} are not within {start} … {stop}")
        yield start, part.start
        start = part.start + part.size
    yield start, stop


def verify(file: BinaryIO, size: int) -> dict[int, Part] | None:
    """Checks the structure of an open file of `size` bytes; returns the parts of its tensors, by their first bytes.

    Files of version 1 have no checksums, nor have copies that other programs made: `None`.

    Raises:
        DataError: if the file is none of HDF5, or is not as it was written.
    """
    head = file.read(_HEAD)
    if head.startswith(HDF5):
        return None
    if (title := re.match(rb"phi_hybrid\.trajectories ([0-9]{1,9})\n", head)) is None:
        raise DataError(f"it begins with {head[:16]!r}: it was not written by phi_hybrid, or is damaged; {WAY_OUT}")
    if int(title[1]) > _VERSION:
        raise DataError(f"it has version {int(title[1])}, newer than {_VERSION}; update phi_hybrid")
    written, structure, parts, length = _parse(file, head, size)
    if written != size:
        raise DataError(f"it has {size} bytes, but {written} were written: it is damaged or truncated; {WAY_OUT}")
    found = 0
    for start, stop in gaps(parts, length, size):
        file.seek(start)
        while start < stop and (chunk := file.read(min(_CHUNK, stop - start))):
            found, start = zlib.crc32(chunk, found), start + len(chunk)
    if found != structure:
        raise DataError(
            f"it is damaged, or another program changed it: its structure has the checksum {found:08x}, that which was "
            f"written had {structure:08x}; {WAY_OUT}"
        )
    return {part.start: part for part in parts}


def _parse(file: BinaryIO, head: bytes, size: int) -> tuple[int, int, list[Part], int]:
    """What `make_block` was given, and the length of the block."""
    damaged = DataError(f"the checksums in front of it are damaged; {WAY_OUT}")
    if (summary := _SUMMARY.fullmatch(head[-35:])) is None:
        raise damaged
    written, structure, count = (int(number, 16) for number in summary.groups())
    length = block_size(count)
    if length > size:
        raise damaged
    block = head + file.read(length - len(head))
    rows = _ROW.findall(block[_HEAD : _HEAD + _ENTRY * count])
    parts = [Part(*(int(number, 16) for number in row)) for row in rows]
    if block != make_block(written, structure, parts):
        raise damaged
    return written, structure, parts, length
