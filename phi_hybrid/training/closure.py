"""The loss of one update, as optimizers ask for it."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from phi_hybrid.data import Batch, epoch_generator
from phi_hybrid.errors import NonFiniteError, SolveError, StateError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.training.gradient import running_buffers, unchanged
from phi_hybrid.training.objective import Objective, Outputs
from phi_hybrid.training.term_gradients import TermGradients

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
    losses: list[torch.Tensor] = field(default_factory=list)
    """Those that were computed, in order."""

    def __call__(self) -> torch.Tensor:
        trainer = self.trainer
        trainer.optimizer.zero_grad(set_to_none=True)
        total = self._gradient()
        self.losses.append(total)
        longest = math.inf if trainer.clip is None else trainer.clip
        norm = float(torch.nn.utils.clip_grad_norm_(trainer._parameters, longest))
        trainer.require_finite("gradient norm", norm)
        if trainer._gradient_norm is None:  # further calls of an update are trials of a line search
            trainer._gradient_norm = norm
            if trainer.norm_average.exceeded_by(trainer._gradient_norm):
                raise Skipped(float(total))
        return total

    def _gradient(self) -> torch.Tensor:
        """Leaves the gradient in the parameters; the loss, averaged over the parts of the batch and all processes."""
        trainer, error = self.trainer, None
        terms = None if trainer.combine is None else TermGradients(trainer._parameters)
        if trainer.processes.count == 1:
            total = self._own_gradient(terms)
        else:
            try:
                total = self._own_gradient(terms).double()
            except (NonFiniteError, SolveError) as own:
                error = own
            if trainer.processes.any(error is not None)[0]:  # before any process waits for what will not come
                raise error or NonFiniteError("another process met NaN, or a solve that failed", trainer.update)
            total = self._averaged(total, terms)
        if terms is not None:
            terms.combine(trainer.combine, epoch_generator(trainer.seed, trainer.update))
        return total

    def _averaged(self, total: torch.Tensor, terms: TermGradients | None) -> torch.Tensor:
        """The loss, averaged over all processes; so are gradients and contributions."""
        trainer = self.trainer
        names = list(trainer._contributions)
        numbers = [total, *(torch.tensor(trainer._contributions[name]).to(total) for name in names)]
        trainer.processes.average(numbers)
        trainer.processes.average(self._gradients() if terms is None else terms.tensors(trainer.processes))
        trainer._contributions = dict(zip(names, map(float, numbers[1:])))
        return numbers[0]

    def _gradients(self) -> list[torch.Tensor]:
        """Those of the parameters that have one in any process, zero where this one has none."""
        parameters = self.trainer._parameters
        grads = self.trainer.processes.filled([p.grad for p in parameters], parameters)
        for parameter, grad in zip(parameters, grads):
            parameter.grad = grad
        return [grad for grad in grads if grad is not None]

    def _own_gradient(self, terms: TermGradients | None) -> torch.Tensor:
        """The same in this process alone; those of the contributions go to `terms`."""
        trainer, first, losses = self.trainer, not self.evaluations, []
        parts, mode = self.batch.parts(trainer.accumulate), self.objective.gradient
        with self._evaluation():
            for batch in parts:
                found = self._contributions(self.objective.outputs(trainer.solver, batch), batch, first)
                found = {name: value / len(parts) for name, value in found.items()}
                loss = sum(found.values())
                if not loss.requires_grad:
                    raise StateError(
                        f"the loss of {self.objective} does not depend on the weights: no gradient runs back to them; take "
                        "out detach(), .data, no_grad() and stop_gradient() in losses, network and coupling"
                    )
                if terms is None:
                    mode.backward(loss, trainer._parameters)
                else:
                    terms.add(found, mode)
                losses.append(loss.detach())
        return sum(losses)

    def outputs(self) -> Outputs:
        """What the objective looks at."""
        with self._evaluation():
            return self.objective.outputs(self.trainer.solver, self.batch)

    def loss(self, outputs: Outputs) -> torch.Tensor:
        """The scalar to minimise.

        Raises:
            NonFiniteError: if it is not finite.
        """
        total = sum(self._contributions(outputs, self.batch, not self.trainer._contributions).values())
        self.losses.append(total.detach())
        return total

    def first_loss(self) -> torch.Tensor:
        """The loss at the weights before the update, for optimizers that do not return it.

        Raises:
            StateError: if the optimizer has not asked for it.
        """
        if not self.losses:
            raise StateError(
                f"{type(self.trainer.optimizer).__name__}.step(closure) has not called the closure, which computes the loss "
                "and its gradient: call it first, with torch.enable_grad(): loss = closure()"
            )
        return self.losses[0]

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Random numbers are the same in all evaluations of an update; running statistics count the first one only."""
        torch.set_rng_state(self.rng)
        if self.trainer._device.type == "cuda":  # which draws from a generator of its own, say in dropout
            torch.cuda.manual_seed(zlib.crc32(self.rng.numpy()) + self.trainer.update)
        torch.clear_autocast_cache()  # which would hold the weights of an earlier update
        again = running_buffers(self.trainer.solver) if self.evaluations else []
        self.evaluations.append(None)
        with unchanged(again), checked_solves():
            yield

    def _contributions(self, outputs: Outputs, batch: Batch, recorded: bool) -> dict[str, torch.Tensor]:
        contributions = self.objective.contributions(outputs, batch)
        total, *values = numbers([sum(contributions.values()), *contributions.values()])
        self.trainer.require_finite("loss", total)
        if recorded:
            seen, parts = self.trainer._contributions, self.trainer.accumulate
            seen.update({name: seen.get(name, 0.0) + value / parts for name, value in zip(contributions, values)})
        return contributions


def numbers(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Values of tensors of one number each, for which a device is waited for once."""
    return torch.stack([t.detach().double().reshape(()) for t in tensors]).tolist()


class Skipped(Exception):
    """The gradient was too long to follow."""

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.loss = loss
