"""Solutions of linear systems, and the protocols of solvers and methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from phi_hybrid.linear_solve.system import System


@dataclass(frozen=True)
class Solution:
    """Solution x and its quality, norms over the unknowns of each batch entry, `(batch)`."""

    x: torch.Tensor
    """`(batch, size)`, float64."""
    residual: torch.Tensor | None = None
    """‖b − A·x‖₂ for the part of b in the range of A. `None`: exact to rounding, which was checked when it was built."""
    imbalance: torch.Tensor | None = None
    """Norm of the part of b outside of the range of A, which is left out; `None` where A is regular."""
    iterations: int = 0


class Solver(Protocol):
    """Solves one system on one device."""

    def solve(self, rhs: torch.Tensor, transposed: bool) -> Solution:
        """A·x = b, or Aᵀ·x = b, for float64 `rhs` of shape `(batch, size)`."""
        ...


class Method(Protocol):
    """A way to solve linear systems, as a value."""

    def build(self, system: System, device: torch.device, tolerance: float) -> Solver | None:
        """The solver, converging to ‖b − A·x‖ ≤ tolerance·‖b‖, or `None` if the method does not apply."""
        ...


class Balance:
    """Split of right-hand sides of a singular system into a part in the range of A and the rest.

    b = (b − R·Lᵀ·b) + R·Lᵀ·b

    Args:
        right: R, null vectors of A, `(size, count)`.
        left: L, null vectors of Aᵀ, `(size, count)`, with LᵀR = I.
    """

    def __init__(self, right: torch.Tensor, left: torch.Tensor) -> None:
        self.right, self.left = right, left

    def split(self, rhs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Balanced part and norm of the rest."""
        if self.right.shape[1] == 0:
            return rhs, None
        rest = (rhs @ self.left) @ self.right.T
        return rhs - rest, rest.norm(dim=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Balanced part alone."""
        return self.split(x)[0]


def symmetric_balance(system: System, device: torch.device) -> Balance:
    """Balance of a symmetric system."""
    null = torch.tensor(system.null_vectors, device=device)
    return Balance(null, null)
