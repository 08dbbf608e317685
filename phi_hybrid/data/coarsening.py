"""Fine grid → coarse grid: cell means, and fluxes through coarse faces for staggered fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from phi.geom import UniformGrid
from phi.math import spatial

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.bridge.layout import (
    Axis,
    FieldLayout,
    Layout,
    TensorLayout,
    TreeLayout,
    domain_key,
    flatten,
    position_of,
    unflatten,
)
from phi_hybrid.errors import StateError


def coarsen(state: Any, factor: int) -> Any:
    """Averages a state over blocks of cells; staggered components over the faces that make up a coarse face.

    The divergence of a coarsened staggered velocity is the cell mean of the fine divergence, so divergence-free
    velocities stay so.

    Args:
        state: fields or tensors `(batch, x, y, vector)` and trees of them; values without spatial dims stay as they are.
        factor: number of fine cells per coarse cell along each spatial dim.

    Returns:
        State on the coarse grid with the same bounds and boundaries.

    Raises:
        StateError: if a resolution is no multiple of `factor`.
    """
    require_count("factor", factor, way_out="the number of fine cells per coarse cell")
    if factor == 1:
        return state
    tensors, layout = flatten(state)
    return unflatten(_coarse_layout(layout, factor), _coarse_tensors(layout, list(tensors), factor))


def _coarse_tensors(layout: Layout, tensors: list[torch.Tensor], factor: int) -> list[torch.Tensor]:
    """Consumes the tensors of `layout` from the front of the list."""
    if isinstance(layout, TreeLayout):
        return [t for child in layout.children for t in _coarse_tensors(child, tensors, factor)]
    values = layout.values if isinstance(layout, FieldLayout) else layout
    split = getattr(values, "split", None)
    result = []
    for number, axes in enumerate(layout.leaves):
        tensor = tensors.pop(0)
        dim = split.labels[number] if split is not None else None
        for axis in axes:
            if axis.kind == "spatial":
                position = position_of(axis.name, axes)
                if axis.name == dim:
                    tensor = tensor[
                        (slice(None),) * position + (_kept_faces(layout, dim, tensor.shape[position], factor),)
                    ]
                else:
                    tensor = _block_mean(tensor, position, factor, axis.name)
        result.append(tensor)
    return result


def _kept_faces(layout: FieldLayout, dim: str, stored: int, factor: int) -> slice:
    """Every `factor`-th face, counted from the lower side of the domain, where the lowest may not be stored."""
    lower, upper = layout.boundary.valid_outer_faces(dim)
    _divide(stored + 1 - lower - upper, factor, dim)
    return slice(0 if lower else factor - 1, None, factor)


def _block_mean(tensor: torch.Tensor, position: int, factor: int, name: str) -> torch.Tensor:
    coarse = _divide(tensor.shape[position], factor, name)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise StateError(
            f"a tensor of {tensor.dtype} along {name} has no cell means; convert it with phi.math.to_float"
        )
    return tensor.unflatten(position, (coarse, factor)).mean(position + 1)


def _coarse_layout(layout: Layout, factor: int) -> Layout:
    if isinstance(layout, TreeLayout):
        return replace(layout, children=tuple(_coarse_layout(child, factor) for child in layout.children))
    if isinstance(layout, FieldLayout):
        resolution = {
            n: _divide(layout.geometry.resolution.get_size(n), factor, n) for n in layout.geometry.resolution.names
        }
        geometry = UniformGrid(spatial(**resolution), layout.geometry.bounds)
        fine = {n: layout.geometry.resolution.get_size(n) for n in resolution}
        values = _resized(layout.values, lambda a: resolution[a.name] + a.size - fine[a.name])
        return FieldLayout(values, domain_key(geometry, layout.boundary), geometry, layout.boundary)
    if any(a.kind == "spatial" for axes in layout.leaves for a in axes) and not isinstance(layout, TensorLayout):
        raise StateError(
            f"{layout} has no cell means on a coarser grid; coarsen fields with constant boundaries, and leave bodies and "
            "particles as they are"
        )
    return _resized(layout, lambda a: a.size // factor) if isinstance(layout, TensorLayout) else layout


def _resized(layout: TensorLayout, size: Any) -> TensorLayout:
    def resize(axis: Axis) -> Axis:
        return replace(axis, size=size(axis)) if axis.kind == "spatial" else axis

    return replace(layout, parts=tuple(tuple(map(resize, axes)) for axes in layout.parts))


def _divide(cells: int, factor: int, name: str) -> int:
    if cells % factor:
        raise StateError(f"{cells} cells along {name} cannot be coarsened by {factor}; use a divisor of {cells}")
    return cells // factor
