"""Grids, random states and time steps that several equations share.

Values are drawn in NumPy with a seed and arrive in PhiFlow's current precision; a finer grid gets the same function.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Mapping

import numpy as np
import torch
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid
from phi.geom import Box
from phi.math import Extrapolation, Shape, Tensor, batch, channel, dual, spatial, wrap
from phi.math.extrapolation import PERIODIC

from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require_number

__all__ = [
    "as_tensor",
    "centred_square",
    "diffusion_substeps",
    "divergence_free_noise",
    "face_values",
    "line",
    "staggered_square",
    "waves_1d",
    "waves_2d",
]

# --- grids ---


def line(cells: int, length: float = 2 * pymath.pi) -> Field:
    """Zero velocity on a periodic line, centred `(x, vector)`.

    Args:
        cells: number of cells.
        length: L, default 2π.
    """
    return CenteredGrid(math.zeros(channel(vector="x")), PERIODIC, x=cells, bounds=Box(x=length))


def centred_square(cells: int, length: float | None = None, boundary: Extrapolation = PERIODIC) -> Field:
    """Zero on a square, centred `(x, y)`.

    Args:
        cells: along each side.
        length: of a side; cells of size 1 without.
        boundary: condition at all sides, periodic by default.
    """
    size = cells if length is None else length
    return CenteredGrid(0.0, boundary, x=cells, y=cells, bounds=Box(x=size, y=size))


def staggered_square(cells: int, length: float) -> Field:
    """Zero velocity on a periodic square, staggered `(x, y)`."""
    return StaggeredGrid(0, PERIODIC, x=cells, y=cells, bounds=Box(x=length, y=length))


# --- values ---


def as_tensor(values: object, *dims: Shape) -> Tensor:
    """Real or complex numbers as a PhiFlow tensor on torch, in PhiFlow's current precision.

    Args:
        values: array of numbers.
        dims: names, sizes being those of the array.
    """
    values, double = torch.as_tensor(values), math.get_precision() == 64
    real, complex_ = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    return wrap(values.to(complex_ if values.is_complex() else real), *dims)


def face_values(components: Mapping[str, np.ndarray], *batches: Shape) -> Tensor:
    """Values of a staggered velocity `(batch, ~vector, x, y)` from one array `(batch, x, y)` per component."""
    tensors = {name: as_tensor(values, *batches, spatial("x,y")) for name, values in components.items()}
    return math.stack(tensors, dual("vector"))


# --- random states and forces ---


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
    (Bar-Sinai et al. 2019, arXiv 1808.04930).

    Args:
        grid: periodic line, `(x, vector)`.
        trajectories: number of samples.
        times: t of the frames of a force, `(time,)`; `None` for initial states, t = 0.
        modes: smallest and largest l, waves per domain; e.g. (1, 4) for states, (3, 6) for forces.
        waves: sines in each sum, e.g. 5.
        amplitude: largest |A|, e.g. 0.5.
        seed: of NumPy's generator.

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
    if times is None:
        return grid.with_values(as_tensor(values[:, 0], batch("trajectory"), spatial("x"), channel(vector="x")))
    return grid.with_values(as_tensor(values, batch("trajectory,time"), spatial("x"), channel(vector="x")))


def waves_2d(grid: Field, trajectories: int, times: np.ndarray, waves: int = 20, seed: int = 0) -> Field:
    """Sums of random plane waves for a staggered velocity, f(x, t) = Σ Aᵢ sin(kᵢ·x + ωᵢ t + φᵢ).

    |k| is uniform in 0.8 … 1.6 in units of the box's admissible wave vectors nearest to it, A in ±0.15, ω in ±0.4
    (forced Burgers of Um et al. 2020, arXiv 2007.00016).

    Args:
        grid: periodic square, staggered `(x, y)`; the parameters suit a length of 32.
        trajectories: number of samples.
        times: t of the frames, `(time,)`.
        waves: plane waves in each sum.
        seed: of NumPy's generator.

    Returns:
        Field like `grid` with dims `(trajectory, time, x, y)`, both components forced.
    """
    rng = np.random.default_rng(seed)
    cells, length = grid.resolution.get_size("x"), float(grid.bounds.size.vector["x"])
    angle, magnitude = rng.uniform(0, 2 * np.pi, (trajectories, waves)), rng.uniform(0.8, 1.6, (trajectories, waves))
    unit = 2 * np.pi / length
    k = [np.rint(magnitude * trig(angle) / unit) * unit for trig in (np.cos, np.sin)]
    omega, phase = rng.uniform(-0.4, 0.4, (trajectories, waves)), rng.uniform(0, 2 * np.pi, (trajectories, waves))
    face, centre = np.arange(cells) * length / cells, (np.arange(cells) + 0.5) * length / cells
    components = {}
    for component, (x, y) in {"x": (face, centre), "y": (centre, face)}.items():
        a = rng.uniform(-0.15, 0.15, (trajectories, waves))
        # sin(kx x + ky y + ωt + φ) as a sum over waves of outer products: no array over waves and points
        space_x, space_y = np.exp(1j * k[0][..., None] * x), np.exp(1j * k[1][..., None] * y)
        amplitude = a[:, None] * np.exp(1j * (omega[:, None] * np.asarray(times)[:, None] + phase[:, None]))
        components[component] = np.einsum("btw,bwx,bwy->btxy", amplitude, space_x, space_y, optimize=True).imag
    return grid.with_values(face_values(components, batch("trajectory,time")))


def divergence_free_noise(grid: Field, trajectories: int, wavenumber: float, speed: float, seed: int) -> Field:
    """Random velocities with energy around one wavenumber, free of divergence in the discrete sense.

    A stream function with spectrum exp(−(|k|/k₀ − 1)²/(2·0.3²)) at the corners of the cells gives the fluxes through faces.

    Args:
        grid: periodic, staggered `(x, y)`.
        trajectories: number of samples.
        wavenumber: k₀ in waves per box, e.g. 4; at most a quarter of the cells along the shorter side.
        speed: root mean square of each component.
        seed: of NumPy's generator.

    Returns:
        Field like `grid` with a batch dim `trajectory`.

    Raises:
        StateError: for a wavenumber that the grid does not resolve.
    """
    size = {d: grid.resolution.get_size(d) for d in "xy"}
    dx = {d: float(grid.dx.vector[d]) for d in "xy"}
    rng, reach = np.random.default_rng(seed), pymath.ceil(2 * wavenumber)
    if 2 * reach > min(size.values()):
        raise StateError(
            f"wavenumber = {wavenumber}: a grid of {size} cells resolves at most {min(size.values()) // 4}; "
            "take a smaller one or a finer grid"
        )
    k = np.arange(-reach, reach + 1)
    radius = np.hypot(*np.meshgrid(k, k, indexing="ij"))
    amplitude = np.exp(-((radius / wavenumber - 1) ** 2) / (2 * 0.3**2)) / np.maximum(radius, 1)
    phases = np.exp(2j * np.pi * rng.random((trajectories, len(k), len(k))))
    waves = {d: np.exp(2j * np.pi * np.outer(k, np.arange(n)) / n) for d, n in size.items()}
    psi = np.einsum("bkl,kx,ly->bxy", amplitude * phases, waves["x"], waves["y"]).real
    components = {"x": (np.roll(psi, -1, 2) - psi) / dx["y"], "y": -(np.roll(psi, -1, 1) - psi) / dx["x"]}
    rms = np.sqrt(sum(np.mean(c**2, (1, 2), keepdims=True) for c in components.values()) / 2)
    scaled = {d: speed * c / rms for d, c in components.items()}
    return grid.with_values(face_values(scaled, batch("trajectory")))


# --- time steps ---


def diffusion_substeps(viscosity: float, dt: float, dx: float, dims: int) -> int:
    """Smallest number of explicit Euler substeps with ν·dt/dx² ≤ 1/(2·dims) each.

    Args:
        viscosity: ν, length² per time.
        dt: time step, all substeps together.
        dx: size of a cell.
        dims: number of space dims.

    Raises:
        StateError: for a cell that has no size.
    """
    require_number("dx", dx, positive=True)
    return max(1, pymath.ceil(2 * dims * viscosity * dt / dx**2))
