"""Looks into an HDF5 file of unknown origin in a process of its own, since HDF5 can crash, or never end, when it is damaged.

This file is also the program that the process runs: it needs h5py alone, not the package, to start fast.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, BinaryIO

TIMEOUT = 60.0
"""Seconds after which a file whose structure is not understood counts as damaged."""


def survives(file: BinaryIO) -> bool:
    """Tells if HDF5 gets through the structure of an open file without a crash. Errors of Python do not count."""
    if not sys.executable:  # Python inside another program
        return True
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.path = sys.argv[2:]; exec(open(sys.argv[1]).read())"]
    try:
        run = subprocess.run(
            [*command, __file__, *filter(None, sys.path)],
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError:  # no processes here
        return True
    return run.returncode in (0, 1)


def look(file: BinaryIO) -> None:
    """Asks HDF5 all that reading the file will ask, but for the values."""
    import h5py

    size = file.seek(0, os.SEEK_END)
    with h5py.File(file, "r") as root:
        for name in ("format", "version", "header"):
            attribute = root.attrs.get_id(name)
            if attribute.shape == () and attribute.get_storage_size() <= size:
                root.attrs[name]
        for name in ("states", "inputs"):
            if isinstance(root.get(name, getlink=True), h5py.HardLink):
                for entry in root[name]:
                    if isinstance(root[name].get(entry, getlink=True), h5py.HardLink):
                        _look_at(root[name][entry])


def _look_at(data_set: Any) -> None:
    _ = data_set.shape, data_set.dtype, data_set.is_virtual, data_set.external
    identifier = data_set.id
    _ = identifier.get_create_plist().get_layout(), identifier.get_storage_size(), identifier.get_offset()
    if data_set.chunks is not None:
        for number in range(identifier.get_num_chunks()):
            identifier.get_chunk_info(number)


if __name__ == "__main__":
    with os.fdopen(0, "rb") as stdin:
        look(stdin)
