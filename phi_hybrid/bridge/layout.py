"""PhiFlow state ↔ flat tuple of torch tensors plus a hashable layout.

The order of dimensions is fixed: batch, dual, instance, spatial, channel. Spatial dims keep the order in which the grid
declares them, since PhiFlow pairs them by position with cell sizes; all others are alphabetical. PhiML's own order of
flattened dimensions changes between processes. A staggered field gives one tensor per component, whatever its
boundaries, so that faces are never stacked or padded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Number
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from phi import math
from phi.field import Field
from phi.geom import Box, UniformGrid
from phi.math import Shape, Tensor
from phiml.math import extrapolation

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.errors import StateError

_KINDS = {
    "batch": math.batch,
    "dual": math.dual,
    "instance": math.instance,
    "spatial": math.spatial,
    "channel": math.channel,
}


@dataclass(frozen=True, order=True)
class Axis:
    """One named dimension. The size of an unlabelled batch axis is left open."""

    kind: str
    name: str
    size: int | None = None
    labels: tuple[str, ...] | None = None

    def shape(self, size: int) -> Shape:
        return _KINDS[self.kind](**{self.name: self.labels if self.labels else size})

    @property
    def phi_name(self) -> str:
        return "~" + self.name if self.kind == "dual" else self.name

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.labels) if self.labels else self.size or 'any'}"


class Layout:
    """Description of a state without its values, from which tensors become the state again: hashable, comparable, picklable, free of data."""

    leaves: tuple[tuple[Axis, ...], ...] = ()
    """Axes of every tensor, in the order in which `flatten` returns them."""
    boundary_kinds: tuple[tuple[str, str], ...] = ()
    """Side → kind of boundary for every field, e.g. `('x-', 'periodic')`; all constant values are of one kind."""

    @cached_property
    def time_axes(self) -> list[int | None]:
        """Position of the dim `time` in every tensor, `None` where it is not there."""
        return [position_of(TIME, axes) for axes in self.leaves]

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        """The state that takes its tensors from `natives`."""
        raise NotImplementedError

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> Layout:
        """The layout with `f` applied to the axes of every tensor in it."""
        return self

    def __deepcopy__(self, memo: dict) -> Layout:
        return self  # PhiML would round the bounds of its copies to the global precision

    def difference(self, other: Layout) -> str:
        """Names, in words, what tells this layout from another."""
        if type(self) is not type(other):
            return f"{type(self).__name__} and {type(other).__name__}"
        return f"dims {describe_leaves(self)} and {describe_leaves(other)}"


@dataclass(frozen=True)
class TensorLayout(Layout):
    """A PhiML tensor: one native tensor per entry of the dimension `split`, or a single one."""

    parts: tuple[tuple[Axis, ...], ...]
    split: Axis | None = None

    @property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return self.parts

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Tensor:
        tensors = [_assemble(next(natives), axes) for axes in self.parts]
        return tensors[0] if self.split is None else math.stack(tensors, self.split.shape(len(tensors)))

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> TensorLayout:
        return replace(self, parts=tuple(tuple(sorted_axes(f(axes))) for axes in self.parts))


@dataclass(frozen=True)
class FieldLayout(Layout):
    """A field on a uniform grid. `key` stands for the domain and the boundary in comparisons."""

    values: TensorLayout
    key: tuple
    geometry: UniformGrid = field(compare=False, repr=False)
    boundary: extrapolation.Extrapolation = field(compare=False, repr=False)

    @property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return self.values.parts

    @cached_property
    def boundary_kinds(self) -> tuple[tuple[str, str], ...]:
        description = _compat.boundary_to_dict(self.boundary)
        sides = [n + side for n in sorted(self.geometry.resolution.names) for side in "-+"]
        return tuple((side, _boundary_kind(description, side)) for side in sides)

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Field:
        return _compat.assemble_field(self.geometry, self.values.unflatten(natives), self.boundary)

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> FieldLayout:
        return replace(self, values=self.values.map_axes(f))

    def difference(self, other: Layout) -> str:
        if isinstance(other, FieldLayout) and self.key[1] != other.key[1]:
            return f"boundary {self.boundary} and {other.boundary}"
        if isinstance(other, FieldLayout) and self.key[0] != other.key[0]:
            return f"domain {self.key[0]} and {other.key[0]} (dim, cells, lower, upper)"
        return super().difference(other)


@dataclass(frozen=True)
class ConstantLayout(Layout):
    """A Python value (number, string, None): part of the layout, not of the tensors."""

    value: Any
    type: type

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        return self.value

    def difference(self, other: Layout) -> str:
        return f"{self.value!r} and {getattr(other, 'value', other)!r}"


@dataclass(frozen=True)
class TreeLayout(Layout):
    """A tuple, list or dict of states."""

    type: type
    keys: tuple | None
    children: tuple[Layout, ...]
    keywords: tuple[str, ...] = ()
    """Names of the last children, where the tuple holds the arguments of a call."""

    @cached_property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return tuple(leaf for child in self.children for leaf in child.leaves)

    @cached_property
    def boundary_kinds(self) -> tuple[tuple[str, str], ...]:
        return tuple(entry for child in self.children for entry in child.boundary_kinds)

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        values = [child.unflatten(natives) for child in self.children]
        return dict(zip(self.keys, values)) if self.keys is not None else self.type(values)

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> TreeLayout:
        return replace(self, children=tuple(child.map_axes(f) for child in self.children))

    def difference(self, other: Layout) -> str:
        if not isinstance(other, TreeLayout):
            return super().difference(other)
        own, its = ((t.type, t.keys, t.keywords, len(t.children)) for t in (self, other))
        if own != its:
            shown = (f"{t.type.__name__} of {t.keys or t.keywords or len(t.children)}" for t in (self, other))
            return " and ".join(shown)
        names = self.keys or [None] * len(self.children)
        parts = [(n, a.difference(b)) for n, a, b in zip(names, self.children, other.children) if a != b]
        return "; ".join(text if name is None else f"{name}: {text}" for name, text in parts)


def flatten(state: Any) -> tuple[tuple[torch.Tensor, ...], Layout]:
    """Takes a PhiFlow state apart into torch tensors and a layout, without loss.

    Values backed by NumPy become torch tensors of the precision and device of the torch values beside them.

    Args:
        state: `Field` on a uniform grid, PhiML `Tensor`, number, or tuple, list, dict of states, with any batch dims.

    Returns:
        tensors: one contiguous tensor per leaf, or per component of a staggered field, axes in canonical order.
        layout: `unflatten(layout, tensors)` gives the state back.

    Raises:
        StateError: for values that no tensors can stand for (meshes, point clouds, sparse or layout tensors).
    """
    natives: list[Any] = []
    layout = _describe(state, natives)
    return _as_torch(natives), layout


def unflatten(layout: Layout, tensors: Sequence[torch.Tensor]) -> Any:
    """Inverse of `flatten`. Sizes of batch dims are taken from the tensors."""
    require_instance("layout", layout, Layout, "what flatten() returned second: unflatten(layout, tensors)")
    expected = len(layout.leaves)
    if len(tensors) != expected:
        raise StateError(f"{len(tensors)} tensors given, but the layout holds {expected}: pass what flatten() returned")
    with math.precision(precision_of(tensors)):
        return layout.unflatten(iter(tensors))


def precision_of(tensors: Sequence[torch.Tensor]) -> int:
    """PhiML's precision in bits for computing with these tensors: that of the floats among them."""
    bits = [torch.finfo(t.dtype).bits for t in tensors if t.dtype.is_floating_point or t.dtype.is_complex]
    return bits[0] if bits else math.get_precision()


def matches(layout: Layout, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the shapes of `tensors` fit the layout, batch sizes left open."""
    leaves = layout.leaves
    return len(leaves) == len(tensors) and all(
        len(axes) == t.ndim and all(a.size in (None, s) for a, s in zip(axes, t.shape))
        for axes, t in zip(leaves, tensors)
    )


def describe_leaves(layout: Layout) -> str:
    """Human-readable shapes of the tensors of a layout."""
    return ", ".join("(" + ", ".join(map(str, axes)) + ")" for axes in layout.leaves) or "no tensors"


def with_batch(layout: Layout, *names: str) -> Layout:
    """The layout with batch axes added where they are missing."""
    return layout.map_axes(lambda axes: [*axes, *(Axis("batch", n) for n in names if n not in {a.name for a in axes})])


def without(layout: Layout, *names: str) -> Layout:
    """The layout without the axes of these names."""
    return layout.map_axes(lambda axes: [a for a in axes if a.name not in names])


def batch_names(*layouts: Layout) -> list[str]:
    """Names of all batch axes in canonical order."""
    return sorted({a.name for layout in layouts for axes in layout.leaves for a in axes if a.kind == "batch"})


def position_of(name: str, axes: tuple[Axis, ...]) -> int | None:
    """Index of the axis `name` among `axes`, `None` if it is not there."""
    return next((i for i, a in enumerate(axes) if a.name == name), None)


def tuple_of(*layouts: Layout, keywords: tuple[str, ...] = ()) -> TreeLayout:
    """Layout of a tuple of states, or of the arguments of a call, the last of them by keyword."""
    return TreeLayout(tuple, None, layouts, keywords)


def repeat(
    tensors: Sequence[torch.Tensor], source: Layout, target: Layout, sizes: Mapping[str, int] = MappingProxyType({})
) -> tuple[torch.Tensor, ...]:
    """Tensors of `source` with the batch axes of `target`, repeated along those that are missing or of size 1."""
    result = []
    for tensor, old, new in zip(tensors, source.leaves, target.leaves):
        names = {a.name for a in old}
        for position, axis in enumerate(new):
            if axis.name not in names:
                tensor = tensor.unsqueeze(position)
        shape = [sizes.get(a.name, 1) if s == 1 and a.kind == "batch" else s for a, s in zip(new, tensor.shape)]
        result.append(tensor.expand(shape).contiguous())
    return tuple(result)


def batch_sizes(tensors: Sequence[torch.Tensor], layout: Layout) -> dict[str, int]:
    """Sizes of the batch dims, found on whichever tensors carry them; canonical order.

    Raises:
        StateError: for two sizes of one dim, neither of which is 1.
    """
    sizes = dict.fromkeys(batch_names(layout), 1)
    for tensor, axes in zip(tensors, layout.leaves):
        for axis, size in zip(axes, tensor.shape):
            if axis.kind != "batch" or size == sizes[axis.name]:
                continue
            if 1 not in (size, sizes[axis.name]):
                raise StateError(
                    f"batch dim '{axis.name}' has sizes {sizes[axis.name]} and {size}: pass equal numbers of entries, or "
                    "leave the dim out to repeat a value along it"
                )
            if sizes[axis.name] == 1:
                sizes[axis.name] = size
    return sizes


def stack(
    frames: Sequence[Sequence[torch.Tensor]], layout: Layout, name: str
) -> tuple[tuple[torch.Tensor, ...], Layout]:
    """Stacks states of one layout along a new batch axis, which takes its canonical place."""
    stacked = with_batch(layout, name)
    positions = [position_of(name, axes) for axes in stacked.leaves]
    return tuple(torch.stack(leaf, p) for leaf, p in zip(zip(*frames), positions)), stacked


def _boundary_kind(description: dict, side: str) -> str:
    if "sides" in description:
        return _boundary_kind(description["sides"].get(side, description["sides"].get(side[:-1])), side)
    if "normal" in description:
        parts = (_boundary_kind(description[k], side) for k in ("normal", "tangential"))
        return " normal, ".join(parts) + " tangential"
    return description.get("primitive", "constant")


def sorted_axes(axes: Iterable[Axis]) -> list[Axis]:
    """The canonical order: by kind, then by name; spatial axes stay as they are declared."""
    order = list(_KINDS)
    return sorted(axes, key=lambda a: (order.index(a.kind), "" if a.kind == "spatial" else a.name))


def _describe(state: Any, natives: list) -> Layout:
    if isinstance(state, Field):
        return _describe_field(state, natives)
    if isinstance(state, Tensor):
        return _describe_tensor(state, natives)
    if isinstance(state, dict):
        return TreeLayout(dict, tuple(state), tuple(_describe(v, natives) for v in state.values()))
    if type(state) in (tuple, list):
        return TreeLayout(type(state), None, tuple(_describe(v, natives) for v in state))
    if state is None or isinstance(state, (Number, str)):
        return ConstantLayout(state, type(state))
    raise StateError(
        f"a state holds Fields, PhiFlow Tensors, numbers, and tuples, lists or dicts of them, not {type(state).__name__}; "
        "wrap native tensors with phi.math.wrap(native, dims)"
    )


def _describe_field(state: Field, natives: list) -> FieldLayout:
    if not isinstance(state.geometry, UniformGrid):
        raise StateError(
            f"only fields on uniform grids can be flattened, got a field on {type(state.geometry).__name__}; "
            "pass its values as a Tensor and close over the geometry"
        )
    values = _describe_tensor(state.values, natives, state.geometry.resolution.names)
    return FieldLayout(values, domain_key(state.geometry, state.boundary), state.geometry, state.boundary)


def domain_key(geometry: UniformGrid, boundary: extrapolation.Extrapolation) -> tuple:
    """Resolution, bounds and boundary in comparable form."""
    bounds: Box = geometry.bounds
    if bounds.lower.shape.batch or bounds.upper.shape.batch:
        raise StateError(f"bounds with batch dims {bounds.shape.batch} are not supported: use one domain per state")
    size, low, up = geometry.resolution.get_size, bounds.lower.vector, bounds.upper.vector
    box = tuple((n, size(n), float(low[n]), float(up[n])) for n in geometry.resolution.names)
    try:
        return box, json.dumps(_compat.boundary_to_dict(boundary), sort_keys=True)
    except (ValueError, NotImplementedError) as error:
        raise StateError(f"a field with this boundary cannot be flattened: {error}") from error


def _describe_tensor(tensor: Tensor, natives: list, order: Sequence[str] = ()) -> TensorLayout:
    if _compat.is_sparse(tensor) or tensor.dtype.kind is object:
        raise StateError(
            f"tensor of shape {tensor.shape} is sparse or holds Python objects; pass dense numeric tensors"
        )
    split = tensor.shape.dual
    precision = tensor.dtype.precision if tensor.dtype.kind in (float, complex) else math.get_precision()
    with math.precision(precision):  # PhiML casts natives to the global precision otherwise
        if len(split) == 1:
            parts = math.unstack(tensor, split)
            return TensorLayout(tuple(_append(part, natives, order) for part in parts), _axis(split))
        return TensorLayout((_append(tensor, natives, order),))


def _append(tensor: Tensor, natives: list, order: Sequence[str]) -> tuple[Axis, ...]:
    if not tensor.shape.is_uniform:
        raise StateError(f"tensor of non-uniform shape {tensor.shape}; split it into a tuple of uniform tensors")
    axes = sorted_axes([_axis(dim) for dim in tensor.shape.only(order, reorder=True) & tensor.shape.without(order)])
    natives.append(tensor.native([a.phi_name for a in axes]) if axes else tensor.native())
    return tuple(axes)


def _axis(dim: Shape) -> Axis:
    labels = dim.labels[0]
    size = None if dim.batch and not labels else dim.size
    kind = next(k for k in _KINDS if getattr(dim, k))
    return Axis(kind, dim.name.lstrip("~"), size, tuple(labels) if labels else None)


def _as_torch(natives: list) -> tuple[torch.Tensor, ...]:
    torch_natives = [n for n in natives if isinstance(n, torch.Tensor)]
    floats = [n.dtype for n in torch_natives if n.dtype.is_floating_point]
    device = torch_natives[0].device if torch_natives else torch.device(_compat.TORCH.get_default_device().ref)
    precision = floats[0] if floats else (torch.float64 if math.get_precision() == 64 else torch.float32)

    def convert(native: Any) -> torch.Tensor:
        if isinstance(native, torch.Tensor):
            return native.contiguous()
        array = torch.as_tensor(np.array(native), device=device)
        return array.to(precision) if array.dtype.is_floating_point else array

    return tuple(convert(n) for n in natives)


def _assemble(native: torch.Tensor, axes: tuple[Axis, ...]) -> Tensor:
    if not axes:
        return math.wrap(native)
    return math.wrap(native, math.concat_shapes(*(a.shape(s) for a, s in zip(axes, native.shape))))
