"""PhiFlow state ↔ flat tuple of torch tensors plus a hashable layout.

The order of dimensions is fixed: batch, dual, instance, spatial, channel. Spatial dims keep the order in which the grid
declares them, since PhiFlow pairs them by position with cell sizes; all others are alphabetical. PhiML's own order of
flattened dimensions changes between processes. A staggered field gives one tensor per component, whatever its
boundaries, so that faces are never stacked or padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Number
from types import MappingProxyType
from typing import Any

import torch
from phi import math
from phi.field import Field
from phi.geom import Box, UniformGrid
from phi.math import Shape, Tensor
from phiml.math import extrapolation

from phi_hybrid import _compat
from phi_hybrid.bridge.axes import Axis, describe_axes, position_of, sorted_axes
from phi_hybrid.bridge.boundaries import is_constant
from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.keys import boundary_key, grid_key
from phi_hybrid.bridge.kinds import ConstantLayout, FieldLayout, Layout, Parent, TensorLayout, TreeLayout
from phi_hybrid.bridge.objects import ObjectLayout, describe_object
from phi_hybrid.bridge.tensors import Natives, describe_tensor
from phi_hybrid.errors import StateError

__all__ = [
    "Axis",
    "ConstantLayout",
    "FieldLayout",
    "Layout",
    "ObjectLayout",
    "TensorLayout",
    "TreeLayout",
    "batch_names",
    "batch_sizes",
    "describe_leaves",
    "domain_key",
    "flatten",
    "matches",
    "position_of",
    "precision_of",
    "repeat",
    "sorted_axes",
    "stack",
    "tuple_of",
    "unflatten",
    "with_batch",
    "with_rotations_like",
    "without",
]


def flatten(state: Any) -> tuple[tuple[torch.Tensor, ...], Layout]:
    """Takes a PhiFlow state apart into torch tensors and a layout, without loss.

    Values backed by NumPy become torch tensors of the precision and device of the torch values beside them.

    Args:
        state: `Field`, PhiML `Tensor`, geometry, `Obstacle`, boundary, number, tree class of PhiML, or tuple, list, dict of
            states, with any batch dims. Attributes that hold tensors become tensors, all else is part of the layout.

    Returns:
        tensors: one contiguous tensor per leaf, or per component of a staggered field, axes in canonical order.
        layout: `unflatten(layout, tensors)` gives the state back.

    Raises:
        StateError: for values that no tensors can stand for, and for trainable tensors among what is constant.
    """
    natives = Natives()
    layout = _describe(state, natives)
    return natives.as_torch(), layout


def unflatten(layout: Layout, tensors: Sequence[torch.Tensor]) -> Any:
    """Inverse of `flatten`. Sizes of batch dims are taken from the tensors.

    Raises:
        StateError: for another number of tensors than the layout holds.
    """
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
    return describe_axes(layout.leaves)


def with_batch(layout: Layout, *names: str) -> Layout:
    """The layout with batch axes added where they are missing."""
    return layout.map_axes(lambda axes: [*axes, *(Axis("batch", n) for n in names if n not in {a.name for a in axes})])


def without(layout: Layout, *names: str) -> Layout:
    """The layout without the axes of these names."""
    return layout.map_axes(lambda axes: [a for a in axes if a.name not in names])


def batch_names(*layouts: Layout) -> list[str]:
    """Names of all batch axes in canonical order."""
    return sorted({a.name for layout in layouts for axes in layout.leaves for a in axes if a.kind == "batch"})


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


def with_rotations_like(
    tensors: Sequence[torch.Tensor], layout: Layout, target: Layout
) -> tuple[tuple[torch.Tensor, ...], Layout]:
    """The same state, boxes turned by nothing where those of `target` are of another form.

    A box that was never turned has no rotation, one that was turned once an angle, any other a matrix.
    """
    found: list[torch.Tensor] = []
    with math.precision(precision_of(tensors)):
        turned = _rotated_like(layout, target, iter(tensors), found)
    return tuple(found), turned


def _rotated_like(layout: Layout, target: Layout, natives: Iterator[torch.Tensor], found: list) -> Layout:
    alike = isinstance(layout, Parent) and type(layout) is type(target) and layout.type is target.type
    if alike and issubclass(layout.type, Box) and layout != target:
        box = layout.unflatten(natives)
        tensors, turned = flatten(box.rotated(0.0 if box.spatial_rank == 2 else math.zeros(box.shape["vector"])))
        found += tensors
        return turned
    if alike and len(layout.children) == len(target.children):
        pairs = zip(layout.children, target.children)
        return replace(layout, children=tuple([_rotated_like(own, its, natives, found) for own, its in pairs]))
    found += islice(natives, len(layout.leaves))
    return layout


def domain_key(geometry: UniformGrid, boundary: extrapolation.Extrapolation) -> tuple:
    """Resolution, bounds and constant boundary of a field in comparable form."""
    return grid_key(geometry), boundary_key(boundary)


def _describe(state: Any, natives: Natives) -> Layout:
    if isinstance(state, Field):
        return _describe_field(state, natives)
    if isinstance(state, Tensor) and not _compat.is_object_tensor(state) and not _compat.is_sparse(state):
        return describe_tensor(state, natives)
    if isinstance(state, dict):
        kind = math.Dict if isinstance(state, math.Dict) else dict  # whose entries are attributes, too
        return TreeLayout(kind, tuple(state), tuple(_describe(v, natives) for v in state.values()))
    if type(state) in (tuple, list):
        return TreeLayout(type(state), None, tuple(_describe(v, natives) for v in state))
    if state is None or isinstance(state, (Number, str, Shape)):
        return ConstantLayout(state, type(state))
    if _compat.is_fixed(state) or (isinstance(state, extrapolation.Extrapolation) and is_constant(state)):
        constant = ConstantLayout(state, type(state))
        _ = constant.key  # an error now, if any
        return constant
    if _compat.is_object(state):
        return describe_object(state, natives, _describe)
    if isinstance(state, extrapolation.Extrapolation):
        raise StateError(
            f"boundary {state} ({type(state).__name__}) is not supported; use constants, PERIODIC, ZERO_GRADIENT or another "
            "of PhiFlow's own boundaries, fields, per side if need be"
        )
    raise StateError(
        "a state holds Fields, PhiFlow Tensors, geometries, obstacles, numbers, classes that name their tensors to PhiML, and "
        f"tuples, lists or dicts of them, not {type(state).__name__}; wrap native tensors with phi.math.wrap(native, dims)"
    )


def _describe_field(state: Field, natives: Natives) -> Layout:
    grid = isinstance(state.geometry, UniformGrid)
    if not grid or not is_constant(state.boundary):
        return describe_object(state, natives, _describe)
    values = describe_tensor(state.values, natives, state.geometry.resolution.names)
    return FieldLayout(values, domain_key(state.geometry, state.boundary), state.geometry, state.boundary)
