"""Trajectories ↔ HDF5 file: tensors as data sets, layout and metadata as JSON attributes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from phi.geom import Box, UniformGrid
from phi.math import spatial

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require_path
from phi_hybrid.bridge.layout import (
    Axis,
    ConstantLayout,
    FieldLayout,
    Layout,
    TensorLayout,
    TreeLayout,
    describe_leaves,
    domain_key,
)
from phi_hybrid.data.files import replacing
from phi_hybrid.errors import DataError, StateError

_FORMAT = "phi_hybrid.trajectories"
_VERSION = 1

Contents = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], Layout, TreeLayout, dict]


def write(
    path: str | os.PathLike,
    states: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
    state_layout: Layout,
    input_layout: TreeLayout,
    metadata: dict[str, Any],
) -> None:
    """Writes all at once or nothing, see `replacing`."""
    import h5py

    require_json(metadata)
    header = json.dumps({"states": to_dict(state_layout), "inputs": to_dict(input_layout), "metadata": metadata})
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({"format": _FORMAT, "version": _VERSION, "header": header})
        for group, tensors in (("states", states), ("inputs", inputs)):
            for number, tensor in enumerate(tensors):
                file.create_dataset(f"{group}/{number}", data=tensor.detach().cpu().numpy())


def require_json(metadata: Any) -> None:
    """Raises DataError for metadata that a file cannot hold."""
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata must be JSON values (numbers, strings, lists, dicts): {error}") from None


def read(path: str | os.PathLike, lazy: bool = False) -> Contents:
    """Reads what `write` wrote.

    Args:
        path: of the file.
        lazy: whether to map the tensors into memory instead of reading them: pages come from the file when they are
            looked at and go when memory is short. Writing into such a tensor does not change the file.

    Raises:
        DataError: for a missing, damaged or foreign file, naming what is wrong, and for a compressed one that cannot be
            mapped.
    """
    import h5py

    require_path("path", path)
    path = os.fspath(path)
    if not os.path.exists(path):
        raise DataError(f"no trajectories at {path}; write them with Trajectories.generate(..., path=...)")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != _FORMAT:
                raise DataError(f"{path} was not written by phi_hybrid (format {file.attrs.get('format')!r})")
            if file.attrs["version"] > _VERSION:
                raise DataError(f"{path} has version {file.attrs['version']}, newer than {_VERSION}; update phi_hybrid")
            header = json.loads(file.attrs["header"])
            layouts = {group: from_dict(header[group]) for group in ("states", "inputs")}
            tensors = {group: _read_group(file, group, len(layout.leaves), lazy) for group, layout in layouts.items()}
            metadata = dict(header["metadata"])
    except DataError:
        raise
    except Exception as error:  # whatever h5py, JSON or a layout make of damaged bytes
        raise DataError(f"{path} is damaged or truncated ({error}); generate it again") from error
    _check_shapes(path, tensors, layouts)
    return tensors["states"], tensors["inputs"], layouts["states"], layouts["inputs"], metadata


def _read_group(file: Any, group: str, count: int, lazy: bool) -> tuple[torch.Tensor, ...]:
    get = _mapped if lazy else np.asarray
    return tuple(torch.from_numpy(get(file[f"{group}/{n}"])) for n in range(count))


def _mapped(dataset: Any) -> np.ndarray:
    """The bytes of an uncompressed data set, which HDF5 keeps in one piece, without a copy."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks is not None:
        name = dataset.file.filename
        raise DataError(
            f"{name}{dataset.name} is compressed or in chunks and cannot be mapped; load the file with lazy=False, or "
            "save it again with Trajectories.load(path).save(path)"
        )
    return np.memmap(dataset.file.filename, dataset.dtype, "c", offset, dataset.shape)


def _check_shapes(path: str, tensors: dict[str, tuple[torch.Tensor, ...]], layouts: dict[str, Layout]) -> None:
    """All tensors have the sizes that the header promises, and the same trajectories and times."""
    count, frames = (*tensors["states"][0].shape, 0, 0)[:2] if tensors["states"] else (0, 0)
    for group, layout in layouts.items():
        for tensor, axes in zip(tensors[group], layout.leaves):
            shape, rest = tuple(tensor.shape), tuple(a.size for a in axes if a.kind != "batch")
            if group == "states":
                fits = shape == (count, frames, *rest) and frames > 1
            elif len(rest) < len(axes):  # changes with time
                fits = shape[:1] + shape[2:] == (count, *rest) and shape[1] >= frames - 1
            else:
                fits = shape == (count, *rest)
            if not fits:
                raise DataError(
                    f"{path} holds a tensor of shape {shape} among its {group}, but its header promises "
                    f"{count} trajectories of {frames} states and {describe_leaves(layout)}; generate it again"
                )


def to_dict(layout: Layout) -> dict:
    """JSON description of a layout.

    Raises:
        StateError: for kinds of states that files do not hold.
    """
    if isinstance(layout, TreeLayout):
        keys = None if layout.keys is None else list(layout.keys)
        kind = "dict" if keys is not None else layout.type.__name__
        description = {"tree": kind, "keys": keys, "children": [to_dict(c) for c in layout.children]}
        return description | ({"keywords": list(layout.keywords)} if layout.keywords else {})
    if isinstance(layout, FieldLayout):
        (*box,), _ = layout.key
        return {"field": to_dict(layout.values), "box": box, "boundary": _compat.boundary_to_dict(layout.boundary)}
    if isinstance(layout, TensorLayout):
        split = None if layout.split is None else _axis_to_list(layout.split)
        return {"tensor": [[_axis_to_list(a) for a in axes] for axes in layout.parts], "split": split}
    if isinstance(layout, ConstantLayout) and (layout.value is None or isinstance(layout.value, (int, float, str))):
        return {"constant": layout.value}
    raise StateError(
        f"{layout} cannot be written to a file of trajectories, which holds tensors, numbers, and fields on grids with "
        "constant boundaries; write the tensors in it, e.g. body.geometry.center, as further parts of the state"
    )


def from_dict(description: dict) -> Layout:
    """Inverse of `to_dict`."""
    if "tree" in description:
        keys = None if description["keys"] is None else tuple(description["keys"])
        type_ = {"tuple": tuple, "list": list, "dict": dict}[description["tree"]]
        children = tuple(from_dict(c) for c in description["children"])
        return TreeLayout(type_, keys, children, tuple(description.get("keywords", ())))
    if "field" in description:
        resolution = spatial(**{name: size for name, size, _, _ in description["box"]})
        geometry = UniformGrid(resolution, Box(**{name: (low, up) for name, _, low, up in description["box"]}))
        boundary = _compat.boundary_from_dict(description["boundary"])
        return FieldLayout(from_dict(description["field"]), domain_key(geometry, boundary), geometry, boundary)
    if "tensor" in description:
        split = None if description["split"] is None else _axis_from_list(description["split"])
        return TensorLayout(tuple(tuple(map(_axis_from_list, axes)) for axes in description["tensor"]), split)
    return ConstantLayout(description["constant"], type(description["constant"]))


def _axis_to_list(axis: Axis) -> list:
    return [axis.kind, axis.name, axis.size, None if axis.labels is None else list(axis.labels)]


def _axis_from_list(entries: list) -> Axis:
    kind, name, size, labels = entries
    return Axis(kind, name, size, None if labels is None else tuple(labels))


# --- tensors larger than memory, a piece at a time ---

PIECE = 2**20
"""Values looked at in one go."""


def pieces(tensor: torch.Tensor, within: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Slices of at most `PIECE` values, in order; with each the indices of its first entry along the leading axes.

    Entry `[k, …]` of a slice that comes with `(i, j)` is `tensor[i, j + k, …]`.
    """
    if tensor.ndim == 0:
        yield within, tensor
        return
    per_row = max(1, tensor[:1].numel())
    if per_row > PIECE and tensor.ndim > 1:
        for row, entries in enumerate(tensor):
            yield from pieces(entries, (*within, row))
    else:
        count = max(1, PIECE // per_row)
        yield from (((*within, count * n), piece) for n, piece in enumerate(tensor.split(count)))


def require_finite(tensor: torch.Tensor, name: str) -> None:
    """Raises DataError with the place of the first NaN or infinity in a tensor `(trajectory, …)`."""
    for (*outer, first), piece in pieces(tensor):
        if not torch.isfinite(piece).all():
            row, *inner = (~torch.isfinite(piece)).nonzero()[0].tolist()
            trajectory, *rest = (*outer, first + row, *inner)
            raise DataError(
                f"{name} holds NaN or infinity, first in trajectory {trajectory} at index {rest} of (time, …); drop this "
                "trajectory or generate it with a smaller time step"
            )


def standard_deviation(tensor: torch.Tensor) -> float:
    """√(Σ (u − ⟨u⟩)² / (N − 1)) over all values, in float64; NaN for a single one."""
    mean = sum(piece.double().sum() for _, piece in pieces(tensor)) / tensor.numel()
    squares = sum((piece.double() - mean).square().sum() for _, piece in pieces(tensor))
    return float((squares / (tensor.numel() - 1)).sqrt())
