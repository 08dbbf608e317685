"""Correct a coarse solver of the flow past a cylinder with a network that is trained through the solver.

Solver in the loop (Um et al. 2020): the reference has 256×128 cells and MacCormack advection, whose numerical viscosity
is small enough for the Reynolds number to matter; the coarse solver has 64×32 cells and semi-Lagrangian advection. Re is
100·2^k (k = 0…5) in training, 150·2^k (k = 0…4) in the test, and an input of the network. After a shared one-step
training, equal numbers of further updates are spent on one step, on 4 and on 16 unrolled steps.

    python demos/wake_correction.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import arguments, require_device, save_figures, seed_table, train, train_methods, write_metrics
from phi.field import Field
from phi.math import batch, wrap
from phi.torch.flow import advect
from phiml.nn import res_net

import phi_hybrid as ph
from phi_hybrid.evaluation import quantities as diagnostics
from phi_hybrid.pde.navier_stokes import Wake, numerical_viscosity

FLOW, DT = Wake(), 1.0
TRAINING_RE = tuple(100.0 * 2**k for k in range(6))
TEST_RE = tuple(150.0 * 2**k for k in range(5))
REFERENCE, SOURCE = advect.mac_cormack, advect.semi_lagrangian
METHODS = {"one_step": (1, 1), "unrolled_4": (4, 4), "unrolled_16": (4, 16)}
"""Method → unrolled steps in the first and in the second half of its updates."""
SHOWN = 2
"""Test trajectory in the figures, Re = 600."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    fine: int = 256
    coarse: int = 64
    spin_up: int = 500  # steps on half the fine resolution, until vortices are shed
    settle: int = 100  # steps on the fine grid before the first stored one
    steps: int = 500
    horizon: int = 250  # steps of the test
    pretraining: int = 1500  # updates, one step, twice the batch
    updates: int = 1000  # of each method, from the same weights on
    long: int = 0  # updates of `one_step_long`, if any
    batch: int = 3
    filters: tuple[int, ...] = (32, 32, 32)


def physics(cells: int, advection: Any, compile: bool = False) -> ph.PhysicsBlock:
    """The solver on this many cells along the stream, captured on first use."""
    return ph.capture(FLOW.step(DT, FLOW.substeps(DT, cells, min(TRAINING_RE)), advection), compile=compile)


def reference_data(case: Case) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Training and test trajectories from a state that sheds vortices, coarsened."""
    reynolds = wrap(TRAINING_RE + TEST_RE, batch("trajectory"))
    half = case.fine // 2
    early = last_state(
        physics(half, REFERENCE), FLOW.disturbed(half, len(TRAINING_RE + TEST_RE)), case.spin_up, reynolds
    )
    fine = physics(case.fine, REFERENCE)
    start = last_state(fine, early.at(FLOW.grid(case.fine)), case.settle, reynolds)
    data = ph.Trajectories.generate(
        fine, start, case.steps, (reynolds,), coarsen=case.fine // case.coarse, metadata={"dt": DT}
    )
    return data.split(len(TRAINING_RE))


def last_state(block: ph.PhysicsBlock, state: Field, steps: int, reynolds: Any) -> Field:
    tensors = block.flatten(state, reynolds)
    with torch.no_grad():
        for _ in range(steps):
            tensors = (*block.native(*tensors), tensors[-1])
    return block.unflatten(tensors[:-1])


def trained_solvers(case: Case, training: ph.Trajectories, seed: int, device: str) -> tuple[dict, dict]:
    """Method → solver, and the histories of their training."""
    torch.manual_seed(seed)
    source = physics(case.coarse, SOURCE)
    start = ph.HybridSolver(source, res_net(3, 2, list(case.filters))).to(device)
    before = train(start, training, 1, case.pretraining, 1e-3, 2 * case.batch, seed)
    solvers, histories = train_methods(start, training, METHODS, case.updates, case.batch, seed, case.long)
    return {"source": source, **solvers}, {"pretraining": before, **histories}


def wake_measures(trajectory: Field, reference: Field) -> dict[str, float]:
    """What a wake is judged by besides point-wise errors, mean over the test trajectories.

    Strouhal number and mean profile 2.5 diameters behind the axis of the cylinder; log-spectral distance of the
    fluctuations; divergence as max |∇·u|·dx / max|u|.
    """
    own, true = (components(t) for t in (trajectory, reference))
    strouhal = [diagnostics.strouhal_number(probe(c), DT, FLOW.diameter, FLOW.speed) for c in (own, true)]
    profile = [c["y"][..., c["y"].shape[-1] // 2].mean(1) for c in (own, true)]
    spectra = [wake_spectrum(c["y"] - true["y"].mean(1, keepdims=True)) for c in (own, true)]
    return {
        "strouhal": float(strouhal[0].mean()),
        "strouhal_error": float(np.abs(strouhal[0] / strouhal[1] - 1).mean()),
        "profile_error": float(np.abs(profile[0] - profile[1]).mean()),
        "spectrum_error": float(np.abs(np.log10(spectra[0] / spectra[1])).mean()),
        "divergence": diagnostics.largest_divergence(trajectory.time[-1], FLOW.obstacle.geometry),
    }


def components(velocity: Field) -> dict[str, np.ndarray]:
    """Component → `(trajectory, time, x, y)`."""
    return {d: velocity.values[{"~vector": d}].numpy("trajectory,time,x,y") for d in "xy"}


def probe(velocity: dict[str, np.ndarray]) -> np.ndarray:
    """Transverse velocity on the centre line half way down the box, `(trajectory, time)`."""
    across = velocity["x"]
    return across[:, :, across.shape[2] // 2, across.shape[3] // 2]


def wake_spectrum(fluctuation: np.ndarray) -> np.ndarray:
    """Energy over the wavenumber along the stream behind the cylinder, `(trajectory, wavenumber)`."""
    behind = fluctuation[..., fluctuation.shape[-1] * 3 // 8 :]
    windowed = behind * np.hanning(behind.shape[-1])
    return (np.abs(np.fft.rfft(windowed)) ** 2).mean((1, 2))[:, 1:]


def run(case: Case, data: tuple, seed: int, device: str) -> tuple[dict[str, dict], dict[str, Any]]:
    """Metrics of every method, and what the figures show."""
    training, test = data
    solvers, histories = trained_solvers(case, training, seed, device)
    evaluation = ph.evaluate(solvers, test, case.horizon)
    reference = test.trajectory.time[: case.horizon + 1]
    rollouts, metrics = {"reference": reference}, evaluation.summary((50,))
    for method, row in metrics.items():
        row["mae_Re"] = {f"{re:.0f}": float(m) for re, m in zip(TEST_RE, evaluation.mae[method].mean(1))}
        if row["blow_up"] == 0:
            rollouts[method] = ph.rollout(solvers[method], test.initial_state, case.horizon, *test.step_inputs)
            row.update(wake_measures(rollouts[method], reference))
    print(f"\nseed {seed}, unseen Reynolds numbers\n{evaluation.table((50,))}\n")
    return metrics, {"evaluation": evaluation, "rollouts": rollouts, "histories": histories}


def describe_reference(data: tuple) -> None:
    """Prints what shows that Re matters and that vortices are shed."""
    print("numerical viscosity of the reference for waves of one diameter, and ν at the lowest and the highest Re:")
    added = numerical_viscosity(REFERENCE, FLOW.length / 256, DT, FLOW.speed, FLOW.diameter)
    print(f"  {added:.4f}, {FLOW.viscosity(TRAINING_RE[0]):.4f}, {FLOW.viscosity(TRAINING_RE[-1]):.4f}")
    for name, part, numbers in (("training", data[0], TRAINING_RE), ("test", data[1], TEST_RE)):
        signal = probe(components(part.trajectory))
        strouhal = diagnostics.strouhal_number(signal, DT, FLOW.diameter, FLOW.speed)
        for re, st, s in zip(numbers, strouhal, signal):
            print(f"  {name} Re {re:6.0f}: Strouhal number {st:.3f}, transverse velocity ±{np.abs(s).max():.2f}")


def strouhal_by_resolution(reynolds: float, resolutions: tuple[int, ...] = (128, 256, 512)) -> dict[int, float]:
    """Strouhal number of the reference solver on several grids, at the same CFL number."""
    re, found = wrap([reynolds], batch("trajectory")), {}
    state = FLOW.disturbed(resolutions[0], 1)
    for cells in resolutions:
        dt = DT * 256 / cells
        block = ph.capture(FLOW.step(dt, FLOW.substeps(dt, cells, reynolds), REFERENCE))
        settle = 500 if cells == resolutions[0] else 150
        state = last_state(block, state.at(FLOW.grid(cells)), round(settle * DT / dt), re)
        flow = ph.rollout(block, state, round(250 * DT / dt), re)
        signal = probe(components(flow))
        found[cells] = float(diagnostics.strouhal_number(signal, dt, FLOW.diameter, FLOW.speed)[0])
        print(f"Re {reynolds:.0f}, {cells}×{cells // 2} cells: Strouhal number {found[cells]:.4f}")
        state = flow.time[-1]
    return found


def figures(shown: dict[str, Any], out: Path) -> None:
    trajectories = {k: v for k, v in shown["rollouts"].items() if k in ("reference", "source", "unrolled_16")}
    show = dict(reference="reference", dt=DT, quantity="vorticity", example=SHOWN)
    title = f"Wake of a cylinder, unseen Re = {TEST_RE[SHOWN]:.0f}, vorticity"
    curves, panels = shown["evaluation"].curves(), plt.subplots(1, len(TEST_RE), figsize=(16, 3.4))
    largest = max(float(curve[torch.isfinite(curve)].max()) for curve in curves.values())
    for n, (re, ax) in enumerate(zip(TEST_RE, panels[1])):
        ph.plot.errors({name: curve[n] for name, curve in curves.items()}, dt=DT, ax=ax)
        ax.set(title=f"Re {re:.0f}", ylim=(largest / 300, 1.2 * largest))
    panels[0].tight_layout()
    save_figures(
        out,
        {
            "rollout": ph.plot.rollout(trajectories, **show, times=4, title=title),
            "errors": ph.plot.errors(curves, dt=DT),
            "errors_Re": panels[0],
            "training": ph.plot.history(shown["histories"]),
        },
    )
    print("wrote", ph.plot.animate(trajectories, out / "rollout.gif", **show, stride=4, fps=12))


def main() -> None:
    parser = arguments(__doc__, "wake_correction")
    parser.add_argument(
        "--convergence", action="store_true", help="Strouhal number on 128, 256, 512 cells, and no more"
    )
    options = parser.parse_args()
    require_device(options.device)
    torch.set_num_threads(min(2, torch.get_num_threads()))  # more do not pay on 64×32 cells
    if options.convergence:
        strouhal_by_resolution(300.0)
        return
    case = Case()
    if options.quick:
        case = replace(case, fine=128, spin_up=250, settle=30, steps=100, horizon=100, pretraining=250, updates=40)
    if options.full:
        case = replace(case, steps=1000, horizon=1000, pretraining=4000, updates=3000, long=15000)
    began, per_seed = time.perf_counter(), []
    data = reference_data(case)
    describe_reference(data)
    for seed in range(options.seed, options.seed + options.seeds):
        metrics, shown = run(case, data, seed, options.device)
        per_seed.append(metrics)
        if seed == options.seed:
            figures(shown, options.out)
    if options.seeds > 1:
        print(
            f"\nmedian [smallest, largest] of {options.seeds} seeds\n{seed_table(per_seed, ['mae', 'mae_50', 'nrmse'])}"
        )
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
