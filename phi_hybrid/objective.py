"""What a training update looks at: outputs of the solver on a batch, and a loss of them.

Objective face: `outputs(solver, batch) -> y`, `loss(y, batch) -> scalar`, and `steps`, the length of the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from phi_hybrid.capture import NativeFace
from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError
from phi_hybrid.unroll import unroll

Outputs = tuple[torch.Tensor, ...]


class Objective(Protocol):
    """See the module."""

    steps: int

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs: ...

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor: ...


@dataclass(frozen=True)
class Unrolled:
    """Differentiable physics: L = 1/n Σₙ mean((uₙ − u*ₙ)/σ)², u of n solver steps, with the full gradient.

    One step is supervised training. σ is the standard deviation of the data, one number per state tensor.

    Args:
        steps: number n of solver steps that the gradient runs through.

    Raises:
        StateError: if `steps` is less than 1.
    """

    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise StateError(f"Unrolled({self.steps!r}): the number of steps must be an integer ≥ 1")

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs:
        """States after 1 … n steps as native tensors `(trajectory, time, …)`.

        Raises:
            StateError: if the batch does not fit the solver or has windows of another length.
        """
        if batch.steps != self.steps:
            raise StateError(
                f"{self} needs windows of {self.steps} steps but the batch has {batch.steps}; cut them with "
                f"data.windows({self.steps})"
            )
        states = unroll(batch.bind(solver), batch.step_inputs, self.steps)
        return tuple(torch.stack(leaf, 1) for leaf in zip(*states))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Mean squared error in units of the data's standard deviation, averaged over all entries of the state."""
        errors = [(((y - t) / s) ** 2).sum() for y, t, s in zip(outputs, batch.targets, batch.scale)]
        return sum(errors) / sum(y.numel() for y in outputs)
