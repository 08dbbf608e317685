"""Gradients of multilinear interpolation as an operator in C++, for compiled graphs on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
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
    results = [torch.empty_like(values), *[torch.empty_like(p) for p in points]]
    batch, channels, *sizes = values.shape
    _entry(values.dtype)(
        len(sizes),
        *_three(sizes),
        batch,
        channels,
        points[0].numel() // max(batch, 1),
        periodic,
        torch.get_num_threads(),
        cotangent.data_ptr(),
        values.data_ptr(),
        *_three([p.data_ptr() for p in points]),
        results[0].data_ptr(),
        *_three([r.data_ptr() for r in results[1:]]),
    )
    return results


def _three(numbers: list[int]) -> list[int]:
    return numbers + [0] * (3 - len(numbers))


@cache
def _entry(dtype: torch.dtype) -> Any:
    """The function of the library for a precision. Numbers and addresses one by one: arrays take ctypes a microsecond each."""
    function = getattr(library("sampling"), f"pull_back_{str(dtype).removeprefix('torch.')}")
    numbers, addresses = [ctypes.c_int64] * 9, [ctypes.c_void_p] * 9
    function.argtypes, function.restype = numbers + addresses, None
    return function


_library.impl("pull_back_sample", _pull_back, "CPU")
torch.library.register_fake(
    "phi_hybrid::pull_back_sample",
    lambda cotangent, values, points, periodic: [values.new_empty(t.shape) for t in (values, *points)],
    lib=_library,
)
