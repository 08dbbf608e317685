"""The choice of a method for matrices of one pattern, by their values, with the accuracy of a factorisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.patterns import dense_solve, diffusion_matrix, module_of
from cases.solves import noise, relative_error

from phi_hybrid.linear_solve import ConjugateGradient, Method, SparseFactorization, VaryingSolve
from phi_hybrid.linear_solve.conjugate_gradient import KrylovSolver
from phi_hybrid.linear_solve.factorization import FactoredSolver
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver
from phi_hybrid.linear_solve.solution import Solver


def solver_of(solve: VaryingSolve) -> Solver:
    """That of the only matrix met so far."""
    ((known,),) = (tuple(k._solvers.values()) for k in solve._solvers.values())
    return known


@pytest.mark.parametrize(
    ("contrast", "obstacle", "kind"),
    [(1.0, False, ExactSolver), (1.0, True, KrylovSolver), (4.0, True, KrylovSolver), (100.0, True, FactoredSolver)],
)
@pytest.mark.parametrize("kinds", [("values", "walls"), ("walls", "walls")])
def test_the_values_choose_the_method(
    contrast: float, obstacle: bool, kind: type, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi_hybrid.linear_solve.pattern_methods.SMALLEST_ITERATED", {2: 0})
    n, pattern = 10, diffusion_matrix(10, 2.0, False)
    matrix = diffusion_matrix(n, contrast, obstacle, kinds)
    solve, values = module_of(matrix, 0 * pattern + (pattern != 0), shape=(n, n))
    rhs = noise(1, 3, n * n)
    rhs = rhs - rhs.mean(-1, keepdim=True) if "values" not in kinds else rhs
    if obstacle and "values" not in kinds:  # balanced outside of the obstacle
        free = torch.as_tensor((matrix - np.diag(np.diag(matrix)) != 0).any(1)).double()
        rhs = rhs - free * (rhs * free).sum(-1, keepdim=True) / free.sum()
    x = solve(values[:1], rhs)
    assert isinstance(solver_of(solve), kind)
    expected = rhs.numpy() @ np.linalg.pinv(matrix, rcond=1e-12).T
    assert relative_error(x, expected) < 1e-11


def test_small_systems_are_factored() -> None:
    solve, values = module_of(diffusion_matrix(10, 2.0, True), shape=(10, 10))
    solve(values, noise(1, 1, 100))
    assert isinstance(solver_of(solve), FactoredSolver)


@pytest.mark.parametrize("method", [SparseFactorization(), ConjugateGradient()], ids=str)
def test_methods_that_are_asked_for(method: Method) -> None:
    matrix = diffusion_matrix(8, 2.0, True)
    solve, values = module_of(matrix, shape=(8, 8), method=method)
    rhs = noise(1, 2, 64)
    assert relative_error(solve(values, rhs), dense_solve(solve, values, rhs)) < 1e-9
