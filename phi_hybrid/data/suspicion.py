"""Reading HDF5 files of unknown origin: no other files are opened, nothing grows beyond measure."""

from __future__ import annotations

import math
import zlib
from typing import Any

from phi_hybrid.errors import DataError

EXPANSION = 100
"""Largest ratio of the values of a compressed data set to the bytes of its file; see `SMALL`."""
SMALL = 2**26
"""Bytes of values that any file may hold."""

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000


def read_attribute(file: Any, name: str, size: int) -> Any:
    """A single number or string at the root of a file of `size` bytes.

    Raises:
        DataError: if it is missing, or claims to be larger than the file.
    """
    if name not in file.attrs:
        raise DataError(f"it lacks the attribute {name!r}: it was not written by phi_hybrid")
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > size:
        raise DataError(f"its attribute {name!r} is no single number or string")
    return file.attrs[name]


def open_data_set(file: Any, name: str, size: int) -> Any:
    """A data set with values in this very file of `size` bytes.

    Raises:
        DataError: if it is missing, is a link, is of another kind, was never filled, or claims more than it holds.
    """
    import h5py

    node = file
    for part in name.split("/"):
        link = _link(node, part)
        if not isinstance(link, h5py.HardLink):
            kind = "missing" if link is None else f"a link ({type(link).__name__}), which is not followed"
            raise DataError(f"{name} in it is {kind}")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        raise DataError(f"{name} in it is no data set with values")
    if node.is_virtual or node.external:
        raise DataError(f"{name} in it has its values in other files, which are not opened")
    if node.dtype.kind not in "biufc":
        raise DataError(f"{name} in it holds {node.dtype}, expected numbers")
    _require_values(node, name, size)
    return node


def holds(file: Any, group: str, name: str) -> bool:
    """Tells if a group of the file has an entry `name`, of any kind, without following links."""
    import h5py

    return isinstance(_link(file, group), h5py.HardLink) and _link(file[group], name) is not None


def _link(node: Any, name: str) -> Any:
    import h5py

    return node.get(name, getlink=True) if isinstance(node, h5py.Group) else None


def is_plain(data_set: Any) -> bool:
    """Tells if the bytes of a data set lie in the file in one piece, just as NumPy has them in memory."""
    from h5py import h5d, h5t

    layout, kind = data_set.id.get_create_plist().get_layout(), h5t.py_create(data_set.dtype, logical=True)
    return layout == h5d.CONTIGUOUS and data_set.id.get_type().equal(kind)


def _require_values(data_set: Any, name: str, size: int) -> None:
    """Raises DataError unless all values are there, and are not many more than the file has bytes."""
    item, limit = data_set.dtype.itemsize, max(EXPANSION * size, SMALL)
    if min(data_set.shape, default=0) < 0:
        raise DataError(f"{name} in it has the shape {data_set.shape}")
    claimed = math.prod(data_set.shape) * item
    if data_set.chunks is not None:
        if max(claimed, math.prod(data_set.chunks) * item) > limit:
            raise DataError(
                f"{name} in it claims {claimed} bytes, more than {EXPANSION} times those of the file ({size})"
            )
        _require_chunks(data_set, name)
    elif data_set.id.get_storage_size() != math.prod(data_set.shape) * data_set.id.get_type().get_size():
        raise DataError(f"{name} in it was never written")
    elif claimed > 8 * size:  # types in files can be smaller than those in memory
        raise DataError(f"{name} in it claims {claimed} bytes, more than the file has ({size})")


def _require_chunks(data_set: Any, name: str) -> None:
    """Raises DataError unless all chunks are there, and grow to the size of a chunk at most when HDF5 unpacks them."""
    properties = data_set.id.get_create_plist()
    filters = [properties.get_filter(n)[0] for n in range(properties.get_nfilters())]
    packers = [n for n in filters if n in (_DEFLATE, _LZF)]
    if len(packers) > 1 or any(n not in (_DEFLATE, _LZF, _SHUFFLE, _FLETCHER32) for n in filters):
        raise DataError(f"{name} in it is packed by the HDF5 filters {filters}; known are gzip or lzf, and shuffle")
    expected = math.prod(-(-length // chunk) for length, chunk in zip(data_set.shape, data_set.chunks))
    count = data_set.id.get_num_chunks()
    if count != expected:
        raise DataError(f"{name} in it has {count} of {expected} chunks")
    largest = math.prod(data_set.chunks) * data_set.dtype.itemsize
    for number in range(count if packers else 0):
        mask, packed = data_set.id.read_direct_chunk(data_set.id.get_chunk_info(number).chunk_offset)
        limit = largest + 4  # a checksum may be packed, too
        # HDF5 would go on to unpack a chunk for as long as it grows; LZF grows to 88 times at most.
        if len(packed) > 2 * limit or (packers == [_DEFLATE] and not mask and _unpacks_to_more(packed, limit)):
            raise DataError(f"{name} in it has a chunk that unpacks to more than its {largest} bytes")


def _unpacks_to_more(packed: bytes, limit: int) -> bool:
    return len(zlib.decompressobj().decompress(packed, limit + 1)) > limit
