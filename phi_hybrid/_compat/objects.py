"""PhiFlow's objects, PhiML's tensors of other kinds, and tree classes: their attributes, and objects made from such."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from phi import math
from phi.field import Field
from phi.field._embed import FieldEmbedding
from phi.geom import Box, Geometry, Mesh, UniformGrid
from phi.geom._geom import InvertedGeometry
from phi.physics.fluid import Obstacle
from phiml.math import extrapolation
from phiml.math._sparse import CompactSparseTensor, CompressedSparseMatrix, SparseCoordinateTensor
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import Layout as ObjectTensor
from phiml.math._tree import value_attributes, variable_attributes

from phi_hybrid._compat.tracing import without_tracing
from phi_hybrid._compat.values import assemble_field, natives_of

_SPARSE = (SparseCoordinateTensor, CompressedSparseMatrix, CompactSparseTensor)
_TREES = ("__variable_attrs__", "__value_attrs__", "__all_attrs__")
"""Methods by which classes that are no dataclasses name their attributes to PhiML."""
_ATTRIBUTES = {
    Field: ("geometry", "values", "boundary"),
    Obstacle: ("geometry", "velocity", "angular_velocity"),
    InvertedGeometry: ("geometry",),  # its own answer is a method, which PhiML does not take
    ObjectTensor: ("_obj",),
    extrapolation.ConstantExtrapolation: ("value",),
    extrapolation._MixedExtrapolation: ("ext",),
    extrapolation._NormalTangentialExtrapolation: ("normal", "tangential"),
    extrapolation._ConditionalExtrapolation: ("mask", "true_ext", "false_ext"),
    extrapolation.Undefined: ("derived_from",),
    FieldEmbedding: ("field",),
    math.Solve: ("x0",),  # tolerances decide, they are not computed with
    **dict.fromkeys(_SPARSE, ("_values",)),
}
"""Attributes that hold tensors, of classes that do not name them to PhiML."""


def is_object(value: Any) -> bool:
    """Tells if a value has attributes that may hold tensors: a geometry, an obstacle, a dataclass, a PhiML tree."""
    if isinstance(value, extrapolation.Extrapolation):
        return type(value) in _ATTRIBUTES  # others may hold anything
    named = type(value) in _ATTRIBUTES or isinstance(value, Geometry) or dataclasses.is_dataclass(value)
    return (named or any(hasattr(value, n) for n in _TREES)) and not isinstance(value, (type, torch.nn.Module))


def is_object_tensor(value: Any) -> bool:
    """Tells if a value is a PhiML tensor of Python objects, such as the geometries of a union."""
    return isinstance(value, ObjectTensor)


def is_fixed(value: Any) -> bool:
    """Tells if a value is a mesh or grid, which is prepared once for its positions, in NumPy."""
    return isinstance(value, (Mesh, UniformGrid))


def attributes_of(value: Any) -> tuple[str, ...]:
    """Names of the attributes of an object that hold tensors: its variables and its values."""
    if type(value) in _ATTRIBUTES:
        return _ATTRIBUTES[type(value)]
    if not dataclasses.is_dataclass(value) and not any(hasattr(value, n) for n in _TREES):
        return ()
    names = variable_attributes(value)
    if hasattr(value, "__value_attrs__") or hasattr(type(value), "value_attrs"):
        names = tuple(dict.fromkeys((*names, *value_attributes(value))))
    infinite = isinstance(value, Box) and has_infinite_sides(value)
    return tuple(n for n in sorted(names) if n != "size" or not infinite)


def constants_of(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The other attributes, from which `assemble_object` makes an object like this one."""
    if isinstance(value, Field):
        return {"value_attrs": value.value_attrs}  # what else PhiFlow may trace, it does not here
    if isinstance(value, Obstacle):
        return {}  # its shape follows from the rest
    constants = {n: v for n, v in state_of(value).items() if n not in names}
    return constants | (_limits(value) if isinstance(value, Box) else {})


def state_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, without what it computed from others and keeps."""
    if dataclasses.is_dataclass(value):
        state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        unordered = state.keys() & {"variable_attrs", "value_attrs"}  # whose order PhiML changes
        return state | {n: tuple(sorted(state[n])) for n in unordered}
    if isinstance(value, PhiTensor):
        return {n: v for n, v in vars(value).items() if n not in ("_shape", "_prop")}
    if isinstance(value, math.Solve):
        return {n: v for n, v in vars(value).items() if n != "id"}  # a new one for every object
    cached = {n for n in vars(value) if isinstance(getattr(type(value), n, None), cached_property)}
    return {n: v for n, v in vars(value).items() if n not in cached}


def assemble_object(cls: type, attributes: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
    """An object of class `cls` from its attributes, as PhiML makes copies: through `__init__` for dataclasses alone."""
    given = {**constants, **attributes}
    if cls is Field:
        return assemble_field(**given)
    if cls is Obstacle:
        return Obstacle(**given)
    if cls is ObjectTensor or issubclass(cls, _SPARSE):
        return cls(*_positional(cls, given))
    new = math.Solve() if cls is math.Solve else object.__new__(cls)
    if dataclasses.is_dataclass(cls):
        init = {f.name for f in dataclasses.fields(cls) if f.init}
        new.__init__(**{n: v for n, v in given.items() if n in init})
        given = {n: v for n, v in given.items() if n not in init}
    new.__dict__.update(given)
    return new


def _positional(cls: type, given: dict[str, Any]) -> list[Any]:
    """Arguments of the constructors of PhiML's tensors, which are named like their attributes."""
    if cls is ObjectTensor:
        return [given["_obj"], given["_stack_dim"]]
    names = cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount]
    return [given[f"_{n}"] for n in names if n != "properties"]


def has_infinite_sides(box: Box) -> bool:
    """Tells if a box is infinite along some dim."""
    with without_tracing():
        return any(bool(_isinf(native)) for native in natives_of(box.size))


def _isinf(native: Any) -> bool:
    if not isinstance(native, torch.Tensor):
        return np.isinf(native).any()
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(native)
    return not wrapped and torch.isinf(native).any()  # infinite sizes are constants, which nothing transforms


def _limits(box: Box) -> dict[str, PhiTensor]:
    """Limits of a box that position and size cannot give back, since it is infinite to one side only."""
    kept = {n: vars(box)[n] for n in ("lower", "upper") if n in vars(box)}
    if not kept or not has_infinite_sides(box):
        return {}
    one_sided = any((math.is_finite(limit) & ~math.is_finite(box.size)).any for limit in kept.values())
    return kept if one_sided else {}
