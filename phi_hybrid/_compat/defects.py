"""Defects of PhiFlow on torch, mended on import, for eager code as well as for captured code.

* `advect.semi_lagrangian` and `advect.mac_cormack` crash in 1D (`TorchBackend.grid_sample` handles 2D and 3D only);
* sampling a grid of a single cell along some dim divides by zero, which makes torch write outside of its memory in backward;
* `Field.closest_values`, the limiter of `advect.mac_cormack`, looks half a cell beside the faces of staggered grids and
  crashes when their boundary holds a vector;
* advection on staggered grids in 1D returns values with a surplus `vector` dim;
* `diffuse.implicit` fails on staggered grids that are not periodic;
* boxes look at the values of their rotation to see that there is one;
* sides whose values are equal are taken for one, which then gets all gradients;
* padding with a 0-dimensional torch tensor takes its value out of it, and its tangent is lost in forward mode;
* linear functions on meshes cannot be traced, since the check of their indices waits for values that are there, and
  their coefficients become NumPy arrays, which have no gradients;
* linear functions cannot be traced next to a boundary with a floating-point value (walls at 1.0, inflow), nor next to an
  antisymmetric one or a field, and their matrices keep entries for cells outside of constant ones.

`tests/test_compat.py` has one test per workaround that fails as soon as upstream has mended the defect.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from phi import math
from phi.field import Field
from phi.field._embed import FieldEmbedding
from phi.geom import Box, UniformGrid
from phi.physics import diffuse
from phiml.backend import NUMPY
from phiml.backend.torch._torch_backend import TorchBackend
from phiml.math import _functional, _ops, extrapolation
from phiml.math._lin_trace import LinTracer
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import tree_map

_grid_sample_2d_3d = TorchBackend.grid_sample
_closest_values_centered = Field.closest_values
_with_values_as_given = Field.with_values
_implicit_on_one_grid = diffuse.implicit
_pad_tracer_with_constant_type = LinTracer._pad
_when_available_outside = _functional.when_available
_bins_of_default_backend = _ops.bins
_compare_rotation = Box.is_axis_aligned.fget
_equal_by_value = extrapolation.ConstantExtrapolation.__eq__
_pad_with_number = TorchBackend.pad


def _grid_sample(self: TorchBackend, grid: Any, coordinates: Any, extrapolation: str) -> Any:
    if coordinates.shape[-1] == 1 or 1 in grid.shape[1:-1]:
        return NotImplemented  # torch samples images and volumes only; this selects PhiML's own interpolation
    return _grid_sample_2d_3d(self, grid, coordinates, extrapolation)


def _closest_values(self: Field, points: Any) -> PhiTensor:
    if not self.is_staggered:
        return _closest_values_centered(self, points)
    closest = {}
    for name in self.vector.item_names:
        faces = UniformGrid(self.resolution, self.bounds).stagger(name, *self.boundary.valid_outer_faces(name))
        position = faces.bounds.global_to_local(points[{"~vector": name}]) * faces.resolution - 0.5
        boundary = self.boundary[{"vector": name}]
        closest[name] = math.closest_grid_values(self.values[{"~vector": name}], position, boundary)
    return math.stack(closest, math.dual("vector"))


def _with_values(self: Field, values: Any, **kwargs: Any) -> Field:
    if isinstance(values, PhiTensor) and {"vector", "~vector"} <= set(values.shape.names) and self.is_staggered:
        values = values.vector[0] if self.spatial_rank == 1 else values  # sampling at faces leaves it there in 1D
    return _with_values_as_given(self, values, **kwargs)


def _implicit(field: Field, diffusivity: Any, dt: Any, *args: Any, **kwargs: Any) -> Field:
    if not field.is_staggered or field.boundary == extrapolation.PERIODIC:
        return _implicit_on_one_grid(field, diffusivity, dt, *args, **kwargs)
    components = {}
    for name in field.vector.item_names:
        faces = UniformGrid(field.resolution, field.bounds).stagger(name, *field.boundary.valid_outer_faces(name))
        component = Field(faces, field.values[{"~vector": name}], field.boundary[{"vector": name}])
        components[name] = _implicit_on_one_grid(component, diffusivity, dt, *args, **kwargs).values
    return field.with_values(math.stack(components, math.dual("vector")))


def _when_available(check: Callable, *tensors: PhiTensor) -> None:
    if _functional._TRACING_LINEAR and math.all_available(*tensors):
        check(*tensors)
    else:
        _when_available_outside(check, *tensors)


def _bins(x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, PhiTensor):
        return tree_map(lambda tensor: _bins(tensor, *args, **kwargs), x)
    with x.backend:
        return _bins_of_default_backend(x, *args, **kwargs)


def _pad_tracer(
    self: LinTracer, boundary: extrapolation.Extrapolation, widths: dict, *args: Any, **kwargs: Any
) -> LinTracer:
    if isinstance(boundary, extrapolation._AntiSymmetricExtrapolation):  # which negates indices, too
        padded = _pad_tracer_with_constant_type(self, extrapolation.SYMMETRIC, widths, *args, **kwargs)
        dims = self.shape.only(tuple(widths))
        sign = boundary.pad(math.wrap(np.ones(dims.sizes), dims), widths, *args, **kwargs)  # constants stay constant
        return dataclasses.replace(
            padded, _fac=padded._fac * sign, _bias=boundary.pad(self._bias, widths, *args, **kwargs)
        )
    if not isinstance(boundary, (extrapolation.ConstantExtrapolation, FieldEmbedding)):
        return _pad_tracer_with_constant_type(self, boundary, widths, *args, **kwargs)
    padded = _pad_tracer_with_constant_type(self, extrapolation.ZERO, widths, *args, **kwargs)  # indices stay integers
    with NUMPY:  # outside, nothing depends on the unknowns, whether coefficients are known or not
        inside = math.ones(self.shape.only(tuple(widths)), dtype=bool)
        inside = extrapolation.ConstantExtrapolation(False).pad(inside, widths, *args, **kwargs)
    nonzero = padded._fac_nz & inside if inside.shape in padded._fac.shape else padded._fac_nz
    if isinstance(boundary, FieldEmbedding):
        with boundary.field.values.default_backend:  # sampling converts to NumPy, which is chosen while tracing
            bias = boundary.pad(math.expand(self._bias, self.shape.spatial), widths, *args, **kwargs)
    else:
        bias = boundary.pad(self._bias, widths, *args, **kwargs)
    return dataclasses.replace(padded, _fac_nz=nonzero, _bias=bias)


def _pad(self: TorchBackend, value: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> Any:
    value = self.as_tensor(value)
    if isinstance(constant_values, torch.Tensor) and torch.can_cast(constant_values.dtype, value.dtype):
        return NotImplemented  # torch pads with Python numbers only; this selects PhiML's concatenation
    return _pad_with_number(self, value, pad_width, mode, constant_values)


def _is_axis_aligned(self: Box) -> PhiTensor:
    return _compare_rotation(self) if self.rot.dtype.kind is object else math.wrap(False)


_values_are_inputs: ContextVar[bool] = ContextVar("values_are_inputs", default=False)


@contextlib.contextmanager
def distinct_boundary_values() -> Iterator[None]:
    """Inside, boundary values on torch are equal only if they are the same tensor, as for PhiFlow while it traces."""
    token = _values_are_inputs.set(True)
    try:
        yield
    finally:
        _values_are_inputs.reset(token)


def _equal_boundaries(self: extrapolation.ConstantExtrapolation, other: Any) -> bool:
    if not isinstance(other, extrapolation.ConstantExtrapolation):
        return False
    own, its = self.value._natives(), other.value._natives()
    inputs = [n for n in (*own, *its) if isinstance(n, torch.Tensor) and (n.requires_grad or _values_are_inputs.get())]
    if not inputs:
        return _equal_by_value(self, other)
    return self.value.shape == other.value.shape and len(own) == len(its) and all(a is b for a, b in zip(own, its))


LinTracer._pad = _pad_tracer
_functional.when_available = _when_available
_ops.bins = _bins
extrapolation.ConstantExtrapolation.__eq__ = _equal_boundaries
Box.is_axis_aligned = property(_is_axis_aligned)
TorchBackend.pad = _pad
TorchBackend.grid_sample = _grid_sample
diffuse.implicit = _implicit
Field.closest_values = _closest_values
Field.with_values = _with_values
