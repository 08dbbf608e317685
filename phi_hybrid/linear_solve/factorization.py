"""Sparse factorisation with SciPy's SuperLU, on the CPU, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

from phi_hybrid.linear_solve.solution import Solution, Solver
from phi_hybrid.linear_solve.system import Csr, System, from_columns, to_columns


@dataclass(frozen=True)
class SparseFactorization:
    """Sparse factorisation A = L·U: a direct solve with any square matrix, all batch entries at once. Runs on the CPU wherever the state is.

    Source: X. S. Li, An overview of SuperLU, ACM Trans. Math. Softw. 31 (2005) 302–325.
    """

    def build(self, system: System, device: torch.device, tolerance: float) -> Solver | None:
        """The solver, `None` if a large matrix has a null space other than constants on uncoupled parts."""
        try:
            solver = FactoredSolver(system)
            if solver.recovers(np.random.default_rng(0).standard_normal((system.size, 1))):
                return solver
        except RuntimeError:  # SuperLU: exactly singular
            pass
        return PseudoInverseSolver(system) if system.size <= LARGEST_PSEUDO_INVERSE else None


LARGEST_PSEUDO_INVERSE = 1000
"""Unknowns up to which singular values are computed, in about a second."""


def regular(system: System) -> Csr:
    """The matrix itself, or a regular one in place of a singular one, with as many more unknowns at the end as it needs.

    Symmetric matrices are fixed at one cell of each singular part, which leaves solutions for right-hand sides in the range
    as they are up to a constant. Unsymmetric ones are bordered by their null vectors.
    """
    null = system.null_vectors
    if null.shape[1] == 0:
        return system.matrix
    if system.is_symmetric:
        fixed = np.zeros(system.size)
        fixed[np.abs(null).argmax(0)] = system.matrix.diagonal().sum() / system.size
        return Csr(system.matrix + scipy.sparse.diags(fixed))
    border = scipy.sparse.csr_matrix(null)
    return Csr(scipy.sparse.bmat([[system.matrix, border], [border.T, None]]))


class FactoredSolver:
    """Solver with a kept factorisation of `regular(system)`; the constants that symmetric ones leave open are taken out."""

    def __init__(self, system: System) -> None:
        self.system, self.null = system, system.null_vectors
        symmetric = dict(permc_spec="MMD_AT_PLUS_A", options=dict(SymmetricMode=True), diag_pivot_thresh=0.0)
        options = symmetric if system.is_symmetric else {}
        matrix = regular(system)
        self.border = matrix.shape[0] - system.size
        self.factors = scipy.sparse.linalg.splu(scipy.sparse.csc_matrix(matrix), **options)

    def recovers(self, x: np.ndarray) -> bool:
        """Check that A·y = A·x gives y = x, up to the null vectors: not for matrices singular to rounding."""
        found = to_columns(self.solve(from_columns(self.system.matrix @ x, torch.empty(0)), False).x)
        error = (found - x) - self.null @ (self.null.T @ (found - x))
        return np.linalg.norm(error) <= 1e-5 * np.linalg.norm(x)

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        size, b = self.system.size, to_columns(rhs)
        imbalance = None
        if self.border:
            x = self.factors.solve(np.pad(b, ((0, self.border), (0, 0))), "T" if transposed else "N")
            b = b - self.null @ x[size:]
            x, imbalance = x[:size], np.linalg.norm(x[size:], axis=0)
        elif self.null.shape[1]:
            weights = self.null.T @ b
            b, imbalance = b - self.null @ weights, np.linalg.norm(weights, axis=0)
            x = self.factors.solve(b)
            x -= self.null @ (self.null.T @ x)
        else:
            x = self.factors.solve(b, "T" if transposed else "N")
        residual = torch.from_numpy(self.system.residual(x, b, transposed))
        return Solution(from_columns(x, rhs), residual, None if imbalance is None else torch.from_numpy(imbalance))


class PseudoInverseSolver:
    """x = A⁺·b by singular values, for a singular matrix whose null space is not known beforehand."""

    def __init__(self, system: System) -> None:
        self.system = system
        u, values, v = np.linalg.svd(system.matrix.toarray())
        kept = values > 1e-11 * values[0]
        self.inverse = (v[kept].T / values[kept]) @ u[:, kept].T
        self.right = v[~kept].T

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        """The residual counts what of b no x can produce; that part of a cotangent is left out."""
        b = to_columns(rhs)
        x = (self.inverse.T if transposed else self.inverse) @ b
        target = b - self.right @ (self.right.T @ b) if transposed else b
        return Solution(from_columns(x, rhs), torch.from_numpy(self.system.residual(x, target, transposed)))
