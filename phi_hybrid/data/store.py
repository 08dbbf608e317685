"""Trajectories ↔ HDF5 file: tensors as data sets, layouts and metadata as JSON; checksums of both."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
import torch

from phi_hybrid.bridge.checks import require_path
from phi_hybrid.bridge.layout import Layout, TreeLayout, describe_leaves, unflatten
from phi_hybrid.data.checksums import Part, block_size, gaps, make_block, verify
from phi_hybrid.data.files import new_file
from phi_hybrid.data.header import make_header, read_header
from phi_hybrid.data.pieces import WAY_OUT, look_through, write_pieces
from phi_hybrid.data.probe import survives
from phi_hybrid.data.skeleton import make_skeleton
from phi_hybrid.data.suspicion import holds, is_plain, open_data_set, read_attribute
from phi_hybrid.errors import DataError, StateError

_FORMAT = "phi_hybrid.trajectories"
_VERSION = 2

Contents = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], Layout, TreeLayout, dict]


def write(
    path: str | os.PathLike,
    states: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
    state_layout: Layout,
    input_layout: TreeLayout,
    metadata: dict[str, Any],
) -> None:
    """Writes all at once or nothing, see `new_file`; of tensors that do not fit in memory only a piece at a time.

    Raises:
        DataError: if the disk is full, or the file cannot be written for another reason.
        StateError: for states that files do not hold.
    """
    attributes = {
        "format": _FORMAT,
        "version": _VERSION,
        "header": make_header(state_layout, input_layout, metadata),
    }
    tensors = {f"{g}/{n}": t for g, group in (("states", states), ("inputs", inputs)) for n, t in enumerate(group)}
    data_sets = {name: (tuple(t.shape), _numpy_type(t)) for name, t in tensors.items()}
    start = block_size(sum(t.numel() > 0 for t in tensors.values()))
    skeleton, places = make_skeleton(attributes, data_sets, start)
    parts, structure = [], 0
    with new_file(path) as file:
        for name in sorted(places, key=places.__getitem__):
            file.seek(places[name])
            checksum = write_pieces(file, tensors[name])
            parts.append(Part(places[name], tensors[name].numel() * tensors[name].element_size(), checksum))
        for first, end in gaps(parts, start, skeleton.size):
            structure = skeleton.copy_to(file, first, end, structure)
        file.seek(0)
        file.write(make_block(skeleton.size, structure, parts))


def _numpy_type(tensor: torch.Tensor) -> np.dtype:
    try:
        return torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:
        raise StateError(f"files do not hold {tensor.dtype}; convert the state to float32") from None


def read(path: str | os.PathLike, lazy: bool = False) -> Contents:
    """Reads what `write` wrote, and compares all of it with its checksums.

    Args:
        path: of the file.
        lazy: whether to map the tensors into memory instead of reading them: pages come from the file when they are
            looked at and go when memory is short. Writing into such a tensor does not change the file.

    Raises:
        DataError: for a missing, damaged or foreign file, naming what is wrong, for values that are not finite, and for a
            compressed file that cannot be mapped.
    """
    require_path("path", path)
    path = os.fspath(path)
    if not os.path.exists(path):
        raise DataError(f"no trajectories at {path}; write them with Trajectories.generate(..., path=...)")
    try:
        # Opened once: checked and read is the same file, also if another one takes its name meanwhile.
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            parts = verify(file, size)
            if parts is None and not survives(file):
                raise DataError(f"HDF5 cannot read it: it is damaged or truncated; {WAY_OUT}")
            return _Reader(file, size, parts, lazy).contents()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit in memory ({error}); load it with lazy=True") from error
    except Exception as error:  # whatever Python, h5py, JSON or a layout make of damaged bytes
        raise DataError(f"{path} cannot be read ({error}): it is damaged or truncated; {WAY_OUT}") from error


class _Reader:
    """Reads an open file of `size` bytes, whose tensors have the checksums in `parts`, if there are any."""

    def __init__(self, file: BinaryIO, size: int, parts: dict[int, Part] | None, lazy: bool) -> None:
        self.file = file
        self.size = size
        self.parts = parts
        self.lazy = lazy

    def contents(self) -> Contents:
        import h5py

        with h5py.File(self.file, "r") as file:
            if (found := read_attribute(file, "format", self.size)) != _FORMAT:
                raise DataError(f"it was not written by phi_hybrid (format {found!r})")
            version = int(read_attribute(file, "version", self.size))
            if not 1 <= version <= _VERSION:
                raise DataError(f"it has version {version}, known are 1 … {_VERSION}; update phi_hybrid")
            state_layout, input_layout, metadata = read_header(read_attribute(file, "header", self.size))
            states = self._tensors(file, "state", len(state_layout.leaves))
            inputs = self._tensors(file, "input", len(input_layout.leaves))
        layouts = {"states": state_layout, "inputs": input_layout}
        _check_shapes({"states": states, "inputs": inputs}, layouts)
        _check_layouts(states, inputs, state_layout, input_layout)
        return states, inputs, state_layout, input_layout, metadata

    def _tensors(self, file: Any, kind: str, count: int) -> tuple[torch.Tensor, ...]:
        data_sets = [open_data_set(file, f"{kind}s/{n}", self.size) for n in range(count)]
        if holds(file, f"{kind}s", str(count)):
            raise DataError(f"its header describes {count} {kind} tensors, but it holds more; {WAY_OUT}")
        return tuple(self._tensor(d, f"{kind} tensor {n}") for n, d in enumerate(data_sets))

    def _tensor(self, data_set: Any, name: str) -> torch.Tensor:
        """A tensor all of whose values were looked at, once."""
        start, size = data_set.id.get_offset(), data_set.dtype.itemsize * int(np.prod(data_set.shape, dtype=object))
        if size == 0:
            return torch.from_numpy(np.empty(data_set.shape, data_set.dtype))
        if not is_plain(data_set):
            return self._packed(data_set, name)
        checksum = None
        if self.parts is not None:
            part = self.parts.get(start)
            if part is None or part.size != size:
                raise DataError(f"{name} has no checksum: the file is damaged; {WAY_OUT}")
            checksum = part.checksum
        if start + size > self.size:
            raise DataError(f"{name} is truncated; {WAY_OUT}")
        if self.lazy:
            values = np.memmap(self.file, data_set.dtype, "c", start, data_set.shape)
            return look_through(torch.from_numpy(values), name, checksum=checksum)
        self.file.seek(start)
        values = np.empty(data_set.shape, data_set.dtype)
        return look_through(torch.from_numpy(values), name, self.file, checksum)

    def _packed(self, data_set: Any, name: str) -> torch.Tensor:
        """The values of a data set whose bytes in the file are others; files with checksums have none of these."""
        if self.parts is not None:
            raise DataError(f"{name} has no checksum: the file is damaged; {WAY_OUT}")
        if self.lazy:
            raise DataError(
                f"{data_set.name} is compressed or in chunks and cannot be mapped; load the file with "
                "lazy=False, or save it again with Trajectories.load(path).save(path)"
            )
        return look_through(torch.from_numpy(np.asarray(data_set)), name)


def _check_shapes(tensors: dict[str, tuple[torch.Tensor, ...]], layouts: dict[str, Layout]) -> None:
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
                    f"it holds a tensor of shape {shape} among its {group}, but its header promises "
                    f"{count} trajectories of {frames} states and {describe_leaves(layout)}; {WAY_OUT}"
                )


def _check_layouts(
    states: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], state_layout: Layout, input_layout: Layout
) -> None:
    """The first tensors become a state and inputs, or else an error says why not."""
    if not states or len(states[0]) == 0:
        raise DataError("it holds no trajectories")
    unflatten(state_layout, tuple(t[0, 0] for t in states))
    unflatten(input_layout, tuple(t[0] for t in inputs))
