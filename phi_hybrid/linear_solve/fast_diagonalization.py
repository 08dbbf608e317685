"""Fast diagonalisation: a direct solve of separable operators in O(n log n), or a few matrix products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from phi_hybrid.linear_solve.solution import Balance, Solution, symmetric_balance
from phi_hybrid.linear_solve.system import Csr, System, from_columns, to_columns
from phi_hybrid.linear_solve.transforms import (
    Transform,
    fourier_transform_of,
    transform_of,
    unsymmetric_transform_of,
)


@dataclass(frozen=True)
class FastDiagonalization:
    """Fast diagonalisation x = Q·Λ⁺·Q⁻¹·b, a direct solve on boxes with one transform per axis. Any device.

    For operators A = Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I, such as Laplacians and implicit diffusion with constant coefficients on a
    box without obstacles. FFT, DCT-II or DST-I where they fit, else the eigenvectors of T_d.

    Source: R. E. Lynch, J. R. Rice, D. H. Thomas, Numer. Math. 6 (1964) 185–199.
    """

    def build(self, system: System, device: torch.device, tolerance: float) -> ExactSolver | None:
        """The solver on this device, `None` if the matrix is not separable or an axis too large."""
        operators = axis_operators(system)
        if operators is None or not _same(kronecker_sum(operators), system.matrix):
            return None
        return _symmetric(system, operators, device) if system.is_symmetric else _unsymmetric(system, operators, device)


class ExactSolver:
    """Spectral solver of a system and of its adjoint."""

    def __init__(self, forward: SpectralSolver, adjoint: SpectralSolver, balance: Balance, tolerant: bool) -> None:
        self.forward, self.adjoint = forward, adjoint
        self.tolerant = tolerant  # nobody asks for the imbalance then
        self.balance, self.adjoint_balance = balance, Balance(balance.left, balance.right)

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        balance = self.adjoint_balance if transposed else self.balance
        return Solution(self.apply(rhs, transposed), imbalance=None if self.tolerant else balance.split(rhs)[1])

    def apply(self, rhs: torch.Tensor, transposed: bool) -> torch.Tensor:
        """A⁺·b, or Aᵀ⁺·b, for `(batch, size)`, without checks."""
        return (self.adjoint if transposed else self.forward).apply(rhs)


class SpectralSolver:
    """x = Q·Λ⁺·Q⁻¹·b: the pseudo-inverse, whose solutions have no part in the null space."""

    def __init__(self, transforms: list[Transform], shape: tuple[int, ...], device: torch.device) -> None:
        self.transforms, self.shape = transforms, shape
        self.axes = tuple(range(1, len(shape) + 1))
        self.is_periodic = all(t.is_periodic for t in transforms)  # then one FFT over all axes does it
        eigenvalues = torch.zeros(shape, dtype=torch.float64, device=device)
        for d, transform in enumerate(transforms):
            own = transform.spectrum if self.is_periodic else transform.eigenvalues
            eigenvalues += own.reshape([-1 if e == d else 1 for e in range(len(shape))])
        self.zero = eigenvalues.abs() <= 1e-11 * eigenvalues.abs().max()
        self.eigenvalues = eigenvalues
        self.inverse = self.half(torch.where(self.zero, 0.0, 1 / torch.where(self.zero, 1.0, eigenvalues)))

    def regularised(self) -> SpectralSolver:
        """A definite version: vanishing eigenvalues are replaced by the smallest other one."""
        others = self.eigenvalues[~self.zero]
        smallest = others[others.abs().argmin()]
        result = copy.copy(self)
        result.inverse = self.half(1 / torch.where(self.zero, smallest, self.eigenvalues))
        return result

    def apply(self, rhs: torch.Tensor) -> torch.Tensor:
        """A⁺·b for `(batch, size)`."""
        return self.synthesise(self.analyse(rhs)).reshape(rhs.shape)

    def analyse(self, rhs: torch.Tensor) -> torch.Tensor:
        """Q⁻¹·b for `(batch, size)`, `(batch, *modes)`; half of them, unscaled, if all axes are periodic."""
        x = rhs.reshape(-1, *self.shape)
        if self.is_periodic:
            return torch.fft.rfftn(x, dim=self.axes)
        for transform in reversed(self.transforms):
            x = transform.analyse(x).movedim(-1, 1)
        return x

    def synthesise(self, modes: torch.Tensor) -> torch.Tensor:
        """Q·Λ⁺·modes, `(batch, *shape)`."""
        if self.is_periodic:
            return torch.fft.irfftn(modes * self.inverse, self.shape, self.axes)
        return self._synthesise(modes * self.inverse)

    def null_vectors(self) -> torch.Tensor:
        """The columns of Q with λ = 0, `(size, count)`; for transforms that are not periodic."""
        modes = torch.nn.functional.one_hot(self.zero.flatten().nonzero().flatten(), self.zero.numel()).double()
        return self._synthesise(modes.reshape(-1, *self.shape)).flatten(1).T

    def _synthesise(self, x: torch.Tensor) -> torch.Tensor:
        for transform in reversed(self.transforms):
            x = transform.synthesise(x).movedim(-1, 1)
        return x

    def half(self, factors: torch.Tensor) -> torch.Tensor:
        """The half of a spectrum that a real FFT needs; all of it where not all axes are periodic."""
        return factors[..., : self.shape[-1] // 2 + 1] if self.is_periodic else factors


def _symmetric(system: System, operators: list[Csr], device: torch.device) -> ExactSolver | None:
    spectral = spectral_solver(operators, system.shape, device)
    if spectral is None:
        return None
    return ExactSolver(spectral, spectral, symmetric_balance(system, device), system.tolerates_imbalance)


def _unsymmetric(system: System, operators: list[Csr], device: torch.device) -> ExactSolver | None:
    transforms = [unsymmetric_transform_of(operator, device) for operator in operators]
    if any(t is None for t in transforms):
        return None
    spectral = SpectralSolver(transforms, system.shape, device)
    adjoint = SpectralSolver([t.transpose() for t in transforms], system.shape, device)
    if not _is_inverse(spectral, system.matrix):
        return None
    balance = Balance(spectral.null_vectors(), adjoint.null_vectors())
    return ExactSolver(spectral, adjoint, balance, system.tolerates_imbalance)


def spectral_solver(operators: list[Csr], shape: tuple[int, ...], device: torch.device) -> SpectralSolver | None:
    """Diagonalises symmetric operators, `None` if one is too large for that."""
    transforms = [fourier_transform_of(operator, device) for operator in operators]
    if not all(transforms):
        transforms = [transform_of(operator, device) for operator in operators]
    if any(t is None for t in transforms):
        return None
    solver = SpectralSolver(transforms, shape, device)
    return solver if _is_inverse(solver, kronecker_sum(operators)) else None


def _is_inverse(solver: SpectralSolver, matrix: Csr) -> bool:
    """A·A⁺·A·x = A·x for random x: what is trusted later without looking at residuals."""
    image = matrix @ np.random.default_rng(0).standard_normal((matrix.shape[0], 1))
    solution = to_columns(solver.apply(from_columns(image, solver.inverse)))
    return np.linalg.norm(matrix @ solution - image) <= 1e-10 * np.linalg.norm(image)


def _same(a: Csr, b: Csr) -> bool:
    difference = abs(a - b)
    return difference.nnz == 0 or difference.max() <= 1e-12 * abs(b).max()


# --- sums of one-dimensional operators: A = Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I ---


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
    if free is None:
        sums = _axis_sums(system.matrix @ np.ones(system.size), shape, np.mean)
    else:
        sums = smallest_row_sums(system, free, np.sign(system.matrix.diagonal()[free][0]))
    operators = []
    for d, (size, own) in enumerate(zip(shape, sums)):
        along = differs[d]
        entries = rows[d][along], columns[d][along], matrix.data[along]
        couplings = _couplings(*entries, size, system.size // size, strongest=free is not None)
        operators.append(Csr(couplings + scipy.sparse.diags(own - couplings @ np.ones(size))))
    return operators


def smallest_row_sums(system: System, free: np.ndarray, sign: float) -> list[np.ndarray]:
    """For each axis the row sums of T_d, from the smallest ones of the free cells of a definite matrix of this sign."""
    sums = np.where(free, sign * (system.matrix @ np.ones(system.size)), np.inf)
    return [sign * own for own in _axis_sums(sums, system.shape, np.min)]


def _axis_sums(sums: np.ndarray, shape: tuple[int, ...], average: Callable[..., np.ndarray]) -> list[np.ndarray]:
    overall, result = average(sums), []
    for d in range(len(shape)):
        own = average(sums.reshape(shape), axis=tuple(e for e in range(len(shape)) if e != d))
        result.append(np.where(np.isinf(own), overall, own) - overall * (len(shape) - 1) / len(shape))
    return result


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
