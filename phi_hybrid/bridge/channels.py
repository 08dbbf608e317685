"""Field ↔ network channels `(batch, channel, *spatial)`, staggered components on their own faces.

Each cell owns its lower face, so that every component is one array of the grid's resolution, whatever the boundaries.
A face fixed by a boundary shows the boundary's value and takes nothing back; the outer open face, which no cell owns,
follows its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import (
    Axis,
    ConstantLayout,
    FieldLayout,
    Layout,
    TreeLayout,
    batch_names,
    flatten,
    position_of,
    unflatten,
    with_batch,
)
from phi_hybrid.errors import StateError


@dataclass(frozen=True)
class _Faces:
    """How the stored faces of a staggered component relate to the cells along its own dimension."""

    dim: str
    lower_stored: bool
    upper_stored: bool
    lower_value: float

    def to_cells(self, faces: torch.Tensor, axis: int, cells: int) -> torch.Tensor:
        if self.lower_stored:
            return faces.narrow(axis, 0, cells)
        fixed = faces.new_full((*faces.shape[:axis], 1, *faces.shape[axis + 1 :]), self.lower_value)
        return torch.cat([fixed, faces.narrow(axis, 0, cells - 1)], axis)

    def from_cells(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        cells = values.shape[axis]
        faces = values if self.lower_stored else values.narrow(axis, 1, cells - 1)
        return torch.cat([faces, values.narrow(axis, cells - 1, 1)], axis) if self.upper_stored else faces


@dataclass(frozen=True)
class _Leaf:
    """One native tensor of a state."""

    axes: tuple[Axis, ...]
    faces: _Faces | None

    @property
    def spatial(self) -> list[Axis]:
        return [a for a in self.axes if a.kind == "spatial"]

    @property
    def alphabetical(self) -> list[int]:
        """Positions of the spatial axes, in the order in which a network sees them."""
        names = [a.name for a in self.spatial]
        return [names.index(name) for name in sorted(names)]

    @property
    def channels(self) -> int:
        return math.prod([a.size for a in self.axes if a.kind == "channel"])  # a list, for torch.compile

    def resolution(self) -> dict[str, int]:
        sizes = {a.name: a.size for a in self.spatial}
        if self.faces:
            sizes[self.faces.dim] += 1 - self.faces.lower_stored - self.faces.upper_stored
        return sizes


class ChannelMap:
    """Maps the tensors of one layout to channels and back.

    Args:
        layout: of a state, or of a tuple of states, inputs and parameters; values without spatial dims (a Reynolds
            number, a time) become constant channels.
        batch: names of the batch dims of the channels, if there are more than the layout's own.

    Raises:
        StateError: if resolutions differ or a tensor has instance or dual dims.
    """

    def __init__(self, layout: Layout, batch: Iterable[str] = ()) -> None:
        self.layout = layout
        self.batch = sorted({*batch_names(layout), *batch})
        self._leaves = list(_leaves(layout))
        resolutions = {tuple(sorted(leaf.resolution().items())) for leaf in self._leaves if leaf.spatial}
        if len(resolutions) != 1:
            raise StateError(
                f"channels need one grid resolution, got {sorted(resolutions) or 'no spatial dims'}; resample the "
                "fields to the grid of the state first"
            )
        self.resolution = dict(resolutions.pop())
        self.channels = sum(leaf.channels for leaf in self._leaves)

    def to_channels(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Native tensors → `(batch, channel, *spatial)`; all batch dims are flattened into one, spatial dims x, y, z."""
        sizes = self.batch_sizes(tensors)
        return torch.cat([self._leaf_to_channels(leaf, t, sizes) for leaf, t in zip(self._leaves, tensors)], 1)

    def from_channels(self, channels: torch.Tensor, batch_sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """`(batch, channel, *spatial)` → native tensors with the batch dims of this map; leaves that have no spatial
        dims take nothing back and are zero."""
        expected = (math.prod(batch_sizes), self.channels, *self.resolution.values())
        if tuple(channels.shape) != expected:
            raise StateError(
                f"the network returned {tuple(channels.shape)} but this state needs (batch, channel, *spatial) = "
                f"{expected}; give it {self.channels} output channels and 'same' padding"
            )
        result, start = [], 0
        for leaf in self._leaves:
            values = channels.narrow(1, start, leaf.channels)
            start += leaf.channels
            result.append(self._leaf_from_channels(leaf, values, batch_sizes))
        return tuple(result)

    def batch_sizes(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Sizes of the batch dims, found on whichever tensors carry them."""
        sizes = {name: 1 for name in self.batch}
        for leaf, tensor in zip(self._leaves, tensors):
            for axis, size in zip(leaf.axes, tensor.shape):
                if axis.kind == "batch" and size != 1:
                    sizes[axis.name] = size
        return list(sizes.values())

    def _leaf_to_channels(self, leaf: _Leaf, tensor: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
        for position, name in enumerate(self.batch):
            if position_of(name, leaf.axes) is None:
                tensor = tensor.unsqueeze(position)
        n = len(self.batch)
        if leaf.faces:
            axis = n + [a.name for a in leaf.spatial].index(leaf.faces.dim)
            tensor = leaf.faces.to_cells(tensor, axis, self.resolution[leaf.faces.dim])
        if not leaf.spatial:
            tensor = tensor.reshape(*tensor.shape[:n], *[1] * len(self.resolution), leaf.channels)
        else:
            tensor = tensor.permute(*range(n), *(n + i for i in leaf.alphabetical), *range(n + len(leaf.spatial), tensor.ndim))
        tensor = tensor.reshape(*tensor.shape[: n + len(self.resolution)], leaf.channels)
        tensor = tensor.expand(*batch_sizes, *self.resolution.values(), leaf.channels)
        return tensor.reshape(-1, *self.resolution.values(), leaf.channels).movedim(-1, 1)

    def _leaf_from_channels(self, leaf: _Leaf, values: torch.Tensor, batch_sizes: Sequence[int]) -> torch.Tensor:
        channel_sizes = [a.size for a in leaf.axes if a.kind == "channel"]
        if not leaf.spatial:
            return values.new_zeros(*batch_sizes, *channel_sizes)
        values = values.movedim(1, -1).reshape(*batch_sizes, *self.resolution.values(), *channel_sizes)
        if leaf.faces:
            axis = len(batch_sizes) + list(self.resolution).index(leaf.faces.dim)
            values = leaf.faces.from_cells(values, axis)
        n = len(batch_sizes)
        declared = sorted(range(len(leaf.spatial)), key=leaf.alphabetical.__getitem__)
        return values.permute(*range(n), *(n + i for i in declared), *range(n + len(declared), values.ndim))


def to_channels(*values: Any) -> torch.Tensor:
    """Fields, tensors and parameters as network channels.

    Args:
        *values: states of one resolution, `(batch, x, y, vector)` centred or staggered; parameters without spatial
            dims become constant channels.

    Returns:
        `(batch, channel, *spatial)`; all batch dims in one (alphabetical), vector components in the order x, y, z.
    """
    tensors, layout = flatten(values)
    require_tensors(layout, "values")
    return ChannelMap(layout).to_channels(tensors)


def from_channels(channels: torch.Tensor, like: Any) -> Any:
    """Network channels as a state: inverse of `to_channels` on the faces that cells own.

    Args:
        channels: `(batch, channel, *spatial)`.
        like: state with the boundaries, dims and batch dims of the result; its values do not matter.

    Returns:
        State like `like`; fixed faces are left out, an outer open face follows its neighbour.
    """
    tensors, layout = flatten(like)
    channel_map = ChannelMap(layout)
    natives = channel_map.from_channels(channels, channel_map.batch_sizes(tensors))
    return unflatten(with_batch(layout, *channel_map.batch), natives)


def require_tensors(layout: TreeLayout, what: str) -> None:
    """Raises StateError for Python numbers among `what`, which would not become channels."""
    for number, child in enumerate(layout.children):
        if isinstance(child, ConstantLayout):
            raise StateError(
                f"{what}[{number}] = {child.value!r} is no tensor; wrap it: phi.math.wrap({child.value!r})"
            )


def _leaves(layout: Layout) -> Iterable[_Leaf]:
    if isinstance(layout, TreeLayout):
        for child in layout.children:
            yield from _leaves(child)
        return
    split = layout.values.split if isinstance(layout, FieldLayout) else getattr(layout, "split", None)
    for number, axes in enumerate(layout.leaves):
        strange = [a.name for a in axes if a.kind in ("instance", "dual")]
        if strange or (split is not None and not isinstance(layout, FieldLayout)):
            raise StateError(f"dims {strange or split.name} cannot be network channels; use spatial and channel dims")
        yield _Leaf(axes, _faces(layout, split.labels[number]) if split is not None else None)


def _faces(layout: FieldLayout, dim: str) -> _Faces:
    lower, upper = layout.boundary.valid_outer_faces(dim)
    value = 0.0 if lower else _boundary_value(_compat.boundary_to_dict(layout.boundary), dim)
    return _Faces(dim, bool(lower), bool(upper), value)


def _boundary_value(boundary: dict, dim: str) -> float:
    """Value that a boundary fixes on the lower face normal to `dim`."""
    if "sides" in boundary:
        sides = boundary["sides"]
        return _boundary_value(sides.get(dim + "-", sides.get(dim)), dim)
    if "normal" in boundary:
        return _boundary_value(boundary["normal"], dim)
    return boundary["vector"][dim] if "vector" in boundary else boundary["constant"]
