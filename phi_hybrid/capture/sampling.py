"""Grid interpolation with a forward-mode rule, which torch's own operator lacks."""

from __future__ import annotations

from itertools import product

import torch

from phi_hybrid import _compat

_ZEROS, _BORDER = 0, 1
"""torch's codes of the padding modes that PhiFlow uses besides reflection."""


class GridSampler(torch.nn.Module):
    """`aten.grid_sampler_2d` and `_3d`, bit for bit, except while tangents flow: then gathers, equal to rounding.

    A module without state rather than a function, since graphs that are unpickled keep their submodules as they are.
    """

    def forward(self, values: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> torch.Tensor:
        """Samples `values` `(batch, channel, *spatial)` at the points `grid` `(batch, *points, vector)` in [-1, 1].

        Args:
            mode: interpolation mode, 0 for linear.
            padding: 0 zeros, 1 border, 2 reflection.
            align: whether ±1 are the centres of the outermost values.
        """
        if not torch.compiler.is_compiling() and _compat.forward_mode_active():
            return gather_linear(values, grid, mode, padding, align)
        sampler = torch.ops.aten.grid_sampler_2d if values.ndim == 4 else torch.ops.aten.grid_sampler_3d
        return sampler(values, grid, mode, padding, align)


def gather_linear(values: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> torch.Tensor:
    """Multilinear interpolation in any dimension: Σ over the 2ᵈ corners of weight · value. The last axis comes first."""
    if mode != 0 or not align or padding not in (_ZEROS, _BORDER):
        raise NotImplementedError(
            f"forward-mode derivative of grid_sampler(mode={mode}, padding={padding}, align={align}); "
            "use zero, constant, zero-gradient or periodic boundaries, or reverse mode"
        )
    sizes = values.shape[2:]
    limits = torch.tensor([s - 1 for s in reversed(sizes)], dtype=grid.dtype, device=grid.device)
    position = (grid + 1) / 2 * limits
    if padding == _BORDER:
        position = torch.minimum(position.clamp_min(0), limits)
    lower = position.detach().floor()
    fraction = position - lower
    flat = values.flatten(2)
    result = 0.0
    for corner in product((0, 1), repeat=len(sizes)):
        offset = torch.tensor(corner, dtype=grid.dtype, device=grid.device)
        index = lower + offset
        inside = ((index >= 0) & (index <= limits)).all(-1)
        weight = torch.where(offset == 1, fraction, 1 - fraction).prod(-1) * inside
        index = torch.minimum(index.clamp_min(0), limits).long()
        linear = sum(index[..., d] * _stride(sizes, len(sizes) - 1 - d) for d in range(len(sizes)))
        gathered = flat.gather(2, linear.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1))
        result = result + gathered.reshape(*flat.shape[:2], *linear.shape[1:]) * weight.unsqueeze(1)
    return result


def _stride(sizes: torch.Size, axis: int) -> int:
    stride = 1
    for size in sizes[axis + 1 :]:
        stride *= size
    return stride
