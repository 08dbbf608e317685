"""Matrices of one sparsity pattern, and the solves with them by dense linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cases.solves import with_obstacle
from phi_hybrid.linear_solve import VaryingSolve
from phi_hybrid.linear_solve.pattern import Pattern

SHAPE = (3, 4)


def module_of(
    *matrices: np.ndarray, shape: tuple[int, ...] = SHAPE, tolerates: bool | None = None, **settings: Any
) -> tuple[VaryingSolve, torch.Tensor]:
    """Module for a pattern that holds these matrices, and their values."""
    rows, columns = np.nonzero(sum(abs(m) for m in matrices))
    settings = {"method": None, "rel_tol": 1e-5, "abs_tol": 0.0, **settings}
    solve = VaryingSolve(Pattern(rows, columns, shape), tolerates, **settings)
    return solve, torch.as_tensor(np.stack([m[rows, columns] for m in matrices]))


def dense_solve(solve: VaryingSolve, values: torch.Tensor, rhs: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """The same by dense linear algebra of torch, with torch's derivatives."""
    places = solve.rows * solve.pattern.size + solve.columns
    flat = torch.zeros(len(values), solve.pattern.size**2, dtype=torch.float64).index_add(1, places, values)
    matrix = flat.reshape(len(values), solve.pattern.size, solve.pattern.size)
    return torch.linalg.solve(matrix.mT if transposed else matrix, rhs.mT).mT


def diffusion_matrix(
    n: int, contrast: float, obstacle: bool, kinds: tuple[str, ...] = ("values", "walls")
) -> np.ndarray:
    """−∇·(c·∇) with coefficients c between 1 and `contrast`, on n × n cells, and an obstacle."""
    places = np.arange(n * n).reshape(n, n)
    matrix, generator = np.zeros((n * n, n * n)), np.random.default_rng(0)
    for axis, kind in enumerate(kinds):
        low, high = (np.take(places, range(*r), axis).ravel() for r in ((0, n - 1), (1, n)))
        c = generator.uniform(1, contrast, len(low))
        matrix[low, high] = matrix[high, low] = -c
        np.add.at(matrix, (low, low), c)
        np.add.at(matrix, (high, high), c)
        for side in (0, n - 1) if kind == "values" else ():
            ends = np.take(places, side, axis).ravel()
            matrix[ends, ends] += 2.0
    return with_obstacle(matrix, places[3:6, 4:7].ravel()) if obstacle else matrix
