"""Fast diagonalisation against dense pseudo-inverses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from cases.solves import (
    AXES,
    CPU,
    axis_matrix,
    box_matrix,
    noise,
    relative_error,
    sum_over_axes,
    system,
    with_obstacle,
)

from phi_hybrid.linear_solve import FastDiagonalization, transforms
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver, SpectralSolver, axis_operators, spectral_solver

SHAPES = {1: (7,), 2: (6, 5), 3: (4, 5, 3)}
NEXT = AXES[1:] + AXES[:1]
BOXES = [
    *product(AXES),
    *product(("periodic", "walls"), repeat=2),
    *zip(AXES, NEXT),
    *zip(AXES, NEXT, NEXT[1:] + NEXT[:1]),
]
SINGULAR = {"periodic", "walls"}


def solver_for(matrix: np.ndarray, shape: tuple[int, ...]) -> ExactSolver | None:
    return FastDiagonalization().build(system(matrix, shape), CPU, 1e-7)


def spectral(matrix: np.ndarray, shape: tuple[int, ...]) -> SpectralSolver:
    return spectral_solver(axis_operators(system(matrix, shape)), shape, CPU)


@pytest.mark.parametrize("mass", [0.0, 0.5], ids=["laplacian", "diffusion"])
@pytest.mark.parametrize("kinds", dict.fromkeys([*BOXES, ("periodic",) * 3]), ids="-".join)
def test_boxes_equal_the_pseudo_inverse(kinds: tuple[str, ...], mass: float) -> None:
    shape = SHAPES[len(kinds)]
    matrix = box_matrix(kinds, shape)
    matrix = mass * np.eye(len(matrix)) - 0.1 * matrix if mass else matrix
    rhs = noise(3, len(matrix))
    solution = solver_for(matrix, shape).solve(rhs, transposed=False)
    assert solution.x.dtype == torch.float64
    inverse = np.linalg.pinv(matrix, rcond=1e-12)
    assert relative_error(solution.x, rhs.numpy() @ inverse.T) < 1e-12
    if set(kinds) <= SINGULAR and not mass:
        mean = rhs.numpy().mean(1)
        np.testing.assert_allclose(solution.imbalance.numpy(), np.abs(mean) * len(matrix) ** 0.5, atol=1e-13)
    else:
        assert solution.imbalance is None


@pytest.mark.parametrize("kinds", [("walls", "walls"), ("values", "periodic"), ("outlet", "values")], ids="-".join)
def test_long_axes_take_fast_transforms(kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "LARGEST_DENSE", 3)
    shape = (6, 5)
    matrix, rhs = box_matrix(kinds, shape), noise(2, 30)
    solution = solver_for(matrix, shape).solve(rhs, False)
    assert relative_error(solution.x, rhs.numpy() @ np.linalg.pinv(matrix, rcond=1e-12).T) < 1e-12


def unsymmetric_box(singular: bool) -> np.ndarray:
    """With positive weights on the rows of each axis."""
    first, second = ("walls", "walls") if singular else ("outlet", "walls")
    return sum_over_axes(
        [
            np.diag(np.linspace(1.0, 2.0, 6)) @ axis_matrix(first, 6),
            np.diag(np.linspace(3.0, 2.0, 5)) @ axis_matrix(second, 5, 0.7),
        ]
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_unsymmetric_boxes(transposed: bool) -> None:
    matrix, rhs = unsymmetric_box(singular=False), noise(3, 30)
    assert np.abs(matrix - matrix.T).max() > 0.1
    solution = solver_for(matrix, (6, 5)).solve(rhs, transposed)
    expected = np.linalg.solve(matrix.T if transposed else matrix, rhs.numpy().T).T
    assert relative_error(solution.x, expected) < 1e-12 and solution.imbalance is None


@pytest.mark.parametrize("transposed", [False, True])
def test_unsymmetric_singular_boxes(transposed: bool) -> None:
    """The part of b along the right null vector R is left out so that the rest has no part along the left one L."""
    matrix, rhs = unsymmetric_box(singular=True), noise(3, 30)
    solution = solver_for(matrix, (6, 5)).solve(rhs, transposed)
    used = matrix.T if transposed else matrix
    right, left = scipy.linalg.null_space(used), scipy.linalg.null_space(used.T)
    assert right.shape == left.shape == (30, 1)
    rest = (rhs.numpy() @ left) @ right.T / (left.T @ right)
    np.testing.assert_allclose(solution.x.numpy() @ used.T, rhs.numpy() - rest, atol=1e-12)
    np.testing.assert_allclose(solution.x.numpy() @ left, 0, atol=1e-12)
    np.testing.assert_allclose(solution.imbalance.numpy(), np.linalg.norm(rest, axis=1), atol=1e-12)


def nine_points() -> np.ndarray:
    matrix = box_matrix(("values", "values"), (6, 5))
    matrix[7, 13] = matrix[13, 7] = 0.1  # a diagonal neighbour
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        with_obstacle(box_matrix(("walls", "values"), (6, 5)), [12]),
        np.diag(np.linspace(1, 2, 30)) @ box_matrix(("values", "values"), (6, 5)),
        nine_points(),
    ],
    ids=["obstacle", "varying coefficient", "nine points"],
)
def test_what_is_no_sum_of_axes_is_refused(matrix: np.ndarray) -> None:
    assert solver_for(matrix, (6, 5)) is None


def test_too_long_axes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "LARGEST_DENSE", 3)
    monkeypatch.setattr(transforms, "LARGEST_EIGENPROBLEM", 3)
    assert solver_for(box_matrix(("outlet", "walls"), (6, 5)), (6, 5)) is None
    assert solver_for(unsymmetric_box(singular=False), (6, 5)) is None
    assert solver_for(box_matrix(("values", "walls"), (6, 5)), (6, 5)) is not None


@pytest.mark.parametrize("kinds", [("walls", "walls"), ("periodic", "periodic")], ids="-".join)
def test_regularised_solver_is_definite(kinds: tuple[str, str]) -> None:
    """Elsewhere it is the solver itself; constants get the smallest other eigenvalue."""
    matrix = box_matrix(kinds, (6, 5))
    found = spectral(matrix, (6, 5)).regularised().apply(torch.eye(30, dtype=torch.float64)).numpy()
    smallest = np.sort(np.linalg.eigvalsh(-matrix))[1]
    np.testing.assert_allclose(
        found, np.linalg.pinv(matrix, rcond=1e-12) - np.ones((30, 30)) / 30 / smallest, atol=1e-12
    )
