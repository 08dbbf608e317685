"""Linear solves of torch operations alone, for programs that leave this package."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import scipy.sparse
import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve.capacitance import CapacitanceSolver
from phi_hybrid.linear_solve.factorization import PseudoInverseSolver, regular
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver
from phi_hybrid.linear_solve.operator import LinearSolve
from phi_hybrid.linear_solve.system import Csr, System

LARGEST_DENSE = 512
"""Unknowns up to which the inverse is kept as one dense block."""
MOST_BLOCKS = 128
"""Blocks of a larger matrix: each is an operation of its own in the program."""
LARGEST_FACTORS = 2**24
"""Numbers in the blocks of one solve, 128 MiB."""


def plain_solve(
    module: LinearSolve, device: torch.device, dtype: torch.dtype, directions: Collection[bool] = (False, True)
) -> torch.nn.Module:
    """The solve `(rhs, transposed) -> x` of a constant system, without checks and derivatives of its own.

    Fast diagonalisations and capacitance matrices stay as they are; everything else becomes a block-tridiagonal factorisation with dense blocks.

    Args:
        module: the solve.
        device: of right-hand sides.
        dtype: of right-hand sides.
        directions: values of `transposed` that occur.

    Raises:
        SolveError: for matrices whose blocks would be too large, or not accurate.
    """
    solver = module.solver_for(torch.empty(0, module.system.size, device=device, dtype=dtype))
    if isinstance(solver, (ExactSolver, CapacitanceSolver, PseudoInverseSolver)):
        return _Direct(solver, device)
    return _Blocks(module.system, device, directions)


class _Direct(torch.nn.Module):
    """A solver that consists of torch operations, or of one inverse."""

    def __init__(self, solver: ExactSolver | CapacitanceSolver | PseudoInverseSolver, device: torch.device) -> None:
        super().__init__()
        self.solver = None if isinstance(solver, PseudoInverseSolver) else solver
        if self.solver is None:
            inverse = torch.from_numpy(np.ascontiguousarray(solver.inverse)).to(device)
            self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, rhs: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        b = rhs.double()
        if self.solver is None:
            return (b @ (self.inverse if transposed else self.inverse.T)).to(rhs.dtype)
        return self.solver.apply(b, transposed).to(rhs.dtype)


class _Blocks(torch.nn.Module):
    """Solver of a system and of its adjoint by block factorisations of `regular(system)`."""

    def __init__(self, system: System, device: torch.device, directions: Collection[bool]) -> None:
        super().__init__()
        null = system.null_vectors
        self.size, self.projects = system.size, system.is_symmetric and null.shape[1] > 0
        matrix = regular(system)
        self.border = matrix.shape[0] - system.size
        if self.projects:
            self.register_buffer("null", torch.tensor(null, device=device), persistent=False)
        if system.is_symmetric:
            self.there = self.adjoint = BlockFactors(matrix, device)
        else:
            self.there = BlockFactors(matrix, device) if False in directions else None
            self.adjoint = BlockFactors(Csr(matrix.T), device) if True in directions else None

    def forward(self, rhs: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        b = rhs.double()
        if self.projects:
            b = b - (b @ self.null) @ self.null.T
        b = torch.nn.functional.pad(b, (0, self.border)) if self.border else b
        x = (self.adjoint if transposed else self.there)(b)[:, : self.size]
        if self.projects:
            x = x - (x @ self.null) @ self.null.T
        return x.to(rhs.dtype)


class BlockFactors(torch.nn.Module):
    """Factorisation of a block-tridiagonal matrix, A = (D + L)·D⁻¹·(D + U), with dense blocks; x = A⁻¹·b for `(batch, size)`.

    Unknowns are put in an order of small bandwidth (reverse Cuthill–McKee), so that blocks of that size are coupled to their
    neighbours only. With Dᵢ = Aᵢᵢ − Aᵢ,ᵢ₋₁·Dᵢ₋₁⁻¹·Aᵢ₋₁,ᵢ a solve is yᵢ = Dᵢ⁻¹·(bᵢ − Aᵢ,ᵢ₋₁·yᵢ₋₁), then
    xᵢ = yᵢ − Dᵢ⁻¹·Aᵢ,ᵢ₊₁·xᵢ₊₁.

    Source: G. H. Golub, C. F. Van Loan, Matrix Computations, section 4.5.1.
    """

    def __init__(self, matrix: Csr, device: torch.device) -> None:
        super().__init__()
        order = scipy.sparse.csgraph.reverse_cuthill_mckee(matrix)
        matrix = Csr(matrix[order][:, order])
        places = matrix.tocoo()
        bandwidth = int(np.abs(places.row - places.col).max(initial=1))
        n = matrix.shape[0]
        self.block = n if n <= LARGEST_DENSE else min(n, max(bandwidth, -(-n // MOST_BLOCKS)))
        starts = range(0, n, self.block)
        numbers = (3 * len(starts) - 2) * self.block**2
        if numbers > LARGEST_FACTORS:
            raise SolveError(
                f"a matrix of {n} unknowns that reach {bandwidth} others would need {numbers * 8 / 2**20:.0f} MiB as blocks of a "
                f"program for torch alone, of which {LARGEST_FACTORS * 8 // 2**20} are allowed"
            )
        self.register_buffer("order", torch.from_numpy(order.astype(np.int64)).to(device), persistent=False)
        self.register_buffer("back", self.order.argsort(), persistent=False)
        self._factorise(matrix, starts, device)
        x = np.random.default_rng(0).standard_normal((1, n))
        found = self.forward(torch.from_numpy(x @ matrix.T)[:, self.back.cpu()].to(device)).cpu().numpy()[:, order]
        if not np.linalg.norm((found - x) @ matrix.T) <= 1e-9 * np.linalg.norm(x @ matrix.T):
            raise SolveError("a matrix is too close to a singular one for a factorisation by blocks")

    def _factorise(self, matrix: Csr, starts: range, device: torch.device) -> None:
        inverses, lower, upper = [], [], []
        for number, start in enumerate(starts):
            own = slice(start, start + self.block)
            diagonal = matrix[own, own].toarray()
            if number:
                before = slice(start - self.block, start)
                left = matrix[own, before].toarray()
                diagonal = diagonal - left @ upper[-1]
            inverse = np.linalg.inv(diagonal)
            inverses.append(inverse)
            lower.append(inverse @ left if number else np.zeros((len(inverse), 0)))
            upper.append(inverse @ matrix[own, start + self.block : start + 2 * self.block].toarray())
        for name, blocks in (("inverse", inverses), ("lower", lower), ("upper", upper)):
            for number, block in enumerate(blocks):
                if block.size:
                    own = torch.from_numpy(block.T.copy()).to(device)
                    self.register_buffer(f"{name}{number}", own, persistent=False)
        self.count = len(starts)

    def forward(self, b: torch.Tensor) -> torch.Tensor:
        parts = b.index_select(1, self.order).split(self.block, 1)
        y: list[torch.Tensor] = []
        for n, part in enumerate(parts):
            own = part @ getattr(self, f"inverse{n}")
            y.append(own - y[-1] @ getattr(self, f"lower{n}") if n else own)
        x = [y[-1]]
        for n in reversed(range(self.count - 1)):
            x.append(y[n] - x[-1] @ getattr(self, f"upper{n}"))
        return torch.cat(x[::-1], 1).index_select(1, self.back)
