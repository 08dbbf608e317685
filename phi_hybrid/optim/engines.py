"""Engines: how Jᵀ·f(J·Jᵀ)·g is computed. All give the same result, at different cost.

| engine | largest array | time |
|---|---|---|
| `Dense` | J, m·P numbers | SVD of J |
| `Gram` | K = J·Jᵀ, m² | m vector–Jacobian products per group of parameters, eigenvectors of K |
| `ParameterGram` | G = Jᵀ·J, P² | m vector–Jacobian products, eigenvectors of G |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from phi_hybrid.optim import eigen
from phi_hybrid.optim.cost import Cost, estimate
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.spectrum import Filter


@dataclass(frozen=True)
class Update:
    """Direction of a step, and what the spectrum was."""

    direction: list[torch.Tensor]
    """Jᵀ·f(J·Jᵀ)·g, like the parameters."""
    singular_values: torch.Tensor
    """σ in descending order, `(min(m, P),)`; of iterative engines, those they have found."""
    kept: int
    """Number of singular values with f(σ²) > 0."""
    error: float = 0.0
    """‖error of the direction‖ / ‖direction‖, as iterative engines estimate it."""

    @property
    def norm(self) -> float:
        """‖direction‖."""
        return float(sum(d.detach().double().square().sum() for d in self.direction) ** 0.5)


class Engine(Protocol):
    """Interface of engines."""

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        """Jᵀ·f(scale·J·Jᵀ)·g for g = `cotangent`, `(m,)`."""
        ...

    def cost(self, jacobian: Jacobian) -> Cost:
        """Estimate of what an update takes."""
        ...


@dataclass(frozen=True)
class Dense:
    """Singular value decomposition of J itself: the reference.

    Args:
        precision: torch dtype that J is decomposed in.
        chunk: rows of J that are computed at once.
    """

    precision: torch.dtype = torch.float64
    chunk: int = 256

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        full = jacobian.rows_of(self.chunk, self.precision).mul_(scale**0.5)
        left, values, right = torch.linalg.svd(full, full_matrices=False)
        weights = filter(values**2, kappa)
        # Jᵀ·U·f·Uᵀ·g without the quotient of a small σ by itself
        flat = right.mT @ (values / scale**0.5 * weights * (left.mT @ cotangent.to(full)))
        return Update(_shaped(flat, jacobian), values, int((weights > 0).sum()))

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns, size = jacobian.rows, jacobian.columns, torch.finfo(self.precision).bits // 8
        small = min(rows, columns)
        flops = (size / 8) * 8 * small**2 * max(rows, columns)
        return estimate(
            jacobian, size * (4 * rows * columns + 5 * small**2), rows / self.chunk, rows, flops, min(self.chunk, rows)
        )


@dataclass(frozen=True)
class Gram:
    """Eigenvectors of K = J·Jᵀ in double precision, J being computed parameter group by parameter group and forgotten.

    Args:
        chunk: rows of J that are computed at once.
        columns: of J that are held at once.
    """

    chunk: int = 256
    columns: int = 50_000

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        gram = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=jacobian.outputs.device)
        self.add_to(gram, jacobian)
        return from_gram(gram, jacobian, cotangent, filter, kappa, scale)

    def add_to(self, gram: torch.Tensor, jacobian: Jacobian) -> None:
        """K += J·Jᵀ, `(m, m)`, in the lower triangle."""
        for group in jacobian.groups(self.columns):
            add_square(gram, jacobian.of(group).rows_of(self.chunk))

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns = jacobian.rows, jacobian.columns
        groups, held = -(-columns // self.columns), min(columns, self.columns)
        bytes = max(eigen.bytes_of(rows, jacobian.outputs.device), 8 * (rows * (rows + held) + 2 * self.chunk * held))
        flops = rows**2 * columns + eigen.flops_of(rows)
        return estimate(jacobian, bytes, groups * rows / self.chunk, groups * rows, flops, min(self.chunk, rows))


@dataclass(frozen=True)
class ParameterGram:
    """Eigenvectors of G = Jᵀ·J in double precision, for fewer parameters than outputs.

    Args:
        chunk: rows of J that are computed, and held, at once.
    """

    chunk: int = 256

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        gram = torch.zeros(jacobian.columns, jacobian.columns, dtype=torch.float64, device=cotangent.device)
        gradient = torch.zeros(jacobian.columns, dtype=torch.float64, device=cotangent.device)
        own = jacobian.processes.own(cotangent).double()
        for part, rows in jacobian.chunks(self.chunk):
            gram.addmm_(rows.mT, rows)
            gradient.addmv_(rows.mT, own[part])
        gram, gradient = jacobian.processes.summed(gram), jacobian.processes.summed(gradient)
        squares, vectors = eigen.eigh(gram.mul_(scale))
        squares = _above_rounding(squares)
        weights = filter(squares, kappa)
        flat = vectors @ (weights * (vectors.mT @ gradient))
        singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
        return Update(_shaped(flat, jacobian), singular, int((weights[-len(singular) :] > 0).sum()))

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns = jacobian.rows, jacobian.columns
        bytes = eigen.bytes_of(columns, jacobian.outputs.device) + 16 * min(self.chunk, rows) * columns
        flops = 2 * rows * columns**2 + eigen.flops_of(columns)
        return estimate(jacobian, bytes, rows / self.chunk, rows, flops, min(self.chunk, rows))


def from_gram(
    gram: torch.Tensor, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float
) -> Update:
    """Jᵀ·f(scale·K)·g from the eigenvectors of the lower triangle of K, which is overwritten."""
    squares, vectors = eigen.eigh(gram.mul_(scale))
    squares = _above_rounding(squares)
    weights = filter(squares, kappa)
    direction = jacobian.transposed_times(vectors @ (weights * (vectors.mT @ cotangent.double())))
    singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
    return Update(direction, singular, int((weights[-len(singular) :] > 0).sum()))


def add_square(gram: torch.Tensor, rows: torch.Tensor, block: int = 512) -> None:
    """K += A·Aᵀ for A = `rows`, `(m, any)`, in the lower triangle."""
    for start in range(0, len(gram), block):
        stop = min(start + block, len(gram))
        gram[start:stop, :stop].addmm_(rows[start:stop], rows[:stop].mT)


def _above_rounding(squares: torch.Tensor) -> torch.Tensor:
    """σ² without those that are rounding errors of the largest: singular values below ~1e-8·σ_max are not resolved."""
    noise = len(squares) * torch.finfo(squares.dtype).eps * squares.max()
    return torch.where(squares > noise, squares, torch.zeros_like(squares))


def _shaped(flat: torch.Tensor, jacobian: Jacobian) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in jacobian.parameters])
    return [part.view_as(p).to(p) for part, p in zip(parts, jacobian.parameters)]
