"""Periodic padding as shifts: a tensor continued beyond its ends and cut again is the tensor itself, shifted.

PhiFlow pads, computes on the larger tensor, and takes slices of it. The padded tensor need not exist: what is sliced from
it is a `roll`, which compilers turn into index arithmetic. Exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from phi_hybrid.tracing.kernels import is_available
from phi_hybrid.tracing.passes.rewriter import Rewriter
from phi_hybrid.tracing.passes.sampling import PeriodicSampler, wrapped_coordinates

_aten = torch.ops.aten


@dataclass(frozen=True)
class Window:
    """Values of a periodic tensor: entry i along an axis is entry (start + i) mod size of `core`."""

    core: Node
    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """`(start, length)` by axis; other axes are those of the core."""


class Periodic(Rewriter):
    """Replaces concatenations of a tensor with its own ends, and slices of them, by shifts."""

    rules = {
        torch.Tag.pointwise: "pointwise",
        _aten.slice.Tensor: "slice",
        _aten.cat.default: "cat",
        _aten.permute.default: "permute",
        _aten.unsqueeze.default: "unsqueeze",
        _aten.squeeze.dim: "squeeze",
        _aten.select.int: "select",
        _aten.reshape.default: "reshape",
        _aten.clone.default: "clone",
        "point_sampler": "sample",
    }

    def plain(self, value: Any) -> Any:
        return self._written(value) if isinstance(value, Window) else super().plain(value)

    def ndim(self, value: Any) -> int:
        return self.ndim(value.core) if isinstance(value, Window) else super().ndim(value)

    def _written(self, window: Window) -> Node:
        """The window as a tensor: shifted, then cut or continued."""
        sizes = {a: self.size(window.core, a) for a in window.spans}
        cut = {a: s for a, s in window.spans.items() if s[0] % sizes[a] + s[1] <= sizes[a]}
        node = self._shifted(
            window.core, {a: -s[0] for a, s in window.spans.items() if a not in cut and s[1] <= sizes[a]}
        )
        for axis, (start, length) in window.spans.items():
            start, size = start % sizes[axis], sizes[axis]
            if length <= size:
                start = start if axis in cut else 0
                node = self._narrow(node, axis, start, length)
            else:
                pieces = []
                while length > 0:
                    pieces.append(self._narrow(node, axis, start, min(length, size - start)))
                    length -= size - start
                    start = 0
                node = self.emit(_aten.cat.default, pieces, axis)
        return node

    def _narrow(self, node: Node, axis: int, start: int, length: int) -> Node:
        whole = start == 0 and length == self.size(node, axis)
        return node if whole else self.emit(_aten.slice.Tensor, node, axis, start, start + length)

    def _shifted(self, node: Node, shifts: Mapping[int, int]) -> Node:
        """`roll`, by at most half of each axis."""
        nearest = {a: (s + (n := self.size(node, a)) // 2) % n - n // 2 for a, s in shifts.items()}
        nearest = {a: s for a, s in sorted(nearest.items()) if s}
        return self.emit(_aten.roll.default, node, list(nearest.values()), list(nearest)) if nearest else node

    # --- what makes windows ---

    def slice(self, node: Node, value: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
        if step != 1:
            return NotImplemented
        window = _window(value)
        axis %= self.ndim(value)
        first, length = window.spans.get(axis, (0, self.size(window.core, axis)))
        begin, stop, _ = slice(start, end).indices(length)
        if stop <= begin:
            return NotImplemented
        return self._spanned(window, axis, first + begin, stop - begin)

    def cat(self, node: Node, values: list[Any], axis: int = 0) -> Any:
        axis %= self.ndim(values[0])
        windows = [_window(v) for v in values]
        core, size = windows[0].core, self.size(windows[0].core, axis) if isinstance(windows[0].core, Node) else 0
        spans = [w.spans.get(axis, (0, size)) for w in windows]
        others = [{a: s for a, s in w.spans.items() if a != axis} for w in windows]
        joined = all((a + n - b) % size == 0 for (a, n), (b, _) in zip(spans, spans[1:]))
        if not joined or any(w.core is not core for w in windows) or any(o != others[0] for o in others):
            return NotImplemented
        return self._spanned(windows[0], axis, spans[0][0], sum(length for _, length in spans))

    def _spanned(self, window: Window, axis: int, start: int, length: int) -> Any:
        spans = {a: s for a, s in window.spans.items() if a != axis}
        if (start % self.size(window.core, axis), length) != (0, self.size(window.core, axis)):
            spans[axis] = (start, length)
        return Window(window.core, spans) if spans else window.core

    # --- what is done to the core ---

    def pointwise(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        """A function of the cores, if their windows hold every value of them."""
        if not any(isinstance(a, Window) for a in args) or any(isinstance(a, (tuple, list)) for a in args):
            return NotImplemented
        operands = [a for a in args if isinstance(a, (Node, Window))]
        ndim = max(self.ndim(a) for a in operands)
        axes = {a - self.ndim(w) for w in operands if isinstance(w, Window) for a in w.spans}
        common = {axis: self._common_span(operands, axis) for axis in axes}
        if None in common.values():
            return NotImplemented
        cores = [self._aligned(a, common) if isinstance(a, (Node, Window)) else a for a in args]
        result = self.emit(node.target, *cores, **kwargs)
        return Window(result, {axis + ndim: span for axis, span in common.items()})

    def _common_span(self, operands: list[Any], axis: int) -> tuple[int, int] | None:
        """The span that a result has along an axis, counted from the end; `None` if its core would be too small."""
        found, sizes = [], set()
        for operand in operands:
            window, own = _window(operand), self.ndim(operand) + axis
            if own < 0 or (own not in window.spans and self.size(window.core, own) == 1):
                continue
            size = self.size(window.core, own)
            found.append(window.spans.get(own, (0, size)))
            sizes.add(size)
        lengths = {length for _, length in found}
        if len(sizes) != 1 or len(lengths) != 1 or lengths.pop() < sizes.copy().pop():
            return None
        return next((s for s in found if s[0] % min(sizes) == 0), found[0])

    def _aligned(self, operand: Any, common: Mapping[int, tuple[int, int]]) -> Node:
        window, ndim, shifts = _window(operand), self.ndim(operand), {}
        for axis, (start, _) in common.items():
            own = ndim + axis
            if own >= 0 and self.size(window.core, own) > 1:
                shifts[own] = start - window.spans.get(own, (0, 0))[0]
        return self._shifted(window.core, shifts)

    def clone(self, node: Node, value: Any, **kwargs: Any) -> Any:
        return self.emit(node.target, self.plain(value), **kwargs)

    # --- what moves axes ---

    def permute(self, node: Node, value: Any, order: list[int]) -> Any:
        if not isinstance(value, Window):
            return NotImplemented
        order = [d % len(order) for d in order]
        spans = {order.index(a): s for a, s in value.spans.items()}
        return Window(self.emit(_aten.permute.default, value.core, order), spans)

    def unsqueeze(self, node: Node, value: Any, axis: int) -> Any:
        if not isinstance(value, Window):
            return NotImplemented
        axis %= self.ndim(value) + 1
        spans = {a + (a >= axis): s for a, s in value.spans.items()}
        return Window(self.emit(_aten.unsqueeze.default, value.core, axis), spans)

    def squeeze(self, node: Node, value: Any, axis: int) -> Any:
        if not isinstance(value, Window) or (axis := axis % self.ndim(value)) in value.spans:
            return NotImplemented
        if self.size(value.core, axis) != 1:
            return value
        spans = {a - (a > axis): s for a, s in value.spans.items()}
        return Window(self.emit(_aten.squeeze.dim, value.core, axis), spans)

    def select(self, node: Node, value: Any, axis: int, index: int) -> Any:
        if not isinstance(value, Window) or (axis := axis % self.ndim(value)) in value.spans:
            return NotImplemented
        spans = {a - (a > axis): s for a, s in value.spans.items()}
        return Window(self.emit(_aten.select.int, value.core, axis, index), spans)

    def reshape(self, node: Node, value: Any, shape: list[int]) -> Any:
        """One that adds or drops axes of size 1."""
        if not isinstance(value, Window):
            return NotImplemented
        old = list(value.core.meta["val"].shape)
        extents = [value.spans.get(a, (0, n))[1] for a, n in enumerate(old)]
        long, new_long = [a for a, n in enumerate(extents) if n != 1], [a for a, n in enumerate(shape) if n != 1]
        if [extents[a] for a in long] != [shape[a] for a in new_long] or any(a not in long for a in value.spans):
            return NotImplemented
        sizes = [1] * len(shape)
        for a, b in zip(long, new_long):
            sizes[b] = old[a]
        spans = {new_long[long.index(a)]: s for a, s in value.spans.items()}
        return Window(self.emit(_aten.reshape.default, value.core, sizes), spans)

    # --- interpolation ---

    def sample(self, node: Node, values: Any, points: list[Any], *rest: Any) -> Any:
        """Interpolation between periodically padded values at coordinates that were wrapped before."""
        points = [self.plain(p) for p in points]
        window = _window(values)
        spatial = self.ndim(values) - 2
        spans = [window.spans.get(a + 2) for a in range(spatial)]
        if set(window.spans) != set(range(2, spatial + 2)) or None in spans:
            return NotImplemented
        sizes = [self.size(window.core, a + 2) for a in range(spatial)]
        coordinates = wrapped_coordinates(self.module, points[::-1], sizes, spans)
        if coordinates is None or rest != (0, 1, True):
            return NotImplemented
        self.module.add_submodule("periodic_sampler", PeriodicSampler(is_available()))
        sampler = self.graph.call_module("periodic_sampler", (window.core, coordinates))
        shape = window.core.meta["val"].shape[:2]
        sampler.meta["val"] = window.core.meta["val"].new_empty(*shape, *coordinates[0].meta["val"].shape[1:])
        return sampler


def _window(value: Any) -> Window:
    return value if isinstance(value, Window) else Window(value)
