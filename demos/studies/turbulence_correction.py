"""Correct a coarse solver of two-dimensional turbulence with a network that is trained through the solver.

Kolmogorov flow: a sinusoidal force with four waves drives a periodic square of length 2π against a weak drag, as in
Kochkov et al. (2021). The reference has 128² cells and four steps for each of the coarse solver, which has 32². Test
trajectories start from other random states. After a shared one-step training, equal numbers of further updates are spent
on one step, on 4 and on 16 unrolled steps.

    python demos/studies/turbulence_correction.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import lab
import numpy as np
from matplotlib.figure import Figure
from phi.field import Field
from phi.torch.flow import PERIODIC, advect, math, res_net

import phi_hybrid as ph
from phi_hybrid import quantities
from phi_hybrid.pde import navier_stokes as ns
from phi_hybrid.steps import Step
from phi_hybrid.studies import Stage, StudyResult

VISCOSITY, DRAG, DT = 2e-3, 0.1, 0.05
METHODS = {"one_step": (1, 1), "unrolled_4": (4, 4), "unrolled_16": (4, 16)}
"""Method → unrolled steps in the first and in the second half of its updates."""
RATES = 1e-3, 5e-4
"""Learning rates at the start of the two halves."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    fine: int = 128
    coarse: int = 32
    every: int = 4  # fine steps per coarse step
    spin_up: int = 100  # coarse steps before the first stored one
    trajectories: int = 8  # of training and of test, each
    steps: int = 160
    pretraining: int = 1200  # updates, one step
    updates: int = 600  # of each method, from the same weights on
    long: int = 0  # updates of `one_step_long`, if any
    batch: int = 4
    filters: tuple[int, ...] = (32, 32, 32)


def physics(cells: int, dt: float) -> ph.PhysicsBlock:
    """The solver on this many cells per dim: MacCormack advection, explicit diffusion, projection."""
    grid = ns.periodic_square(cells)
    substeps = ns.diffusion_substeps(VISCOSITY, dt, float(grid.dx.vector["x"]), 2)
    flow = ns.navier_stokes_step(dt, substeps, advect.mac_cormack, ns.kolmogorov_force(grid), DRAG)
    return ph.capture(lambda velocity: flow(velocity, VISCOSITY))


def reference_data(case: Case, seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Training and test trajectories in the statistically steady state, coarsened."""
    fine = physics(case.fine, DT / case.every)
    start = ns.divergence_free_noise(ns.periodic_square(case.fine), 2 * case.trajectories, 4, 1.5, seed)
    start = ph.repeat(fine, start, case.spin_up * case.every)
    data = ph.Trajectories.generate(
        fine,
        start,
        case.steps,
        coarsen=case.fine // case.coarse,
        every=case.every,
        metadata={"dt": DT, "viscosity": VISCOSITY, "seed": seed},
    )
    return data.split(case.trajectories)


def methods(case: Case) -> dict[str, list[Stage]]:
    """Stages of every method. All begin with the same one-step training."""
    start = Stage(ph.Unrolled(1), case.pretraining, batch_size=2 * case.batch)
    halves = {
        method: [
            Stage(ph.Unrolled(n), case.updates // 2, lr=rate, batch_size=case.batch) for n, rate in zip(steps, RATES)
        ]
        for method, steps in METHODS.items()
    }
    if case.long:
        halves["one_step_long"] = [Stage(ph.Unrolled(1), case.long, lr=5e-4, batch_size=2 * case.batch)]
    return {method: [start, *stages] for method, stages in halves.items()}


def vorticity(velocity: Field) -> math.Tensor:
    """∂v/∂x − ∂u/∂y at the corners of the cells."""
    u, v = (velocity.values[{"~vector": d}] for d in "xy")
    dx, dy = (float(velocity.dx.vector[d]) for d in "xy")
    slope = dict(difference="backward", padding=PERIODIC, stack_dim=None)
    return math.spatial_gradient(v, dx, dims="x", **slope) - math.spatial_gradient(u, dy, dims="y", **slope)


def spectrum_error(trajectory: Field, reference: Field) -> float:
    """Mean |log₁₀ E/E_ref| over the wavenumbers of the second half of the time."""
    half = trajectory.shape.get_size("time") // 2
    (_, own), (_, true) = (ph.plot.energy_spectrum(t.time[half:], complete=False) for t in (trajectory, reference))
    return float(np.abs(np.log10(own[1:] / true[1:])).mean())


def flow_numbers(solvers: Mapping[str, Step], test: ph.Trajectories) -> dict[str, dict[str, float]]:
    """Distance of the spectra, and divergence at the end as max |∇·u|·dx / max|u|; infinite after a blow-up."""
    found = {}
    for method, solver in solvers.items():
        trajectory = ph.rollout(solver, test.initial_state, test.steps, check=False)
        finite = bool(math.is_finite(trajectory.values).all)
        divergence = quantities.largest_divergence(trajectory.time[-1]) if finite else np.inf
        error = spectrum_error(trajectory, test.trajectory) if finite else np.inf
        found[method] = {"spectrum_error": error, "divergence": divergence}
    return found


def figures(case: Case, found: StudyResult, options: lab.Options) -> dict[str, Figure]:
    """Figures of the first seed by name; the animation is written at once."""
    test, rollouts = reference_data(case, options.seed)[1], {}
    for name in found.evaluation(options.seed).lifetime:
        rollouts[name] = ph.rollout(found.solver(name), test.initial_state, case.steps, check=False)
    rollouts = {"reference": test.trajectory, **rollouts}
    trajectories = {k: rollouts[k] for k in ("reference", "source", "unrolled_16")}
    show = dict(reference="reference", dt=DT, quantity="vorticity")
    correlation = found.curves("vorticity", start=1.0)
    lab.animate(trajectories, options.out, **show, stride=2, fps=15)
    return {
        "rollout": ph.plot.rollout(trajectories, **show, times=5, title="Kolmogorov flow, unseen initial state"),
        "correlation": ph.plot.errors(correlation, dt=DT, quantity="correlation of vorticity", log=False),
        "spectrum": ph.plot.spectrum(rollouts),
    }


def main() -> None:
    options = lab.options(__doc__, "turbulence_correction", ["cpu", "cuda"], threads=2)
    case = Case()
    if options.quick:
        case = replace(case, fine=64, trajectories=3, spin_up=60, steps=80)
    if options.full:
        case = replace(case, trajectories=16, long=5000)
    source = physics(case.coarse, DT)

    def hybrid(seed: int) -> ph.HybridSolver:
        return ph.HybridSolver(source, res_net(2, 2, list(case.filters), periodic=True)).to(options.device)

    found = ph.study(
        {"source": source, "hybrid": hybrid},
        lambda seed: reference_data(case, seed),
        methods(case),
        metrics={"vorticity": ph.metrics.Correlation(of=ph.capture(vorticity))},
        summary=lambda e: e.summary((40,), (0.8, 0.95), correlation="vorticity", dt=DT),
        extra=flow_numbers,
        dt=DT,
        **lab.study_settings(options, quick=0.1),
    )
    print(found.table(["mae", "mae_40", "nrmse", "vorticity", "time_to_0.8", "time_to_0.95", "blow_up"]))
    print(found.table(["spectrum_error", "divergence", "updates", "seconds"]))
    lab.save_figures(options.out, figures(case, found, options))


if __name__ == "__main__":
    main()
