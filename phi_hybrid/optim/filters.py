"""What is done with the singular values of the Jacobian: functions f(σ²) in Δθ = −η Jᵀ f(J Jᵀ) g."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phi_hybrid.errors import StateError


@dataclass(frozen=True)
class Cutoff:
    """f(σ²) = (σ² + damping²)^(−(1+κ)/2) for σ > rcond·σ_max, 0 below: small directions are dropped, not clamped.

    Args:
        rcond: smallest singular value that is kept, relative to the largest.
        damping: in units of the singular values; 0 for the pure power.
    """

    rcond: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        _require(self)

    def __call__(self, squares: torch.Tensor, kappa: float) -> torch.Tensor:
        """f of σ² ≥ 0, `(rank,)`, in any order."""
        kept = squares > self.rcond**2 * squares.max().clamp_min(torch.finfo(squares.dtype).tiny)
        safe = torch.where(kept, squares, torch.ones_like(squares))
        return torch.where(kept, (safe + self.damping**2) ** (-(1 + kappa) / 2), torch.zeros_like(squares))


@dataclass(frozen=True)
class Smooth:
    """f(σ²) = (σ² + (rcond·σ_max)² + damping²)^(−(1+κ)/2): no jump at any singular value, which iterative methods need.

    Args:
        rcond: singular values far below this, relative to the largest, are all treated alike.
        damping: in units of the singular values.
    """

    rcond: float = 1e-3
    damping: float = 0.0

    def __post_init__(self) -> None:
        _require(self)

    def __call__(self, squares: torch.Tensor, kappa: float) -> torch.Tensor:
        """f of σ² ≥ 0, `(rank,)`, in any order."""
        raised = squares.clamp_min(0) + self.rcond**2 * squares.max() + self.damping**2
        safe = torch.where(raised > 0, raised, torch.ones_like(raised))
        return torch.where(raised > 0, safe ** (-(1 + kappa) / 2), torch.zeros_like(raised))


Filter = Cutoff | Smooth


def _require(settings: Filter) -> None:
    for name in ("rcond", "damping"):
        value = getattr(settings, name)
        if not 0 <= value < float("inf"):
            raise StateError(f"{name} = {value!r}: must be a finite number ≥ 0")
