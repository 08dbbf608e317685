"""Preconditioned conjugate gradients against dense solves; their iterations do not grow with the resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.solves import (
    AXES,
    BLOCK,
    CPU,
    OBSTRUCTED,
    UNFIT,
    boundary,
    box_matrix,
    noise,
    relative_error,
    system,
    system_in,
    with_obstacle,
)
from phi.torch.flow import Box, Obstacle, Sphere, StaggeredGrid, batch, fluid, math

from phi_hybrid.linear_solve import ConjugateGradient, SparseFactorization
from phi_hybrid.linear_solve.conjugate_gradient import KrylovSolver
from phi_hybrid.linear_solve.system import System

SHAPE, SIZE = OBSTRUCTED, 56


def solver_for(matrix: np.ndarray, max_iterations: int = 200) -> KrylovSolver | None:
    return ConjugateGradient(max_iterations=max_iterations).build(system(matrix, SHAPE), CPU, 1e-11)


def laplacian(*kinds: str) -> np.ndarray:
    return box_matrix(kinds, SHAPE)


MATRICES = {
    **{f"{a}-{b} with obstacle": with_obstacle(laplacian(a, b), BLOCK) for a, b in zip(AXES, AXES[1:] + AXES[:1])},
    "box": with_obstacle(laplacian("walls", "walls"), BLOCK),
    "positive": with_obstacle(-laplacian("walls", "outlet"), BLOCK),
    "diffusion": np.eye(SIZE) - 0.1 * laplacian("values", "walls"),
    "values inside": with_obstacle(laplacian("walls", "walls"), BLOCK, cuts=False),
    "values and obstacle": with_obstacle(with_obstacle(laplacian("walls", "outlet"), BLOCK, cuts=False), [36, 37]),
    "two parts": with_obstacle(laplacian("walls", "walls"), range(28, 35)),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_solutions_equal_the_pseudo_inverse(name: str, transposed: bool) -> None:
    matrix, rhs = MATRICES[name], noise(3, SIZE)
    rhs[1] = 0
    solution = solver_for(matrix).solve(rhs, transposed)
    used = matrix.T if transposed else matrix
    expected = rhs.numpy() @ np.linalg.pinv(used, rcond=1e-12).T
    assert relative_error(solution.x, expected) < 1e-10
    assert not solution.x[1].any()
    null = SIZE - np.linalg.matrix_rank(matrix)
    if null:
        rest = np.linalg.norm(rhs.numpy() - expected @ used.T, axis=1)
        np.testing.assert_allclose(solution.imbalance.numpy(), rest, atol=1e-9)
    else:
        assert solution.imbalance is None
    balanced = expected @ used.T
    actual = np.linalg.norm(balanced - solution.x.numpy() @ used.T, axis=1)
    np.testing.assert_allclose(solution.residual.numpy(), actual, atol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_tolerance(tolerance: float) -> None:
    matrix, rhs = MATRICES["box"], noise(3, SIZE)
    method = ConjugateGradient(rel_tol=tolerance)
    solver = method.build(system(matrix, SHAPE), CPU, 1.0)
    solution = solver.solve(rhs, False)
    assert bool((solution.residual <= tolerance * rhs.norm(dim=1)).all())
    assert solution.residual.max() > 1e-3 * tolerance * rhs.norm(dim=1).max()  # and no more work than asked for
    tighter = method.build(system(matrix, SHAPE), CPU, 1e-2 * tolerance).solve(rhs, False)
    assert tighter.iterations > solution.iterations > 0


def test_box_without_obstacles_takes_one_iteration() -> None:
    """The preconditioner is the inverse."""
    for kinds in (("periodic", "walls"), ("outlet", "values")):
        assert solver_for(laplacian(*kinds)).solve(noise(2, SIZE), False).iterations == 1


def one_sided() -> np.ndarray:
    """A single cell that its neighbour does not see."""
    matrix = laplacian("values", "walls")
    matrix[10, 11] = 0
    return matrix


ACROSS_AXES = np.kron(np.eye(8), np.roll(np.eye(7), 1, 0) + 5 * np.eye(7))
REFUSED = {**UNFIT, "one-sided": one_sided(), "coupling across axes": laplacian("values", "walls") @ ACROSS_AXES}


@pytest.mark.parametrize("name", REFUSED)
def test_other_matrices_are_refused(name: str) -> None:
    assert solver_for(REFUSED[name]) is None


def test_the_preconditioner_is_the_box_without_its_obstacles() -> None:
    """Even where an obstacle and the walls take most of a cross-section."""
    for kinds in (("walls", "walls"), ("outlet", "walls"), ("periodic", "values")):
        box = laplacian(*kinds)
        solver = solver_for(with_obstacle(box, [15, 16, 17, 18, 22, 23, 24, 25]))
        inverse = solver.preconditioner.apply(torch.eye(SIZE, dtype=torch.float64)).numpy()
        np.testing.assert_allclose(box @ inverse @ box, box, atol=1e-10)


def wake(cells: int) -> System:
    """Inflow at one side, outflow at the others, a cylinder of a fifth of the width."""
    with math.precision(64):
        v = StaggeredGrid(0.0, boundary("inflow"), x=cells // 2, y=cells, bounds=Box(x=100.0, y=200.0))
        v = v + StaggeredGrid(math.random_normal(batch(b=1)), v.boundary, x=cells // 2, y=cells, bounds=v.bounds)
        return system_in(lambda: fluid.make_incompressible(v, Obstacle(Sphere(x=50.0, y=50.0, radius=10.0))))


def test_iterations_do_not_depend_on_the_resolution() -> None:
    iterations = []
    for cells in (16, 32, 64):
        problem = wake(cells)
        rhs = noise(2, problem.size)
        solution = ConjugateGradient(rel_tol=1e-7).build(problem, CPU, 1e-7).solve(rhs, False)
        direct = SparseFactorization().build(problem, CPU, 1e-7).solve(rhs, False)
        iterations.append(solution.iterations)
        assert torch.linalg.norm(solution.x - direct.x) < 1e-6 * torch.linalg.norm(direct.x)
    assert max(iterations) <= 2 * min(iterations) and max(iterations) < 20
