"""Solves of torch operations alone against those of the package and dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.solves import CPU, axis_matrix, box_matrix, noise, relative_error, sum_over_axes, system, with_obstacle

import phi_hybrid as ph
from phi_hybrid.linear_solve import ConjugateGradient, LinearSolve, SparseFactorization, plain, plain_solve

SHAPE = (6, 5)
SIZE = 30
UNSYMMETRIC = np.diag(np.linspace(1.0, 2.0, SIZE))
SYSTEMS = {
    "spectral": box_matrix(("outlet", "walls"), SHAPE),
    "spectral, singular": box_matrix(("periodic", "walls"), SHAPE),
    "spectral, unsymmetric": sum_over_axes(
        [np.diag(np.arange(1.0, 7)) @ axis_matrix("outlet", 6), axis_matrix("walls", 5)]
    ),
    "periodic": box_matrix(("periodic", "periodic"), SHAPE),
    "capacitance": with_obstacle(box_matrix(("outlet", "walls"), SHAPE), [7, 8]),
    "capacitance, singular": with_obstacle(box_matrix(("walls", "walls"), SHAPE), [7, 8]),
    "factored": with_obstacle(box_matrix(("outlet", "walls"), SHAPE), [7, 8]),
    "factored, singular": with_obstacle(box_matrix(("walls", "walls"), SHAPE), [7, 8]),
    "factored, unsymmetric": UNSYMMETRIC @ with_obstacle(box_matrix(("outlet", "walls"), SHAPE), [7]),
    "bordered": UNSYMMETRIC @ with_obstacle(box_matrix(("walls", "walls"), SHAPE), [7]),
    "pseudo-inverse": with_obstacle(box_matrix(("walls", "walls"), SHAPE), [7]) @ UNSYMMETRIC,
}


@pytest.mark.parametrize("largest", [512, 4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_solutions_are_those_of_the_package(name: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With A and with Aᵀ, in one dense block and in several."""
    monkeypatch.setattr(plain, "LARGEST_DENSE", largest)
    monkeypatch.setattr(plain, "MOST_BLOCKS", 10)
    matrix = SYSTEMS[name]
    method = SparseFactorization() if "factored" in name else None
    solve = LinearSolve(system(matrix, SHAPE, tolerates_imbalance=True), method, 1e-6, 0.0)
    own = plain_solve(solve, CPU, torch.float64)
    for transposed in (False, True):
        a = matrix.T if transposed else matrix
        b = noise(3, SIZE) @ torch.from_numpy(a).T  # in the range of the matrix
        found = own(b, transposed)
        assert relative_error(found, solve.solve(b, transposed)) < 1e-9, transposed
        assert relative_error(found @ torch.from_numpy(a).T, b) < 1e-10
    assert own(noise(2, SIZE).float()).dtype == torch.float32


def test_large_matrices_have_many_small_blocks() -> None:
    matrix = with_obstacle(box_matrix(("outlet", "walls"), (40, 30)), [500, 501])
    solve = LinearSolve(system(matrix, (40, 30)), SparseFactorization(), 1e-6, 0.0)
    own = plain_solve(solve, CPU, torch.float64, {False})
    b = noise(2, 1200)
    assert relative_error(own(b), solve.solve(b, False)) < 1e-10
    kept = sum(buffer.numel() for buffer in own.buffers())
    assert len(list(own.buffers())) > 60 and kept < 0.15 * 1200**2


def test_iterations_become_factorisations() -> None:
    matrix = with_obstacle(box_matrix(("outlet", "walls"), SHAPE), [7], cuts=False)
    solve = LinearSolve(system(matrix, SHAPE), ConjugateGradient(), 1e-6, 0.0)
    b = noise(2, SIZE)
    assert relative_error(plain_solve(solve, CPU, torch.float64)(b), solve.solve(b, False)) < 1e-9


def test_too_many_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "LARGEST_FACTORS", 100)
    solve = LinearSolve(system(SYSTEMS["factored"], SHAPE), SparseFactorization(), 1e-6, 0.0)
    with pytest.raises(ph.SolveError, match="30 unknowns"):
        plain_solve(solve, CPU, torch.float64)
