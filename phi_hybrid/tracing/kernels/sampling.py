"""Gradients of multilinear interpolation as an operator in C++, for compiled graphs on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from phi_hybrid.tracing.kernels.build import library

Tensors = list[torch.Tensor]

_library = torch.library.Library("phi_hybrid", "FRAGMENT")
_library.define("pull_back_sample(Tensor cotangent, Tensor values, Tensor[] points, bool periodic) -> Tensor[]")


def is_available() -> bool:
    """Tells if the operator could be built."""
    return library("sampling") is not None


def takes(values: torch.Tensor, points: Sequence[torch.Tensor]) -> bool:
    """Tells if the operator takes these values and points."""
    known = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and 1 <= len(points) <= 3
    alike = all(p.dtype == values.dtype and p.shape == points[0].shape for p in points)
    return known and alike and len(points[0]) == len(values) and values.numel() < 2**31


def pull_back(cotangent: torch.Tensor, values: torch.Tensor, points: Tensors, periodic: bool) -> Tensors:
    """Gradients of the interpolation between values `(batch, channel, *spatial)` at points in cells.

    Args:
        cotangent: `(batch, channel, *points)`.
        values: those interpolated between.
        points: `(batch, *points)` for each spatial axis.
        periodic: whether coordinates wrap around; they stop at the outermost values otherwise.

    Returns:
        Gradients by the values and by each component of the points.
    """
    return torch.ops.phi_hybrid.pull_back_sample(cotangent, values, points, periodic)


def _pull_back(cotangent: torch.Tensor, values: torch.Tensor, points: Tensors, periodic: bool) -> Tensors:
    cotangent, values, points = cotangent.contiguous(), values.contiguous(), [p.contiguous() for p in points]
    by_values, by_points = torch.empty_like(values), [torch.empty_like(p) for p in points]
    pointers = cotangent.data_ptr(), values.data_ptr(), _addresses(points), by_values.data_ptr(), _addresses(by_points)
    _call(values, points, periodic, *pointers)
    return [by_values, *by_points]


def _call(values: torch.Tensor, points: Tensors, periodic: bool, *pointers: Any) -> None:
    batch, channels, *sizes = values.shape
    function = getattr(library("sampling"), f"pull_back_{str(values.dtype).removeprefix('torch.')}")
    numbers = [ctypes.c_int64(n) for n in (batch, channels, points[0].numel() // max(batch, 1))]
    addresses = [ctypes.c_void_p(p) if isinstance(p, int) else p for p in pointers]
    sizes_array = (ctypes.c_int64 * len(sizes))(*sizes)
    function(len(sizes), sizes_array, *numbers, int(periodic), torch.get_num_threads(), *addresses)


def _addresses(tensors: Tensors) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


_library.impl("pull_back_sample", _pull_back, "CPU")
torch.library.register_fake(
    "phi_hybrid::pull_back_sample",
    lambda cotangent, values, points, periodic: [values.new_empty(t.shape) for t in (values, *points)],
    lib=_library,
)
