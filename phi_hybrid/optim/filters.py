"""Filters of singular values: functions f(σ²) in Δθ = −η Jᵀ f(J Jᵀ) g."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from phi_hybrid.bridge.checks import require, require_number


@dataclass(frozen=True)
class Cutoff:
    """Filter f(σ²) = (σ² + damping²)^(−(1+κ)/2) for σ > rcond·σ_max, 0 below: small directions are dropped, not clamped.

    Args:
        rcond: smallest singular value that is kept, relative to the largest; 1e-6 by default, 1e-4 … 1e-2 where outputs
            are noisy or J is in single precision.
        damping: number in units of the singular values; 0, the pure power, by default.
    """

    rcond: float = 1e-6
    damping: float = 0.0
    has_jump: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_nonnegative("rcond", self.rcond)
        require_nonnegative("damping", self.damping)

    def __call__(self, squares: torch.Tensor, kappa: float) -> torch.Tensor:
        """f of σ² ≥ 0, `(rank,)`, in any order."""
        kept = squares > self.rcond**2 * squares.max().clamp_min(torch.finfo(squares.dtype).tiny)
        safe = torch.where(kept, squares, torch.ones_like(squares))
        return torch.where(kept, (safe + self.damping**2) ** (-(1 + kappa) / 2), torch.zeros_like(squares))


@dataclass(frozen=True)
class Smooth:
    """Filter f(σ²) = (σ² + (rcond·σ_max)² + damping²)^(−(1+κ)/2) without a jump, as iterative engines need it.

    Args:
        rcond: size, relative to the largest singular value, far below which all are treated alike; 1e-3 by default,
            1e-2 takes a fifth of the iterations.
        damping: number in units of the singular values; 0 by default.
    """

    rcond: float = 1e-3
    damping: float = 0.0
    has_jump: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_nonnegative("rcond", self.rcond)
        require_nonnegative("damping", self.damping)

    def __call__(self, squares: torch.Tensor, kappa: float) -> torch.Tensor:
        """f of σ² ≥ 0, `(rank,)`, in any order."""
        raised = squares.clamp_min(0) + self.rcond**2 * squares.max() + self.damping**2
        safe = torch.where(raised > 0, raised, torch.ones_like(raised))
        return torch.where(raised > 0, safe ** (-(1 + kappa) / 2), torch.zeros_like(raised))


Filter = Cutoff | Smooth


def require_kappa(kappa: float) -> None:
    """Raises StateError unless the exponent is a number from −1 to 1."""
    valid = isinstance(kappa, Real) and not isinstance(kappa, bool) and -1 <= kappa <= 1
    require(valid, "kappa", kappa, "a number from −1 (gradient) to 1 (Gauss–Newton), 0.5 for half-inverse")


def require_nonnegative(name: str, value: float) -> None:
    """Raises StateError unless the setting is a finite number ≥ 0."""
    require_number(name, value, least=0)
