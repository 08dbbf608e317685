"""Boxes with obstacles: cells that are free, cells that are not, and the same box without obstacles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from phi_hybrid.linear_solve.fast_diagonalization import SpectralSolver, axis_operators, kronecker_sum, spectral_solver
from phi_hybrid.linear_solve.system import Csr, System


@dataclass(frozen=True, eq=False)
class ObstructedBox:
    """A symmetric definite operator on the free cells of a box; the other cells are coupled to nothing or fixed by an equation
    of their own."""

    free: np.ndarray
    """Mask of the free cells."""
    inner: Csr
    """A_FF, zero elsewhere."""
    whole: Csr
    """B, the operator on the box without its obstacles."""
    solver: SpectralSolver
    """B⁻¹; where B is singular, of B with the smallest other eigenvalue in place of zero."""


def obstructed_box(system: System, device: torch.device) -> ObstructedBox | None:
    """Splits a system, `None` where it resembles no definite operator on a box."""
    matrix = system.matrix
    off_diagonal = matrix - Csr((matrix.diagonal(), (range(system.size), range(system.size))))
    off_diagonal.eliminate_zeros()
    free = off_diagonal.getnnz(1) > 0
    inner = matrix[free][:, free]
    sign = np.sign(inner.diagonal())
    if abs(inner - inner.T).max() > 1e-12 * abs(inner).max() or abs(sign.sum()) != free.sum():
        return None
    if (matrix.diagonal()[~free] == 0).any():
        return None
    operators = axis_operators(system, free)
    box = None if operators is None else spectral_solver(operators, system.shape, device)
    if box is None or not is_definite(box.eigenvalues):
        return None
    mask = free.astype(float)
    inner = Csr(matrix.multiply(mask[:, None]).multiply(mask[None, :]))
    inner.eliminate_zeros()
    return ObstructedBox(free, inner, kronecker_sum(operators), box.regularised())


def is_definite(eigenvalues: torch.Tensor) -> bool:
    """Tells if no two eigenvalues have different signs, but for rounding."""
    tiny = 1e-11 * eigenvalues.abs().max()
    return bool((eigenvalues >= -tiny).all() or (eigenvalues <= tiny).all())


def inverse_of_fixed(system: System, free: np.ndarray) -> np.ndarray:
    """1 / diag(A) on the cells that are not free, zero on the others."""
    return np.divide(~free, system.matrix.diagonal(), where=~free, out=np.zeros(system.size))
