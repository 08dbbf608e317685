"""The loss of one update, as optimizers ask for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from phi_hybrid.data import Batch
from phi_hybrid.training.gradient import running_buffers, unchanged
from phi_hybrid.training.objective import Objective, Outputs

if TYPE_CHECKING:
    from phi_hybrid.training.trainer import Trainer


@dataclass(frozen=True)
class Closure:
    """The closure that optimizers call: loss, with gradients of the parameters.

    Optimizers that look at the outputs, such as HIG, use `outputs` and `loss` instead.
    """

    trainer: Trainer
    objective: Objective
    batch: Batch
    rng: torch.Tensor = field(default_factory=torch.get_rng_state)
    """State of torch's generator, the same for all evaluations of an update, as line searches need it."""
    evaluations: list[None] = field(default_factory=list)
    """One entry each."""

    def __call__(self) -> torch.Tensor:
        trainer = self.trainer
        trainer.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.outputs())
        self.objective.gradient.backward(loss, trainer._parameters)
        norm = torch.nn.utils.clip_grad_norm_(trainer._parameters, math.inf if trainer.clip is None else trainer.clip)
        trainer.require_finite("gradient norm", norm)
        if trainer._gradient_norm is None:  # further calls of an update are trials of a line search
            trainer._gradient_norm = float(norm)
            if trainer.norm_average.exceeded_by(trainer._gradient_norm):
                raise Skipped(float(loss.detach()))
        return loss.detach()

    def outputs(self) -> Outputs:
        """What the objective looks at. Running statistics of the network count the first evaluation of an update only."""
        torch.set_rng_state(self.rng)
        torch.clear_autocast_cache()  # which would hold the weights of an earlier update
        again = running_buffers(self.trainer.solver) if self.evaluations else []
        self.evaluations.append(None)
        with unchanged(again):
            return self.objective.outputs(self.trainer.solver, self.batch)

    def loss(self, outputs: Outputs) -> torch.Tensor:
        """The scalar to minimise.

        Raises:
            NonFiniteError: if it is not finite.
        """
        trainer = self.trainer
        contributions = self.objective.contributions(outputs, self.batch)
        loss = sum(contributions.values())
        trainer.require_finite("loss", loss)
        if not trainer._contributions:
            trainer._contributions = {name: float(value.detach()) for name, value in contributions.items()}
        return loss


class Skipped(Exception):
    """The gradient was too long to follow."""

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.loss = loss
