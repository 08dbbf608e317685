"""Vectors in parts: tensors that were stacked from components are never put together where parts of them do.

PhiFlow stacks the components of staggered fields along a last axis, computes on the whole, and takes the components
apart again. Compilers then read and write numbers one by one, with a stride. Exact, but for the order of sums over components.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch.fx import Node

from phi_hybrid.tracing.kernels import is_available
from phi_hybrid.tracing.passes.rewriter import Rewriter
from phi_hybrid.tracing.passes.sampling import PointSampler

_aten = torch.ops.aten

MOST_PARTS = 8
"""Components of a vector or matrix: longer stacks are left as they are."""


@dataclass(frozen=True)
class Stacked:
    """A tensor in parts along an axis: each a node or stacked itself, without that axis."""

    axis: int
    parts: tuple[Any, ...]


class Components(Rewriter):
    """Replaces stacks, operations on them and selections by operations on the components."""

    rules = {
        torch.Tag.pointwise: "pointwise",
        _aten.stack.default: "stack",
        _aten.select.int: "select",
        _aten.unbind.int: "unbind",
        operator.getitem: "getitem",
        _aten.slice.Tensor: "slice",
        _aten.cat.default: "cat",
        _aten.permute.default: "permute",
        _aten.unsqueeze.default: "unsqueeze",
        _aten.squeeze.dim: "squeeze",
        _aten.flip.default: "flip",
        _aten.sum.dim_IntList: "sum",
        _aten.clone.default: "each",
        _aten._to_copy.default: "each",
        _aten.detach.default: "each",
        "grid_sampler": "sample",
    }

    def plain(self, value: Any) -> Any:
        if isinstance(value, Stacked):
            return self.emit(_aten.stack.default, [self.plain(p) for p in value.parts], value.axis)
        return super().plain(value)

    def ndim(self, value: Any) -> int:
        return 1 + self.ndim(value.parts[0]) if isinstance(value, Stacked) else super().ndim(value)

    # --- what makes parts, and what takes them ---

    def stack(self, node: Node, parts: list[Any], axis: int = 0) -> Any:
        if len(parts) > MOST_PARTS:
            return NotImplemented
        return Stacked(axis % (self.ndim(parts[0]) + 1), tuple(parts))

    def select(self, node: Node, value: Any, axis: int, index: int) -> Any:
        if not isinstance(value, Stacked):
            return NotImplemented
        return self.part(value, axis % self.ndim(value), index)

    def part(self, value: Any, axis: int, index: int) -> Any:
        """One component, also of a tensor that is not in parts."""
        if not isinstance(value, Stacked):
            return self.emit(_aten.select.int, value, axis, index)
        if value.axis == axis:
            return value.parts[index]
        inner = axis - (axis > value.axis)
        return Stacked(value.axis - (value.axis > axis), tuple(self.part(p, inner, index) for p in value.parts))

    def unbind(self, node: Node, value: Any, axis: int = 0) -> Any:
        if not isinstance(value, Stacked) or value.axis != axis % self.ndim(value):
            return NotImplemented
        return list(value.parts)

    def getitem(self, node: Node, values: Any, index: int) -> Any:
        return values[index] if isinstance(values, list) else NotImplemented

    def sum(self, node: Node, value: Any, axes: list[int], keepdim: bool = False, dtype: Any = None) -> Any:
        if not isinstance(value, Stacked) or keepdim or dtype is not None or not axes:
            return NotImplemented
        return self._sum(value, [a % self.ndim(value) for a in axes])

    def _sum(self, value: Any, axes: list[int]) -> Any:
        if not axes:
            return value
        if not isinstance(value, Stacked):
            return self.emit(_aten.sum.dim_IntList, value, axes)
        parts = [self._sum(p, [a - (a > value.axis) for a in axes if a != value.axis]) for p in value.parts]
        if value.axis in axes:
            return reduce(lambda a, b: self.pointwise_of(_aten.add.Tensor, (a, b), {}), parts)
        return Stacked(value.axis - sum(a < value.axis for a in axes), tuple(parts))

    def sample(self, node: Node, values: Any, grid: Any, *rest: Any) -> Any:
        """The sampler with its points in components."""
        if not isinstance(grid, Stacked) or grid.axis != self.ndim(grid) - 1:
            return NotImplemented
        args = (self.plain(values), [self.plain(p) for p in grid.parts], *rest)
        self.module.add_submodule("point_sampler", PointSampler(self.module.grid_sampler, is_available()))
        sampler = self.graph.call_module("point_sampler", args)
        shape = args[0].meta["val"].new_empty(*args[0].meta["val"].shape[:2], *args[1][0].meta["val"].shape[1:])
        sampler.meta["val"] = shape
        return sampler

    # --- what is done part by part ---

    def pointwise(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(a, Stacked) for a in args):
            return NotImplemented
        return self.pointwise_of(node.target, args, kwargs)

    def pointwise_of(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A pointwise function of values that may be in parts along different axes."""
        stacked = next((a for a in args if isinstance(a, Stacked)), None)
        if stacked is None:
            return self.emit(target, *args, **kwargs)
        ndim = max(self.ndim(a) for a in args if isinstance(a, (Node, Stacked)))
        axis = stacked.axis - self.ndim(stacked)  # from the end, as tensors are broadcast
        if ndim == 1 or any(isinstance(a, (tuple, list)) for a in args):
            return self.emit(target, *self.plain(args), **kwargs)
        count = max(self._count(a, axis) for a in args)
        parts = [
            self.pointwise_of(target, tuple(self._broadcast_part(a, axis, i) for a in args), kwargs)
            for i in range(count)
        ]
        return Stacked(ndim + axis, tuple(parts))

    def _count(self, value: Any, axis: int) -> int:
        if not isinstance(value, (Node, Stacked)) or self.ndim(value) + axis < 0:
            return 1
        if isinstance(value, Stacked):
            own = self.ndim(value) + axis
            if own == value.axis:
                return len(value.parts)
            return self._count(value.parts[0], axis + 1 if own < value.axis else axis)
        return self.size(value, axis)

    def _broadcast_part(self, value: Any, axis: int, index: int) -> Any:
        """The part of an operand, which may lack the axis or have one entry along it."""
        if not isinstance(value, (Node, Stacked)) or (own := self.ndim(value) + axis) < 0:
            return value
        index = index if self._count(value, axis) > 1 else 0
        if self.ndim(value) == 1:  # not one without axes, whose precision would count for less
            return self.emit(_aten.slice.Tensor, self.plain(value), 0, index, index + 1)
        return self.part(value, own, index)

    def each(self, node: Node, value: Any, **kwargs: Any) -> Any:
        if not isinstance(value, Stacked):
            return NotImplemented
        return self._each(value, lambda part: self.emit(node.target, part, **kwargs))

    def _each(self, value: Any, function: Any) -> Any:
        if not isinstance(value, Stacked):
            return function(value)
        return Stacked(value.axis, tuple(self._each(p, function) for p in value.parts))

    # --- what moves axes ---

    def slice(self, node: Node, value: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
        if not isinstance(value, Stacked):
            return NotImplemented
        return self._slice(value, axis % self.ndim(value), start, end, step)

    def _slice(self, value: Any, axis: int, start: Any, end: Any, step: int) -> Any:
        if not isinstance(value, Stacked):
            return self.emit(_aten.slice.Tensor, value, axis, start, end, step)
        if value.axis == axis:
            return Stacked(axis, value.parts[slice(start, end, step)])
        inner = axis - (axis > value.axis)
        return Stacked(value.axis, tuple(self._slice(p, inner, start, end, step) for p in value.parts))

    def cat(self, node: Node, values: list[Any], axis: int = 0) -> Any:
        axis %= self.ndim(values[0])
        if len(values) <= MOST_PARTS and all(self._count(v, axis - self.ndim(v)) == 1 for v in values):
            return Stacked(axis, tuple(self.part(v, axis, 0) for v in values))  # a stack in disguise
        stacked = next((v for v in values if isinstance(v, Stacked)), None)
        if stacked is None:
            return NotImplemented
        if stacked.axis == axis:
            return NotImplemented
        inner = axis - (axis > stacked.axis)
        rows = [[self.part(v, stacked.axis, i) for v in values] for i in range(len(stacked.parts))]
        parts = [self.cat(node, row, inner) for row in rows]
        if any(p is NotImplemented for p in parts):
            parts = [self.emit(_aten.cat.default, self.plain(row), inner) for row in rows]
        return Stacked(stacked.axis, tuple(parts))

    def permute(self, node: Node, value: Any, order: list[int]) -> Any:
        if not isinstance(value, Stacked):
            return NotImplemented
        return self._permute(value, [d % len(order) for d in order])

    def _permute(self, value: Any, order: list[int]) -> Any:
        if not isinstance(value, Stacked):
            return value if order == sorted(order) else self.emit(_aten.permute.default, value, order)
        rest = [d - (d > value.axis) for d in order if d != value.axis]
        return Stacked(order.index(value.axis), tuple(self._permute(p, rest) for p in value.parts))

    def unsqueeze(self, node: Node, value: Any, axis: int) -> Any:
        if not isinstance(value, Stacked):
            return NotImplemented
        return self._unsqueeze(value, axis % (self.ndim(value) + 1))

    def _unsqueeze(self, value: Any, axis: int) -> Any:
        if not isinstance(value, Stacked):
            return self.emit(_aten.unsqueeze.default, value, axis)
        after = value.axis >= axis
        inner = axis if after else axis - 1
        return Stacked(value.axis + after, tuple(self._unsqueeze(p, inner) for p in value.parts))

    def squeeze(self, node: Node, value: Any, axis: int) -> Any:
        if not isinstance(value, Stacked) or value.axis == axis % self.ndim(value):
            return NotImplemented
        return self._squeeze(value, axis % self.ndim(value))

    def _squeeze(self, value: Any, axis: int) -> Any:
        if not isinstance(value, Stacked):
            return self.emit(_aten.squeeze.dim, value, axis)
        after = value.axis > axis
        inner = axis if after else axis - 1
        single = self._count(value, axis - self.ndim(value)) == 1
        return Stacked(value.axis - (after and single), tuple(self._squeeze(p, inner) for p in value.parts))

    def flip(self, node: Node, value: Any, axes: list[int]) -> Any:
        if not isinstance(value, Stacked) or [a % self.ndim(value) for a in axes] != [value.axis]:
            return NotImplemented
        return Stacked(value.axis, value.parts[::-1])
