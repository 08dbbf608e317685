"""Which method solves which system."""

from __future__ import annotations

import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve.conjugate_gradient import ConjugateGradient
from phi_hybrid.linear_solve.factorization import SparseFactorization
from phi_hybrid.linear_solve.fast_diagonalization import FastDiagonalization
from phi_hybrid.linear_solve.solution import Method, Solver
from phi_hybrid.linear_solve.system import System

LARGEST_FACTORIZATION = {1: 1_000_000, 2: 100_000, 3: 10_000}
"""Unknowns up to which factors are kept, by the dimension of the grid: fill grows as n^1, n·log n, n^(4/3)."""


def methods_for(system: System, device: torch.device) -> tuple[Method, ...]:
    """In order of preference."""
    moderate = system.size <= LARGEST_FACTORIZATION[min(len(system.shape), 3)]
    if device.type == "cpu" and moderate:
        return FastDiagonalization(), SparseFactorization(), ConjugateGradient()
    return FastDiagonalization(), ConjugateGradient(), SparseFactorization()


def build_solver(system: System, method: Method | None, device: torch.device, tolerance: float) -> Solver:
    """The solver of the given method, or of the best that applies.

    Raises:
        SolveError: if none applies.
    """
    for candidate in methods_for(system, device) if method is None else (method,):
        solver = candidate.build(system, device, tolerance)
        if solver is not None:
            return solver
    raise SolveError(
        f"{method or 'no method'} {'does not apply' if method else 'applies'} to this matrix of {system.size} unknowns on a grid {system.shape} "
        f"({'symmetric' if system.is_symmetric else 'not symmetric'}). FastDiagonalization needs a box without obstacles "
        "and constant coefficients, ConjugateGradient a symmetric definite matrix, SparseFactorization a regular one or "
        "one whose null space is constant on uncoupled parts"
        + (". Pass solver=None to let the matrix decide" if method is not None else "")
    )
