"""Sparse factorisation against dense solves, also of singular systems."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from cases.solves import CPU, box_matrix, noise, relative_error, system, with_obstacle

from phi_hybrid.linear_solve import SparseFactorization, factorization
from phi_hybrid.linear_solve.factorization import FactoredSolver

SIZE = 30
WALLS = box_matrix(("walls", "walls"), (6, 5))
VALUES = box_matrix(("values", "outlet"), (6, 5))


def solver_for(matrix: np.ndarray) -> FactoredSolver | None:
    return SparseFactorization().build(system(matrix), CPU, 1e-7)


def unsymmetric(matrix: np.ndarray) -> np.ndarray:
    """Different weights on the rows; constants that the matrix maps to zero stay so."""
    return np.diag(np.linspace(1.0, 2.0, len(matrix))) @ matrix


REGULAR = {
    "symmetric": VALUES,
    "definite": np.eye(SIZE) - WALLS,
    "unsymmetric": unsymmetric(VALUES),
    "values inside": with_obstacle(WALLS, [7, 8, 12], cuts=False),
    "values and obstacle": with_obstacle(with_obstacle(WALLS, [7], cuts=False), [21, 22]),
    "obstacle": with_obstacle(VALUES, [7, 8, 12]),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", REGULAR)
def test_regular_systems(name: str, transposed: bool) -> None:
    matrix, rhs = REGULAR[name], noise(3, SIZE)
    solution = solver_for(matrix).solve(rhs, transposed)
    used = matrix.T if transposed else matrix
    assert relative_error(solution.x, np.linalg.solve(used, rhs.numpy().T).T) < 1e-12
    assert solution.imbalance is None and solution.iterations == 0
    actual = np.linalg.norm(rhs.numpy() - solution.x.numpy() @ used.T, axis=1)
    np.testing.assert_allclose(solution.residual.numpy(), actual, atol=1e-13)


SINGULAR = {
    "walls": WALLS,
    "obstacle": with_obstacle(WALLS, [12]),
    "two parts": with_obstacle(WALLS, [10, 11, 12, 13, 14]),
    "one cell apart": with_obstacle(WALLS, [1, 5, 6]),
    "one part of two": with_obstacle(box_matrix(("outlet", "walls"), (6, 5)), [10, 11, 12, 13, 14]),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_symmetric_systems_equal_the_pseudo_inverse(name: str, transposed: bool) -> None:
    matrix, rhs = SINGULAR[name], noise(3, SIZE)
    null = scipy.linalg.null_space(matrix)
    assert null.shape[1] == {"two parts": 2, "one cell apart": 2}.get(name, 1)
    solution = solver_for(matrix).solve(rhs, transposed)
    assert relative_error(solution.x, rhs.numpy() @ np.linalg.pinv(matrix, rcond=1e-12)) < 1e-12
    np.testing.assert_allclose(solution.imbalance.numpy(), np.linalg.norm(rhs.numpy() @ null, axis=1), atol=1e-13)
    assert solution.residual.numpy().max() < 1e-12  # of the part that has a solution


@pytest.mark.parametrize("transposed", [False, True])
def test_singular_unsymmetric_systems(transposed: bool) -> None:
    """The constant c in [[A, 1], [1ᵀ, 0]]·[x, c] = [b, 0] is left out of b."""
    matrix, rhs = unsymmetric(WALLS), noise(3, SIZE)
    bordered = np.block([[matrix, np.ones((SIZE, 1))], [np.ones((1, SIZE)), 0]])
    bordered = bordered.T if transposed else bordered
    expected = np.linalg.solve(bordered, np.pad(rhs.numpy(), ((0, 0), (0, 1))).T).T
    solution = solver_for(matrix).solve(rhs, transposed)
    assert relative_error(solution.x, expected[:, :-1]) < 1e-12
    np.testing.assert_allclose(solution.imbalance.numpy(), np.abs(expected[:, -1]) * SIZE**0.5, atol=1e-12)
    assert solution.residual.numpy().max() < 1e-12


def other_null_spaces() -> list[np.ndarray]:
    """Alternating signs are what wide stencils do not see."""
    signs = np.where(np.arange(SIZE) % 2, 1.0, -1.0)
    alternating, weighted = np.diag(signs) @ WALLS @ np.diag(signs), WALLS @ np.diag(np.linspace(1, 2, SIZE))
    return [alternating, weighted, alternating - 1e-13 * np.eye(SIZE)]  # the last is singular to rounding


@pytest.mark.parametrize("transposed", [False, True])
def test_other_null_spaces_of_small_matrices(transposed: bool) -> None:
    for matrix in other_null_spaces():
        used, rhs = matrix.T if transposed else matrix, noise(3, SIZE)
        solution = solver_for(matrix).solve(rhs, transposed)
        assert relative_error(solution.x, rhs.numpy() @ np.linalg.pinv(used, rcond=1e-11).T) < 1e-9
        left = scipy.linalg.null_space(used.T, rcond=1e-11)
        outside = np.zeros(3) if transposed else np.abs(rhs.numpy() @ left)[:, 0]  # which a cotangent may have
        np.testing.assert_allclose(solution.residual.numpy(), outside, atol=1e-9)
        assert solution.imbalance is None


def test_other_null_spaces_of_large_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factorization, "LARGEST_PSEUDO_INVERSE", SIZE - 1)
    for matrix in other_null_spaces():
        assert solver_for(matrix) is None


def test_nearly_singular_is_solved() -> None:
    """Slightly more than rounding away from singular: the constant part counts."""
    matrix, rhs = WALLS - 1e-4 * np.eye(SIZE), noise(2, SIZE)
    solution = solver_for(matrix).solve(rhs, False)
    assert relative_error(solution.x, np.linalg.solve(matrix, rhs.numpy().T).T) < 1e-9
    assert solution.imbalance is None
