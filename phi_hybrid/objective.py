"""What a training update looks at: outputs of the solver on a batch, and a loss of them.

Objective face: `outputs(solver, batch) -> y`, `loss(y, batch) -> scalar`, and `steps`, the length of the windows. An
objective may also have `contributions(y, batch) -> {name: scalar}` that add up to the loss and are logged one by one, a
`gradient` mode that says how the loss is differentiated, and `at(update)`, itself as it is at one update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from phi_hybrid.capture import NativeFace
from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError
from phi_hybrid.gradient import Full, Gate, Gradient
from phi_hybrid.hybrid_step import HybridStep
from phi_hybrid.losses import L2, Losses
from phi_hybrid.noise import Noise
from phi_hybrid.unroll import Bound, Inputs, known_step

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
        steps: number n of solver steps in a window.
        losses: what is compared at which steps, see `phi_hybrid.losses`.
        gradient: how the gradient runs back through the steps, see `phi_hybrid.gradient`.
        warm_up: so many of the steps come first without gradient and without loss, so that the network is trained on
            states that it has caused itself.
        noise: added to the states that the steps after the warm-up start from, see `Noise`.

    Raises:
        StateError: if `steps` is less than 1, or not more than `warm_up`.
    """

    steps: int
    losses: Losses = Losses({"state": L2()})
    gradient: Gradient = Full()
    warm_up: int = 0
    noise: Noise | None = None

    def __post_init__(self) -> None:
        _require_steps(self, self.steps)
        if not isinstance(self.warm_up, int) or not 0 <= self.warm_up < self.steps:
            raise StateError(f"warm_up = {self.warm_up!r}: use 0 … {self.steps - 1}, fewer than the {self.steps} steps")
        _require_losses(self.losses, self.warm_up)
        _require_gradient(self.gradient)
        if not isinstance(self.noise, Noise | None):
            raise StateError(f"noise = {self.noise!r}: expected Noise, e.g. Noise(0.01)")

    def __repr__(self) -> str:
        changed = [f"{n}={getattr(self, n)!r}" for n, d in _DEFAULTS.items() if getattr(self, n) != d]
        return f"Unrolled({', '.join([f'steps={self.steps}', *changed])})"

    def at(self, update: int) -> Unrolled:
        """This objective at one update, the schedule of its noise applied."""
        return self if self.noise is None else replace(self, noise=self.noise.at(update))

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs:
        """States after the steps that count as native tensors `(trajectory, time, …)`; behind them, if a loss looks at
        it, what the physics returned before each correction.

        Raises:
            StateError: if the batch does not fit the solver or has windows of another length.
        """
        _require_windows(self, batch)
        bound, inputs = batch.bind(solver), batch.step_inputs
        state = _advance(bound, inputs, 0, self.warm_up)
        counted = self.steps - self.warm_up
        step = _native_step(bound, inputs, self.warm_up, self.losses.looks_before_correction)
        if self.noise is None or self.noise.sigma == 0:
            records = self.gradient.chain(step, state, counted)
            return tuple(torch.stack(leaf, 1) for leaf in zip(*records))
        noise = self.noise.draw_for(batch, counted)
        records = self.gradient.chain(_perturbed(step, noise), state, counted)
        if self.noise.target == "adjusted":
            records = _shifted_back(records, noise, lambda total: self.noise.shift(total, batch))
        return tuple(torch.stack(leaf, 1) for leaf in zip(*records))

    def contributions(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name of the loss → its share of the whole."""
        leaves = len(batch.states)
        return self.losses.contributions(outputs[:leaves], outputs[leaves:], batch.after(self.warm_up))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Sum of the contributions; by default the mean squared error in units of the data's standard deviation, averaged
        over all entries of the state."""
        return sum(self.contributions(outputs, batch).values())


_DEFAULTS = {"losses": Losses({"state": L2()}), "gradient": Full(), "warm_up": 0, "noise": None}


@dataclass(frozen=True)
class Pushforward:
    """One step from a state that the solver has caused itself (Brandstetter et al. 2022, arXiv 2202.03376).

    R ~ U{0 … steps − 1} steps without gradient, then one with; the loss is on that last one. Windows have `steps` steps,
    the R + 1 last of which are taken.

    Args:
        steps: largest number of steps in all; 1 is supervised training.
        losses: of the last step.
    """

    steps: int
    losses: Losses = Losses({"state": L2()})

    def __post_init__(self) -> None:
        _require_steps(self, self.steps)
        _require_losses(self.losses, self.steps - 1)

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs:
        """State after the last step, `(trajectory, 1, …)`."""
        _require_windows(self, batch)
        taken = int(torch.randint(self.steps, ())) + 1
        return Unrolled(taken, self.losses, warm_up=taken - 1).outputs(solver, batch.after(self.steps - taken))

    def contributions(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name of the loss → its share of the whole."""
        leaves = len(batch.states)
        return self.losses.contributions(outputs[:leaves], outputs[leaves:], batch.after(self.steps - 1))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Sum of the contributions."""
        return sum(self.contributions(outputs, batch).values())


@dataclass(frozen=True)
class Diverted:
    """Diverted chain: every step is compared with one step of a reference solver from the same state of the model.

    L = 1/n Σₙ mean((S(uₙ) − R(uₙ))/σ)², uₙ₊₁ = S(uₙ). There is always a right answer to the state that the model has
    caused, however far from the data (Koehler et al. 2024, APEBench, arXiv 2411.00180).

    Args:
        steps: number n of solver steps.
        reference: R, PhiFlow function or captured block `state, *inputs -> state` on the grid of the solver; one that
            computes on a finer grid refines the state first and coarsens it again.
        gradient: how the gradient runs back through the steps of the model.
        through_reference: whether it also runs through the reference's steps.
    """

    steps: int
    reference: Callable
    gradient: Gradient = Full()
    through_reference: bool = True

    def __post_init__(self) -> None:
        _require_steps(self, self.steps)
        _require_gradient(self.gradient)
        if not callable(self.reference):
            raise StateError(f"reference = {self.reference!r}: expected a step, state, *inputs -> state")

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs:
        """States of the model after each step, then those of the reference, `(trajectory, time, …)`."""
        _require_windows(self, batch)
        bound, inputs = batch.bind(solver), batch.step_inputs
        reference = batch.bind(known_step(self.reference))

        def step(n: int, state: tuple, gate: Gate | None) -> tuple:
            expected = reference.step(*state, *inputs.at(n))
            if not self.through_reference:
                expected = tuple(t.detach() for t in expected)
            return (*_native_step(bound, inputs, 0, False)(n, state, gate), *expected)

        records = self.gradient.chain(step, bound.state, self.steps)
        return tuple(torch.stack(leaf, 1) for leaf in zip(*records))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Mean squared distance of model and reference in units of the data's standard deviation."""
        own, expected = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
        errors = [(((y - t) / s) ** 2).sum() for y, t, s in zip(own, expected, batch.scale)]
        return sum(errors) / sum(y.numel() for y in own)


@dataclass(frozen=True)
class Curriculum:
    """One objective after another, without losing the state of the optimizer.

    Args:
        stages: first update → objective from then on; one of them starts at 0.

    Raises:
        StateError: if none starts at 0, or one is no objective.
    """

    stages: Mapping[int, Objective]

    def __post_init__(self) -> None:
        stages = self.stages if isinstance(self.stages, Mapping) else {}
        if 0 not in stages or any(not isinstance(k, int) or not hasattr(v, "steps") for k, v in stages.items()):
            raise StateError(
                f"stages = {self.stages!r}: expected a mapping from the first update of a stage, 0 among them, to its "
                "objective, e.g. {0: Unrolled(1), 500: Unrolled(4)}"
            )

    @property
    def steps(self) -> int:
        """The longest windows."""
        return max(stage.steps for stage in self.stages.values())

    def at(self, update: int) -> Objective:
        """The objective of one update."""
        return objective_at(self.stages[max(start for start in self.stages if start <= update)], update)

    def outputs(self, solver: NativeFace, batch: Batch) -> Outputs:
        """Not defined without an update; use `at(update).outputs`."""
        raise StateError("a Curriculum has outputs at an update: curriculum.at(update).outputs(solver, batch)")

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Not defined without an update; use `at(update).loss`."""
        raise StateError("a Curriculum has a loss at an update: curriculum.at(update).loss(outputs, batch)")


def objective_at(objective: Objective, update: int) -> Objective:
    """An objective as it is at one update."""
    return objective.at(update) if hasattr(objective, "at") else objective


def contributions_of(objective: Objective, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
    """Named parts of the loss; one for objectives that do not tell them apart."""
    if hasattr(objective, "contributions"):
        return objective.contributions(outputs, batch)
    return {"loss": objective.loss(outputs, batch)}


def _advance(bound: Bound, inputs: Inputs, start: int, steps: int) -> tuple[torch.Tensor, ...]:
    """The state after so many steps, without gradient."""
    state = bound.state
    with torch.no_grad():
        for n in range(start, start + steps):
            state = bound.step(*state, *inputs.at(n))
    return state


def _native_step(bound: Bound, inputs: Inputs, start: int, before_correction: bool) -> Callable:
    """`(number, state, gate) -> (*new state, *state before the correction if asked for)`."""

    def step(n: int, state: tuple, gate: Gate | None) -> tuple:
        tensors = (*state, *inputs.at(start + n))
        if gate is None and not before_correction:
            return bound.step(*tensors)
        if not isinstance(bound.step, HybridStep):
            raise StateError(
                "losses before the correction and gradients along the physics alone need a HybridSolver, whose physics and "
                "network are known apart; train a HybridSolver, or leave them out"
            )
        new, result = bound.step.with_result(tensors, gate)
        if not before_correction:
            return new
        if result is None:
            raise StateError("this coupling calls no physics, so there is no state before the correction to compare")
        return (*new, *result)

    return step


def _perturbed(step: Callable, noise: list) -> Callable:
    """The step from perturbed states."""

    def perturbed(n: int, state: tuple, gate: Gate | None) -> tuple:
        if noise[n] is not None:
            state = tuple(u + e for u, e in zip(state, noise[n]))
        return step(n, state, gate)

    return perturbed


def _shifted_back(records: list, noise: list, shift: Callable) -> list:
    """Targets that move with the noise: the same as states that are moved back."""
    shifted, total = [], None
    for record, epsilon in zip(records, noise):
        if epsilon is not None:
            total = epsilon if total is None else tuple(a + b for a, b in zip(total, epsilon))
        total = shift(total)
        shifted.append(tuple(t - total[i % len(total)] for i, t in enumerate(record)))
    return shifted


def _require_steps(objective: Objective, steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise StateError(f"{type(objective).__name__}({steps!r}): the number of steps must be an integer ≥ 1")


def _require_losses(losses: Losses, steps_before: int) -> None:
    if not isinstance(losses, Losses):
        raise StateError(f"losses = {losses!r}: expected Losses of named terms, e.g. Losses({{'state': L2()}})")
    losses.require_known_start(steps_before)


def _require_gradient(gradient: Gradient) -> None:
    if isinstance(gradient, type) or not hasattr(gradient, "chain"):
        raise StateError(f"gradient = {gradient!r}: expected a mode of phi_hybrid.gradient, e.g. Truncated(4)")


def _require_windows(objective: Objective, batch: Batch) -> None:
    if batch.steps != objective.steps:
        raise StateError(
            f"{objective} needs windows of {objective.steps} steps but the batch has {batch.steps}; cut them with "
            f"data.windows({objective.steps})"
        )
