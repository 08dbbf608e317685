"""Comparable keys of what is constant in a layout: equal for equal contents, whichever objects hold them."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Hashable, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from phi.geom import UniformGrid
from phi.math import Shape, Tensor
from phiml.math import extrapolation

from phi_hybrid import _compat
from phi_hybrid.bridge.boundaries import is_constant
from phi_hybrid.errors import StateError


def by_identity(function: Callable[[Any], Hashable]) -> Callable[[Any], Hashable]:
    """`function` of an immutable object, computed once while the object lives."""
    known: dict[int, tuple[weakref.ref, Hashable]] = {}

    def remembered(value: Any) -> Hashable:
        number = id(value)
        entry = known.get(number)
        if entry is None or entry[0]() is not value:
            entry = weakref.ref(value, lambda _: known.pop(number, None)), function(value)
            known[number] = entry
        return entry[1]

    return remembered


class Same:
    """Stands for a value that can be compared by identity only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def constant_key(value: Any) -> Hashable:
    """The content of a constant in comparable form: −0.0 is not 0.0, 1 is not 1.0 or True, NaN equals itself.

    Functions and objects of unknown classes are equal by their own `==`, which is identity by default.

    Raises:
        StateError: for tensors that require gradients or depend on the inputs of a step that is being traced.
    """
    if isinstance(value, Number):
        return _number_key(value)
    if value is None or isinstance(value, (str, bytes)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(constant_key, value))
    if isinstance(value, dict):
        return dict, tuple((k, constant_key(v)) for k, v in value.items())
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _array_key(value)
    if isinstance(value, Shape):
        return Shape, *(constant_key(v) for v in (value.names, value.dim_types, value.sizes, value.labels))
    if isinstance(value, Tensor) and not _compat.is_sparse(value) and not _compat.is_object_tensor(value):
        return _tensor_key(value)
    return _object_key(value)


def attributes_key(cls: type, attributes: Mapping[str, Any]) -> Hashable:
    """Names and contents of the constant attributes of an object of class `cls`."""
    key = []
    for name in sorted(attributes):
        try:
            key.append((name, constant_key(attributes[name])))
        except StateError as error:
            raise StateError(f"{cls.__name__}.{name}: {error}") from None
    return tuple(key)


def _object_key(value: Any) -> Hashable:
    if _compat.is_fixed(value):
        return _fixed_key(value)
    if isinstance(value, extrapolation.Extrapolation) and is_constant(value):
        return boundary_key(value)
    if _compat.is_object(value):
        return type(value), attributes_key(type(value), _compat.state_of(value))
    try:
        hash(value)
    except TypeError:
        return Same(value)
    return value


def _number_key(value: Number) -> Hashable:
    if isinstance(value, (float, complex)):
        value_of = complex(value)
        return type(value), value_of.real.hex(), value_of.imag.hex()
    return type(value), repr(value)


def _array_key(array: np.ndarray | torch.Tensor) -> Hashable:
    if isinstance(array, torch.Tensor):
        _require_constant(array)
        array = array.detach().cpu().numpy()
    content = np.ascontiguousarray(array).tobytes()
    return array.dtype.str, array.shape, hashlib.blake2b(content).digest() if len(content) > 64 else content


def _require_constant(tensor: Any) -> None:
    if isinstance(tensor, torch.Tensor) and (tensor.requires_grad or not _compat.TORCH.is_available(tensor)):
        what = "requires gradients" if tensor.requires_grad else "depends on the inputs of the step"
        raise StateError(
            f"a tensor of shape {tuple(tensor.shape)} {what}, but is a constant there. Way out: name the attribute in "
            "variable_attrs if its class allows that, give a constant, or leave the object inside of the step"
        )


def _tensor_key(tensor: Tensor) -> Hashable:
    if not tensor.shape.is_uniform:
        raise StateError(f"a tensor of non-uniform shape {tensor.shape} cannot be compared")
    names = sorted(tensor.shape.names)
    native = tensor.native(names) if names else tensor.native()
    return constant_key(tensor.shape.only(names, reorder=True)), _array_key(
        native if isinstance(native, torch.Tensor) else np.asarray(native)
    )


@by_identity
def boundary_key(boundary: extrapolation.Extrapolation) -> str:
    """Kind and numbers of a constant boundary, with the order of its sides where that decides what fills the corners."""
    key = json.dumps(_compat.boundary_to_dict(boundary), sort_keys=True, default=repr)
    order = list(_compat.sides_in_order(boundary))
    usual = sorted(order, key=lambda side: (boundary.ext[side].pad_rank, side))
    return key if order == usual else f"{key} in the order {order}"


@by_identity
def grid_key(geometry: UniformGrid) -> tuple:
    """`(dim, cells, lower, upper)` for every dim of a uniform grid."""
    bounds = geometry.bounds
    if bounds.lower.shape.batch or bounds.upper.shape.batch:
        raise StateError(f"bounds with batch dims {bounds.shape.batch} are not supported: use one domain per state")
    for native in (*_compat.natives_of(bounds.lower), *_compat.natives_of(bounds.upper)):
        _require_constant(native)
    size, low, up = geometry.resolution.get_size, bounds.lower.vector, bounds.upper.vector
    return tuple((n, size(n), float(low[n]), float(up[n])) for n in geometry.resolution.names)


@by_identity
def _fixed_key(geometry: Any) -> Hashable:
    """Content of a mesh, which takes long to read and is never written to, or domain of a grid."""
    if isinstance(geometry, UniformGrid):
        return UniformGrid, grid_key(geometry)
    return type(geometry), attributes_key(type(geometry), _compat.state_of(geometry))
