"""HDF5 files that others have written, read without following links out of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np

from phi_hybrid.bridge.checks import require, require_instance, require_path
from phi_hybrid.errors import DataError, StateError


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """A file to read, an `h5py.File`.

    Raises:
        DataError: for a file that is missing, no HDF5, or damaged where it is looked at.
    """
    import h5py

    require_path("path", path)
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise DataError(f"no file at {path}; give the path of an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (DataError, StateError):
        raise
    except Exception as error:  # whatever h5py makes of damaged bytes
        raise DataError(f"{path} is no HDF5 file, damaged or truncated ({error}); get it again") from error


def member(group: Any, path: str) -> Any:
    """The group or data set at a path below a group, `None` if there is none.

    Raises:
        DataError: for soft and external links, and for values kept in other files. A file from elsewhere could read
            through them whatever the user may read.
    """
    for name in path.split("/"):
        link = group.get(name, getlink=True) if _is_group(group) and name else None
        if link is None:
            return None
        if not _is_hard(link):
            raise DataError(
                f"{group.file.filename}: '{path}' is a {type(link).__name__}, which is not followed; copy what it points "
                "to into the file, e.g. with h5repack or h5copy"
            )
        group = group[name]
    if not _is_group(group) and (getattr(group, "is_virtual", False) or getattr(group, "external", None)):
        raise DataError(
            f"{group.file.filename}: the values of '{path}' are in other files, which are not read; merge them"
        )
    return group


def dataset(group: Any, path: str) -> Any:
    """The data set at a path below a group; DataError if there is none."""
    import h5py

    found = member(group, path)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{group.file.filename} holds no data set '{path}' in {group.name}, but {sorted(group)}")
    return found


def subgroup(group: Any, path: str) -> Any:
    """The group at a path below a group; DataError if there is none."""
    found = member(group, path)
    if not _is_group(found):
        raise DataError(f"{group.file.filename} holds no group '{path}' in {group.name}, but {sorted(group)}")
    return found


def real_numbers(values: Any, selection: tuple = ()) -> np.ndarray:
    """Values of a data set of floats in their precision, single or double.

    Args:
        values: data set.
        selection: slices along its first axes.
    """
    if values.dtype.kind != "f" or values.dtype.itemsize not in (4, 8):
        name, file = values.name, values.file.filename
        raise DataError(f"{file}: '{name}' holds {values.dtype}, expected float32 or float64; convert it in the file")
    return np.asarray(values[selection], values.dtype.newbyteorder("="))


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute as JSON value: a number, a string, a truth value or a list of them."""
    return json_value(node.attrs[name]) if name in node.attrs else default


def json_value(value: Any) -> Any:
    """NumPy's numbers, arrays and bytes as JSON values; what is none of them as text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return json_value(value.item()) if value.ndim == 0 else [json_value(v) for v in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def names_in(node: Any, name: str) -> list[str]:
    """An attribute that lists names; one name may stand alone."""
    found = attribute(node, name, [])
    return [found] if isinstance(found, str) else [str(n) for n in found]


def selected(name: str, selection: slice | None, count: int) -> slice:
    """A slice of `count` entries in ascending order, all of them for `None`.

    Raises:
        DataError: if it is empty.
    """
    require_instance(name, selection, (slice, type(None)), "a slice, e.g. slice(0, 100), or None for all")
    ends = () if selection is None else (selection.start, selection.stop, selection.step)
    require(
        all(e is None or isinstance(e, Integral) for e in ends), name, selection, "a slice of integers, slice(0, 100)"
    )
    chosen = range(count)[selection or slice(None)]
    if len(chosen) == 0 or chosen.step < 0:
        raise DataError(
            f"{name} = {selection} of {count} leaves nothing, or turns them round; give start < stop ≤ {count}"
        )
    return slice(chosen.start, chosen.stop, chosen.step)


def _is_group(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Group)


def _is_hard(link: Any) -> bool:
    import h5py

    return isinstance(link, h5py.HardLink)
