"""Correct a coarse Burgers solver with a network that is trained through the solver.

A PhiFlow solver on a fine grid (512 cells; 128² with --dim 2) is the reference. The same solver on a coarse grid
(64 cells; 32²) is corrected by a small network after every step. After a shared one-step training, equal numbers of
further updates are spent on one step, on 4 and on 16 unrolled steps; `one_step_long` gets ten times as many, about the
time of 16 steps. Errors are on trajectories not seen in training.

    python demos/studies/burgers_correction.py [--dim 2] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lab
import torch
from flows import LINE, SQUARE, Burgers
from phi.torch.flow import res_net

import phi_hybrid as ph

METHODS = {"one_step": (1, 1), "one_step_long": (1, 10), "unrolled_4": (4, 1), "unrolled_16": (16, 1)}
"""Method → unrolled steps, multiple of the updates. Ten times the updates take about as long as 16 unrolled steps."""


def run(case: Burgers, seed: int, device: str, out: Path) -> tuple[lab.Rows, Callable]:
    training, test = case.data(seed)
    torch.manual_seed(seed)
    network = res_net(2 * case.dim, case.dim, list(case.filters), in_spatial=case.dim, periodic=True)
    source = case.physics(case.coarse)
    start = ph.HybridSolver(source, network).to(device)
    before = lab.train(start, training, [(1, case.pretraining, 2e-3, case.batch)], seed)
    methods = {m: [(steps, n * case.updates, 5e-4, case.batch)] for m, (steps, n) in METHODS.items()}
    solvers, histories = lab.train_methods(start, training, methods, seed)
    solvers, histories = {"source": source, **solvers}, {"pretraining": before["1"], **histories}
    evaluation = ph.evaluate(solvers, test)

    def draw() -> dict:
        trajectories = {"reference": test.trajectory}
        for name in ("source", "unrolled_16"):
            trajectories[name] = ph.rollout(
                solvers[name], test.initial_state, case.steps, *test.step_inputs, check=False
            )
        show = dict(reference="reference", dt=case.dt)
        title = dict(title="Forced Burgers, held-out force")
        flat = case.dim == 1
        frames = (
            ph.plot.spacetime(trajectories, **show, **title) if flat else ph.plot.rollout(trajectories, **show, **title)
        )
        lab.animate(trajectories, out, **show, stride=2, fps=15)
        return {
            "spacetime" if flat else "rollout": frames,
            "errors": ph.plot.errors(evaluation.curves(), dt=case.dt),
            "spectrum": ph.plot.spectrum(trajectories),
            "training": ph.plot.history(histories),
        }

    return evaluation.summary((50,)), draw


def main() -> None:
    dim = dict(type=int, choices=[1, 2], default=1)
    options = lab.options(__doc__, "burgers_correction", ["cpu", "cuda"], threads=2, dim=dim)
    case = LINE if options.dim == 1 else SQUARE
    if case.dim == 1:
        torch.set_num_threads(1)  # 64 cells are too few to share
    if options.quick:
        trajectories, pretraining, updates = case.trajectories // 2, case.pretraining // 3, case.updates // 10
        case = replace(case, trajectories=trajectories, pretraining=pretraining, updates=updates)
    if options.full:
        case = replace(case, pretraining=3 * case.pretraining, updates=3 * case.updates)
    lab.study(options, lambda seed: run(case, seed, options.device, options.out), ["mae", "mae_50", "nrmse", "blow_up"])


if __name__ == "__main__":
    main()
