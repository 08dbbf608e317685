"""How a network's output changes the state that the physics step returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]

Coupling = Callable[[Tensors, Tensors, Tensors], tuple[torch.Tensor, ...]]
"""`(state before, state after the physics, correction) -> new state`, each as native tensors of one layout; any
differentiable function will do. Corrections are in physical units and live on the faces of the state."""


@dataclass(frozen=True)
class Additive:
    """u⁺ = P(u) + strength · C, the correction of Um et al. 2020 (arXiv 2007.00016).

    Args:
        strength: factor on the correction, dimensionless; 0 leaves the physics alone.
    """

    strength: float = 1.0

    def __call__(self, before: Tensors, after: Tensors, correction: Tensors) -> tuple[torch.Tensor, ...]:
        if self.strength == 1.0:
            return tuple(a + c for a, c in zip(after, correction))
        return tuple(a + self.strength * c for a, c in zip(after, correction))
