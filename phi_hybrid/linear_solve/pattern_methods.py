"""Which method solves a matrix that may be another one at the next call: building a solver counts as much as using it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from phi_hybrid.linear_solve.capacitance import CapacitanceMatrix
from phi_hybrid.linear_solve.conjugate_gradient import KrylovSolver
from phi_hybrid.linear_solve.fast_diagonalization import (
    FastDiagonalization,
    SpectralSolver,
    smallest_row_sums,
    spectral_solver,
)
from phi_hybrid.linear_solve.obstacles import is_definite
from phi_hybrid.linear_solve.operator import build_solver, methods_for
from phi_hybrid.linear_solve.pattern import Pattern, PatternSystem
from phi_hybrid.linear_solve.solution import Solver
from phi_hybrid.linear_solve.system import Csr

SMALLEST_ITERATED = {1: 10**9, 2: 4_000, 3: 1_000}
"""Unknowns from which iterating takes less time than a factorisation and one or two solves, by the dimension of the grid."""
LARGEST_CONTRAST = 10.0
"""Of the coefficients, up to which conjugate gradients are used. The number of iterations grows with its square root."""
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class PatternMethod:
    """Method for matrices of one pattern: fast diagonalisation, conjugate gradients or a factorisation, by the values."""

    def build(self, system: PatternSystem, device: torch.device, tolerance: float) -> Solver:
        """The first solver that applies. Raises SolveError if none does."""
        if is_separable(system.pattern, system.values):
            solver = FastDiagonalization().build(system, device, tolerance)
            if solver is not None:
                return solver
        if device.type != "cpu" or system.size >= SMALLEST_ITERATED[min(len(system.shape), 3)]:
            solver = iterative_solver(system, device, 1e-3 * tolerance)  # as close as a factorisation comes
            if solver is not None:
                return solver
        for method in methods_for(system, device):
            if not isinstance(method, (FastDiagonalization, CapacitanceMatrix)):  # the latter takes too long to build
                solver = method.build(system, device, tolerance)
                if solver is not None:
                    return solver
        return build_solver(system, None, device, tolerance)  # says what would be needed


def is_separable(pattern: Pattern, values: np.ndarray) -> bool:
    """Tells if couplings depend on the position along their own axis only."""
    if pattern.axes is None:
        return False
    allowed = 1e-12 * np.abs(values).max(initial=0.0)
    for axis in pattern.axes:
        low, high = axis.extremes(values)
        complete = np.diff(np.append(axis.starts, len(axis.entries))) == pattern.size // axis.size
        if (high - low > allowed).any() or not complete[np.abs(high) > allowed].all():
            return False
    return True


def iterative_solver(system: PatternSystem, device: torch.device, tolerance: float) -> KrylovSolver | None:
    """Conjugate gradients as `ConjugateGradient` builds them, but from values on a known pattern.

    `None` where the matrix is not symmetric and definite, resembles no operator on a box, or has too large a contrast.
    """
    pattern, values = system.pattern, system.values
    if pattern.axes is None:
        return None
    coupled = np.bincount(pattern.rows[(values != 0) & ~pattern.diagonal], minlength=system.size) > 0
    inner = values * (coupled[pattern.rows] & coupled[pattern.columns])
    diagonal = np.zeros(system.size)
    diagonal[pattern.rows[pattern.diagonal]] = values[pattern.diagonal]
    sign = np.sign(diagonal[coupled])
    mirrored = np.append(inner, 0.0)[pattern.mirrored]
    symmetric = (np.abs(inner - mirrored) <= 1e-12 * np.abs(inner).max(initial=0.0)).all()
    if not (coupled.any() and symmetric and (sign == sign[0]).all() and sign[0] and diagonal[~coupled].all()):
        return None
    operators = _operators(system, coupled, sign[0])
    if operators is None or _largest_ratio(diagonal, operators, coupled) > LARGEST_CONTRAST:
        return None
    box = _box(tuple(o.tobytes() for o in operators), system.shape, device)
    if box is None:
        return None
    return KrylovSolver(system, coupled, pattern.matrix(inner), box, tolerance, MAX_ITERATIONS)


def _operators(system: PatternSystem, free: np.ndarray, sign: float) -> list[np.ndarray] | None:
    """Dense T_d of the box without its obstacles, see `axis_operators`; `None` if the contrast is too large."""
    sums, operators = smallest_row_sums(system, free, sign), []
    magnitudes = np.where(system.values == 0, np.inf, np.abs(system.values))
    for axis, own in zip(system.pattern.axes, sums):
        (low, high), (smallest, _) = axis.extremes(system.values), axis.extremes(magnitudes)
        strongest = np.where(high >= -low, high, low)
        if (low * high < 0).any() or (np.abs(strongest) > LARGEST_CONTRAST * smallest).any():
            return None
        operator = np.zeros((axis.size, axis.size))
        operator[axis.rows, axis.columns] = strongest
        operator[np.diag_indices(axis.size)] += own - operator.sum(1)
        operators.append(operator)
    return operators


def _largest_ratio(diagonal: np.ndarray, operators: list[np.ndarray], free: np.ndarray) -> float:
    """Between the diagonal of the matrix and that of the box."""
    of_box = np.zeros(())
    for operator in operators:
        of_box = of_box[..., None] + operator.diagonal()
    return float((diagonal[free] / of_box.ravel()[free]).max())


@lru_cache(maxsize=16)
def _box(operators: tuple[bytes, ...], shape: tuple[int, ...], device: torch.device) -> SpectralSolver | None:
    """The preconditioner; that of a box with moving bodies is always the same."""
    matrices = [Csr(np.frombuffer(o).reshape(n, n)) for o, n in zip(operators, shape)]
    box = spectral_solver(matrices, shape, device)
    return box.regularised() if box is not None and is_definite(box.eigenvalues) else None
