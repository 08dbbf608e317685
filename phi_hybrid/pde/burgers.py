"""Forced Burgers' equation, ∂u/∂t + u·∇u = ν ∇²u + f, on periodic grids in 1D and 2D.

State u and input f: velocities, centred `(batch, x, vector)` on a line or staggered `(batch, x, y)` on a square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from phi import math
from phi.field import Field
from phi.physics import advect, diffuse

from phi_hybrid.pde.checks import require_count, require_number
from phi_hybrid.pde.grids import diffusion_substeps, line, staggered_square, waves_1d, waves_2d

__all__ = ["burgers_step", "diffusion_substeps", "line", "square", "upwind", "waves_1d", "waves_2d"]

# --- step ---


def burgers_step(
    dt: float,
    viscosity: float,
    substeps: int = 1,
    advection: Callable[..., Any] = advect.semi_lagrangian,
    diffusion: Callable[..., Any] | None = None,
) -> Callable[[Field, Field], Field]:
    """One step of forced Burgers: advection, diffusion, force. The step as a whole is of first order in dt.

    Args:
        dt: time step; CFL numbers max|u|·dt/dx of about 1 are a good choice.
        viscosity: ν, length² per time.
        substeps: of the diffusion; `diffusion_substeps` tells how many are stable.
        advection: `advect.semi_lagrangian` (first order, numerical viscosity ≈ dx²·f(1−f)/(2 dt) with f the fractional
            CFL number), `advect.mac_cormack` (second order in space) or, for centred fields, `upwind`.
        diffusion: `(u, viscosity, dt) -> u` instead of explicit diffusion in substeps, e.g. `diffuse.implicit`.

    Returns:
        `step(u, force) -> u`, fields `(batch, x, vector)` or staggered `(batch, x, y)`; to be captured or used as it is.

    Raises:
        StateError: for a time step or viscosity that is not finite, or less than one substep.
    """
    require_number("dt", dt)
    require_number("viscosity", viscosity)
    require_count("substeps", substeps)

    def step(u: Field, force: Field) -> Field:
        u = advection(u, u, dt)
        if diffusion is None:
            u = diffuse.explicit(u, viscosity, dt, substeps=substeps)
        else:
            u = diffusion(u, viscosity, dt)
        return u + dt * force

    return step


def upwind(u: Field, velocity: Field, dt: float) -> Field:
    """Advection by upwind differences and an explicit Euler step, u⁺ = u − dt·Σ_d (max(v_d, 0)·D⁻_d u + min(v_d, 0)·D⁺_d u).

    First order, stable up to a CFL number of 1, numerical viscosity |v|·(dx − |v|·dt)/2.

    Args:
        u: centred, `(batch, x, vector)` or `(batch, x, y, vector)`.
        velocity: v, centred on the same grid.
        dt: time step.
    """
    change = 0
    for dim in u.resolution.names:
        lower, middle, upper = math.shift(u.values, (-1, 0, 1), dims=dim, padding=u.boundary, stack_dim=None)
        along, dx = velocity.values.vector[dim], u.dx.vector[dim]
        backward, forward = (middle - lower) / dx, (upper - middle) / dx
        change += math.maximum(along, 0) * backward + math.minimum(along, 0) * forward
    return u.with_values(u.values - dt * change)


# --- states ---


def square(cells: int, length: float = 32.0) -> Field:
    """Zero velocity on a periodic square, staggered `(x, y)`; by default of the length for which `waves_2d` is made."""
    return staggered_square(cells, length)
