"""The capacitance matrix method: a box with obstacles solved as the box without, and a small dense matrix beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from phi_hybrid.linear_solve.fast_diagonalization import SpectralSolver
from phi_hybrid.linear_solve.obstacles import ObstructedBox, inverse_of_fixed, obstructed_box
from phi_hybrid.linear_solve.solution import Balance, Solution, symmetric_balance
from phi_hybrid.linear_solve.system import Csr, System, from_columns, to_columns


@dataclass(frozen=True)
class CapacitanceMatrix:
    """Fast diagonalisation of the box without its obstacles, corrected at the cells beside them; a direct solve. Any device.

    With B for the whole box, A = B + Rᵀ·F·C, where R and C pick the cells beside and at the surfaces of obstacles:

    x = y − B⁻¹·Rᵀ·K·C·y,  y = B⁻¹·b,  K = (1 + F·C·B⁻¹·Rᵀ)⁻¹·F

    Source: B. L. Buzbee, F. W. Dorr, J. A. George, G. H. Golub, SIAM J. Numer. Anal. 8 (1971) 722–736.
    """

    def build(self, system: System, device: torch.device, tolerance: float) -> CapacitanceSolver | None:
        """The solver, `None` if the matrix resembles no definite operator on a box or obstacles have too much surface."""
        box = obstructed_box(system, device)
        if box is None or abs(system.matrix[box.free][:, ~box.free]).nnz:
            return None
        if int(box.solver.zero.sum()) != system.null_vectors.shape[1]:
            return None  # obstacles cut the box into parts
        difference = surface_of(box)
        rows, columns = (np.flatnonzero(difference.getnnz(axis)) for axis in (1, 0))
        if len(rows) > LARGEST_SURFACE:
            return None
        spectral = box.solver
        correction = SurfaceCorrection.of(difference[rows][:, columns].toarray(), rows, columns, spectral)
        solver = CapacitanceSolver(system, box.free, spectral, correction) if correction else None
        return solver if solver and is_inverse(solver, system.matrix) else None


LARGEST_SURFACE = 1024
"""Cells beside obstacles, each of which takes a solve on the box when the solver is built."""
LARGEST_RESPONSES = 2**22
"""Numbers up to which their solutions are kept, 32 MiB; else a second solve on the box takes their place."""


class SurfaceCorrection:
    """y → y − B⁻¹·Rᵀ·K·C·y.

    Args:
        matrix: Kᵀ, `(column, row)`.
        rows: cells that R picks.
        columns: cells that C picks.
        responses: B⁻¹·Rᵀ, transposed, `(row, size)`, if kept.
    """

    def __init__(
        self, matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, responses: torch.Tensor | None
    ) -> None:
        self.matrix, self.rows, self.columns, self.responses = matrix, rows, columns, responses

    @classmethod
    def of(
        cls, difference: np.ndarray, rows: np.ndarray, columns: np.ndarray, spectral: SpectralSolver
    ) -> SurfaceCorrection | None:
        """From F, `(row, column)`; `None` if the box with its obstacles is singular."""
        device, size = spectral.inverse.device, spectral.eigenvalues.numel()
        row, column = (torch.from_numpy(cells).to(device) for cells in (rows, columns))
        keeps = len(rows) * size <= LARGEST_RESPONSES
        parts = []
        for part in row.split(max(1, LARGEST_RESPONSES // size)):
            sources = torch.zeros(len(part), size, dtype=torch.float64, device=device)
            found = spectral.apply(sources.scatter(1, part[:, None], 1.0))
            parts.append(found if keeps else found[:, column])
        responses = torch.cat(parts)
        f = torch.from_numpy(difference).to(device)
        at_columns = responses[:, column] if keeps else responses
        capacitance = torch.eye(len(rows), dtype=torch.float64, device=device) + f @ at_columns.T
        matrix, failed = torch.linalg.solve_ex(capacitance, f)
        return None if failed else cls(matrix.T.contiguous(), row, column, responses if keeps else None)

    def __call__(self, y: torch.Tensor, spectral: SpectralSolver) -> torch.Tensor:
        charges = y.index_select(1, self.columns) @ self.matrix
        if self.responses is not None:
            return torch.addmm(y, charges, self.responses, alpha=-1)
        return y - spectral.apply(torch.zeros_like(y).index_copy(1, self.rows, charges))


class CapacitanceSolver:
    """Solver of a system that couples free cells to free cells only, and of its adjoint."""

    def __init__(
        self, system: System, free: np.ndarray, spectral: SpectralSolver, correction: SurfaceCorrection
    ) -> None:
        device = spectral.inverse.device
        self.spectral, self.correction = spectral, correction
        self.free = torch.tensor(free.astype(float), device=device)
        self.fixed_inverse = torch.tensor(inverse_of_fixed(system, free), device=device)
        self.balanced: Balance = symmetric_balance(system, device)
        self.tolerant = system.tolerates_imbalance

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        imbalance = None if self.tolerant else self.balanced.split(rhs)[1]
        return Solution(self.apply(rhs, transposed), imbalance=imbalance)

    def apply(self, rhs: torch.Tensor, transposed: bool) -> torch.Tensor:
        """A⁺·b for `(batch, size)`, without checks. A is symmetric."""
        rhs = self.balanced(rhs)
        x = self.correction(self.spectral.apply(rhs * self.free), self.spectral) * self.free
        return self.balanced(x) + rhs * self.fixed_inverse


def surface_of(box: ObstructedBox) -> Csr:
    """Rᵀ·F·C: what the free cells' rows of A and of B differ by."""
    difference = box.inner - box.whole.multiply(box.free[:, None].astype(float))
    difference.data[np.abs(difference.data) <= 1e-12 * abs(box.whole).max()] = 0
    difference.eliminate_zeros()
    return Csr(difference)


def is_inverse(solver: CapacitanceSolver, matrix: Csr) -> bool:
    """A·x = A·A⁺·A·x for random x: what is trusted later without looking at residuals."""
    image = matrix @ np.random.default_rng(0).standard_normal((matrix.shape[0], 1))
    solution = to_columns(solver.apply(from_columns(image, solver.free), False))
    return np.linalg.norm(matrix @ solution - image) <= 1e-10 * np.linalg.norm(image)
