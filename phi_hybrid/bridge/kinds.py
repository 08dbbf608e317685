"""Kinds of layouts: descriptions of states without their values, from which tensors become the states again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from phi import math
from phi.field import Field
from phi.geom import UniformGrid
from phi.math import Tensor
from phiml.math import extrapolation

from phi_hybrid import _compat
from phi_hybrid.bridge.axes import Axis, describe_axes, position_of, sorted_axes
from phi_hybrid.bridge.boundaries import kinds_of_sides
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.bridge.keys import constant_key


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

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # what is computed from them is computed anew

    def difference(self, other: Layout) -> str:
        """Names, in words, what tells this layout from another."""
        if type(self) is not type(other):
            return f"{self} and {other}"
        own, its = describe_axes(self.leaves), describe_axes(other.leaves)
        return f"dims {own} and {its}" if own != its else f"{self} and {other}"

    def __str__(self) -> str:
        return f"tensors {describe_axes(self.leaves)}"


@dataclass(frozen=True)
class TensorLayout(Layout):
    """A PhiML tensor: one native tensor per entry of the dimension `split`, or a single one."""

    parts: tuple[tuple[Axis, ...], ...]
    split: Axis | None = None

    @property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return self.parts

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Tensor:
        parts = [next(natives) for _ in self.parts]
        tensors = [_assemble(native, axes) for native, axes in zip(parts, self.parts)]
        if self.split is None:
            return tensors[0]
        precise = parts[0].is_floating_point() or parts[0].is_complex()
        with math.precision(torch.finfo(parts[0].dtype).bits if precise else math.get_precision()):  # it would cast
            return math.stack(tensors, self.split.shape(len(tensors)))

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> TensorLayout:
        return replace(self, parts=tuple(tuple(sorted_axes(f(axes))) for axes in self.parts))

    def __str__(self) -> str:
        return f"a tensor {describe_axes(self.leaves)}{'' if self.split is None else f' along {self.split}'}"


@dataclass(frozen=True)
class FieldLayout(Layout):
    """A field on a uniform grid with a constant boundary. `key` stands for domain and boundary in comparisons."""

    values: TensorLayout
    key: tuple
    geometry: UniformGrid = field(compare=False, repr=False)
    boundary: extrapolation.Extrapolation = field(compare=False, repr=False)

    @property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return self.values.parts

    @cached_property
    def boundary_kinds(self) -> tuple[tuple[str, str], ...]:
        return kinds_of_sides(_compat.boundary_to_dict(self.boundary), self.geometry.resolution.names)

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

    def __str__(self) -> str:
        return f"a field {describe_axes(self.leaves)} with boundary {self.boundary}"


@dataclass(frozen=True, eq=False)
class ConstantLayout(Layout):
    """A Python value, a mesh, a constant boundary: part of the layout, compared by content, not of the tensors."""

    value: Any
    type: type

    @cached_property
    def key(self) -> Hashable:
        """The content in comparable form."""
        return constant_key(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConstantLayout) and (self.value is other.value or self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        return self.value

    def difference(self, other: Layout) -> str:
        return f"{self} and {other}"

    def __str__(self) -> str:
        text = " ".join(repr(self.value).split())
        return text if len(text) <= 100 else f"a constant {self.type.__name__}"


class Parent(Layout):
    """A layout that consists of others."""

    children: tuple[Layout, ...]

    @cached_property
    def leaves(self) -> tuple[tuple[Axis, ...], ...]:
        return tuple(leaf for child in self.children for leaf in child.leaves)

    @cached_property
    def boundary_kinds(self) -> tuple[tuple[str, str], ...]:
        return tuple(entry for child in self.children for entry in child.boundary_kinds)

    def map_axes(self, f: Callable[[tuple[Axis, ...]], Iterable[Axis]]) -> Layout:
        return replace(self, children=tuple(child.map_axes(f) for child in self.children))


@dataclass(frozen=True)
class TreeLayout(Parent):
    """A tuple, list or dict of states."""

    type: type
    keys: tuple | None
    children: tuple[Layout, ...]
    keywords: tuple[str, ...] = ()
    """Names of the last children, where the tuple holds the arguments of a call."""

    def unflatten(self, natives: Iterator[torch.Tensor]) -> Any:
        values = [child.unflatten(natives) for child in self.children]
        return self.type(values if self.keys is None else zip(self.keys, values))

    def difference(self, other: Layout) -> str:
        if not isinstance(other, TreeLayout):
            return super().difference(other)
        own, its = ((t.type, t.keys, t.keywords, len(t.children)) for t in (self, other))
        if own != its:
            return f"{self} and {other}"
        return differences(self.keys or [None] * len(self.children), self.children, other.children)

    def __str__(self) -> str:
        return f"{self.type.__name__} of {self.keys or self.keywords or len(self.children)}"


def differences(names: Iterable[str | None], own: Iterable[Layout], its: Iterable[Layout]) -> str:
    """Names, in words, what tells the children of one layout from those of another."""
    parts = [(n, a.difference(b)) for n, a, b in zip(names, own, its) if a != b]
    return "; ".join(text if name is None else f"{name}: {text}" for name, text in parts)


def _assemble(native: torch.Tensor, axes: tuple[Axis, ...]) -> Tensor:
    if not axes:
        return math.wrap(native)
    return math.wrap(native, math.concat_shapes(*(a.shape(s) for a, s in zip(axes, native.shape))))
