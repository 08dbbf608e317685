"""Poisson's equation against dense matrices, exact eigenfunctions and plain PhiFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
from cases.small import noise, same
from phi.math.extrapolation import ZERO
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    PointCloud,
    Solve,
    StaggeredGrid,
    batch,
    field,
    math,
    spatial,
    vec,
    wrap,
)
from phi.torch.flow import Noise as PhiNoise

import phi_hybrid as ph
from phi_hybrid.pde import poisson

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def box(**cells: int) -> Field:
    """Zero on cells of different lengths along each axis."""
    sizes = dict(zip(cells, (2.0, 1.5, 1.2)))
    return CenteredGrid(0.0, ZERO, **cells, bounds=Box(**sizes))


def filled(grid: Field, trajectories: int = 3, seed: int = 0) -> Field:
    shape = grid.resolution
    values = noise(trajectories, *shape.sizes, seed=seed, dtype=torch.float64)
    return grid.with_values(wrap(values, batch("trajectory"), shape))


def dense(grid: Field) -> np.ndarray:
    """The Laplacian of a grid whose outside is zero, rows and columns in the order of its cells."""
    total = np.zeros((1, 1))
    for name in grid.resolution.names:
        n, dx = grid.resolution.get_size(name), float(grid.dx.vector[name])
        along = (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n)) / dx**2
        total = np.kron(total, np.eye(n)) + np.kron(np.eye(len(total)), along)
    return total


def rows(u: Field) -> np.ndarray:
    return u.values.numpy(["trajectory", *u.resolution.names]).reshape(u.shape.get_size("trajectory"), -1)


GRIDS = {"8x8": poisson.square(), "line": box(x=7), "box": box(x=5, y=6), "3D": box(x=3, y=4, z=5)}


# --- the operators ---


@pytest.mark.parametrize("name", GRIDS)
def test_operators_are_those_of_the_dense_matrix(name: str) -> None:
    u = filled(GRIDS[name])
    f, solution = ph.capture(poisson.laplace)(u), ph.capture(poisson.solve)(u)
    for found, expected in ((f, rows(u) @ dense(u).T), (solution, np.linalg.solve(dense(u), rows(u).T).T)):
        assert found.boundary == ZERO and found.bounds == u.bounds
        np.testing.assert_allclose(rows(found), expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize(("bits", "rounding"), [(64, 1e-13), (32, 1e-5)])
def test_one_undoes_the_other(bits: int, rounding: float) -> None:
    with math.precision(bits):
        u = poisson.noise(poisson.square(64), 4, seed=0)
        laplace, solve = ph.capture(poisson.laplace), ph.capture(poisson.solve)
        assert np.abs(rows(solve(laplace(u)) - u)).max() < rounding * 64
        assert np.abs(rows(laplace(solve(u)) - u)).max() < rounding * 64


def test_one_correction_reaches_the_observation() -> None:
    """x̃ = x − P⁻¹(y − y*), the update of Holl et al. 2022: P x̃ = y* and x̃ = x* to rounding, from afar as from nearby."""
    true, far = (poisson.noise(poisson.square(64), 3, seed) for seed in (0, 1))
    operators = ph.capture(poisson.laplace), ph.capture(poisson.solve)
    for p, inverse in (operators, operators[::-1]):
        for x in (far, true + 1e-3 * far):
            found = x - inverse(p(x) - p(true))
            for a, b in ((found, true), (p(found), p(true))):
                assert np.abs(rows(a - b)).max() < 1e-12 * np.abs(rows(b)).max()


def test_eigenfunctions() -> None:
    """Products of sines that vanish one cell outside of the grid, λ = −4/dx²·(sin²(πk/2(n + 1)) + sin²(πl/2(n + 1)))."""
    grid, n = poisson.square(8, 2.0), 8
    sine = np.sin(np.pi * np.outer(np.arange(1, n + 1), np.arange(1, n + 1)) / (n + 1))
    eigenvalue = -4 / 0.25**2 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2
    for k, m in ((0, 0), (2, 1), (7, 7)):
        u = grid.with_values(wrap(torch.as_tensor(np.outer(sine[k], sine[m])), spatial("x,y")))
        expected = (eigenvalue[k] + eigenvalue[m]) * u.values.numpy("x,y")
        np.testing.assert_allclose(poisson.laplace(u).values.numpy("x,y"), expected, rtol=0, atol=1e-12)


# --- captured, plain ---


def test_plain_phiflow_gives_the_same() -> None:
    """The Laplacian to the last bit, the solution to PhiML's tolerance; one trajectory, since PhiML's solvers need the batch
    dim for themselves."""
    f = filled(poisson.square()).trajectory[0]
    assert same(ph.capture(poisson.laplace)(f), poisson.laplace(f))
    block = ph.capture(poisson.solve)
    assert not list(block.parameters())
    found = block(f).values.numpy("x,y")
    with ph.linear_solve.linear_solves():
        np.testing.assert_allclose(poisson.solve(f).values.numpy("x,y"), found, rtol=0, atol=1e-13)
    for u in (
        poisson.solve(f),
        math.solve_linear(lambda v: field.laplace(v).with_boundary(ZERO), f, Solve("CG", 1e-10, 1e-10, x0=f)),
    ):
        np.testing.assert_allclose(u.values.numpy("x,y"), found, rtol=0, atol=1e-4 * abs(found).max())


def test_a_solve_of_values_that_are_not_finite_fails() -> None:
    f = filled(poisson.square())
    block = ph.capture(poisson.solve, f)
    with pytest.raises(ph.SolveError):
        block(f.with_values(f.values * np.nan))


# --- derivatives ---


@pytest.mark.parametrize("operator", [poisson.laplace, poisson.solve])
def test_derivatives(operator: Any) -> None:
    """Also: operators are self-adjoint, trajectories independent."""
    u = filled(box(x=3, y=2), 2)
    bound = ph.capture(operator).bind(u)
    tensors = bound.flatten(u)
    check_derivatives(bound.native, tensors, second=False)  # linear
    check_vmap(bound.native, tensors)
    jacobian = torch.func.jacrev(lambda v: bound.native(v)[0].flatten())(tensors[0]).flatten(1)
    torch.testing.assert_close(jacobian, jacobian.T, rtol=0, atol=1e-13 * float(jacobian.abs().max()))
    assert not jacobian[:6, 6:].any() and jacobian[:6, :6].any()


# --- noise ---


def test_noise_is_that_of_phiflow_with_a_seed() -> None:
    grid = poisson.square(16)
    before = torch.random.get_rng_state()
    drawn = poisson.noise(grid, 5, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(drawn, poisson.noise(grid, 5, 3)) and not same(drawn, poisson.noise(grid, 5, 4))
    assert drawn.boundary == ZERO and drawn.bounds == grid.bounds
    values = rows(drawn)
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-13)
    np.testing.assert_allclose(values.std(1), 1, rtol=1e-12)
    assert abs(np.corrcoef(values) - np.eye(5)).max() < 0.9
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert same(drawn, CenteredGrid(PhiNoise(batch(trajectory=5)), ZERO, x=16, y=16))


def test_smooth_noise_has_less_of_short_waves() -> None:
    grid = poisson.square(32)
    roughness = [
        float(np.mean(rows(poisson.laplace(poisson.noise(grid, 8, 0, smoothness=p))) ** 2)) for p in (0.5, 1.0, 2.0)
    ]
    assert roughness[0] > 3 * roughness[1] > 9 * roughness[2]
    with math.precision(32):
        assert poisson.noise(grid, 1, 0).values.dtype.precision == 32


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (1.0, "got a float: expected a centred grid with zero boundary; make one with poisson.square"),
        (filled(poisson.square()).values, "got a .*: expected a centred grid .* fill it with grid.with_values"),
        (PointCloud(vec(x=0.0, y=1.0)), "got a Field: expected a centred grid"),
        (StaggeredGrid(0.0, ZERO, x=4, y=4), "got a staggered field with boundary 0"),
        (CenteredGrid(0.0, PERIODIC, x=4, y=4), "got a centred field with boundary periodic: expected"),
        (CenteredGrid(0.0, ZERO_GRADIENT, x=4, y=4), "got a centred field with boundary zero-gradient: expected"),
        (CenteredGrid(0.0, 1.0, x=4, y=4), "got a centred field with boundary 1.0: expected"),
    ],
)
def test_wrong_fields(u: Any, message: str) -> None:
    for use in (poisson.laplace, poisson.solve, lambda v: poisson.noise(v, 1, 0)):
        with pytest.raises(ph.StateError, match=message):
            use(u)
