"""Correct a coarse solver of the flow over a backward-facing step with a network that is trained through the solver.

Water enters a channel through its upper half, with a strength that varies at random in time and is an input of the step,
and separates at a step of height 1. The reference has 160×32 cells and two steps for each of the coarse solver, which has
40×8. The network is told where walls are. Its last layer is zero at first, so that every training starts from the source
solver; all methods make the same number of updates, `one_step_long` as many as take about the time of `unrolled_16`.

    python demos/studies/step_correction.py [--quick | --full] [--seed N] [--seeds N] [--tune] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi.field import Field
from phi.geom import UniformGrid
from phi.math import Tensor, batch, wrap
from phi.torch.flow import math, res_net
from step_flow import DT, HEIGHT, INLET, channel, inflow, lower_wall, physics, reattachment, strengths

import phi_hybrid as ph
from phi_hybrid.steps import Step
from phi_hybrid.studies import Stage, StudyResult
from phi_hybrid.training import Objective, losses

METHODS = "one_step", "noise", "unrolled_4", "unrolled_16", "one_step_long"
RATES, SIGMAS = (3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates and noise that are tried by --tune."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    fine: int = 32  # cells across the channel
    coarse: int = 8
    every: int = 2  # fine steps per coarse step
    spin_up: int = 60  # coarse steps before the first stored one
    steps: int = 60
    training: int = 24
    held_out: int = 8  # trajectories of validation and test, each
    updates: int = 300
    batch: int = 8
    rate: float = 1e-2
    sigma: float = 3e-3
    long: float = 10.0  # multiple of the updates
    filters: tuple[int, ...] = (32, 32, 32)

    def objectives(self) -> dict[str, tuple[Objective, float]]:
        """Method → objective, multiple of the updates. Absolute errors, in which small ones count."""
        longest = ph.Curriculum({0: unrolled(4), max(1, self.updates // 2): unrolled(16)})
        found = unrolled(1), unrolled(1, noise=ph.Noise(self.sigma)), unrolled(4), longest, unrolled(1)
        return dict(zip(METHODS, zip(found, (1, 1, 1, 1, self.long))))

    def stage(self, objective: Objective, times: float = 1) -> list[Stage]:
        """One training."""
        return [Stage(objective, round(times * self.updates), lr=self.rate, batch_size=self.batch)]


def unrolled(steps: int, **settings: Any) -> ph.Unrolled:
    """Absolute errors of so many steps."""
    return ph.Unrolled(steps, losses.Losses({"state": losses.L1()}), **settings)


# --- data ---


def reference_data(case: Case, seed: int = 0) -> tuple[ph.Trajectories, ph.Trajectories, ph.Trajectories]:
    """Trajectories of training, validation and test, coarsened; each has its own strength of the inflow over time."""
    values = strengths(case.training + 2 * case.held_out, case.spin_up + case.steps, seed)
    early, later = values[:, : case.spin_up].repeat(case.every, 1), values[:, case.spin_up :]
    early, later = (wrap(torch.as_tensor(s).float(), batch("trajectory,time")) for s in (early, later))
    fine = physics(case.fine, DT / case.every)
    start = math.expand(inflow(case.fine), batch(trajectory=len(values)))
    start = ph.repeat(fine, start, case.spin_up * case.every, early)
    about = dict(coarsen=case.fine // case.coarse, every=case.every, metadata={"dt": DT, "seed": seed})
    everything = ph.Trajectories.generate(fine, start, case.steps, (later,), **about)
    training, others = everything.split(case.training)
    return training, *others.split(case.held_out)


# --- network ---


def places(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """What convolutions do not know: where the block is, how near the walls are, and how far downstream a cell is."""
    grid = channel(case.coarse)
    x = UniformGrid(grid.resolution, grid.bounds).center
    along, across = x.vector["x"], x.vector["y"]
    solid = math.to_float((along < INLET) & (across < 1))
    near = math.exp(-4 * across) - math.exp(-4 * (HEIGHT - across))
    return solid, near, math.exp(-math.abs(along - INLET))


def hybrid(case: Case, source: ph.PhysicsBlock, coupling: ph.coupling.Coupling) -> ph.HybridSolver:
    """Network from velocity, strength and places to velocity, zero at first, with the solver or in its place."""
    network = res_net(6, 2, list(case.filters))
    for parameter in network.Res_out.parameters():
        torch.nn.init.zeros_(parameter)
    return ph.HybridSolver(source, network, coupling, features=places(case))


# --- what is measured ---


def flow_numbers(solvers: Mapping[str, Step], test: ph.Trajectories) -> dict[str, dict[str, float]]:
    """Of the mean flow: reattachment length, that of the reference, error of the shear at the wall over its mean size."""
    x, true = lower_wall(test.trajectory)
    found = {}
    for method, solver in solvers.items():
        rollout = ph.rollout(solver, test.initial_state, test.steps, *test.step_inputs, check=False)
        own = lower_wall(rollout)[1]
        shear = float(np.abs(own - true).mean() / np.abs(true).mean())
        found[method] = {"x_r": reattachment(x, own), "x_r true": reattachment(x, true), "shear": shear}
    return found


def costs(case: Case, data: ph.Trajectories) -> dict[str, float]:
    """Milliseconds of processor time per update by unrolled steps."""
    source = physics(case.coarse, DT)

    def trainer(steps: int) -> ph.Trainer:
        solver = hybrid(case, source, ph.coupling.After())
        return lab.adam(solver, data, unrolled(steps), 10**6, case.rate, case.batch, 0)

    return lab.costs({steps: trainer(steps) for steps in (1, 4, 16)})


# --- study ---

Pair = tuple[ph.Trajectories, ph.Trajectories]


def study(case: Case, data: Pair, trainings: Mapping[str, list[Stage]], coupling: Any, **settings: Any) -> StudyResult:
    """Trainings of the network with the solver, or in its place."""
    source = physics(case.coarse, DT)
    solvers = {"source": source, "hybrid": lambda seed: hybrid(case, source, coupling)}
    return ph.study(solvers, data, trainings, summary=lab.against_source, extra=flow_numbers, dt=DT, **settings)


def trained(case: Case, data: Pair, settings: dict[str, Any]) -> dict[str, StudyResult]:
    """Row of the table → study it is from."""
    objectives, folder, rows = case.objectives(), settings["folder"], {}
    parts = {
        "hybrid": ({m: case.stage(*objectives[m]) for m in METHODS}, ph.coupling.After()),
        "network_alone": ({"network_alone": case.stage(*objectives["unrolled_4"])}, ph.coupling.Replacement()),
    }
    for name, (trainings, coupling) in parts.items():
        found = study(case, data, trainings, coupling, **{**settings, "folder": folder / name})
        rows = {**{row: found for row in next(iter(found.runs.values())).rows}, **rows}
    return {row: rows[row] for row in ("source", *METHODS, "network_alone")}


def candidates(case: Case) -> dict[str, list[Stage]]:
    """One step and four over learning rates, one step over noise."""
    found = {}
    for rate in RATES:
        for steps in (1, 4):
            found[f"{steps} steps, {rate:g}"] = replace(case, rate=rate).stage(unrolled(steps))
    for sigma in SIGMAS:
        found[f"noise {sigma:g}"] = case.stage(unrolled(1, noise=ph.Noise(sigma)))
    return found


def figures(found: dict[str, StudyResult], test: ph.Trajectories, seed: int) -> dict[str, Figure]:
    """Figures by name; rollouts are those of one seed, errors those of all."""
    rollouts = {"reference": test.trajectory}
    for row in ("source", "one_step", "unrolled_16"):
        solver = found[row].solver(row, seed)
        rollouts[row] = ph.rollout(solver, test.initial_state, test.steps, *test.step_inputs, check=False)
    show = dict(reference="reference", dt=DT, quantity="vorticity", times=3)
    curves = {row: result.curves()[row] for row, result in found.items()}
    return {
        "rollout": ph.plot.rollout({k: rollouts[k] for k in ("reference", "source", "unrolled_16")}, **show,
                                   title="Flow over a step, unseen inflow"),
        "errors": ph.plot.errors(curves, dt=DT),
        "wall": wall_figure(rollouts),
    }  # fmt: skip


def wall_figure(rollouts: Mapping[str, Field]) -> Figure:
    """Mean flow along the lower wall."""
    figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
    for name, trajectory in rollouts.items():
        ax.plot(*lower_wall(trajectory), "k-" if name == "reference" else "-", lw=1.2, label=name)
    ax.axhline(0, color="0.7", lw=0.7)
    ax.set(xlabel="distance from the step / h", ylabel="mean velocity at the wall / U")
    ax.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    tune = dict(action="store_true", help="validation errors over learning rates and noise, costs of updates")
    options = lab.options(__doc__, "step_correction", tune=tune)
    case = Case()
    if options.quick:
        case = replace(case, fine=16, training=4, held_out=2, steps=20, spin_up=20)
    case = replace(case, updates=max(1, round(lab.share(options, quick=0.02) * case.updates)))
    settings = dict(seeds=range(options.seed, options.seed + options.seeds), folder=options.out)
    training, validation, test = reference_data(case)
    columns = ["mae", "/ source", "worst time", "mae_10", "x_r", "x_r true", "shear", "blow_up", "updates"]
    if options.tune:
        settings["folder"] = options.out / "tuning"
        found = study(case, (training, validation), candidates(case), ph.coupling.After(), **settings)
        print(found.table(columns), "\nprocessor time per update, ms:", costs(case, training))
        return
    found = trained(case, (training, test), settings)
    runs = [{row: result.runs[seed].rows[row] for row, result in found.items()} for seed in settings["seeds"]]
    print(table := lab.table(runs, columns))
    (options.out / "table.md").write_text(table.markdown() + "\n", encoding="utf-8")
    lab.save_figures(options.out, figures(found, test, options.seed))


if __name__ == "__main__":
    main()
