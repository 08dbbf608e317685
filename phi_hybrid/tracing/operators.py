"""Operators that stand in a graph for those that torch's tracer or its forward mode would lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from phi_hybrid import _compat

_ZEROS, _BORDER = 0, 1
"""torch's codes of the padding modes that PhiFlow uses besides reflection."""

_DIFFERENTIABLE_TWICE = torch.__version__ >= (2, 12)
"""Whether torch's gradient of `grid_sampler` has a gradient itself."""


class GridSampler(torch.nn.Module):
    """`aten.grid_sampler_2d` and `_3d`, bit for bit, except where torch has no derivative: then gathers, equal to rounding.

    It has none in forward mode, below version 2.12 none of its gradient, and none on GPUs under
    `torch.use_deterministic_algorithms(True)`.

    A module without state rather than a function, since graphs that are unpickled keep their submodules as they are.
    """

    def forward(self, values: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> torch.Tensor:
        """Samples `values` `(batch, channel, *spatial)` at the points `grid` `(batch, *points, vector)` in [-1, 1].

        Args:
            mode: interpolation mode, 0 for linear.
            padding: 0 zeros, 1 border, 2 reflection.
            align: whether ±1 are the centres of the outermost values.
        """
        if not torch.compiler.is_compiling():
            known = mode == 0 and align and padding in (_ZEROS, _BORDER)
            if _compat.forward_mode_active() or (known and _must_be_deterministic(values.device)):
                return gather_linear(values, grid, mode, padding, align)
            if known and not _DIFFERENTIABLE_TWICE and torch.is_grad_enabled() and not _compat.is_tracing():
                return SampledTwice.apply(values, grid, mode, padding, align)
        return _sampler(values)(values, grid, mode, padding, align)


def _sampler(values: torch.Tensor) -> Callable[..., torch.Tensor]:
    return torch.ops.aten.grid_sampler_2d if values.ndim == 4 else torch.ops.aten.grid_sampler_3d


def _must_be_deterministic(device: torch.device) -> bool:
    return device.type != "cpu" and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()


def gather_linear(values: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> torch.Tensor:
    """Multilinear interpolation in any dimension: Σ over the 2ᵈ corners of weight · value. The last axis comes first."""
    if mode != 0 or not align or padding not in (_ZEROS, _BORDER):
        raise NotImplementedError(
            f"forward-mode derivative of grid_sampler(mode={mode}, padding={padding}, align={align}); "
            "use zero, constant, zero-gradient or periodic boundaries, or reverse mode"
        )
    sizes = values.shape[2:]
    limits = _vector([s - 1 for s in reversed(sizes)], grid)
    position = (grid + 1) / 2 * limits
    if padding == _BORDER:
        position = torch.minimum(position.clamp_min(0), limits)
    lower = position.detach().floor()
    fraction = position - lower
    flat = values.flatten(2)
    result = 0.0
    for corner in product((0, 1), repeat=len(sizes)):
        offset = _vector(corner, grid)
        index = lower + offset
        inside = ((index >= 0) & (index <= limits)).all(-1)
        weight = torch.where(offset == 1, fraction, 1 - fraction).prod(-1) * inside
        index = torch.minimum(index.clamp_min(0), limits).long()
        linear = sum(index[..., d] * math.prod(sizes[len(sizes) - d :]) for d in range(len(sizes)))
        gathered = flat.gather(2, linear.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1))
        result = result + gathered.reshape(*flat.shape[:2], *linear.shape[1:]) * weight.unsqueeze(1)
    return result


class SampledTwice(torch.autograd.Function):
    """`grid_sampler` with its gradient, bit for bit, whose gradient again is that of gathers, for torch below 2.12."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor, grid: torch.Tensor, *settings: Any) -> torch.Tensor:
        return _sampler(values)(values, grid, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.settings = inputs[2:]

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*_Slopes.apply(cotangent, *ctx.saved_tensors, *ctx.settings), None, None, None)


class _Slopes(torch.autograd.Function):
    """The gradients of `grid_sampler` by values and grid."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: torch.Tensor, values: torch.Tensor, grid: torch.Tensor, *settings: Any) -> tuple:
        aten = torch.ops.aten
        backward = aten.grid_sampler_2d_backward if values.ndim == 4 else aten.grid_sampler_3d_backward
        return backward(cotangent, values, grid, *settings, [True, True])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.settings = inputs[3:]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        def slopes(cotangent: torch.Tensor, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.func.vjp(lambda v, g: gather_linear(v, g, *ctx.settings), *arguments)[1](cotangent)

        return (*torch.func.vjp(slopes, *ctx.saved_tensors)[1](cotangents), None, None, None)


def _vector(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """A small vector, made on its device: a copy from the host would be waited for."""
    return torch.stack([like.new_full((), n) for n in numbers])


# --- values without their gradient ---


@torch.library.custom_op("phi_hybrid::detached", mutates_args=())
def detached(tensor: torch.Tensor) -> torch.Tensor:
    """Stands for `detach` while tracing, which torch 2.14 records as an alias, through which gradients flow."""
    return tensor.clone()


@detached.register_fake
def _(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor)


# --- products with a constant sparse matrix ---


@torch.library.custom_op("phi_hybrid::csr_product", mutates_args=())
def csr_product(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    """Stands for the product while tracing; `SparseProduct` takes its place in the graph."""
    return _multiply(columns, row_pointers, values, rows, dense)


@csr_product.register_fake
def _(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    return dense.new_empty(dense.shape[0], rows, dense.shape[2], dense.shape[3])


class SparseProduct(torch.nn.Module):
    """y = A·x for A in compressed-row form, bit for bit as PhiFlow computes it; by gathers under transformations.

    Shapes: `columns` and `values` `(batch, entry)` and `(batch, entry, channel)`, `row_pointers` `(batch, row + 1)`,
    `dense` `(batch, column, channel, rhs)`, result `(batch, row, channel, rhs)`.
    """

    def forward(
        self, columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
    ) -> torch.Tensor:
        if _compat.is_tracing() and not (torch.is_grad_enabled() or _compat.functorch_active()):
            return csr_product(columns, row_pointers, values, rows, dense)
        transformed = torch.compiler.is_compiling() or _compat.functorch_active() or _compat.forward_mode_active()
        multiply = _multiply_by_gather if transformed else _multiply
        return multiply(columns, row_pointers, values, rows, dense)


def _multiply(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    result = []
    for b in range(values.shape[0]):
        products = []
        for c in range(values.shape[2]):
            entries = values[b, :, c].contiguous()
            matrix = torch.sparse_csr_tensor(row_pointers[b], columns[b], entries, (rows, dense.shape[1]))
            products.append(torch.sparse.mm(matrix, dense[b, :, c, :]))
        result.append(torch.stack(products, 1))
    return torch.stack(result)


def _multiply_by_gather(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    result = []
    for b in range(values.shape[0]):
        counts = row_pointers[b].diff()
        row_of = torch.repeat_interleave(torch.arange(rows, device=dense.device), counts, output_size=values.shape[1])
        terms = values[b].unsqueeze(-1) * dense[b].index_select(0, columns[b].long())
        start = torch.zeros_like(terms[:1]).repeat(rows, 1, 1)  # inductor miscompiles index_add to an expanded tensor
        result.append(start.index_add(0, row_of, terms))
    return torch.stack(result)


# --- periodic padding ---


def pad_circular(values: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor | None:
    """`torch.nn.functional.pad(values, widths, mode='circular')` by concatenation.

    Args:
        values: `(batch, channel, *spatial)`.
        widths: lower and upper width of the last dim, then of the one before it, and so on.

    Returns:
        The padded tensor; None if an axis is shorter than its two widths together, where the order in which gradients
        are summed would differ from torch's.
    """
    pairs = [(values.ndim - 1 - i, widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)]
    if any(low < 0 or up < 0 or low + up > values.shape[axis] for axis, low, up in pairs):
        return None
    for axis, low, up in pairs:
        size = values.shape[axis]
        parts = [values.narrow(axis, size - low, low)] if low else []
        parts += [values]
        parts += [values.narrow(axis, 0, up)] if up else []
        values = torch.cat(parts, axis) if len(parts) > 1 else values
    return values
