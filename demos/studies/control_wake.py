"""Less drag of a cylinder by rotating it to and fro: feedback from the wake, trained through the solver.

A rebuild of rotary control at Re = 100 (Tokarev et al. 2020; as a benchmark of reinforcement learning: FluidGym, Becktepe
et al. 2026, arXiv 2601.15015): the rim moves at most as fast as the mean inflow, an action holds for a quarter of the time
unit, and what counts is C_D + |C_L|. A small network sees the velocity at 20 places behind the cylinder. It is trained through 16
actions, 160 steps of the solver, from states that it has caused itself. Beside it: no control; the best of 25
oscillations; and the flow that is kept symmetric, which sheds no vortices. At the end the controllers are tried at other
Reynolds numbers and on a finer grid.

    python demos/studies/control_wake.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi import math
from phi.field import Field, curl
from phi.math import batch, wrap
from rotating_cylinder import Cylinder, State

import phi_hybrid as ph
from phi_hybrid.data import Batch

Tensors = tuple[torch.Tensor, ...]
"""Native, `(trajectory, time, x, y)`: both components of `push`, then of the velocity."""

PROBES = [(x, y) for x in (0.8, 1.6, 2.6, 4.0) for y in (-0.8, -0.4, 0.0, 0.4, 0.8)]
"""Where the controller sees the velocity, in diameters from the axis of the cylinder."""
OSCILLATIONS = [(a, f) for a in (0.1, 0.2, 0.4, 0.7, 1.0) for f in (0.15, 0.28, 0.4, 0.6, 0.9)]
"""Amplitude of the rim speed, and frequency, of those that are tried."""


@dataclass(frozen=True)
class Case:
    """Sizes of flow and training."""

    cylinder: Cylinder = Cylinder()
    spin_up: int = 160  # actions until vortices are shed
    phases: int = 8  # of the shedding, to train from; as many others for the test
    tried: int = 2  # of these, for the choice of an oscillation
    horizon: int = 16  # actions of an unrolling
    episode: int = 80  # actions, as in the benchmark
    rounds: int = 8  # of new states, each caused by the controller so far
    updates: int = 20  # of each round
    batch: int = 4
    rate: float = 4e-3
    width: int = 64

    @cached_property
    def physics(self) -> ph.PhysicsBlock:
        return ph.capture(self.cylinder.step())

    @cached_property
    def no_rotation(self) -> Field:
        return 0 * self.cylinder.rotation()

    def elsewhere(self) -> dict[str, Case]:
        """Longer episodes of flows that no controller is trained on, from two phases of their shedding."""
        cylinder = self.cylinder
        others = {f"Re {number:g}": replace(cylinder, reynolds=number) for number in (80.0, 120.0, 150.0)}
        finer = dict(cells=3 * cylinder.cells // 2, dt=cylinder.dt / 2, hold=2 * cylinder.hold)
        others["finer grid"] = replace(cylinder, **finer)
        about = dict(spin_up=5 * self.spin_up // 4, phases=2, episode=2 * self.episode)
        return {name: replace(self, cylinder=other, **about) for name, other in others.items()}

    def calls(self) -> int:
        """Steps of the solver that a training takes, of one trajectory each; gradients not counted."""
        data = self.phases * self.episode
        return self.cylinder.hold * self.rounds * (data + self.updates * self.batch * self.horizon)


class Controller(torch.nn.Module):
    """Channels `(sample, channel, x, y)` ↦ velocity of the body, by the velocities at some places behind it.

    The mirror image of a flow is answered by the opposite rotation. The first two channels are `push`, the next the velocity.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        cylinder, layers = case.cylinder, (2 * len(PROBES), case.width, case.width)
        hidden = [m for n, k in zip(layers, layers[1:]) for m in (torch.nn.Linear(n, k), torch.nn.Tanh())]
        last = torch.nn.Linear(case.width, 1)
        with torch.no_grad():
            last.weight.mul_(0.1)
        self.policy = torch.nn.Sequential(*hidden, last)
        dx, centre = cylinder.channel.dx, cylinder.channel.centre
        places = [((x + centre) / dx, y / dx + cylinder.cells / 2) for x, y in PROBES]
        self.rows, self.columns = (torch.tensor([int(p[d]) for p in places]) for d in (0, 1))
        self.register_buffer("rotation", ph.bridge.to_channels(cylinder.rotation()).float())

    def moved(self, case: Case) -> Controller:
        """The same policy behind the cylinder of another flow."""
        other = Controller(case)
        other.policy = self.policy
        return other

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        u, v = channels[:, 2], channels[:, 3]
        mirrored = u.flip(-1), -v.flip(-1).roll(1, -1)  # the lower face of a cell becomes its upper one
        speed = torch.tanh(self.policy(self.observed(u, v)) - self.policy(self.observed(*mirrored)))
        return speed[..., None, None] * self.rotation

    def observed(self, *velocity: torch.Tensor) -> torch.Tensor:
        """Both components at all places, `(sample, number)`."""
        return torch.cat([component[:, self.rows, self.columns] for component in velocity], 1)


def controlled(case: Case, controller: torch.nn.Module) -> ph.HybridSolver:
    """The flow under a controller; without scales, all is of order 1."""
    solver = ph.HybridSolver(case.physics, controller, ph.coupling.Forcing(0), sees=())
    solver.set_scales(torch.ones(1), torch.ones(1))
    return solver


# --- training ---


@cache
def phases(case: Case) -> tuple[State, State]:
    """States of the shedding flow over about two periods, in turn for training and for the test."""
    shed = ph.repeat(case.physics, disturbed(case), case.spin_up, case.no_rotation)
    states = ph.rollout(case.physics, shed, 4 * case.phases - 1, case.no_rotation)
    return tuple(_beginnings(states, slice(first, None, 4)) for first in (0, 2))


def disturbed(case: Case) -> State:
    """The undisturbed inflow after two actions, so that vortices are shed soon."""
    rotation = case.cylinder.rotation()
    return ph.repeat(case.physics, case.cylinder.rest(), 2, rotation)


def _beginnings(states: State, times: slice) -> State:
    """States at some times of a trajectory, as the first ones of so many trajectories."""
    some = {name: field.trajectory[0].time[times] for name, field in states.items()}
    return {n: f.with_values(math.rename_dims(f.values, "time", batch("trajectory"))) for n, f in some.items()}


def reward(case: Case) -> ph.Unrolled:
    """Mean of C_D + |C_L| over the actions, as in the benchmark."""

    def drag(states: Tensors, batch: Batch) -> torch.Tensor:
        return case.cylinder.coefficients(states[0]).mean()

    def lift(states: Tensors, batch: Batch) -> torch.Tensor:
        return case.cylinder.coefficients(states[1]).abs().mean()

    return ph.Unrolled(case.horizon, ph.losses.Losses({"drag": drag, "lift": lift}))


def symmetry(case: Case) -> ph.Unrolled:
    """Mean of |u − u'|² + Ω²/100, u' being the mirror image of the flow: without vortices it is symmetric."""

    def asymmetry(states: Tensors, batch: Batch) -> torch.Tensor:
        _, _, u, v = states
        return ((u - u.flip(-1)) ** 2).mean() + ((v + v.flip(-1)) ** 2).mean()

    def effort(states: Tensors, batch: Batch) -> torch.Tensor:
        return (case.cylinder.rim_speed(states[2]) ** 2).mean()

    return ph.Unrolled(case.horizon, ph.losses.Losses({"asymmetry": asymmetry, "effort": (0.01, effort)}))


OBJECTIVES = {"feedback for C_D + |C_L|": reward, "feedback for symmetry": symmetry}


def trained(case: Case, start: State, objective: ph.Unrolled, seed: int, name: str) -> ph.HybridSolver:
    """A controller, by rounds: trajectories under the controller so far, then updates from windows of these."""
    torch.manual_seed(seed)
    solver = controlled(case, Controller(case))
    optimizer = torch.optim.Adam(solver.parameters(), case.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.rounds * case.updates)
    for n in range(case.rounds):
        data = ph.Trajectories.generate(solver, start, case.episode, (case.no_rotation,), progress=False)
        settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=case.batch, clip=1.0, seed=seed + n)
        label = f"seed {seed}, {name}, round {n + 1} of {case.rounds}"
        ph.Trainer(solver, data, objective, **settings, label=label).fit(case.updates)
    return solver


# --- what is measured ---


def measured(case: Case, states: State) -> dict[str, np.ndarray]:
    """Drag, lift, rim speed and power of rotation in units of drag, `(trajectory, time)`."""
    native = {
        n: [torch.as_tensor(f.values[d].numpy("trajectory,time,x,y"))[:, 1:] for d in "xy"] for n, f in states.items()
    }
    drag, lift = map(case.cylinder.coefficients, native["push"])
    turning = [torch.as_tensor(case.cylinder.rotation().values[d].numpy("x,y")) for d in "xy"]
    torque = sum(case.cylinder.coefficients(push * t.to(push)) for push, t in zip(native["push"], turning))
    speed = case.cylinder.rim_speed(native["velocity"][0])
    return {"drag": drag.numpy(), "lift": lift.numpy(), "speed": speed.numpy(), "power": (-torque * speed).numpy()}


def row(found: dict[str, np.ndarray], free: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over episodes and phases; the drag of the last quarter, too, and what it is less than without control, in %."""
    late = slice(-(found["drag"].shape[1] // 4), None)
    drag, settled = float(found["drag"].mean()), float(found["drag"][:, late].mean())
    lift = np.abs(found["lift"])
    return {
        "drag": drag,
        "lift": float(lift.mean()),
        "objective": drag + float(lift.mean()),
        "drag, late": settled,
        "lift, late": float(lift[:, late].mean()),
        "less drag, %": 100 * (1 - settled / float(free["drag"][:, late].mean())),
        "speed": float(np.abs(found["speed"]).mean()),
        "power": float(found["power"].mean()),
    }


def oscillating(case: Case, start: State, amplitude: float, frequency: float) -> State:
    """The flow under Ω = A sin 2πft."""
    times = case.cylinder.interval * (np.arange(case.episode) + 0.5)
    speed = wrap(torch.as_tensor(amplitude * np.sin(2 * np.pi * frequency * times)).float(), batch("time"))
    rotation = case.cylinder.rotation()
    return ph.rollout(case.physics, start, case.episode, rotation.with_values(rotation.values * speed))


def symmetric(case: Case, start: State) -> State:
    """The flow without vortices: made symmetric after every action, which is no control but a bound for what damps them."""
    step, mirrored = case.physics, case.cylinder.mirrored

    def kept(state: State, body: Field) -> State:
        state = step(state, body)
        velocity = state["velocity"]
        return {**state, "velocity": velocity.with_values(0.5 * (velocity.values + mirrored(velocity).values))}

    return ph.rollout(kept, start, case.episode, case.no_rotation)


@cache
def without_feedback(case: Case) -> tuple[dict[str, dict[str, np.ndarray]], tuple[float, float]]:
    """What does not depend on seeds, from the states of the test; the oscillation is chosen on two of the training."""
    training, test = phases(case)
    free = measured(case, ph.rollout(case.physics, test, case.episode, case.no_rotation))
    few = {name: field.trajectory[: case.tried] for name, field in training.items()}
    tried = {s: row(measured(case, oscillating(case, few, *s)), free)["objective"] for s in OSCILLATIONS}
    best = min(tried, key=tried.get)
    found = {"no control": free, "symmetric flow": measured(case, symmetric(case, test))}
    return {**found, "best oscillation": measured(case, oscillating(case, test, *best))}, best


@cache
def unseen(case: Case) -> tuple[State, dict[str, dict[str, np.ndarray]]]:
    """States of a flow that is not trained on, and what happens without control and without vortices."""
    _, test = phases(case)
    free = measured(case, ph.rollout(case.physics, test, case.episode, case.no_rotation))
    return test, {"no control": free, "symmetric flow": measured(case, symmetric(case, test))}


def less_drag(case: Case, controllers: dict[str, Controller]) -> dict[str, float]:
    """What each way saves of the drag of a flow that no controller has seen, in the last quarter of an episode, in %."""
    test, found = unseen(case)
    for name, controller in controllers.items():
        solver = controlled(case, controller.moved(case))
        found = {**found, name: measured(case, ph.rollout(solver, test, case.episode, case.no_rotation))}
    return {name: row(numbers, found["no control"])["less drag, %"] for name, numbers in found.items()}


def run(case: Case, seed: int, elsewhere: dict[str, Case]) -> tuple[lab.Rows, Callable]:
    training, test = phases(case)
    found, (amplitude, frequency) = without_feedback(case)
    found, controllers, seconds = dict(found), {}, {}
    for name, objective in OBJECTIVES.items():
        began = time.process_time()
        solver = trained(case, training, objective(case), seed, name)
        seconds[name], controllers[name] = time.process_time() - began, solver.network
        states = ph.rollout(solver, test, case.episode, case.no_rotation)
        found[name] = measured(case, states)
    rows = {name: row(numbers, found["no control"]) for name, numbers in found.items()}
    calls = case.cylinder.hold * case.episode * case.tried * len(OSCILLATIONS)
    rows["best oscillation"] |= {"amplitude": amplitude, "frequency": frequency, "calls": calls}
    for name in OBJECTIVES:
        rows[name] |= {"calls": case.calls(), "seconds": seconds[name]}
    for place, other in elsewhere.items():
        for name, saved in less_drag(other, controllers).items():
            rows[name][place] = saved
    return rows, lambda: figures(case, found, test, states)


def figures(case: Case, found: dict[str, dict[str, np.ndarray]], test: State, states: State) -> dict[str, Figure]:
    """Drag, lift and rim speed over time of one phase; the flow at its end."""
    times = case.cylinder.interval * (1 + np.arange(case.episode))
    curves, axes = plt.subplots(3, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
    for ax, (name, label) in zip(axes, (("drag", "$C_D$"), ("lift", "$C_L$"), ("speed", "rim speed"))):
        for n, (way, numbers) in enumerate(found.items()):
            ax.plot(times, numbers[name][0], color="k" if n == 0 else f"C{n - 1}", lw=1.2, label=way)
        ax.set_ylabel(label)
    axes[0].legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    axes[-1].set_xlabel("time, diameters over mean inflow")
    last = {
        "no control": ph.rollout(case.physics, test, case.episode, case.no_rotation),
        "feedback for symmetry": states,
    }
    flow, rows = plt.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained")
    for ax, (name, trajectory) in zip(rows, last.items()):
        u = trajectory["velocity"].trajectory[0].time[-1]
        vorticity = curl(u).values.numpy("x,y")
        ax.imshow(vorticity.T, origin="lower", cmap="RdBu_r", vmin=-6, vmax=6)
        ax.set(title=name, xticks=[], yticks=[])
    return {"coefficients": curves, "flow": flow}


def main() -> None:
    options = lab.options(__doc__, "control_wake")
    case = Case()
    if options.quick:
        small = Cylinder(cells=16, dt=0.05, hold=5)
        case = replace(case, cylinder=small, spin_up=20, phases=2, episode=16, horizon=4, rounds=1, updates=2)
    if options.full:
        case = replace(case, cylinder=Cylinder(cells=64, dt=0.0125, hold=20), rounds=10)
    columns = ["drag", "lift", "objective", "drag, late", "lift, late", "less drag, %", "speed", "power"]
    elsewhere = dict(list(case.elsewhere().items())[: 1 if options.quick else None])
    others = [["calls", "seconds", "amplitude", "frequency"], list(elsewhere)]
    lab.study(options, lambda seed: run(case, seed, elsewhere), columns, *others)


if __name__ == "__main__":
    main()
