"""What a training does besides updates: keep the best weights, stop early, average weights, log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from phi_hybrid.bridge.checks import require, require_count, require_number
from phi_hybrid.errors import StateError
from phi_hybrid.training.snapshot import copied

if TYPE_CHECKING:
    from phi_hybrid.training.trainer import Trainer


class Callback:
    """Base class of callbacks; each method may be overridden.

    A callback may look at `trainer.history`, `trainer.update` and `trainer.solver`, and end the training by
    `trainer.stop(reason)`. What it raises ends the training, too, with the state before the update it was called in.
    """

    needs_validation = False
    """Whether it is of no use without validation errors."""

    def before_update(self, trainer: Trainer) -> None:
        """Called before every update."""

    def after_update(self, trainer: Trainer, loss: float) -> None:
        """Called after every update, with the loss before it."""

    def after_validation(self, trainer: Trainer, error: float) -> None:
        """Called after every validation, with its mean absolute error; the solver has the weights that were validated."""

    def after_checkpoint(self, trainer: Trainer, path: str) -> None:
        """Called when a checkpoint has been written."""

    def put_weights(self, solver: torch.nn.Module) -> None:
        """Gives the solver weights to be evaluated and shipped, if these are others than the trained ones."""

    def state(self) -> dict[str, Any]:
        """State for a checkpoint: tensors, numbers and strings in dicts and lists, none of which changes later."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` returned."""


class BestWeights(Callback):
    """Keeps the weights with the smallest validation error.

    Attributes:
        error: the smallest mean absolute error, infinite before the first validation.
        update: when it was reached.
    """

    needs_validation = True

    def __init__(self) -> None:
        self.error, self.update, self._weights = float("inf"), -1, None

    @property
    def weights(self) -> dict[str, Any]:
        """State dict of the solver then: `solver.load_state_dict(best.weights)`.

        Raises:
            StateError: before the first validation.
        """
        if self._weights is None:
            raise StateError(
                "there are no best weights before a validation: train for `validate_every` updates at least"
            )
        return self._weights

    def after_validation(self, trainer: Trainer, error: float) -> None:
        if error < self.error:
            self.error, self.update, self._weights = error, trainer.update, copied(trainer.solver.state_dict())

    def state(self) -> dict[str, Any]:
        return {"error": self.error, "update": self.update, "weights": self._weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self.error, self.update, self._weights = state["error"], state["update"], state["weights"]


class EarlyStop(Callback):
    """Ends the training when the validation error has not fallen for some validations.

    Args:
        patience: number of validations without a fall that are waited for.
        by: smallest fall that counts, relative to the best error.
    """

    needs_validation = True

    def __init__(self, patience: int, by: float = 0.0) -> None:
        require_count("patience", patience)
        require_number("by", by, least=0, way_out="a share of the best error, e.g. 0.01")
        require(by < 1, "by", by, "a share of the best error below 1, e.g. 0.01")
        self.patience, self.by = int(patience), float(by)
        self.best, self.waited = float("inf"), 0

    def after_validation(self, trainer: Trainer, error: float) -> None:
        fell = error < self.best * (1 - self.by)
        self.best, self.waited = (error, 0) if fell else (self.best, self.waited + 1)
        if self.waited >= self.patience:
            trainer.stop(f"the validation error has not fallen below {self.best:.4g} in {self.waited} validations")

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


class AveragedWeights(Callback):
    """Exponential moving average of the weights, θ̄ ← d·θ̄ + (1 − d)·θ, which is validated in their place.

    `with trainer.evaluation_weights() as solver: solver.save(…)` ships it; without, the solver has the trained weights.
    d grows to its final value as (1 + n)/(10 + n) in the first updates. Buffers are those of the trained weights.

    Args:
        decay: final value of d, below 1; about as many updates as 1/(1 − d) count.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_number("decay", decay, least=0, way_out="a number below 1, e.g. 0.999")
        require(decay < 1, "decay", decay, "a number below 1, e.g. 0.999")
        self.decay, self.updates = float(decay), 0
        self.weights: list[torch.Tensor] = []

    @torch.no_grad()
    def after_update(self, trainer: Trainer, loss: float) -> None:
        live = list(trainer.solver.parameters())
        if not self.weights:
            self.weights = [p.detach().clone() for p in live]
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.weights = [own.lerp(p, 1 - d) for own, p in zip(self.weights, live, strict=True)]
        self.updates += 1

    @torch.no_grad()
    def put_weights(self, solver: torch.nn.Module) -> None:
        for parameter, own in zip(solver.parameters(), self.weights):
            parameter.copy_(own)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self.updates, self.weights = state["updates"], state["weights"]


class ScalarWriter(Protocol):
    """What takes numbers, such as `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class Log(Callback):
    """Writes loss, learning rate, norm of the gradient, contributions and validation errors, in the first process.

    Args:
        writer: e.g. `torch.utils.tensorboard.SummaryWriter("runs/wake")`; anything with `add_scalar(tag, value, step)`.
        every: number of updates between two entries.
    """

    def __init__(self, writer: ScalarWriter, every: int = 1) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise StateError(
                f"writer = {writer!r} has no add_scalar(tag, value, step); pass e.g. "
                "torch.utils.tensorboard.SummaryWriter('runs/wake')"
            )
        require_count("every", every)
        self.writer, self.every = writer, every

    def after_update(self, trainer: Trainer, loss: float) -> None:
        if (number := trainer.update - 1) % self.every == 0 and trainer.processes.rank == 0:
            entries = {name: trainer.history[name][-1] for name in ("loss", "lr", "gradient_norm")}
            curves = trainer.history["contributions"].items()
            entries |= {f"contributions/{name}": curve["value"][-1] for name, curve in curves if curve["value"]}
            for name, value in entries.items():
                self.writer.add_scalar(f"training/{name}", value, number)

    def after_validation(self, trainer: Trainer, error: float) -> None:
        if trainer.processes.rank == 0:
            for name, curve in trainer.history["validation"].items():
                if name != "update":
                    self.writer.add_scalar(f"validation/{name}", curve[-1], trainer.update)
