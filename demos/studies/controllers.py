"""Controllers, and how they are trained: on known forces, through the solver, and sample by sample.

A controller is a network in a `HybridSolver` whose coupling lets it set the force: a step like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lab
import torch
from phi.math import batch, wrap

import phi_hybrid as ph
from phi_hybrid.data import Batch

States = tuple[torch.Tensor, ...]
"""Native, `(trajectory, time, …)`: components of the force, whatever else the state holds, and last what has a target."""


class Controller(torch.nn.Module):
    """Channels `(sample, channel, *spatial)` ↦ force, by a policy: observation ↦ action."""

    def __init__(self, case: Any, policy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.case, self.policy = case, policy

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        return self.case.force(channels, self.policy(self.case.observe(channels)))


def policy(case: Any, width: int = 128) -> torch.nn.Sequential:
    """Observation ↦ action: two hidden layers, and near zero in the beginning."""
    last = torch.nn.Linear(width, case.actions)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    hidden = [layer for n in (case.observations, width) for layer in (torch.nn.Linear(n, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*hidden, last)


def controlled(case: Any, physics: Callable, policy: Callable) -> ph.HybridSolver:
    """Physics under a controller that sees state, target and remaining time; without scales, all is of order 1."""
    solver = ph.HybridSolver(physics, Controller(case, policy), coupling=ph.coupling.Forcing(0), sees=(1, 2))
    solver.set_scales(torch.ones(1), torch.ones(1))
    return solver


# --- data and errors ---


def pairs(case: Any, physics: ph.PhysicsBlock, count: int, seed: int) -> ph.Trajectories:
    """Trajectories under random forces. Their inputs: no force, the last state as target, the share of time that remains."""
    state, force = case.samples(count, seed)
    remaining = wrap(1 - torch.arange(case.steps) / case.steps, batch("time"))
    inputs = (force, state[case.goal], remaining)
    data = ph.Trajectories.generate(physics, state, case.steps, inputs, progress=False)
    *no_force, target, remaining = data.inputs
    no_force, target = (torch.zeros_like(f) for f in no_force), data.states[-1][:, -1].contiguous()
    data = replace(data, inputs=(*no_force, target, remaining))
    return data[case.usable(target).nonzero()[:, 0].tolist()]


@torch.no_grad()
def run(solver: Callable, data: ph.Trajectories) -> States:
    """States after each step."""
    return ph.Unrolled(data.steps).outputs(solver, data.whole())


def effort(case: Any, states: States) -> torch.Tensor:
    """∫∫ |f|² dx dt, `(trajectory)`."""
    return sum((f**2).flatten(1).sum(1) for f in states[: case.dims]) * case.cell_volume * case.dt


def errors(case: Any, states: States, uncontrolled: States, data: ph.Trajectories) -> dict[str, float]:
    """Mean of ‖u_T − u*‖, relative to that without control, and mean force."""
    target = data.states[-1][:, -1]
    left, before = ((s[-1][:, -1] - target).flatten(1).norm(dim=1).mean() for s in (states, uncontrolled))
    return {"error": float(left / before), "force": float(effort(case, states).mean())}


# --- training ---


def imitation(case: Any) -> ph.Unrolled:
    """The forces of the data as targets."""

    def forces(states: States, batch: Batch) -> torch.Tensor:
        return sum(((f - g) ** 2).mean() for f, g in zip(states[: case.dims], batch.targets[: case.dims]))

    return ph.Unrolled(1, ph.losses.Losses({"force": forces}))


def control(case: Any) -> ph.Unrolled:
    """Distance to the target in the end, and the effort on the way there."""

    def target(states: States, batch: Batch) -> torch.Tensor:
        return case.distance(states[-1][:, -1], batch.targets[-1][:, -1]).mean()

    def force(states: States, batch: Batch) -> torch.Tensor:
        return effort(case, states).mean()

    return ph.Unrolled(case.steps, ph.losses.Losses({"target": target, "effort": (case.effort_weight, force)}))


def supervised(case: Any, physics: ph.PhysicsBlock, data: ph.Trajectories, updates: int, seed: int) -> ph.HybridSolver:
    """Trained to predict the forces of the data; its "physics" only notes the force, so that no solver is called."""
    torch.manual_seed(seed)
    noted = ph.capture(lambda state, force, target, remaining: {**state, "force": force})
    solver = controlled(case, noted, policy(case))
    lab.adam(solver, data, imitation(case), updates, case.supervised_rate, 128, seed, progress=False).fit(updates)
    return controlled(case, physics, solver.network.policy)


def through_solver(
    case: Any, start: ph.HybridSolver, data: ph.Trajectories, updates: int, seed: int, looks: int, look: Callable
) -> ph.HybridSolver:
    """Trained through all steps of the solver; `look(solver, calls)` every now and then."""
    solver = copy.deepcopy(start)
    trainer = lab.adam(solver, data, control(case), updates, case.rate, case.batch, seed, progress=False)
    for n in range(looks + 1):
        trainer.fit(n * updates // looks)
        look(solver, trainer.update * case.batch * case.steps)
    return solver


def optimised(case: Any, physics: ph.PhysicsBlock, data: ph.Trajectories, iterations: int) -> tuple[States, int]:
    """The actions for each sample by L-BFGS through the solver; with the solver calls that a sample takes."""
    actions, batch, objective, calls = torch.zeros(case.steps, len(data), case.actions), data.whole(), control(case), 0
    optimizer = torch.optim.LBFGS(
        [actions.requires_grad_()], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def states() -> States:
        frames = iter(actions)
        return objective.outputs(controlled(case, physics, lambda seen: next(frames)), batch)

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += case.steps
        optimizer.zero_grad()
        loss = objective.loss(states(), batch) * len(data)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return states(), calls
