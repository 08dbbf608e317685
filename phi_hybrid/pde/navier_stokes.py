"""Incompressible Navier–Stokes flows in 2D, ∂u/∂t + u·∇u = ν ∇²u − ∇p + f − μ·u, ∇·u = 0.

State u: velocity, staggered `(batch, x, y)`. Input: the viscosity ν or, for `Wake`, the Reynolds number, one per batch
entry.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid, resample
from phi.geom import Box, Sphere
from phi.math import Tensor, batch, channel, dual, spatial, wrap
from phi.math.extrapolation import PERIODIC, ZERO_GRADIENT
from phi.physics import advect, diffuse, fluid

from phi_hybrid.pde.checks import require, require_count, require_number
from phi_hybrid.pde.grids import as_tensor, diffusion_substeps, divergence_free_noise, face_values, staggered_square

__all__ = [
    "Wake",
    "diffusion_substeps",
    "divergence_free_noise",
    "kolmogorov_force",
    "navier_stokes_step",
    "numerical_viscosity",
    "periodic_square",
]

# --- step ---


def navier_stokes_step(
    dt: float,
    substeps: int = 1,
    advection: Callable[..., Any] = advect.semi_lagrangian,
    force: Field | None = None,
    drag: float = 0.0,
    obstacles: Sequence[fluid.Obstacle] = (),
) -> Callable[..., Any]:
    """One step: advection, explicit diffusion, force and linear drag, projection.

    Args:
        dt: time step.
        substeps: of the diffusion; `diffusion_substeps` tells how many are stable.
        advection: `advect.semi_lagrangian` (first order, numerical viscosity ≈ dx²·f(1−f)/(2 dt) with f the fractional
            CFL number) or `advect.mac_cormack` (second order in space). The step as a whole is first order in dt.
        force: f, constant acceleration on the faces of the velocity, `(x, y)`.
        drag: μ in f − μ·u, 1 per time.
        obstacles: inside which the fluid rests.

    Returns:
        `step(velocity, viscosity) -> velocity`: staggered `(batch, x, y)` and ν, length² per time, a number or a tensor
        with one value per batch entry. To be captured, or used within `linear_solves()`.

    Raises:
        StateError: for a time step or drag that is not finite, or less than one substep.
    """
    require_number("dt", dt)
    require_number("drag", drag)
    require_count("substeps", substeps)

    def step(velocity: Field, viscosity: float | Tensor) -> Field:
        velocity = advection(velocity, velocity, dt)
        velocity = diffuse.explicit(velocity, viscosity, dt, substeps=substeps)
        if drag:
            velocity = velocity.with_values(velocity.values * (1 - dt * drag))
        if force is not None:
            velocity = velocity.with_values(velocity.values + dt * force.values)
        return fluid.make_incompressible(velocity, obstacles)[0]

    return step


# --- periodic flows: state and force ---


def periodic_square(cells: int, length: float = 2 * pymath.pi) -> Field:
    """Fluid at rest on a periodic square, staggered `(x, y)`; `divergence_free_noise` fills it."""
    return staggered_square(cells, length)


def kolmogorov_force(grid: Field, waves: int = 4, amplitude: float = 1.0) -> Field:
    """f = A·sin(2π·waves·y/L) along x, which drives Kolmogorov flow (with drag 0.1: Kochkov et al. 2021).

    Args:
        grid: periodic square, staggered `(x, y)`.
        waves: periods across the box.
        amplitude: A, acceleration.
    """
    size = [grid.resolution.get_size(d) for d in "xy"]
    profile = amplitude * np.sin(2 * np.pi * waves * (np.arange(size[1]) + 0.5) / size[1])
    return grid.with_values(face_values({"x": np.tile(profile, (size[0], 1)), "y": np.zeros(size)}))


# --- flow past a cylinder ---


@dataclass(frozen=True)
class Wake:
    """Flow past a cylinder: inflow from below along y, open sides and top (Um et al. 2020, arXiv 2007.00016).

    Lengths and speeds are in any consistent units; the defaults are those of the paper: box 100 × 200 (x, y), cylinder of
    diameter 20 at (50, 50), inflow 1, so that it takes up a fifth of the width (blockage ratio 20 %).

    Args:
        width: of the box along x.
        length: of the box along y.
        diameter: D, of the cylinder at (width/2, length/4).
        speed: U, of the inflow.

    Raises:
        StateError: for lengths or a speed that are not positive and finite.
    """

    width: float = 100.0
    length: float = 200.0
    diameter: float = 20.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("width", "length", "diameter", "speed"):
            require_number(name, getattr(self, name), positive=True)

    @property
    def obstacle(self) -> fluid.Obstacle:
        """The cylinder."""
        return fluid.Obstacle(Sphere(x=self.width / 2, y=self.length / 4, radius=self.diameter / 2))

    def grid(self, cells: int) -> Field:
        """The undisturbed stream with `cells` cells along y, staggered `(x, y)`."""
        boundary = {"x": ZERO_GRADIENT, "y-": math.vec(x=0.0, y=self.speed), "y+": ZERO_GRADIENT}
        across = round(cells * self.width / self.length)
        bounds = Box(x=self.width, y=self.length)
        return StaggeredGrid(math.vec(x=0.0, y=self.speed), boundary, x=across, y=cells, bounds=bounds)

    def disturbed(self, cells: int, trajectories: int) -> Field:
        """The stream with a transverse gust behind the cylinder, so that shedding sets in early, `(trajectory, x, y)`."""
        grid = self.grid(cells)
        gust = resample(Box(x=(0.45 * self.width, 0.7 * self.width), y=(0.3 * self.length, 0.4 * self.length)), grid)
        values = grid.values + 0.3 * self.speed * gust.values * wrap([1.0, 0.0], dual(vector="x,y"))
        return grid.with_values(math.expand(values, batch(trajectory=trajectories)))

    def viscosity(self, reynolds: float | Tensor) -> float | Tensor:
        """ν = U·D/Re."""
        return self.speed * self.diameter / reynolds

    def step(
        self, dt: float, substeps: int = 1, advection: Callable[..., Any] = advect.semi_lagrangian
    ) -> Callable[..., Any]:
        """`step(velocity, reynolds) -> velocity`: staggered `(batch, x, y)`, Re with one value per batch entry."""
        flow = navier_stokes_step(dt, substeps, advection, obstacles=[self.obstacle])

        def step(velocity: Field, reynolds: float | Tensor) -> Field:
            return flow(velocity, self.viscosity(reynolds))

        return step

    def substeps(self, dt: float, cells: int, reynolds: float) -> int:
        """Diffusion substeps that are stable for this and every larger Reynolds number."""
        edge = float(math.min(self.grid(cells).dx))  # a number of cells that is odd makes them longer than wide
        return diffusion_substeps(self.viscosity(reynolds), dt, edge, 2)


# --- what a scheme adds ---


def numerical_viscosity(advection: Callable[..., Any], dx: float, dt: float, speed: float, wavelength: float) -> float:
    """Viscosity that an advection scheme adds: from the decay of a wave carried over 20 steps in 1D.

    ν = −ln(A/A₀) / (k²·t), k = 2π/wavelength. It depends on the wavelength for schemes of higher than first order.

    Args:
        advection: e.g. `advect.semi_lagrangian`.
        dx: size of a cell.
        dt: time step.
        speed: of the flow that carries the wave.
        wavelength: of the wave, several cells.

    Raises:
        StateError: for numbers that are not positive, and a wave of fewer than four cells.
    """
    for name, value in {"dx": dx, "dt": dt, "speed": speed, "wavelength": wavelength}.items():
        require_number(name, value, positive=True)
    require(wavelength >= 4 * dx, f"wavelength = {wavelength}: expected at least four cells, {4 * dx:g}")
    cells = round(wavelength / dx)
    grid = CenteredGrid(0, PERIODIC, x=cells, bounds=Box(x=cells * dx))
    wind = CenteredGrid(math.zeros(channel(vector="x")) + speed, PERIODIC, x=cells, bounds=grid.bounds)
    wave = np.sin(2 * np.pi * (np.arange(cells) + 0.5) / cells)
    value, steps = grid.with_values(as_tensor(wave, spatial("x"))), 20
    for _ in range(steps):
        value = advection(value, wind, dt)
    amplitudes = [abs(np.fft.rfft(v)[1]) for v in (wave, value.values.numpy("x"))]
    return -pymath.log(amplitudes[1] / amplitudes[0]) / ((2 * pymath.pi / (cells * dx)) ** 2 * steps * dt)
