"""Solves of compiled graphs, against those of every other graph; the operator itself, without a compiler."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

import phi_hybrid as ph
from phi_hybrid.linear_solve.operator import LinearSolve
from phi_hybrid.linear_solve.quick import quick_solve, quick_solver_for
from phi_hybrid.linear_solve.system import Csr, System

BOUNDARIES = {"periodic": ("p", "p"), "closed": ("c", "c"), "open": ("o", "o"), "mixed": ("p", "c")}
SHAPE = (12, 10)


def second_difference(size: int, kind: str) -> np.ndarray:
    """Periodic, closed (no slope at the ends) or open (zero beyond them)."""
    matrix = np.diag(np.full(size, -2.0)) + np.diag(np.ones(size - 1), 1) + np.diag(np.ones(size - 1), -1)
    if kind == "p":
        matrix[0, -1] = matrix[-1, 0] = 1
    if kind == "c":
        matrix[0, 0] = matrix[-1, -1] = -1
    return matrix


def system_of(boundary: str, regular: bool = False, tolerant: bool = True) -> System:
    x, y = (second_difference(n, kind) for n, kind in zip(SHAPE, BOUNDARIES[boundary]))
    matrix = np.kron(x, np.eye(len(y))) + np.kron(np.eye(len(x)), y) - regular * np.eye(len(x) * len(y))
    return System(Csr(scipy.sparse.csr_matrix(matrix)), SHAPE, tolerant)


def solve_of(boundary: str, rel_tol: float = 1e-5, regular: bool = False, tolerant: bool = True) -> LinearSolve:
    return LinearSolve(system_of(boundary, regular, tolerant), None, rel_tol, 1e-7)


def balanced(dtype: torch.dtype, rows: int = 3) -> torch.Tensor:
    b = torch.randn(rows, 120, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return b - b.mean(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_solutions_and_gradients(boundary: str, regular: bool, dtype: torch.dtype) -> None:
    solve, b = solve_of(boundary, regular=regular), balanced(dtype).requires_grad_()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    matrix = torch.tensor(solve.system.matrix.toarray())
    exact = b.double() @ torch.linalg.pinv(matrix, rtol=1e-10).T
    found = quick_solve(b, solve.number, False)
    assert quick_solver_for(solve, b, False).dtype == dtype and found.dtype == dtype
    assert torch.norm(found - exact) <= tolerance * torch.norm(exact)
    (gradient,) = torch.autograd.grad(found.sum() + (found * b.detach()).sum(), b)
    expected = (1 + b.detach().double()) @ torch.linalg.pinv(matrix, rtol=1e-10)
    assert torch.norm(gradient - expected) <= tolerance * torch.norm(expected)


def test_the_tolerance_asks_for_the_precision() -> None:
    b = balanced(torch.float32)
    for rel_tol, dtype in ((1e-5, torch.float32), (1e-7, torch.float64)):
        solve = solve_of("periodic", rel_tol)
        assert quick_solver_for(solve, b, False).dtype == dtype
    exact = solve.solve(b, False)
    assert torch.equal(quick_solve(b, solve.number, False), exact)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite(boundary: str, bad: float) -> None:
    solve, b = solve_of(boundary), balanced(torch.float32)
    b[1, 7] = bad
    with pytest.raises(ph.SolveError, match="NaN or infinite"):
        quick_solve(b, solve.number, False)


@pytest.mark.parametrize("boundary", ["periodic", "closed", "mixed"])
def test_right_hand_sides_without_a_solution(boundary: str) -> None:
    solve, b = solve_of(boundary), balanced(torch.float32)
    strict = solve_of(boundary, tolerant=False)
    quick_solve(b, strict.number, False)
    quick_solve(b + 1, strict.number, True)  # of a cotangent, whose part outside of the range has no effect
    b[2] += 1e-3
    quick_solve(b, solve.number, False)  # which leaves that part out
    with pytest.raises(ph.SolveError, match="batch entry 2 has no solution") as quick:
        quick_solve(b, strict.number, False)
    with pytest.raises(ph.SolveError) as slow:
        strict.solve(b, False)
    assert str(quick.value) == str(slow.value)


def test_other_solvers_do_it_themselves() -> None:
    """A matrix without structure: the same solution, the same operator."""
    solve = solve_of("closed")
    matrix = solve.system.matrix.copy()
    matrix[3, 0] += 1.0
    other = LinearSolve(System(Csr(matrix), SHAPE, False), None, 1e-5, 1e-7)
    b = balanced(torch.float64)
    assert quick_solver_for(other, b, False) is None
    np.testing.assert_allclose(
        quick_solve(b, other.number, False), np.linalg.solve(matrix.toarray(), b.T).T, rtol=1e-8, atol=1e-10
    )
