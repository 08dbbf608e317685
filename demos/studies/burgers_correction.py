"""Correct a coarse Burgers solver with a network that is trained through the solver.

A PhiFlow solver on a fine grid (512 cells; 128² with --dim 2) is the reference. The same solver on a coarse grid
(64 cells; 32²) is corrected by a small network after every step. After a shared one-step training, equal numbers of
further updates are spent on one step, on 4 and on 16 unrolled steps; `one_step_long` gets ten times as many, about the
time of 16 steps. Errors are on trajectories not seen in training.

    python demos/burgers_correction.py [--dim 2] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from common import arguments, require_device, save_figures, seed_table, train, write_metrics
from phi.torch.flow import advect
from phiml.nn import res_net

import phi_hybrid as ph
from phi_hybrid.pde import burgers

METHODS = {"one_step": (1, 1), "one_step_long": (1, 10), "unrolled_4": (4, 1), "unrolled_16": (16, 1)}
"""Method → unrolled steps, multiple of the updates. Ten times the updates take about as long as 16 unrolled steps."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    dim: int
    fine: int
    coarse: int
    length: float
    dt: float
    viscosity: float
    trajectories: int  # of training and of test, each
    steps: int
    pretraining: int  # updates, one step
    updates: int  # of each method, from the same weights on
    batch: int
    filters: tuple[int, ...] = (32, 32, 32)


LINE = Case(1, 512, 64, 2 * math.pi, 0.025, 0.01, trajectories=16, steps=199, pretraining=1500, updates=600, batch=16)
SQUARE = Case(2, 128, 32, 32.0, 0.1, 0.1, trajectories=6, steps=120, pretraining=600, updates=120, batch=8)


def physics(case: Case, cells: int) -> ph.PhysicsBlock:
    """The solver on this many cells per dim: MacCormack advection, explicit diffusion; captured on first use."""
    substeps = burgers.diffusion_substeps(case.viscosity, case.dt, case.length / cells, case.dim)
    return ph.capture(burgers.burgers_step(case.dt, case.viscosity, substeps, advect.mac_cormack))


def reference_data(case: Case, seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Training and test trajectories with their forces, coarsened."""
    count, times = 2 * case.trajectories, np.arange(case.steps) * case.dt
    if case.dim == 1:
        grid = burgers.line(case.fine, case.length)
        initial = burgers.waves_1d(grid, count, None, modes=(1, 4), waves=5, amplitude=0.5, seed=2 * seed)
        force = burgers.waves_1d(grid, count, times, modes=(3, 6), waves=5, amplitude=0.5, seed=2 * seed + 1)
    else:
        grid = burgers.square(case.fine, case.length)
        force = burgers.waves_2d(grid, count, times, seed=seed)
        initial = 4 * force.time[0]
    data = ph.Trajectories.generate(
        physics(case, case.fine),
        initial,
        case.steps,
        (force,),
        coarsen=case.fine // case.coarse,
        metadata={"dt": case.dt, "viscosity": case.viscosity, "seed": seed},
    )
    return data.split(case.trajectories)


def run(case: Case, seed: int, device: str) -> tuple[ph.evaluation.Evaluation, dict, ph.Trajectories, dict]:
    training, test = reference_data(case, seed)
    torch.manual_seed(seed)
    network = res_net(2 * case.dim, case.dim, list(case.filters), in_spatial=case.dim, periodic=True)
    source = physics(case, case.coarse)
    start = ph.HybridSolver(source, network).to(device)
    histories = {"pretraining": train(start, training, 1, case.pretraining, 2e-3, case.batch, seed)}
    solvers = {"source": source}
    for method, (steps, multiple) in METHODS.items():
        solvers[method] = copy.deepcopy(start)
        histories[method] = train(solvers[method], training, steps, multiple * case.updates, 5e-4, case.batch, seed)
    return ph.evaluate(solvers, test), solvers, test, histories


def figures(
    case: Case, evaluation: ph.evaluation.Evaluation, solvers: dict, test: ph.Trajectories, histories: dict, out: Any
) -> None:
    trajectories = {"reference": test.trajectory}
    for name in ("source", "unrolled_16"):
        trajectories[name] = ph.rollout(solvers[name], test.initial_state, case.steps, *test.step_inputs, check=False)
    show = dict(reference="reference", dt=case.dt)
    if case.dim == 1:
        frames = {"spacetime": ph.plot.spacetime(trajectories, **show, title="Forced Burgers, held-out force")}
    else:
        frames = {"rollout": ph.plot.rollout(trajectories, **show, times=4, title="Forced Burgers, held-out force")}
    save_figures(
        out,
        {
            **frames,
            "errors": ph.plot.errors(evaluation.curves(), dt=case.dt),
            "spectrum": ph.plot.spectrum(trajectories),
            "training": ph.plot.history(histories),
        },
    )
    print("wrote", ph.plot.animate(trajectories, out / "rollout.gif", **show, stride=2, fps=15))


def main() -> None:
    parser = arguments(__doc__, "burgers_correction")
    parser.add_argument("--dim", type=int, choices=[1, 2], default=1)
    options = parser.parse_args()
    require_device(options.device)
    case = LINE if options.dim == 1 else SQUARE
    if case.dim == 1:
        torch.set_num_threads(1)  # 64 cells are too few to share
    if options.quick:
        case = replace(
            case, trajectories=case.trajectories // 2, pretraining=case.pretraining // 3, updates=case.updates // 10
        )
    if options.full:
        case = replace(case, pretraining=3 * case.pretraining, updates=3 * case.updates)
    began, per_seed, horizons = time.perf_counter(), [], (50,)
    for seed in range(options.seed, options.seed + options.seeds):
        evaluation, *rest = run(case, seed, options.device)
        per_seed.append(evaluation.summary(horizons))
        print(f"\nseed {seed}, held-out trajectories\n{evaluation.table(horizons)}\n")
        if seed == options.seed:
            figures(case, evaluation, *rest, options.out)
    if options.seeds > 1:
        print(
            f"\nmedian [smallest, largest] of {options.seeds} seeds\n{seed_table(per_seed, ['mae', 'mae_50', 'nrmse'])}"
        )
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
