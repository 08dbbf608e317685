"""Correct a coarse Burgers solver with a network that is trained through the solver.

A PhiFlow solver on a fine grid (512 cells; 128² with --dim 2) is the reference. The same solver on a coarse grid
(64 cells; 32²) is corrected by a small network after every step. After a shared one-step training, equal numbers of
further updates are spent on one step, on 4 and on 16 unrolled steps; `one_step_long` gets 13 times as many, about the
time of 16 steps. Errors are on trajectories not seen in training.

    python demos/studies/burgers_correction.py [--dim 2] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import lab
import torch
from flows import LINE, SQUARE, Burgers
from matplotlib.figure import Figure
from phi.torch.flow import res_net

import phi_hybrid as ph
from phi_hybrid.studies import Stage, StudyResult

METHODS = {"one_step": (1, 1), "one_step_long": (1, 13), "unrolled_4": (4, 1), "unrolled_16": (16, 1)}
"""Method → unrolled steps, multiple of the updates. 13 times the updates take about as long as 16 unrolled steps: 6.6 and 82 ms each."""


def main() -> None:
    dim = dict(type=int, choices=[1, 2], default=1)
    options = lab.options(__doc__, "burgers_correction", ["cpu", "cuda"], threads=2, dim=dim)
    case = LINE if options.dim == 1 else SQUARE
    if case.dim == 1:
        torch.set_num_threads(1)  # 64 cells are too few to share
    source, layers = case.physics(case.coarse), dict(in_spatial=case.dim, periodic=True)

    def hybrid(seed: int) -> ph.HybridSolver:
        return ph.HybridSolver(source, res_net(2 * case.dim, case.dim, list(case.filters), **layers)).to(options.device)

    start = Stage(ph.Unrolled(1), case.pretraining, lr=2e-3, batch_size=case.batch)
    methods = {
        m: [start, Stage(ph.Unrolled(steps), n * case.updates, lr=5e-4, batch_size=case.batch)]
        for m, (steps, n) in METHODS.items()
    }
    show = dict(summary=lambda evaluation: evaluation.summary((50,)), dt=case.dt)
    solvers, settings = {"source": source, "hybrid": hybrid}, lab.study_settings(options, quick=0.1)
    found = ph.study(solvers, case.data, methods, **settings, **show)
    print(found.table(["mae", "mae_50", "nrmse", "blow_up", "updates", "seconds"]))
    lab.save_figures(options.out, figures(case, found, options))


def figures(case: Burgers, found: StudyResult, options: lab.Options) -> dict[str, Figure]:
    """Rollouts and spectra of the first seed; the animation is written at once."""
    test, trajectories = case.data(options.seed)[1], {}
    for name in ("source", "unrolled_16"):
        solver = found.solver(name)
        trajectories[name] = ph.rollout(solver, test.initial_state, case.steps, *test.step_inputs, check=False)
    trajectories = {"reference": test.trajectory, **trajectories}
    show = dict(reference="reference", dt=case.dt)
    draw = ph.plot.spacetime if case.dim == 1 else ph.plot.rollout
    lab.animate(trajectories, options.out, **show, stride=2, fps=15)
    return {
        "spacetime" if case.dim == 1 else "rollout": draw(trajectories, **show, title="Forced Burgers, held-out force"),
        "spectrum": ph.plot.spectrum(trajectories, reference="reference"),
    }


if __name__ == "__main__":
    main()
