"""Interpolation in the coordinates of cells, for compilers: `grid_sampler` without its detour over [-1, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from phi_hybrid.tracing.kernels import pull_back, takes
from phi_hybrid.tracing.operators import GridSampler

_aten = torch.ops.aten
_LINEAR, _BORDER = 0, 1
"""torch's codes of interpolation and padding."""


LookUp = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Values of one channel at the cells with these indices, one for each axis, `(batch, *points)`."""


class PointSampler(torch.nn.Module):
    """`grid_sampler` of points that are given component by component, the last axis first.

    Args:
        sampler: which does what is not linear interpolation between the outermost values.
        native: whether there is the kernel in C++.
    """

    def __init__(self, sampler: torch.nn.Module, native: bool) -> None:
        super().__init__()
        self.sampler, self.native = sampler, native

    def forward(self, values: torch.Tensor, points: Sequence[torch.Tensor], *rest: Any) -> torch.Tensor:
        """Values `(batch, channel, *spatial)` at points in [-1, 1], `(batch, *points)` for each spatial axis."""
        if rest != (_LINEAR, _BORDER, True):
            return self.sampler(values, torch.stack(tuple(points), -1), *rest)
        cells = [(p + 1) * (0.5 * (size - 1)) for p, size in zip(reversed(points), values.shape[2:])]
        if not _has_adjoint(values, cells, self.native):
            return self.sampler(values, torch.stack(tuple(points), -1), *rest)
        return interpolate(values, cells, False)


class PeriodicSampler(torch.nn.Module):
    """Interpolation of periodic values.

    Args:
        native: whether there is the kernel in C++.
    """

    def __init__(self, native: bool) -> None:
        super().__init__()
        self.native = native

    def forward(self, values: torch.Tensor, points: Sequence[torch.Tensor]) -> torch.Tensor:
        """Values `(batch, channel, *spatial)` at points in cells, `(batch, *points)` for each spatial axis."""
        if not _has_adjoint(values, points, self.native):
            return _by_grid_sampler(values, points)
        return interpolate(values, points, True)


def _has_adjoint(values: torch.Tensor, points: Sequence[torch.Tensor], native: bool) -> bool:
    """Whether gathers will do: no gradient is recorded, or the kernel computes it."""
    return not torch.is_grad_enabled() or (native and takes(values, points))


def _by_grid_sampler(values: torch.Tensor, points: Sequence[torch.Tensor]) -> torch.Tensor:
    """Periodic interpolation by torch's operator, whose gradient is right where inductor's of gathers, in torch 2.13, is not."""
    sizes = values.shape[2:]
    for axis, size in enumerate(sizes, start=2):
        values = torch.cat([values.narrow(axis, size - 1, 1), values, values.narrow(axis, 0, 1)], axis)
    scaled = [(p.remainder(size) + 1) * (2 / (size + 1)) - 1 for p, size in zip(points, sizes)]
    return GridSampler()(values, torch.stack(scaled[::-1], -1), _LINEAR, _BORDER, True)


def interpolate(values: torch.Tensor, points: Sequence[torch.Tensor], periodic: bool) -> torch.Tensor:
    """Multilinear interpolation, Σ over the 2ᵈ corners of weight · value, `(batch, channel, *points)`; equal to rounding.

    Compilers fuse the gathers with what comes before and after. Their adjoint adds to numbers that several points share; on
    the CPU the kernel in C++ does that.
    """
    if torch.is_grad_enabled():
        return _operator(values, points, periodic)
    return _gathered(values, points, periodic)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, periodic: bool, values: torch.Tensor, *points: torch.Tensor) -> torch.Tensor:
        ctx.periodic = periodic
        ctx.save_for_backward(values, *points)
        return _gathered(values, points, periodic)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, *points = ctx.saved_tensors
        return None, *pull_back(cotangent, values, points, ctx.periodic)


def _gathered(values: torch.Tensor, points: Sequence[torch.Tensor], periodic: bool) -> torch.Tensor:
    sizes = values.shape[2:]
    if not periodic:
        points = [p.clamp(0, size - 1) for p, size in zip(points, sizes)]
    lower = [p.detach().floor() for p in points]
    fractions = [p - low for p, low in zip(points, lower)]
    corners = [(_wrapped if periodic else _stopped)(low, size) for low, size in zip(lower, sizes)]
    look_up = _flat_look_up(values, lower[0].ndim) if periodic else _look_up(values, lower[0].ndim)
    return torch.stack([_interpolated(look_up(k), corners, fractions) for k in range(values.shape[1])], 1)


# An operator that compilers see through: torch's cache of compiled gradients takes these, but no `autograd.Function`. It
# knows them by name only, so that what the operator does is part of its name.
_NAME = f"interpolate_{hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()}"
_library = torch.library.Library("phi_hybrid", "FRAGMENT")
_library.define(f"{_NAME}(Tensor values, Tensor[] points, bool periodic) -> Tensor")
_library.impl(_NAME, _gathered, "CompositeExplicitAutograd")
_library.impl(_NAME, lambda values, points, periodic: _Interpolate.apply(periodic, values, *points), "Autograd")
_operator = getattr(torch.ops.phi_hybrid, _NAME).default


def _flat_look_up(values: torch.Tensor, ndim: int) -> Callable[[int], LookUp]:
    """For values that lie in memory: one index for each corner."""
    flat, channels, sizes = values.reshape(-1), values.shape[1], values.shape[2:]
    rows = _rows(values, ndim)

    def of_channel(channel: int) -> LookUp:
        def look_up(chosen: Sequence[torch.Tensor]) -> torch.Tensor:
            index = rows * channels + channel
            for size, own in zip(sizes, chosen):
                index = index * size + own
            return flat.index_select(0, index.reshape(-1)).reshape(index.shape)

        return look_up

    return of_channel


def _look_up(values: torch.Tensor, ndim: int) -> Callable[[int], LookUp]:
    """For values that are computed where they are looked up, such as paddings: an index for each axis."""
    rows = _rows(values, ndim)
    return lambda channel: lambda chosen: _aten.index(values[:, channel], [rows, *chosen])


def _rows(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Numbers of the batch entries, in as many bits as the number of values needs."""
    whole = torch.int32 if values.numel() < 2**31 else torch.int64
    return torch.arange(len(values), dtype=whole, device=values.device).reshape(-1, *[1] * (ndim - 1))


def _wrapped(lower: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper index along a periodic axis; one that exists also where the coordinate is NaN."""
    if size & (size - 1) == 0:
        index = lower.to(torch.int32) & (size - 1)
        return index, (index + 1) & (size - 1)
    index = (lower - (lower * (1 / size)).floor() * size).to(torch.int32)
    index = torch.where(index >= size, index - size, index).clamp(0, size - 1)
    return index, torch.where(index == size - 1, 0, index + 1)


def _stopped(lower: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper index along another axis, likewise."""
    index = lower.to(torch.int32).clamp(0, size - 1)
    return index, (index + 1).clamp_max(size - 1)


def _interpolated(look_up: LookUp, corners: Sequence[Any], fractions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Interpolation along the first axis of the values between those along the others."""

    def along(axis: int, chosen: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if axis < 0:
            return look_up(chosen)
        low, high = (along(axis - 1, (corners[axis][side], *chosen)) for side in (0, 1))
        return low + fractions[axis] * (high - low)

    return along(len(corners) - 1, ())


# --- what PhiFlow computes before it samples: 2·(x mod n + width)/(n + 2·width − 1) − 1 ---


def wrapped_coordinates(
    module: torch.nn.Module, points: Sequence[Node], sizes: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[Node] | None:
    """The coordinates x, in cells, of points that were wrapped and scaled like this for every axis; else `None`."""
    found = []
    for point, size, (start, length) in zip(points, sizes, spans, strict=True):
        scale, offset, node = 0.5 * (length - 1), 0.5 * (length - 1), point
        while node.target is not _aten.remainder.Tensor and node.target is not _aten.remainder.Scalar:
            step = _affine(module, node)
            if step is None:
                return None
            node, factor, shift = step
            scale, offset = scale * factor, offset + scale * shift
        beside = (offset + start + size / 2) % size - size / 2
        if number_of(module, node.args[1]) != size or abs(scale - 1) > 1e-5 or abs(beside) > 1e-5 * length:
            return None
        found.append(node.args[0])
    return found


def _affine(module: torch.nn.Module, node: Any) -> tuple[Node, float, float] | None:
    """`(x, a, b)` of an operation that computes a·x + b."""
    if not isinstance(node, Node) or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    first, second = number_of(module, a), number_of(module, b)
    if node.target in (_aten.add.Tensor, _aten.add.Scalar) and first is not None:
        return b, 1.0, first
    if node.target in (_aten.mul.Tensor, _aten.mul.Scalar) and first is not None:
        return b, first, 0.0
    if second is None:
        return None
    by_target = {
        _aten.add: (1.0, second),
        _aten.sub: (1.0, -second),
        _aten.mul: (second, 0.0),
        _aten.div: (1 / second, 0.0),
    }
    known = by_target.get(getattr(node.target, "overloadpacket", None))
    return None if known is None else (a, *known)


def number_of(module: torch.nn.Module, value: Any) -> float | None:
    """A Python number, or the one that fills a constant of the graph."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    constant = getattr(module, value.target)
    first = constant.flatten()[:1]
    return float(first) if constant.numel() and bool((constant == first).all()) else None
