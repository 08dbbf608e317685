"""Engines: how Jᵀ·f(J·Jᵀ)·g is computed. All give the same result, at different cost.

| engine | largest array | time |
|---|---|---|
| `Dense` | J, m·P numbers | SVD of J |
| `Gram` | K = J·Jᵀ, m² | m vector–Jacobian products per group of parameters, eigenvectors of K |
| `ParameterGram` | G = Jᵀ·J, P² | m vector–Jacobian products, eigenvectors of G |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from phi_hybrid.errors import StateError
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.spectrum import Filter

GIB = 2**30


@dataclass(frozen=True)
class Update:
    """Direction of a step, and what the spectrum was."""

    direction: list[torch.Tensor]
    """Jᵀ·f(J·Jᵀ)·g, like the parameters."""
    singular_values: torch.Tensor
    """σ in descending order, `(min(m, P),)`."""
    kept: int
    """Number of singular values with f(σ²) > 0."""


class Engine(Protocol):
    """Interface of engines. `watching(module)` may be added: a context for the forward pass that yields `Jacobian.layers`."""

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        """Jᵀ·f(scale·J·Jᵀ)·g for g = `cotangent`, `(m,)`."""
        ...

    def bytes(self, rows: int, columns: int) -> int:
        """Memory that an update needs besides the graph."""
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
        full = torch.cat([part.to(self.precision) for _, part in jacobian.chunks(self.chunk)])
        left, values, right = torch.linalg.svd(full * scale**0.5, full_matrices=False)
        weights = filter(values**2, kappa)
        # Jᵀ·U·f·Uᵀ·g without the quotient of a small σ by itself
        flat = right.mT @ (values / scale**0.5 * weights * (left.mT @ cotangent.to(full)))
        return Update(_shaped(flat, jacobian), values, int((weights > 0).sum()))

    def bytes(self, rows: int, columns: int) -> int:
        size = torch.finfo(self.precision).bits // 8
        return size * (4 * rows * columns + 2 * min(rows, columns) ** 2)


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
        return from_gram(self.gram(jacobian), jacobian, cotangent, filter, kappa, scale)

    def gram(self, jacobian: Jacobian) -> torch.Tensor:
        """K = J·Jᵀ, `(m, m)`, in double precision."""
        gram = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=jacobian.outputs.device)
        for group in jacobian.groups(self.columns):
            held: list[tuple[slice, torch.Tensor]] = []
            for part, rows in jacobian.chunks(self.chunk, group):
                held.append((part, rows))
                for other, others in held:
                    block = rows @ others.mT
                    gram[part, other] += block
                    if other != part:
                        gram[other, part] += block.mT
        return gram

    def bytes(self, rows: int, columns: int) -> int:
        return 8 * (3 * rows**2 + rows * min(columns, self.columns))


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
        for part, rows in jacobian.chunks(self.chunk):
            gram.addmm_(rows.mT, rows)
            gradient.addmv_(rows.mT, cotangent[part].double())
        squares, vectors = torch.linalg.eigh(gram.mul_(scale))
        squares = squares.clamp_min(0)
        weights = filter(squares, kappa)
        flat = vectors @ (weights * (vectors.mT @ gradient))
        singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
        return Update(_shaped(flat, jacobian), singular, int((weights > 0).sum()))

    def bytes(self, rows: int, columns: int) -> int:
        return 8 * (3 * columns**2 + min(self.chunk, rows) * columns)


@dataclass(frozen=True)
class Automatic:
    """The Gram matrix of the smaller side, within a budget.

    Args:
        budget: bytes of memory that an update may take besides the graph.
        choices: engines to choose from, the one with the smallest need is taken.

    Raises:
        StateError: on the first update, if none fits.
    """

    budget: int = 4 * GIB
    choices: tuple[Engine, ...] = field(default=(Gram(), ParameterGram()))

    def chosen(self, rows: int, columns: int) -> Engine:
        """The engine for a Jacobian of this size."""
        best = min(self.choices, key=lambda engine: engine.bytes(rows, columns))
        if best.bytes(rows, columns) > self.budget:
            needs = ", ".join(f"{type(e).__name__} {e.bytes(rows, columns) / GIB:.1f} GiB" for e in self.choices)
            raise StateError(
                f"an update with {rows} outputs and {columns} parameters needs {needs}, more than the budget of "
                f"{self.budget / GIB:.1f} GiB; use a smaller batch, fewer outputs, or engine=Automatic(budget=…)"
            )
        return best

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        return self.chosen(jacobian.rows, jacobian.columns).update(jacobian, cotangent, filter, kappa, scale)

    def bytes(self, rows: int, columns: int) -> int:
        return min(engine.bytes(rows, columns) for engine in self.choices)


def from_gram(
    gram: torch.Tensor, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float
) -> Update:
    """Jᵀ·f(scale·K)·g from the eigenvectors of K; K is overwritten."""
    squares, vectors = torch.linalg.eigh(gram.mul_(scale))
    squares = squares.clamp_min(0)
    weights = filter(squares, kappa)
    direction = jacobian.transposed_times(vectors @ (weights * (vectors.mT @ cotangent.double())))
    singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
    return Update(direction, singular, int((weights > 0).sum()))


def _shaped(flat: torch.Tensor, jacobian: Jacobian) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in jacobian.parameters])
    return [part.view_as(p).to(p) for part, p in zip(parts, jacobian.parameters)]
