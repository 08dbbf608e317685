"""Forced Burgers' equation, ∂u/∂t + u·∇u = ν ∇²u + f, in 1D and 2D."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable

import numpy as np
import torch
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid
from phi.geom import Box
from phi.math import batch, channel, spatial, wrap
from phi.math.extrapolation import PERIODIC
from phi.physics import advect, diffuse


def burgers_step(
    dt: float,
    viscosity: float,
    substeps: int = 1,
    advection: Callable = advect.semi_lagrangian,
    diffusion: Callable | None = None,
) -> Callable:
    """One step of forced Burgers: advection, diffusion, force.

    Args:
        dt: time step.
        viscosity: ν, length² per time.
        substeps: of the diffusion; `diffusion_substeps` tells how many are stable.
        advection: `advect.semi_lagrangian` (first order, numerical viscosity ≈ dx²·f(1−f)/(2 dt) with f the fractional
            CFL number), `advect.mac_cormack` (second order in space) or, for centred fields, `upwind`. The step as a
            whole is first order in dt.
        diffusion: `(u, viscosity, dt) -> u` instead of explicit diffusion in substeps, e.g. `diffuse.implicit`.

    Returns:
        `step(u, force) -> u`, fields `(x, vector)` or staggered `(x, y)`; to be captured or used as it is.
    """

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
        u: centred, `(x, vector)` or `(x, y, vector)`.
        velocity: centred on the same grid.
        dt: time step.
    """
    change = 0
    for dim in u.resolution.names:
        lower, middle, upper = math.shift(u.values, (-1, 0, 1), dims=dim, padding=u.boundary, stack_dim=None)
        along, dx = velocity.values.vector[dim], u.dx.vector[dim]
        backward, forward = (middle - lower) / dx, (upper - middle) / dx
        change += math.maximum(along, 0) * backward + math.minimum(along, 0) * forward
    return u.with_values(u.values - dt * change)


def diffusion_substeps(viscosity: float, dt: float, dx: float, dims: int) -> int:
    """Smallest number of explicit Euler substeps with ν·dt/dx² ≤ 1/(2·dims) each."""
    return max(1, pymath.ceil(2 * dims * viscosity * dt / dx**2))


def line(cells: int, length: float = 2 * pymath.pi) -> Field:
    """Zero velocity on a periodic line, `(x, vector)`, centred."""
    return CenteredGrid(math.zeros(channel(vector="x")), PERIODIC, x=cells, bounds=Box(x=length))


def square(cells: int, length: float = 32.0) -> Field:
    """Zero velocity on a periodic square, `(x, y)`, staggered."""
    return StaggeredGrid(0, PERIODIC, x=cells, y=cells, bounds=Box(x=length, y=length))


def waves_1d(
    grid: Field,
    trajectories: int,
    times: np.ndarray | None,
    modes: tuple[int, int],
    waves: int,
    amplitude: float,
    seed: int,
) -> Field:
    """Sums of random sine waves on a line, f(x, t) = Σ Aᵢ sin(2π lᵢ x/L + ωᵢ t + φᵢ).

    Parameters are uniform: A in ±amplitude, l in modes (both ends included), ω in ±0.4, φ in 0 … 2π
    (Bar-Sinai et al. 2019).

    Returns:
        Field like `grid` with dims `(trajectory, time, x, vector)`; without `time` if `times` is None.
    """
    rng = np.random.default_rng(seed)
    size = (trajectories, waves, 1, 1)
    a, omega = rng.uniform(-amplitude, amplitude, size), rng.uniform(-0.4, 0.4, size)
    number, phase = rng.integers(modes[0], modes[1] + 1, size), rng.uniform(0, 2 * np.pi, size)
    length = float(grid.bounds.size.vector["x"])
    x = (np.arange(grid.resolution.get_size("x")) + 0.5) / grid.resolution.get_size("x") * length
    t = np.zeros(1) if times is None else np.asarray(times)
    values = np.sum(a * np.sin(2 * np.pi * number * x / length + omega * t[:, None] + phase), 1)[..., None]
    return grid.with_values(_tensor(values, times is not None, spatial("x"), channel(vector="x")))


def waves_2d(grid: Field, trajectories: int, times: np.ndarray, waves: int = 20, seed: int = 0) -> Field:
    """Sums of random plane waves for a staggered velocity, f(x, t) = Σ Aᵢ sin(kᵢ·x + ωᵢ t + φᵢ).

    |k| is uniform in 0.8 … 1.6 in units of the box's admissible wave vectors nearest to it, A in ±0.15, ω in ±0.4
    (forced Burgers of Um et al. 2020).

    Returns:
        Field like `grid` with dims `(trajectory, time, x, y)`, both components forced.
    """
    rng = np.random.default_rng(seed)
    cells = grid.resolution.get_size("x")
    length = float(grid.bounds.size.vector["x"])
    angle, magnitude = rng.uniform(0, 2 * np.pi, (trajectories, waves)), rng.uniform(0.8, 1.6, (trajectories, waves))
    unit = 2 * np.pi / length
    k = [np.rint(magnitude * trig(angle) / unit) * unit for trig in (np.cos, np.sin)]
    omega, phase = rng.uniform(-0.4, 0.4, (trajectories, waves)), rng.uniform(0, 2 * np.pi, (trajectories, waves))
    components = {}
    for component in ("x", "y"):
        a = rng.uniform(-0.15, 0.15, (trajectories, waves))
        face, centre = np.arange(cells) * length / cells, (np.arange(cells) + 0.5) * length / cells
        x, y = (face, centre) if component == "x" else (centre, face)
        # sin(kx x + ky y + ωt + φ) as a sum over waves of outer products: no array over waves and points
        space_x, space_y = np.exp(1j * k[0][..., None] * x), np.exp(1j * k[1][..., None] * y)
        amplitude = a[:, None] * np.exp(1j * (omega[:, None] * np.asarray(times)[:, None] + phase[:, None]))
        components[component] = _tensor(
            np.einsum("btw,bwx,bwy->btxy", amplitude, space_x, space_y, optimize=True).imag, True, spatial("x,y")
        )
    return grid.with_values(math.stack(components, math.dual("vector")))


def _tensor(values: np.ndarray, has_time: bool, *dims: math.Shape) -> math.Tensor:
    values = torch.as_tensor(values, dtype=torch.float64 if math.get_precision() == 64 else torch.float32)
    if not has_time:
        values = values[:, 0]
    return wrap(values, batch("trajectory,time") if has_time else batch("trajectory"), *dims)


def cole_hopf(x: np.ndarray, t: float, viscosity: float, amplitude: float = 1.0) -> np.ndarray:
    """Exact solution of unforced Burgers with u(x, 0) = −A sin x on 0 … 2π (Cole 1951, Hopf 1950).

    u(x, t) = ∫ u₀(y) w dy / ∫ w dy, w = exp(−((x − y)²/(2t) + A cos y)/(2ν)), by the trapezoidal rule; all terms are
    positive, so that it holds for any ν, steep fronts included.

    Args:
        x: positions, `(x,)`.
        t: time.
        viscosity: ν.
        amplitude: A.
    """
    if t == 0:
        return -amplitude * np.sin(x)
    reach = abs(amplitude) * t + 10 * np.sqrt(2 * viscosity * t)  # beyond it w < exp(−50) of its largest value
    narrowest = np.sqrt(2 * viscosity / (1 / t + abs(amplitude)))  # standard deviation of a peak of w
    shift = np.linspace(-reach, reach, 2 * pymath.ceil(4 * reach / narrowest) + 1)
    y = np.asarray(x)[:, None] + shift
    exponent = -(shift**2 / (2 * t) + amplitude * np.cos(y)) / (2 * viscosity)
    weight = np.exp(exponent - exponent.max(1, keepdims=True))
    return -amplitude * np.sum(np.sin(y) * weight, 1) / np.sum(weight, 1)
