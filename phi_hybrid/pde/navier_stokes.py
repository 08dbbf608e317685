"""Incompressible Navier–Stokes flows in 2D, ∂u/∂t + u·∇u = ν ∇²u − ∇p + f, ∇·u = 0, as ordinary PhiFlow steps."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid, resample
from phi.geom import Box, Sphere
from phi.math import Tensor, batch, channel, dual, spatial, wrap
from phi.math.extrapolation import PERIODIC, ZERO_GRADIENT
from phi.physics import advect, diffuse, fluid

from phi_hybrid.pde.burgers import diffusion_substeps

__all__ = [
    "Plume",
    "Wake",
    "diffusion_substeps",
    "divergence_free_noise",
    "kolmogorov_force",
    "navier_stokes_step",
    "numerical_viscosity",
    "periodic_square",
    "taylor_green",
]


def navier_stokes_step(
    dt: float,
    substeps: int = 1,
    advection: Callable = advect.semi_lagrangian,
    force: Field | None = None,
    drag: float = 0.0,
    obstacles: Sequence[fluid.Obstacle] = (),
) -> Callable:
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
    """

    def step(velocity: Field, viscosity: float | Tensor) -> Field:
        velocity = advection(velocity, velocity, dt)
        velocity = diffuse.explicit(velocity, viscosity, dt, substeps=substeps)
        if drag:
            velocity = velocity.with_values(velocity.values * (1 - dt * drag))
        if force is not None:
            velocity = velocity.with_values(velocity.values + dt * force.values)
        return fluid.make_incompressible(velocity, obstacles)[0]

    return step


# --- periodic flows ---


def periodic_square(cells: int, length: float = 2 * pymath.pi) -> Field:
    """Fluid at rest on a periodic square, staggered `(x, y)`."""
    return StaggeredGrid(0, PERIODIC, x=cells, y=cells, bounds=Box(x=length, y=length))


def kolmogorov_force(grid: Field, waves: int = 4, amplitude: float = 1.0) -> Field:
    """f = A·sin(2π·waves·y/L) along x, which drives Kolmogorov flow (with drag 0.1: Kochkov et al. 2021)."""
    size = [grid.resolution.get_size(d) for d in "xy"]
    profile = amplitude * np.sin(2 * np.pi * waves * (np.arange(size[1]) + 0.5) / size[1])
    components = {"x": np.tile(profile, (size[0], 1)), "y": np.zeros(size)}
    tensors = {d: wrap(_as_default_float(c), spatial("x,y")) for d, c in components.items()}
    return grid.with_values(math.stack(tensors, dual("vector")))


def divergence_free_noise(grid: Field, trajectories: int, wavenumber: float, speed: float, seed: int) -> Field:
    """Random velocities with energy around one wavenumber, free of divergence in the discrete sense.

    A stream function with spectrum exp(−(|k|/k₀ − 1)²/(2·0.3²)) at the corners of the cells gives the fluxes through faces.

    Args:
        grid: periodic, `(x, y)`.
        trajectories: number of samples.
        wavenumber: k₀ in waves per box.
        speed: root mean square of each component.
        seed: of NumPy's generator; a finer grid gets the same flow.

    Returns:
        Field like `grid` with a batch dim `trajectory`.
    """
    size = {d: grid.resolution.get_size(d) for d in "xy"}
    dx = {d: float(grid.dx.vector[d]) for d in "xy"}
    rng, reach = np.random.default_rng(seed), pymath.ceil(2 * wavenumber)
    if 2 * reach >= min(size.values()):
        raise ValueError(
            f"wavenumber = {wavenumber}: the grid of {size} cells resolves at most {min(size.values()) // 4}"
        )
    k = np.arange(-reach, reach + 1)
    radius = np.hypot(*np.meshgrid(k, k, indexing="ij"))
    amplitude = np.exp(-((radius / wavenumber - 1) ** 2) / (2 * 0.3**2)) / np.maximum(radius, 1)
    phases = np.exp(2j * np.pi * rng.random((trajectories, len(k), len(k))))
    waves = {d: np.exp(2j * np.pi * np.outer(k, np.arange(n)) / n) for d, n in size.items()}
    psi = np.einsum("bkl,kx,ly->bxy", amplitude * phases, waves["x"], waves["y"]).real
    components = {"x": (np.roll(psi, -1, 2) - psi) / dx["y"], "y": -(np.roll(psi, -1, 1) - psi) / dx["x"]}
    rms = np.sqrt(sum(np.mean(c**2, (1, 2), keepdims=True) for c in components.values()) / 2)
    tensors = {
        d: wrap(_as_default_float(speed * c / rms), batch("trajectory"), spatial("x,y")) for d, c in components.items()
    }
    return grid.with_values(math.stack(tensors, dual("vector")))


def taylor_green(grid: Field, time: float, viscosity: float) -> Field:
    """Exact decaying vortices, u = (cos x sin y, −sin x cos y)·exp(−2νt), on a box of length 2π (Taylor & Green 1937)."""
    cells, decay = grid.resolution.get_size("x"), pymath.exp(-2 * viscosity * time)
    face, centre = (np.arange(cells) * 2 * np.pi / cells, (np.arange(cells) + 0.5) * 2 * np.pi / cells)
    values = {
        "x": np.cos(face)[:, None] * np.sin(centre)[None, :] * decay,
        "y": -np.sin(centre)[:, None] * np.cos(face)[None, :] * decay,
    }
    return grid.with_values(
        math.stack({d: wrap(_as_default_float(v), spatial("x,y")) for d, v in values.items()}, dual("vector"))
    )


# --- flow past a cylinder ---


@dataclass(frozen=True)
class Wake:
    """Flow past a cylinder: inflow from below along y, open sides and top (Um et al. 2020, arXiv 2007.00016).

    Lengths and speeds are in any consistent units; the defaults are those of the paper: box 100 × 200 (x, y), cylinder of
    diameter 20 at (50, 50), inflow 1, so that it takes up a fifth of the width (blockage ratio 20 %).
    """

    width: float = 100.0
    length: float = 200.0
    diameter: float = 20.0
    speed: float = 1.0

    @property
    def obstacle(self) -> fluid.Obstacle:
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

    def step(self, dt: float, substeps: int = 1, advection: Callable = advect.semi_lagrangian) -> Callable:
        """`step(velocity, reynolds) -> velocity`: staggered `(batch, x, y)`, Re with one value per batch entry."""
        flow = navier_stokes_step(dt, substeps, advection, obstacles=[self.obstacle])

        def step(velocity: Field, reynolds: float | Tensor) -> Field:
            return flow(velocity, self.viscosity(reynolds))

        return step

    def substeps(self, dt: float, cells: int, reynolds: float) -> int:
        """Diffusion substeps that are stable for this and every larger Reynolds number."""
        return diffusion_substeps(self.viscosity(reynolds), dt, self.length / cells, 2)


# --- buoyant plume ---


@dataclass(frozen=True)
class Plume:
    """Hot smoke that flows into a closed box near its bottom and rises: ∂s/∂t + u·∇s = q, f = (0, β·s).

    State: `{"velocity": staggered (x, y), "smoke": centred (x, y)}`.
    """

    width: float = 100.0
    height: float = 100.0
    buoyancy: float = 0.1
    inflow: float = 0.2

    def rest(self, x: int, y: int) -> dict[str, Field]:
        """Fluid at rest without smoke on `x` × `y` cells."""
        grid = dict(x=x, y=y, bounds=Box(x=self.width, y=self.height))
        return {"velocity": StaggeredGrid(0, 0, **grid), "smoke": CenteredGrid(0, ZERO_GRADIENT, **grid)}

    def step(self, dt: float, substeps: int = 1, advection: Callable = advect.semi_lagrangian) -> Callable:
        """`step(state, viscosity) -> state`; ν, length² per time, a number or one value per batch entry."""
        source = Sphere(x=self.width / 2, y=0.1 * self.height, radius=0.08 * self.width)

        def step(state: dict[str, Field], viscosity: float | Tensor) -> dict[str, Field]:
            velocity, smoke = state["velocity"], state["smoke"]
            smoke = advection(smoke, velocity, dt) + self.inflow * dt * resample(source, smoke, soft=True)
            lift = resample(smoke * math.vec(x=0.0, y=self.buoyancy), velocity)
            velocity = advection(velocity, velocity, dt) + dt * lift
            velocity = diffuse.explicit(velocity, viscosity, dt, substeps=substeps)
            return {"velocity": fluid.make_incompressible(velocity)[0], "smoke": smoke}

        return step


# --- what a scheme adds ---


def numerical_viscosity(advection: Callable, dx: float, dt: float, speed: float, wavelength: float) -> float:
    """Viscosity that an advection scheme adds: from the decay of a wave carried over 20 steps in 1D.

    ν = −ln(A/A₀) / (k²·t), k = 2π/wavelength. It depends on the wavelength for schemes of higher than first order.
    """
    cells = round(wavelength / dx)
    grid = CenteredGrid(0, PERIODIC, x=cells, bounds=Box(x=cells * dx))
    wind = CenteredGrid(math.zeros(channel(vector="x")) + speed, PERIODIC, x=cells, bounds=grid.bounds)
    wave = np.sin(2 * np.pi * (np.arange(cells) + 0.5) / cells)
    value, steps = grid.with_values(wrap(_as_default_float(wave), spatial("x"))), 20
    for _ in range(steps):
        value = advection(value, wind, dt)
    amplitudes = [abs(np.fft.rfft(v)[1]) for v in (wave, value.values.numpy("x"))]
    return -pymath.log(amplitudes[1] / amplitudes[0]) / ((2 * pymath.pi / (cells * dx)) ** 2 * steps * dt)


def _as_default_float(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64 if math.get_precision() == 64 else torch.float32)
