"""What a training update looks at: outputs of the solver on a batch, and a loss of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from phi_hybrid.bridge.checks import require, require_count, require_instance
from phi_hybrid.bridge.numbers import square
from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError
from phi_hybrid.hybrid import Gate, HybridStep
from phi_hybrid.steps import Inputs, NativeStep, Repeatable, Step, known_step, require_step
from phi_hybrid.training.gradient import Full, GradientMode, Record, require_mode, unrolling
from phi_hybrid.training.losses import L2, Losses
from phi_hybrid.training.noise import Noise

Outputs = tuple[torch.Tensor, ...]


class Objective:
    """Base class of objectives: `outputs(solver, batch) -> y`, `loss(y, batch) -> scalar`.

    Attributes:
        steps: length of the windows in a batch.
        gradient: how the loss is differentiated.
    """

    steps: int
    gradient: GradientMode = Full()

    def at(self, update: int) -> Objective:
        """This objective as it is at one update."""
        return self

    def scaled(self, budget: float) -> Objective:
        """For a training of so many times the updates: what happens at certain updates moves along."""
        return self

    def outputs(self, solver: Step, batch: Batch) -> Outputs:
        """Ingredients of the loss: native tensors, differentiable in the solver's parameters."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """The scalar to minimise."""
        return sum(self.contributions(outputs, batch).values())

    def contributions(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name → share of the loss, logged one by one."""
        return {"loss": self.loss(outputs, batch)}


@dataclass(frozen=True)
class Unrolled(Objective):
    """Differentiable physics: L = 1/n Σₙ mean((uₙ − u*ₙ)/σ)², u of n solver steps, with the full gradient.

    One step is supervised training. σ is the standard deviation of the data, one number per state tensor.

    Args:
        steps: number n of solver steps in a window.
        losses: what is compared at which steps, see `phi_hybrid.losses`.
        gradient: how the gradient runs back through the steps, see `phi_hybrid.gradient`.
        warm_up: this many steps come first, without gradient and without loss, so that the network is trained on
            states that it has caused itself.
        noise: added to the states that the steps after the warm-up start from, see `Noise`.

    Raises:
        StateError: if `steps` is less than 1, or not more than `warm_up`.
    """

    steps: int
    losses: Losses = Losses({"state": L2()})
    gradient: GradientMode = Full()
    warm_up: int = 0
    noise: Noise | None = None

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("warm_up", self.warm_up, 0)
        require(self.warm_up < self.steps, "warm_up", self.warm_up, f"0 … {self.steps - 1}, fewer than the steps")
        _require_losses(self.losses, self.warm_up)
        require_mode("gradient", self.gradient)
        require_instance("noise", self.noise, (Noise, type(None)), "Noise, e.g. Noise(0.01), or None")

    def __repr__(self) -> str:
        changed = [f"{n}={getattr(self, n)!r}" for n, d in _DEFAULTS.items() if getattr(self, n) != d]
        return f"Unrolled({', '.join([f'steps={self.steps}', *changed])})"

    def at(self, update: int) -> Unrolled:
        """This objective at one update, the schedule of its noise applied."""
        return self if self.noise is None else replace(self, noise=self.noise.at(update))

    def scaled(self, budget: float) -> Unrolled:
        """The ramp of its noise shortened or stretched."""
        return self if self.noise is None else replace(self, noise=self.noise.scaled(budget))

    def outputs(self, solver: Step, batch: Batch) -> Outputs:
        """States after the steps that count as native tensors `(trajectory, time, …)`; behind them, if a loss looks at
        it, what the physics returned before each correction.

        Raises:
            StateError: if the batch does not fit the solver or has windows of another length.
        """
        if len(batch.states[0][0]) != self.steps + 1:
            _require_windows(self, batch)
        bound, inputs = batch.bind(solver), batch.step_inputs
        state = _advance(bound, inputs, self.warm_up) if self.warm_up else bound.state
        counted = self.steps - self.warm_up
        step = _recorded(bound.step, inputs, self.gradient.gate, self.warm_up, self.losses.needs_uncorrected)
        noise = None if self.noise is None or self.noise.sigma == 0 else self.noise.draw_for(batch, counted)
        with unrolling(solver):
            records = self.gradient.chain(step if noise is None else _perturbed(step, noise), state, counted)
        if noise is not None and self.noise.target == "adjusted":
            records = _shifted_back(records, noise, lambda total: self.noise.shift(total, batch))
        return _over_time(records)

    def contributions(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name of the loss → its share of the whole."""
        leaves = len(batch.states)
        return self.losses.contributions(outputs[:leaves], outputs[leaves:], batch.after(self.warm_up))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Sum of the contributions; by default the mean squared error in units of the data's standard deviation, averaged
        over all entries of the state."""
        return super().loss(outputs, batch)


_DEFAULTS = {"losses": Losses({"state": L2()}), "gradient": Full(), "warm_up": 0, "noise": None}


@dataclass(frozen=True)
class Pushforward(Objective):
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
        require_count("steps", self.steps)
        _require_losses(self.losses, self.steps - 1)

    def outputs(self, solver: Step, batch: Batch) -> Outputs:
        """State after the last step, `(trajectory, 1, …)`."""
        _require_windows(self, batch)
        taken = int(torch.randint(self.steps, ())) + 1
        return Unrolled(taken, self.losses, warm_up=taken - 1).outputs(solver, batch.after(self.steps - taken))

    def contributions(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name of the loss → its share of the whole."""
        leaves = len(batch.states)
        return self.losses.contributions(outputs[:leaves], outputs[leaves:], batch.after(self.steps - 1))


@dataclass(frozen=True)
class Diverted(Objective):
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
    reference: Callable[..., Any]
    gradient: GradientMode = Full()
    through_reference: bool = True

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_step("reference", self.reference)
        require_mode("gradient", self.gradient)

    def outputs(self, solver: Step, batch: Batch) -> Outputs:
        """States of the model after each step, then those of the reference, `(trajectory, time, …)`."""
        _require_windows(self, batch)
        bound, inputs = batch.bind(solver), batch.step_inputs
        reference = batch.bind(known_step(self.reference)).step
        own = _recorded(bound.step, inputs, self.gradient.gate)

        def step(n: int, state: tuple) -> Record:
            expected = reference(*state, *inputs.at(n))
            if not self.through_reference:
                expected = tuple(t.detach() for t in expected)
            return Record(own(n, state).state, expected)

        with unrolling(solver):
            return _over_time(self.gradient.chain(step, bound.state, self.steps))

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Mean squared distance of model and reference in units of the data's standard deviation."""
        own, expected = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
        errors = [square((y - t) / s).sum() for y, t, s in zip(own, expected, batch.scale)]
        return sum(errors) / sum(y.numel() for y in own)


@dataclass(frozen=True)
class Curriculum(Objective):
    """One objective after another, without losing the state of the optimizer.

    Args:
        stages: first update → objective from then on; one of them starts at 0.

    Raises:
        StateError: if none starts at 0, or one is no objective.
    """

    stages: Mapping[int, Objective]

    def __post_init__(self) -> None:
        stages = self.stages if isinstance(self.stages, Mapping) else {}
        updates = 0 in stages and all(isinstance(n, int) and not isinstance(n, bool) for n in stages)
        way_out = (
            "a mapping from the first update of a stage, 0 among them, to its objective, e.g. {0: Unrolled(1), 500: "
            "Unrolled(4)}"
        )
        require(updates and all(isinstance(o, Objective) for o in stages.values()), "stages", self.stages, way_out)

    @property
    def steps(self) -> int:
        """The longest windows."""
        return max(stage.steps for stage in self.stages.values())

    def at(self, update: int) -> Objective:
        """The objective of one update."""
        return self.stages[max(start for start in self.stages if start <= update)].at(update)

    def scaled(self, budget: float) -> Curriculum:
        """Starts multiplied by `budget`; every stage keeps one update at least."""
        found: dict[int, Objective] = {}
        for start in sorted(self.stages):
            found[max(len(found), max(found, default=-1) + 1, round(budget * start))] = self.stages[start].scaled(
                budget
            )
        return Curriculum(found)

    def outputs(self, solver: Step, batch: Batch) -> Outputs:
        """Not defined without an update; use `at(update).outputs`."""
        raise StateError("a Curriculum has outputs at an update: curriculum.at(update).outputs(solver, batch)")

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Not defined without an update; use `at(update).loss`."""
        raise StateError("a Curriculum has a loss at an update: curriculum.at(update).loss(outputs, batch)")


def _over_time(records: list[Record]) -> Outputs:
    """Tensors `(trajectory, time, …)`: the states, then what the records hold besides."""
    return tuple([torch.stack(leaf, 1) for leaf in zip(*[(*r.state, *r.others) for r in records])])


def _advance(bound: Repeatable, inputs: Inputs, steps: int) -> tuple[torch.Tensor, ...]:
    """The state after some steps, without gradient."""
    state = bound.state
    with torch.no_grad():
        for n in range(steps):
            state = bound.step(*state, *inputs.at(n))
    return state


def _recorded(
    native: NativeStep, inputs: Inputs, gate: Gate | None, start: int = 0, uncorrected: bool = False
) -> Callable[[int, tuple], Record]:
    """`(number, state) -> record`, with the state before the correction if asked for."""
    if gate is None and not uncorrected:
        return lambda n, state: Record(native(*state, *inputs.at(start + n)))
    if not isinstance(native, HybridStep):
        raise StateError(
            "losses before the correction and gradients along the physics alone need a HybridSolver, whose physics and "
            "network are known apart; train a HybridSolver, or leave them out"
        )
    if uncorrected and not native.coupling.calls_physics:
        raise StateError("this coupling calls no physics, so there is no state before the correction to compare")

    def step(n: int, state: tuple) -> Record:
        record = native.record((*state, *inputs.at(start + n)), gate)
        return Record(record.state, record.uncorrected if uncorrected else ())

    return step


def _perturbed(step: Callable, noise: list) -> Callable:
    """The step from perturbed states."""

    def perturbed(n: int, state: tuple) -> Record:
        if noise[n] is not None:
            state = tuple(u + e for u, e in zip(state, noise[n]))
        return step(n, state)

    return perturbed


def _shifted_back(records: list[Record], noise: list, shift: Callable) -> list[Record]:
    """Targets that move with the noise: the same as states that are moved back."""
    shifted, total = [], None
    for record, epsilon in zip(records, noise):
        if epsilon is not None:
            total = epsilon if total is None else tuple(a + b for a, b in zip(total, epsilon))
        total = shift(total)
        shifted.append(Record(*(tuple(t - e for t, e in zip(part, total)) for part in record)))
    return shifted


def _require_losses(losses: Losses, steps_before: int) -> None:
    require_instance("losses", losses, Losses, "Losses of named terms, e.g. Losses({'state': L2()})")
    losses.require_known_start(steps_before)


def _require_windows(objective: Objective, batch: Batch) -> None:
    if batch.steps != objective.steps:
        raise StateError(
            f"{objective} needs windows of {objective.steps} steps but the batch has {batch.steps}; cut them with "
            f"data.windows({objective.steps})"
        )
