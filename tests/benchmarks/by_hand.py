"""A periodic flow as one would write it in torch for this problem alone: the same numerics as the captured PhiFlow step.

Semi-Lagrangian advection with one Euler step backwards, explicit diffusion, projection by FFTs in float64. Velocities lie on
the lower faces of the cells; components are separate tensors `(batch, x, y)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

State = tuple[torch.Tensor, torch.Tensor]


def periodic_step(cells: int, length: float, viscosity: float, dt: float) -> Callable[..., State]:
    """`(u, v) -> (u, v)` on a square of this many cells, a power of two, along each side."""
    dx = length / cells
    wave = 2 * torch.cos(2 * math.pi * torch.arange(cells, dtype=torch.float64) / cells) - 2
    eigenvalues = (wave[:, None] + wave[None, :]) / dx**2
    inverse = torch.where(eigenvalues == 0, 0.0, 1 / eigenvalues)[:, : cells // 2 + 1]
    inverse[0, 0] = 0
    rows, columns = torch.arange(cells)[:, None], torch.arange(cells)[None, :]

    def sample(values: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # torch's operator: inductor's gradient of gathers is wrong at 64² in torch 2.13
            padded = torch.nn.functional.pad(values[:, None], (1, 1, 1, 1), mode="circular")
            grid = torch.stack([y % cells, x % cells], -1) * (2 / (cells + 1)) + (2 / (cells + 1) - 1)
            return torch.nn.functional.grid_sample(padded, grid, align_corners=True, padding_mode="border")[:, 0]
        batch = torch.arange(len(values))[:, None, None]
        low_x, low_y = x.detach().floor(), y.detach().floor()
        a, b = x - low_x, y - low_y
        i, j = low_x.int() & (cells - 1), low_y.int() & (cells - 1)
        i_up, j_up = (i + 1) & (cells - 1), (j + 1) & (cells - 1)
        low = values[batch, i, j] * (1 - a) + values[batch, i_up, j] * a
        high = values[batch, i, j_up] * (1 - a) + values[batch, i_up, j_up] * a
        return low * (1 - b) + high * b

    def laplacian(f: torch.Tensor) -> torch.Tensor:
        return f.roll(1, 1) + f.roll(-1, 1) + f.roll(1, 2) + f.roll(-1, 2) - 4 * f

    def step(u: torch.Tensor, v: torch.Tensor) -> State:
        v_at_u = 0.25 * (v + v.roll(1, 1) + v.roll(-1, 2) + v.roll((1, -1), (1, 2)))
        u_at_v = 0.25 * (u + u.roll(-1, 1) + u.roll(1, 2) + u.roll((-1, 1), (1, 2)))
        courant, fourier = dt / dx, viscosity * dt / dx**2
        u, v = (
            sample(u, rows - courant * u, columns - courant * v_at_u),
            sample(v, rows - courant * u_at_v, columns - courant * v),
        )
        u, v = u + fourier * laplacian(u), v + fourier * laplacian(v)
        pressure = solve((u.roll(-1, 1) - u + v.roll(-1, 2) - v) / dx, inverse)
        return u - (pressure - pressure.roll(1, 1)) / dx, v - (pressure - pressure.roll(1, 2)) / dx

    return step


@torch.library.custom_op("by_hand::solve", mutates_args=())
def solve(rhs: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Inductor makes no code of complex numbers, and its backward pass of FFTs fails in torch 2.13."""
    size = rhs.shape[1:]
    return torch.fft.irfftn(torch.fft.rfftn(rhs.double(), dim=(1, 2)) * inverse, size, (1, 2)).to(rhs.dtype)


@solve.register_fake
def _(rhs: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(rhs)


solve.register_autograd(
    lambda ctx, cotangent: (solve(cotangent, ctx.inverse), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "inverse", inputs[1]),
)
