"""Geometries, obstacles, point clouds, boundaries with tensors, tree classes ↔ tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Number
from typing import Any

import numpy as np
import torch
from phi import math
from phi.field import Field
from phi.geom import Geometry, UniformGrid
from phi.math import Tensor
from phi.physics.fluid import Obstacle
from phiml.math import extrapolation

from phi_hybrid import _compat
from phi_hybrid.bridge.axes import describe_axes
from phi_hybrid.bridge.boundaries import kinds_of_sides
from phi_hybrid.bridge.keys import attributes_key, constant_key
from phi_hybrid.bridge.kinds import ConstantLayout, Layout, Parent, differences
from phi_hybrid.bridge.tensors import Natives, describe_tensor
from phi_hybrid.errors import StateError


@dataclass(frozen=True, eq=False)
class ObjectLayout(Parent):
    """An object: geometry, obstacle, point cloud, boundary with tensors, tree class of the user.

    Children are its attributes that hold tensors; its other attributes are constants, compared by content.
    """

    type: type
    names: tuple[str, ...]
    children: tuple[Layout, ...]
    constants: Mapping[str, Any] = field(repr=False)

    @cached_property
    def key(self) -> Hashable:
        """The constants in comparable form."""
        return attributes_key(self.type, self.constants)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, ObjectLayout):
            return self is other
        own, its = ((o.type, o.names, o.children) for o in (self, other))
        return own == its and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.type, self.names, self.children, self.key))

    @cached_property
    def boundary_kinds(self) -> tuple[tuple[str, str], ...]:
        if not issubclass(self.type, Field):
            return super().boundary_kinds
        geometry, _, boundary = self.children
        grid = isinstance(geometry, ConstantLayout) and isinstance(geometry.value, UniformGrid)
        return kinds_of_sides(describe_boundary(boundary), geometry.value.resolution.names) if grid else ()

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        attributes = {name: child.unflatten(natives) for name, child in zip(self.names, self.children)}
        return _compat.assemble_object(self.type, attributes, self.constants)

    def difference(self, other: Layout) -> str:
        if not isinstance(other, ObjectLayout) or self.type is not other.type:
            return f"{self} and {other}"
        if self.names != other.names:
            return f"{self.type.__name__} with tensors {', '.join(self.names)} and {', '.join(other.names)}"
        constants = {n: (self.constants.get(n), other.constants.get(n)) for n in {**self.constants, **other.constants}}
        changed = [f"{n}: {a!r} and {b!r}" for n, (a, b) in constants.items() if constant_key(a) != constant_key(b)]
        text = differences(self.names, self.children, other.children)
        return "; ".join([text, *changed] if text else changed)

    def __str__(self) -> str:
        return f"a {self.type.__name__} of {describe_axes(self.leaves)}"


def describe_boundary(layout: Layout) -> dict:
    """Description of a boundary as of `_compat.boundary_to_dict`, whose tensors are left out."""
    if isinstance(layout, ConstantLayout):
        return _compat.boundary_to_dict(layout.value)
    if layout.type is extrapolation.ConstantExtrapolation:
        return {"constant": None}
    parts = dict(zip(layout.names, layout.children))
    if "ext" in parts:
        return {"sides": {side: describe_boundary(c) for side, c in zip(parts["ext"].keys, parts["ext"].children)}}
    if "normal" in parts:
        return {name: describe_boundary(child) for name, child in parts.items()}
    return {"primitive": "field" if "field" in parts else layout.type.__name__}


def describe_object(value: Any, natives: Natives, describe: Callable[[Any, Natives], Layout]) -> Layout:
    """Layout of an object, whose tensors go to `natives`.

    Args:
        value: for which `_compat.is_object` holds.
        natives: takes the tensors.
        describe: takes apart what the object holds.

    Raises:
        StateError: if an attribute that counts as constant requires gradients or depends on the inputs of a step.
    """
    kind, names = type(value), _compat.attributes_of(value)
    children = tuple(_describe_attribute(value, name, natives, describe) for name in names)
    layout = ObjectLayout(kind, names, children, _compat.constants_of(value, names))
    _ = layout.key  # an error now, if any, rather than at the first comparison
    objects_alone = _compat.is_object_tensor(value) and not layout.leaves
    return ConstantLayout(value, kind) if objects_alone else layout


def _describe_attribute(value: Any, name: str, natives: Natives, describe: Callable[[Any, Natives], Layout]) -> Layout:
    """Numbers that describe bodies and boundaries are real numbers, whatever their first values are."""
    attribute = getattr(value, name)
    if isinstance(value, extrapolation.Extrapolation) and name == "ext":
        attribute = _compat.sides_in_order(value)
    if isinstance(value, Field) and name == "values" and value.is_grid:
        return describe_tensor(attribute, natives, value.resolution.names)
    body = isinstance(value, (Geometry, Obstacle, extrapolation.Extrapolation))
    if isinstance(value, Obstacle) and isinstance(attribute, Number) and attribute != 0:
        attribute = math.wrap(attribute)  # a body at rest is known to be at rest
    dense = isinstance(attribute, Tensor) and not _compat.is_object_tensor(attribute)
    if body and dense and not _compat.is_sparse(attribute):
        return describe_tensor(attribute, natives, real=attribute.dtype.kind is int)
    if isinstance(attribute, (np.ndarray, torch.Tensor)):
        raise StateError(
            f"{type(value).__name__}.{name} is a native {type(attribute).__name__} without dims; wrap it with "
            "phi.math.wrap(native, dims)"
        )
    plain = attribute is None or isinstance(
        attribute, (Tensor, extrapolation.Extrapolation, tuple, list, dict, Number, str)
    )
    known = plain or _compat.is_object(attribute)
    return describe(attribute, natives) if known else ConstantLayout(attribute, type(attribute))
