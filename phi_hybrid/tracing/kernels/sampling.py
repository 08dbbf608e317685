"""Multilinear interpolation as an operator in C++ with its adjoint, for compiled graphs on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from phi_hybrid.tracing.kernels.build import library

Tensors = list[torch.Tensor]

_library = torch.library.Library("phi_hybrid", "FRAGMENT")
_library.define("sample(Tensor values, Tensor[] points, bool periodic) -> Tensor")
_library.define("pull_back_sample(Tensor cotangent, Tensor values, Tensor[] points, bool periodic) -> Tensor[]")


def is_available() -> bool:
    """Tells if the operator could be built."""
    return library("sampling") is not None


def takes(values: torch.Tensor, points: Sequence[torch.Tensor]) -> bool:
    """Tells if the operator takes these values and points."""
    known = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and 1 <= len(points) <= 3
    alike = all(p.dtype == values.dtype and p.shape == points[0].shape for p in points)
    return known and alike and values.numel() < 2**31


def sample(values: torch.Tensor, points: Tensors, periodic: bool) -> torch.Tensor:
    """Values `(batch, channel, *spatial)` at points in cells, `(batch, *points)` for each spatial axis.

    Coordinates wrap around (`periodic`), or stop at the outermost values. The result is `(batch, channel, *points)`.
    """
    return torch.ops.phi_hybrid.sample(values, points, periodic)


def pull_back(cotangent: torch.Tensor, values: torch.Tensor, points: Tensors, periodic: bool) -> Tensors:
    """Gradients by the values and by each component of the points."""
    return torch.ops.phi_hybrid.pull_back_sample(cotangent, values, points, periodic)


def _sample(values: torch.Tensor, points: Tensors, periodic: bool) -> torch.Tensor:
    values, points = values.contiguous(), [p.contiguous() for p in points]
    result = values.new_empty(*values.shape[:2], *points[0].shape[1:])
    _call("sample", values, points, periodic, values.data_ptr(), _addresses(points), result.data_ptr())
    return result


def _pull_back(cotangent: torch.Tensor, values: torch.Tensor, points: Tensors, periodic: bool) -> Tensors:
    cotangent, values, points = cotangent.contiguous(), values.contiguous(), [p.contiguous() for p in points]
    by_values, by_points = torch.empty_like(values), [torch.empty_like(p) for p in points]
    pointers = cotangent.data_ptr(), values.data_ptr(), _addresses(points), by_values.data_ptr(), _addresses(by_points)
    _call("pull_back", values, points, periodic, *pointers)
    return [by_values, *by_points]


def _call(name: str, values: torch.Tensor, points: Tensors, periodic: bool, *pointers: Any) -> None:
    batch, channels, *sizes = values.shape
    function = getattr(library("sampling"), f"{name}_{str(values.dtype).removeprefix('torch.')}")
    numbers = [ctypes.c_int64(n) for n in (batch, channels, points[0].numel() // max(batch, 1))]
    addresses = [ctypes.c_void_p(p) if isinstance(p, int) else p for p in pointers]
    sizes_array = (ctypes.c_int64 * len(sizes))(*sizes)
    function(len(sizes), sizes_array, *numbers, int(periodic), torch.get_num_threads(), *addresses)


def _addresses(tensors: Tensors) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    values, points, ctx.periodic = inputs
    ctx.save_for_backward(values, *points)


def _backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
    values, *points = ctx.saved_tensors
    by_values, *by_points = pull_back(cotangent, values, points, ctx.periodic)
    return by_values, by_points, None


_library.impl("sample", _sample, "CPU")
_library.impl("pull_back_sample", _pull_back, "CPU")
torch.library.register_fake(
    "phi_hybrid::sample",
    lambda values, points, periodic: values.new_empty(*values.shape[:2], *points[0].shape[1:]),
    lib=_library,
)
torch.library.register_fake(
    "phi_hybrid::pull_back_sample",
    lambda cotangent, values, points, periodic: [values.new_empty(t.shape) for t in (values, *points)],
    lib=_library,
)
torch.library.register_autograd("phi_hybrid::sample", _backward, setup_context=_setup, lib=_library)
