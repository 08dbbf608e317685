"""Updates that serve several losses at once: how their gradients become one.

A combination is called with the gradients of m losses by n parameters, real numbers `(loss, parameter)`, and a generator of
random numbers, and returns what takes the place of their sum, `(parameter,)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from phi_hybrid.optim.vectors import lengths, positive, unit


@runtime_checkable
class Combination(Protocol):
    """One gradient out of those of several losses."""

    def __call__(self, gradients: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """g `(parameter,)` of gᵢ `(loss, parameter)`."""


@dataclass(frozen=True)
class ConFIG:
    """The conflict-free direction: it has the same positive cosine with every gradient, however long or opposed they are.

    g = (Σᵢ gᵢ·u) u,  u = U([U(g₁) … U(g_m)]⁻ᵀ·1),  U(v) = v/‖v‖

    with the pseudoinverse (Liu et al. 2024, arXiv 2408.11104). Every loss falls along −g to first order, unless their
    gradients cancel exactly, where g = 0. Weights of the losses change the length of g alone, not its direction. Losses whose
    gradient is zero have no say.
    """

    def __call__(self, gradients: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        units = unit(gradients)
        units = units[lengths(gradients).flatten() > 0]
        cosines = units.double() @ units.double().T  # m², so that the pseudoinverse costs nothing
        shares = torch.linalg.pinv(cosines, rtol=1e-10, hermitian=True).sum(1)
        direction = unit((shares.to(units) @ units)[None])[0]
        return (gradients @ direction).sum() * direction


@dataclass(frozen=True)
class PCGrad:
    """Gradient surgery: each gradient loses its part against each of the others, one after another at random; then their sum.

    gᵢ ← gᵢ − min(0, gᵢ·gⱼ) gⱼ/‖gⱼ‖² for all j ≠ i (Yu et al. 2020, arXiv 2001.06782). Weights of the losses count.
    """

    def __call__(self, gradients: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        total = torch.zeros_like(gradients[0])
        for own, projected in enumerate(gradients):
            for other in torch.randperm(len(gradients), generator=generator).tolist():
                against = gradients[other]
                if other != own:
                    projected = projected - (projected @ against).clamp_max(0) / positive(against @ against) * against
            total = total + projected
        return total
