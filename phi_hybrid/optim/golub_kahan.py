"""Golub–Kahan bidiagonalisation, without J and J·Jᵀ: for so many outputs that an eigendecomposition is too expensive."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch

from phi_hybrid.bridge.checks import require_count, require_number
from phi_hybrid.optim.engines import MIB, Cost, Engine, Gram, Update, estimate
from phi_hybrid.optim.filters import Filter
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.structured import Structured


@dataclass(frozen=True)
class GolubKahan(Engine):
    """Golub–Kahan bidiagonalisation: Jᵀ·f(J·Jᵀ)·g from products with J and Jᵀ only, for filters without jumps.

    Golub and Kahan's recurrence, begun with g, gives orthonormal U, V and a bidiagonal B with Jᵀ·U = V·Bᵀ, so that
    Jᵀ·f(J·Jᵀ)·g ≈ V·Bᵀ·f(B·Bᵀ)·e₁·‖g‖. U is orthogonalised anew in every iteration. The number of iterations grows as rcond
    gets smaller. Singular values are resolved to the precision of J, since J·Jᵀ is not formed.

    Args:
        tolerance: relative error of the update, estimated from its latest changes; 0.01 by default.
        iterations: largest number of iterations; a warning follows if the tolerance has not been met by then. 2000 by
            default, a few hundred do for `Smooth(1e-2)`.
        memory: bytes that an exact engine may take instead, where that is estimated to be faster, as it is for few outputs
            behind much physics; 256 MiB by default, 0 for none.
    """

    tolerance: float = 0.01
    iterations: int = 2000
    memory: int = 256 * MIB

    def __post_init__(self) -> None:
        require_number("tolerance", self.tolerance, above=0)
        require_count("iterations", self.iterations)
        require_number("memory", self.memory, least=0)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        norm = float(cotangent.double().norm())
        if norm == 0:
            zeros = [torch.zeros_like(p) for p in jacobian.parameters]
            return Update(zeros, torch.zeros(1, dtype=torch.float64), 0)
        bases = _Bidiagonal(jacobian, cotangent / norm, filter=_Filtered(filter, kappa, scale, _largest(jacobian)))
        limit = min(self.iterations, jacobian.rows, jacobian.columns)
        error, next_look = float("inf"), 8
        while len(bases) < limit and not bases.complete and error > self.tolerance:
            bases.extend()
            if len(bases) >= next_look:
                error = bases.change()
                next_look = int(1.15 * len(bases)) + 1
        if bases.complete or len(bases) == min(jacobian.rows, jacobian.columns):
            error = 0.0
        elif error > self.tolerance:
            error = bases.change()
        if error > self.tolerance:
            warnings.warn(
                f"GolubKahan stopped after {limit} iterations with an estimated error of {error:.2g}, more than "
                f"{self.tolerance:g}; use a larger rcond, GolubKahan(iterations=…) or GolubKahan(tolerance=…)",
                stacklevel=2,
            )
        weights, values = bases.solved()
        direction = jacobian.transposed_times(norm * bases.combined(weights))
        return Update(direction, values, len(values), error)

    def mismatch(self, jacobian: Jacobian, filter: Filter) -> str | None:
        """Complaint about a filter with a jump, which no polynomial in J·Jᵀ follows, or finer than the products."""
        if filter.has_jump:
            return f"{filter} has a jump; use rcond=Smooth(1e-3), or an exact engine"
        least = 10 * torch.finfo(jacobian.outputs.dtype).eps
        if filter.rcond < least:
            return f"rcond = {filter.rcond:g} is less than {least:.1e}, the precision of the outputs; use rcond=Smooth(1e-3)"
        return None

    def chosen(self, jacobian: Jacobian, filter: Filter) -> Engine:
        """This engine, or an exact one if that is faster: a row of J costs as much as an iteration, but all go at once."""
        super().chosen(jacobian, filter)
        costs = {e: e.cost(jacobian) for e in (Structured(), Gram(), self) if e.suits(jacobian, filter)}
        fitting = [e for e, cost in costs.items() if e is self or cost.bytes <= self.memory]
        return min(fitting, key=lambda engine: costs[engine].seconds)

    def cost(self, jacobian: Jacobian) -> Cost:
        """Estimate with as many iterations as a filter with rcond = 1e-3 has been seen to need; they do not depend on the size much."""
        count = min(500, self.iterations, jacobian.rows, jacobian.columns)
        size = torch.finfo(jacobian.outputs.dtype).bits // 8
        bytes = size * jacobian.rows * count + 16 * jacobian.columns
        # twice as many operations in a product with J; the orthogonalisation is bound by memory
        return estimate(jacobian, bytes, 3 * count, 3 * count, 8 * 4 * count**2 * jacobian.rows)


@dataclass(frozen=True)
class _Filtered:
    """f(scale·σ²) of some of the singular values of J, relative to the largest of all."""

    filter: Filter
    kappa: float
    scale: float
    largest: float

    def __call__(self, squares: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([squares, squares.new_tensor([self.scale * self.largest**2])])
        return self.filter(whole, self.kappa)[:-1]


def _largest(jacobian: Jacobian, iterations: int = 8) -> float:
    """σ_max, from a random start: the gradient may know nothing of the direction that it belongs to."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(jacobian.rows, generator=generator).to(jacobian.outputs)
    bases = _Bidiagonal(jacobian, start / start.norm())
    while len(bases) < min(iterations, jacobian.rows, jacobian.columns) and not bases.complete:
        bases.extend()
    return float(bases.decomposed(len(bases))[1][0])


@dataclass
class _Bidiagonal:
    """U, and the diagonals α, β of B, after this many iterations."""

    jacobian: Jacobian
    start: torch.Tensor
    filter: _Filtered | None = None
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    complete: bool = False
    """The space that J·Jᵀ makes of g has been exhausted."""

    def __post_init__(self) -> None:
        self._left = self.start.to(self.jacobian.outputs)
        self._basis = self._left.new_empty(0, len(self._left))
        self._right = [torch.zeros_like(p) for p in self.jacobian.parameters]

    def __len__(self) -> int:
        return len(self.alphas)

    def extend(self) -> None:
        """One more column of U and of V."""
        count, beta = len(self), self.betas[-1] if self.betas else 0.0
        if count == len(self._basis):
            self._basis = torch.cat([self._basis, self._basis.new_empty(64 + count // 2, self._basis.shape[1])])
        self._basis[count] = self._left
        right = [g - beta * v for g, v in zip(self.jacobian.transposed_times(self._left), self._right)]
        alpha = float(sum(v.double().square().sum() for v in right) ** 0.5)
        self._right = [v / alpha if alpha else v for v in right]
        left = self.jacobian.times(self._right) - alpha * self._left
        known = self._basis[: count + 1]
        for _ in range(2):  # once is not enough
            left = left - known.mT @ (known @ left)
        beta = float(left.double().norm())
        self.alphas.append(alpha)
        self.betas.append(beta)
        smallest = torch.finfo(left.dtype).eps * max(self.alphas)
        self.complete = min(alpha, beta) <= smallest
        self._left = left / beta if beta else left

    def solved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """f(scale·B·Bᵀ)·e₁ and the singular values of √scale·B."""
        left, values, _ = self.decomposed(len(self), self.filter.scale)
        return left @ (self.filter(values**2) * left[0]), values

    def change(self) -> float:
        """Relative error of the update, extrapolated from its last two changes as those of a geometric series."""
        count = len(self)
        updates = []
        for earlier in (count - 2 * (count // 4), count - count // 4, count):
            left, values, right = self.decomposed(earlier, self.filter.scale)
            coefficients = right.mT @ (values * self.filter(values**2) * left[0])
            updates.append(torch.nn.functional.pad(coefficients, (0, count - earlier)))
        before, after = (float((b - a).norm()) for a, b in zip(updates, updates[1:]))
        ratio = min(after / before, 0.9) if before else 0.0
        return after * max(ratio / (1 - ratio), 0.5) / float(updates[-1].norm())

    def combined(self, weights: torch.Tensor) -> torch.Tensor:
        """U·w."""
        return self._basis[: len(weights)].mT @ weights.to(self._basis)

    def decomposed(self, count: int, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
        """Singular vectors and values of √scale·B of the first `count` iterations."""
        alphas, betas = (torch.tensor(x[:count], dtype=torch.float64) for x in (self.alphas, self.betas))
        return torch.linalg.svd(scale**0.5 * (alphas.diag() + betas[:-1].diag(-1)))
