"""Poisson's equation, ∇²u = f with u = 0 outside, in any number of dimensions.

State u or f: centred with zero boundary, `(batch, x, …)`. No inputs: `laplace` and `solve` are each other's inverse.
"""

from __future__ import annotations

import torch
from phi import field, math
from phi.field import CenteredGrid, Field
from phi.field import Noise as PhiNoise
from phi.math import Solve, batch
from phi.math.extrapolation import ZERO

from phi_hybrid import _compat
from phi_hybrid.errors import StateError
from phi_hybrid.pde.grids import centred_square

__all__ = ["laplace", "noise", "solve", "square"]

# --- steps ---


def laplace(u: Field) -> Field:
    """f = ∇²u by second-order differences between neighbouring cells; cells outside of the grid hold 0.

    Args:
        u: centred with zero boundary, `(batch, x, y)`.

    Returns:
        Field like `u`, boundary included, so that it can be given to `solve`; in units of u per length².

    Raises:
        StateError: for fields that are staggered or have another boundary.
    """
    _check(u)
    return u.with_values(field.laplace(u).values)


def solve(f: Field) -> Field:
    """The u with ∇²u = f, the inverse of `laplace`. To be captured, or used within `linear_solves()`: exact to rounding.

    Args:
        f: centred with zero boundary, `(batch, x, y)`.

    Returns:
        Field like `f`.

    Raises:
        StateError: for fields that are staggered or have another boundary.
        SolveError: where the right-hand side is not finite.
    """
    _check(f)
    return math.solve_linear(laplace, f, Solve("CG", 1e-5, 1e-5, x0=f.with_values(0 * f.values)))


# --- states ---


def square(cells: int = 8, length: float | None = None) -> Field:
    """Zero on a square, centred `(x, y)`, with zero boundary; by default that of Schnell et al. 2022 (arXiv 2203.10131).

    Args:
        cells: along each side.
        length: of a side; cells of size 1 without.
    """
    return centred_square(cells, length, ZERO)


def noise(grid: Field, trajectories: int, seed: int, scale: float = 10.0, smoothness: float = 1.0) -> Field:
    """PhiFlow's `Noise` with a seed, of mean 0 and standard deviation 1: random u, or random right-hand sides.

    Args:
        grid: centred with zero boundary, `(x, y)`.
        trajectories: number of samples.
        seed: of torch's generators, whose states outside are left alone.
        scale: waves longer than about three times this length are left out.
        smoothness: exponent p, Fourier coefficients falling off like |k|^(−2p).

    Returns:
        Field like `grid` with dims `(trajectory, x, y)`.

    Raises:
        StateError: for grids that are staggered or have another boundary.
    """
    _check(grid)
    shape = batch(trajectory=trajectories)
    with torch.random.fork_rng(), _compat.TORCH:
        torch.manual_seed(seed)
        drawn = PhiNoise(shape, scale=scale, smoothness=smoothness)
        return CenteredGrid(drawn, grid.boundary, bounds=grid.bounds, resolution=grid.resolution)


# --- checks ---


def _check(u: Field) -> None:
    way_out = "expected a centred grid with zero boundary; make one with poisson.square(cells)"
    if not isinstance(u, Field) or not u.is_grid:
        raise StateError(f"got a {type(u).__name__}: {way_out}, and fill it with grid.with_values(…)")
    if u.is_staggered or u.boundary != ZERO:
        raise StateError(
            f"got a {'staggered' if u.is_staggered else 'centred'} field with boundary {u.boundary}: {way_out}"
        )
