"""The capacitance matrix method against dense pseudo-inverses, and the two ways to its second solve against each other."""

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
    box_matrix,
    noise,
    obstructed,
    relative_error,
    system,
    with_obstacle,
)

import phi_hybrid as ph
from phi_hybrid.linear_solve import CapacitanceMatrix, LinearSolve, SparseFactorization, capacitance, operator
from phi_hybrid.linear_solve.capacitance import CapacitanceSolver
from phi_hybrid.linear_solve.quick import quick_solve, quick_solver_for

SHAPE, SIZE, CORNER = OBSTRUCTED, 56, [0, 1, 7]


def laplacian(*kinds: str) -> np.ndarray:
    return box_matrix(kinds, SHAPE)


PAIRS = [*zip(AXES, AXES[1:] + AXES[:1]), *zip(AXES, AXES)]
MATRICES = {
    **{f"{a}-{b}": with_obstacle(laplacian(a, b), BLOCK) for a, b in PAIRS},
    "two obstacles": with_obstacle(with_obstacle(laplacian("walls", "outlet"), BLOCK), [36, 37]),
    "at the corner": with_obstacle(laplacian("walls", "walls"), CORNER),
    "positive": with_obstacle(-laplacian("walls", "outlet"), BLOCK),
    "diffusion": with_obstacle(np.eye(SIZE) - 0.1 * laplacian("values", "walls"), BLOCK),
    "most of a cross-section": with_obstacle(laplacian("walls", "outlet"), [21, 22, 23, 24, 25]),
    "box": laplacian("walls", "values"),
}


def solver_for(matrix: np.ndarray) -> CapacitanceSolver | None:
    return CapacitanceMatrix().build(system(matrix, SHAPE), CPU, 1e-7)


def pseudo_inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix, rcond=1e-12)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", MATRICES)
def test_solutions_equal_the_pseudo_inverse(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the responses of the box are kept or a second solve takes their place."""
    if not kept:
        monkeypatch.setattr(capacitance, "LARGEST_RESPONSES", SIZE * 2)
    matrix, rhs = MATRICES[name], noise(3, SIZE)
    rhs[1] = 0
    solver = solver_for(matrix)
    assert (solver.correction.responses is not None) == (kept or name == "box")
    solution = solver.solve(rhs, False)
    expected = rhs.numpy() @ pseudo_inverse(matrix).T
    assert relative_error(solution.x, expected) < 1e-11
    assert not solution.x[1].any()
    assert torch.equal(solver.solve(rhs, True).x, solution.x)
    rest = np.linalg.norm(rhs.numpy() - expected @ matrix.T, axis=1)
    if np.linalg.matrix_rank(matrix) < SIZE:
        np.testing.assert_allclose(solution.imbalance.numpy(), rest, atol=1e-10)
    else:
        assert solution.imbalance is None and rest.max() < 1e-10


def test_three_dimensions() -> None:
    shape = (5, 4, 6)
    matrix = with_obstacle(box_matrix(("walls", "periodic", "outlet"), shape), [50, 51, 56, 57])
    solver, rhs = CapacitanceMatrix().build(system(matrix, shape), CPU, 1e-7), noise(2, 120)
    assert relative_error(solver.solve(rhs, False).x, rhs.numpy() @ np.linalg.inv(matrix).T) < 1e-12


ACROSS = range(28, 35)
REFUSED = {
    **UNFIT,
    "values inside": obstructed("walls", "walls", cuts=False),
    "two singular parts": obstructed("walls", "walls", cells=ACROSS),
    "a singular part": obstructed("outlet", "walls", cells=ACROSS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_matrices_are_refused(name: str) -> None:
    assert solver_for(REFUSED[name]) is None


def test_too_much_surface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacitance, "LARGEST_SURFACE", 8)
    assert solver_for(MATRICES["walls-walls"]) is not None  # a block of four cells has eight neighbours
    monkeypatch.setattr(capacitance, "LARGEST_SURFACE", 7)
    assert solver_for(MATRICES["walls-walls"]) is None


# --- in compiled graphs ---


@pytest.mark.parametrize("name", ["values-outlet", "walls-walls", "periodic-periodic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quick_solutions_and_gradients(name: str, dtype: torch.dtype) -> None:
    matrix = MATRICES[name]
    solve = LinearSolve(system(matrix, SHAPE), None, 1e-5, 1e-7)
    b = (noise(3, SIZE) @ torch.tensor(matrix).T).to(dtype).requires_grad_()
    inverse, tolerance = torch.tensor(pseudo_inverse(matrix)), 2e-6 if dtype == torch.float32 else 1e-12
    found = quick_solve(b, solve.number, False)
    assert quick_solver_for(solve, b, False).dtype == dtype and found.dtype == dtype
    assert torch.norm(found - b.double() @ inverse.T) <= tolerance * torch.norm(found)
    (gradient,) = torch.autograd.grad((found * b.detach()).sum(), b)
    expected = b.detach().double() @ inverse
    assert torch.norm(gradient - expected) <= tolerance * torch.norm(expected)


def test_quick_solutions_say_what_is_wrong() -> None:
    matrix = MATRICES["walls-walls"]
    solve = LinearSolve(system(matrix, SHAPE), None, 1e-5, 1e-7)
    b = (noise(3, SIZE) @ torch.tensor(matrix).T).float()
    quick_solve(b, solve.number, False)
    with pytest.raises(ph.SolveError, match="batch entry 2 has no solution"):
        quick_solve(b + torch.tensor([[0.0], [0.0], [0.1]]), solve.number, False)
    for cell in (BLOCK[0], 40):
        b[1, cell] = torch.nan
        with pytest.raises(ph.SolveError, match="NaN or infinite"):
            quick_solve(b, solve.number, False)
        b[1, cell] = 0


def test_float32_solves_take_the_place_of_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large grids are factored in float64; compiled float32 steps need no factors."""
    monkeypatch.setattr(operator, "SMALLEST_FACTORIZATION", 8)
    problem = system(MATRICES["values-outlet"], SHAPE)
    rhs = noise(2, SIZE).float()
    assert quick_solver_for(LinearSolve(problem, None, 1e-5, 0.0), rhs, False).dtype == torch.float32
    assert quick_solver_for(LinearSolve(problem, None, 1e-5, 0.0), rhs.double(), False) is None
    assert quick_solver_for(LinearSolve(problem, SparseFactorization(), 1e-5, 0.0), rhs, False) is None
