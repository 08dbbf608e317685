"""HDF5 files without their values, made in memory.

The HDF5 library does not survive a full disk at every moment. Here it never sees a disk: it lays the file out in memory,
with room for the values left empty, and Python writes.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

_PAGE = 4096


class SparseMemory(io.RawIOBase):
    """A file in memory that keeps the pages that were written; all other bytes are zero."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, start = divmod(self._position, _PAGE)
            page = self._pages.setdefault(number, bytearray(_PAGE))
            count = min(_PAGE - start, len(view) - done)
            page[start : start + count] = view[done : done + count]
            done, self._position = done + count, self._position + count
        self.size = max(self.size, self._position)
        return done

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted, done = min(len(view), max(0, self.size - self._position)), 0
        while done < wanted:
            number, start = divmod(self._position, _PAGE)
            count = min(_PAGE - start, wanted - done)
            page = self._pages.get(number)
            view[done : done + count] = bytes(count) if page is None else page[start : start + count]
            done, self._position = done + count, self._position + count
        return done

    def copy_to(self, file: BinaryIO, start: int, stop: int, checksum: int = 0) -> int:
        """Writes some of the bytes to the same place of another file; returns the checksum that these continue."""
        file.seek(start)
        self.seek(start)
        content = self.read(stop - start)
        file.write(content)
        return zlib.crc32(content, checksum)


def make_skeleton(
    attributes: Mapping[str, Any], data_sets: Mapping[str, tuple[tuple[int, ...], np.dtype]], block: int
) -> tuple[SparseMemory, dict[str, int]]:
    """An HDF5 file that lacks the values of its data sets, each of which lies in one piece.

    Args:
        attributes: of the file.
        data_sets: name → shape and type.
        block: bytes that HDF5 leaves to others at the beginning.

    Returns:
        The file, and name → place of the first byte, of data sets that have any.
    """
    import h5py
    from h5py import h5d, h5p

    memory, places = SparseMemory(), {}
    create = h5p.create(h5p.DATASET_CREATE)
    create.set_layout(h5d.CONTIGUOUS)
    create.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5d.FILL_TIME_NEVER)
    with h5py.File(memory, "w", userblock_size=block) as file:
        file.attrs.update(attributes)
        for name, (shape, kind) in data_sets.items():
            places[name] = file.create_dataset(name, shape, kind, dcpl=create).id.get_offset()
    return memory, {name: place for name, place in places.items() if place is not None}
