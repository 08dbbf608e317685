"""Operators that are sums of one-dimensional operators: A = Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse

from phi_hybrid.linear_solve.system import Csr, System


def axis_operators(system: System, average: Callable = np.mean) -> list[Csr] | None:
    """The T_d of a separable operator, or of the one that resembles A most, `None` where cells couple across axes.

    Each entry of T_d is the average over the other axes of the entries of A that it would make. With the mean, a
    separable A is recovered exactly; with `typical`, the operator of the box without its obstacles.
    """
    shape, matrix = system.shape, system.matrix.tocoo()
    rows, columns = (np.array(np.unravel_index(i, shape)) for i in (matrix.row, matrix.col))
    differs = rows != columns
    if (differs.sum(0) > 1).any():
        return None
    diagonal = system.matrix.diagonal().reshape(shape)
    overall, operators = average(diagonal), []
    for d, size in enumerate(shape):
        others = tuple(e for e in range(len(shape)) if e != d)
        own = average(diagonal, axis=others) - overall * (len(shape) - 1) / len(shape)
        operator = scipy.sparse.diags(own).tolil()
        along = differs[d]
        operator = (
            _couplings(rows[d][along], columns[d][along], matrix.data[along], size, system.size, average) + operator
        )
        operators.append(Csr(operator))
    return operators


def kronecker_sum(operators: list[Csr]) -> Csr:
    """Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I."""
    total = operators[0]
    for operator in operators[1:]:
        total = scipy.sparse.kronsum(operator, total, format="csr")  # SciPy counts from the fastest axis
    return Csr(total)


def typical(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """The median by magnitude, never a value between two: what most cells have, if an obstacle takes less than half."""
    axes = tuple(range(values.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    kept = [d for d in range(values.ndim) if d not in axes]
    lines = values.transpose(*kept, *axes).reshape(*(values.shape[d] for d in kept), -1)
    middle = np.argsort(np.abs(lines), axis=-1)[..., lines.shape[-1] // 2, None]
    return np.take_along_axis(lines, middle, -1)[..., 0]


def _couplings(row: np.ndarray, column: np.ndarray, value: np.ndarray, size: int, cells: int, average: Callable) -> Csr:
    """Averages of the entries that share a pair of positions; an absent entry counts as zero."""
    pairs, group = np.unique(row * size + column, return_inverse=True)
    lines = cells // size
    if average is np.mean:
        values = np.bincount(group, value) / lines
    else:
        table = np.zeros((len(pairs), lines))
        order = np.argsort(group, kind="stable")
        position = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        table[group[order], position] = value[order]
        values = average(table, axis=1)
    return Csr((values, (pairs // size, pairs % size)), shape=(size, size))
