"""Operators that are sums of one-dimensional operators: A = Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from phi_hybrid.linear_solve.system import Csr, System


def axis_operators(system: System, free: np.ndarray | None = None) -> list[Csr] | None:
    """The T_d of a separable operator, or of one that resembles A, `None` where cells couple across axes.

    Couplings and row sums of T_d are averages over the other axes of those in A, so that a separable A is recovered
    exactly. With `free`, a mask of the cells outside of obstacles, they are the strongest couplings and the smallest row
    sums of these cells instead: those of the box without its obstacles, unless one fills a whole cross-section.
    """
    shape, matrix = system.shape, system.matrix.tocoo()
    rows, columns = (np.array(np.unravel_index(i, shape)) for i in (matrix.row, matrix.col))
    differs = rows != columns
    if (differs.sum(0) > 1).any():
        return None
    sums, average = system.matrix @ np.ones(system.size), np.mean
    if free is not None:
        sign = np.sign(system.matrix.diagonal()[free][0])
        sums, average = np.where(free, sign * sums, np.inf), np.min
    overall, operators = average(sums), []
    for d, size in enumerate(shape):
        own = average(sums.reshape(shape), axis=tuple(e for e in range(len(shape)) if e != d))
        own = np.where(np.isinf(own), overall, own) - overall * (len(shape) - 1) / len(shape)
        own = own if free is None else sign * own
        along = differs[d]
        entries = rows[d][along], columns[d][along], matrix.data[along]
        couplings = _couplings(*entries, size, system.size // size, strongest=free is not None)
        operators.append(Csr(couplings + scipy.sparse.diags(own - couplings @ np.ones(size))))
    return operators


def kronecker_sum(operators: list[Csr]) -> Csr:
    """Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I."""
    total = operators[0]
    for operator in operators[1:]:
        total = scipy.sparse.kronsum(operator, total, format="csr")  # SciPy counts from the fastest axis
    return Csr(total)


def _couplings(row: np.ndarray, column: np.ndarray, value: np.ndarray, size: int, lines: int, strongest: bool) -> Csr:
    """The strongest of the entries that share a pair of positions, or their average, where an absent one is zero."""
    pairs, group = np.unique(row * size + column, return_inverse=True)
    if strongest:
        low, high = np.zeros(len(pairs)), np.zeros(len(pairs))
        np.minimum.at(low, group, value)
        np.maximum.at(high, group, value)
        values = np.where(high >= -low, high, low)
    else:
        values = np.bincount(group, value) / lines
    return Csr((values, (pairs // size, pairs % size)), shape=(size, size))
