"""Conjugate gradients, preconditioned by the fast diagonalisation of the box without its obstacles."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from phi_hybrid.linear_solve.fast_diagonalization import SpectralSolver
from phi_hybrid.linear_solve.flags import waits
from phi_hybrid.linear_solve.obstacles import inverse_of_fixed, obstructed_box
from phi_hybrid.linear_solve.solution import Solution, symmetric_balance
from phi_hybrid.linear_solve.system import Csr, System


@dataclass(frozen=True)
class ConjugateGradient:
    """Preconditioned conjugate gradients for symmetric definite grid operators with obstacles, on any device.

    The preconditioner solves the same equation on the whole box, so that the number of iterations hardly depends on the
    resolution. Cells that are coupled to nothing (inside obstacles) or fixed by an equation of their own are solved
    directly.

    Args:
        rel_tol: largest residual, ‖b − A·x‖ ≤ rel_tol·‖b‖; by default 1e-7 for float32 and 1e-11 for float64 states. Tighter tolerances of
            the `Solve` in the step prevail.
        max_iterations: largest number of iterations, else `SolveError`; 200 by default, 10 … 20 are usual.

    Source: M. R. Hestenes, E. Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409–436.
    """

    rel_tol: float | None = None
    max_iterations: int = 200

    def build(self, system: System, device: torch.device, tolerance: float) -> KrylovSolver | None:
        """The solver, `None` if the matrix is not symmetric and definite or resembles no operator on a box."""
        tolerance = tolerance if self.rel_tol is None else min(tolerance, self.rel_tol)
        return krylov_solver(system, device, tolerance, self.max_iterations)


LOOK_EVERY = 4
"""Iterations between two looks at the residual on devices that the host would have to wait for. Iterations of entries that
have converged change nothing, so that the solution is the same."""


class KrylovSolver:
    """Solver on the free cells F: A_FF·x_F = b_F − A_FD·x_D, x_D = b_D / diag(A_DD). `inner` is A_FF, zero elsewhere."""

    def __init__(
        self,
        system: System,
        free: np.ndarray,
        inner: Csr,
        preconditioner: SpectralSolver,
        tolerance: float,
        max_iterations: int,
    ) -> None:
        self.system, self.device = system, preconditioner.inverse.device
        self.preconditioner, self.tolerance, self.max_iterations = preconditioner, tolerance, max_iterations
        device = self.device
        self.free = torch.tensor(free.astype(float), device=device)
        self.matrix, self.inner = _to_torch(system.matrix, device), _to_torch(inner, device)
        self.fixed_inverse = torch.tensor(inverse_of_fixed(system, free), device=device)
        self.balanced = symmetric_balance(system, device)
        self.look_every = LOOK_EVERY if waits(device) else 1

    @cached_property
    def transpose(self) -> torch.Tensor:
        return _to_torch(Csr(self.system.matrix.T), self.device)

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        rhs, imbalance = self.balanced.split(rhs)
        matrix = self.transpose if transposed else self.matrix
        if transposed:  # Aᵀ couples the fixed cells to the free ones, not the free ones to the fixed
            free, iterations = self._iterate(rhs * self.free, rhs.norm(dim=1))
            x = free + (rhs - _multiply(matrix, free)) * self.fixed_inverse
        else:
            fixed = rhs * self.fixed_inverse
            free, iterations = self._iterate((rhs - _multiply(matrix, fixed)) * self.free, rhs.norm(dim=1))
            x = free + fixed
        return Solution(x, (rhs - _multiply(matrix, x)).norm(dim=1), imbalance, iterations)

    def _iterate(self, b: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, int]:
        target = 0.5 * self.tolerance * scale
        x, r = torch.zeros_like(b), b
        direction, energy = torch.zeros_like(b), torch.ones_like(scale)
        for iteration in range(self.max_iterations + 1):
            active = r.norm(dim=1) > target
            looks = iteration % self.look_every == 0
            if iteration == self.max_iterations or (looks and not active.any()):
                return self.balanced(x), iteration
            z = self.balanced(self.preconditioner.apply(r) * self.free)
            previous, energy = energy, (r * z).sum(1)
            direction = z + _ratio(energy, previous, active)[:, None] * direction if iteration else z
            image = _multiply(self.inner, direction)
            step = _ratio(energy, (direction * image).sum(1), active)[:, None]
            x, r = x + step * direction, r - step * image
        raise AssertionError("unreachable")


def krylov_solver(system: System, device: torch.device, tolerance: float, max_iterations: int) -> KrylovSolver | None:
    """The solver with the box without obstacles as preconditioner, `None` where the method does not apply."""
    box = obstructed_box(system, device)
    return None if box is None else KrylovSolver(system, box.free, box.inner, box.solver, tolerance, max_iterations)


def _ratio(a: torch.Tensor, b: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    return torch.where(active, a / torch.where(active, b, 1.0), 0.0)


def _multiply(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (matrix @ x.T).T


def _to_torch(matrix: Csr, device: torch.device) -> torch.Tensor:
    parts = (torch.from_numpy(p.copy()) for p in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(*parts, size=matrix.shape).to(device)
