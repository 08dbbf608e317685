"""Field ↔ network channels `(batch, channel, *spatial)`, staggered components on their own faces.

Each cell owns its lower face, so that every component is one array of the grid's resolution, whatever the boundaries.
A face fixed by a boundary shows the boundary's value and takes nothing back; the outer open face, which no cell owns,
follows its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.layout import (
    Axis,
    ConstantLayout,
    FieldLayout,
    Layout,
    ObjectLayout,
    TreeLayout,
    batch_names,
    batch_sizes,
    flatten,
    unflatten,
    with_batch,
)
from phi_hybrid.bridge.parts import vectors_of
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


class _Leaf:
    """One native tensor of a state as channels of a network that works on `resolution`."""

    def __init__(self, axes: tuple[Axis, ...], faces: _Faces | None) -> None:
        self.names, self.faces = {a.name for a in axes}, faces
        self.spatial = [a.name for a in axes if a.kind == "spatial"]
        self.channel_sizes = [a.size for a in axes if a.kind == "channel"]
        self.channels = math.prod(self.channel_sizes)
        self.resolution = {a.name: a.size for a in axes if a.kind == "spatial"}
        if faces:
            self.resolution[faces.dim] += 1 - faces.lower_stored - faces.upper_stored
        self.resolution = dict(sorted(self.resolution.items()))
        self.declared = [list(self.resolution).index(name) for name in self.spatial]
        self.alphabetical = [self.spatial.index(name) for name in self.resolution]

    def to_channels(
        self, tensor: torch.Tensor, batch: Mapping[str, int], resolution: Mapping[str, int]
    ) -> torch.Tensor:
        """Native tensor → `(batch, channel, *spatial)`, all batch dims in one, spatial dims in alphabetical order."""
        n = len(batch)
        for position, name in enumerate(batch):
            if name not in self.names:
                tensor = tensor.unsqueeze(position)
        if self.faces:
            axis = n + self.spatial.index(self.faces.dim)
            tensor = self.faces.to_cells(tensor, axis, self.resolution[self.faces.dim])
        space = list(self.resolution.values()) or [1] * len(resolution)
        if self.alphabetical != sorted(self.alphabetical):
            order = [*range(n), *(n + i for i in self.alphabetical), *range(n + len(space), tensor.ndim)]
            tensor = tensor.permute(order)
        tensor = tensor.reshape(*tensor.shape[:n], *space, self.channels).expand(*batch.values(), *space, self.channels)
        tensor = tensor.reshape(-1, *space, self.channels).movedim(-1, 1)
        if space != list(resolution.values()):
            tensor = (
                _resampled(tensor, list(resolution.values()))
                if self.spatial
                else tensor.expand(*tensor.shape[:2], *resolution.values())
            )
        return tensor

    def from_channels(self, values: torch.Tensor, batch: Sequence[int]) -> torch.Tensor:
        """`(batch, channel, *spatial)` → native tensor."""
        if not self.spatial:
            return values.new_zeros(*batch, *self.channel_sizes)
        n = len(batch)
        values = values.movedim(1, -1).reshape(*batch, *self.resolution.values(), *self.channel_sizes)
        if self.faces:
            values = self.faces.from_cells(values, n + list(self.resolution).index(self.faces.dim))
        if self.declared != sorted(self.declared):
            order = [*range(n), *(n + i for i in self.declared), *range(n + len(self.spatial), values.ndim)]
            values = values.permute(order)
        return values


def _resampled(channels: torch.Tensor, resolution: list[int]) -> torch.Tensor:
    """Cell means on a coarser grid, the value of the surrounding cell on a finer one."""
    pool = (None, adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)[len(resolution)]
    return pool(channels, resolution)


class ChannelMap:
    """Maps the tensors of one layout to channels and back.

    Args:
        layout: of a state, or of a tuple of states, inputs and parameters; values without spatial dims (a Reynolds
            number, a time) become constant channels.
        batch: names of the batch dims of the channels, if there are more than the layout's own.
        resolution: grid of the channels, dim → cells; fields on other grids are resampled to it, by cell means. By
            default the one grid of all.

    Raises:
        StateError: if resolutions differ and none is given, or a tensor has instance or dual dims.
    """

    def __init__(self, layout: Layout, batch: Iterable[str] = (), resolution: Mapping[str, int] | None = None) -> None:
        require_instance("layout", layout, Layout, "the layout of a state: ChannelMap(flatten(state)[1])")
        self.layout = layout
        self.batch = sorted({*batch_names(layout), *batch})
        self._leaves = list(_leaves(layout))
        if resolution is None:
            found = resolutions(layout)
            if len(found) != 1:
                raise StateError(
                    f"channels need one grid resolution, got {sorted(found) or 'no spatial dims'}; resample the fields to "
                    "one grid first, or correct only parts of one resolution: HybridSolver(…, corrects=[…])"
                )
            resolution = found.pop()
        self.resolution = dict(resolution)
        if strangers := [
            leaf.spatial for leaf in self._leaves if leaf.spatial and set(leaf.spatial) != {*self.resolution}
        ]:
            raise StateError(
                f"fields over dims {strangers[0]} cannot be channels beside fields over {[*self.resolution]}"
            )
        self.channels = sum(leaf.channels for leaf in self._leaves)

    def to_channels(self, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int] | None = None) -> torch.Tensor:
        """Native tensors → `(batch, channel, *spatial)`; all batch dims are flattened into one, spatial dims x, y, z.

        Args:
            tensors: of this layout.
            sizes: of the batch dims, if they are known.
        """
        sizes = self.batch_sizes(tensors) if sizes is None else sizes
        return torch.cat([leaf.to_channels(t, sizes, self.resolution) for leaf, t in zip(self._leaves, tensors)], 1)

    def from_channels(self, channels: torch.Tensor, batch_sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """`(batch, channel, *spatial)` → native tensors with the batch dims of this map; leaves that have no spatial
        dims take nothing back and are zero."""
        expected = (math.prod(batch_sizes), self.channels, *self.resolution.values())
        if tuple(channels.shape) != expected:
            raise StateError(
                f"the network returned {tuple(channels.shape)} but this state needs (batch, channel, *spatial) = "
                f"{expected}; give it {self.channels} output channels ({self.describe()}) and 'same' padding"
            )
        result, start = [], 0
        for leaf in self._leaves:
            result.append(leaf.from_channels(channels.narrow(1, start, leaf.channels), batch_sizes))
            start += leaf.channels
        return tuple(result)

    def batch_sizes(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Sizes of the batch dims, found on whichever tensors carry them."""
        return dict.fromkeys(self.batch, 1) | batch_sizes(tensors, self.layout)

    @property
    def vectors(self) -> list[slice]:
        """Channels of each vector field."""
        ends = [0, *accumulate(leaf.channels for leaf in self._leaves)]
        return [slice(ends[place.start], ends[place.stop]) for place in vectors_of(self.layout)]

    def describe(self) -> str:
        """Channels of every part, e.g. `velocity 2, smoke 1`."""
        children = getattr(self.layout, "children", (self.layout,))
        names = getattr(self.layout, "keys", None) or range(len(children))
        counts = [sum(leaf.channels for leaf in _leaves(child)) for child in children]
        return ", ".join(f"{name} {count}" for name, count in zip(names, counts) if count)


def resolutions(layout: Layout) -> set[tuple[tuple[str, int], ...]]:
    """Grids of all tensors that have spatial dims, each as `(dim, cells), …` in alphabetical order."""
    return {tuple(leaf.resolution.items()) for leaf in _leaves(layout) if leaf.spatial}


def to_channels(*values: Any) -> torch.Tensor:
    """Fields, tensors and parameters as network channels.

    Args:
        *values: states of one resolution, `(batch, x, y, vector)` centred or staggered; parameters without spatial
            dims become constant channels.

    Returns:
        `(batch, channel, *spatial)`; all batch dims in one (alphabetical), components in the order of their vector.

    Raises:
        StateError: for values of different resolutions, and for what is on no grid.
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

    Raises:
        StateError: if the channels are no tensor, or not as many or not of the shape that `like` has.
    """
    require_instance("channels", channels, torch.Tensor, "a torch tensor (batch, channel, *spatial)")
    tensors, layout = flatten(like)
    channel_map = ChannelMap(layout)
    natives = channel_map.from_channels(channels, list(channel_map.batch_sizes(tensors).values()))
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
    if isinstance(layout, ObjectLayout):
        raise StateError(
            f"{layout} cannot be network channels; networks see tensors and fields on grids with constant boundaries. Let the "
            "step close over it, pass it as an input that the network does not see, sees=(…), or set boundary values inside "
            "the step"
        )
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
