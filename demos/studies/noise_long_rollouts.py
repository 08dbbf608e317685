"""Is there a σ with which noise in training beats one-step training, where it is said to: without a solver, over long rollouts?

A network that replaces the solver, trained from scratch with equal numbers of updates: one step without noise, with noise
on its inputs, targets clean or adjusted; through 4 steps without noise, and with noise on every iterate. All σ are tried
on one seed; the best through one step and the best through 4 are trained with other seeds. Rollouts are one and a half to five times as long as the
trajectories of the training; numbers are:

- `capped`: mean of min(nRMSE, 1), which no blow-up can dominate, by which σ is chosen,
- `left`: share of the trajectories that ever exceed twice the largest value of the reference,
- `time`: steps until nRMSE > 0.5, or all,
- `energy`: mean square over that of the reference, median of the trajectories, second half of the time.

    python demos/studies/noise_long_rollouts.py --case burgers|ks|diffusivity --seeds 5 [--quick] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comparison_cases
import lab
import numpy as np
import torch
import transport_cases
import transport_equations
from comparison_cases import KS_LENGTHS, ks_generator
from flows import LINE
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.evaluation import Evaluation, Table
from phi_hybrid.studies import Stage, StudyResult

SIGMAS, TUNING_SEED = (1e-4, 1e-3, 1e-2, 1e-1), 1000
COLUMNS = ["capped", "left", "time", "energy", "mae_early"]


@dataclass(frozen=True)
class Case:
    """Data of a network alone."""

    data: Callable[[int], tuple[ph.Trajectories, ph.Trajectories]]
    source: Callable[[], ph.PhysicsBlock]
    solver: Callable[[ph.PhysicsBlock], ph.HybridSolver]
    early: int
    """Steps of a usual test."""
    updates: int = 500


def burgers_data(seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Of `comparison_cases`: 199 steps for training, 995 for the test."""
    fine = LINE.physics(LINE.fine)
    training, test = (LINE.waves(16, 10 * seed + part, steps=steps, fine=fine) for part, steps in ((0, 199), (2, 995)))
    return training, test


def ks_data(seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Of `comparison_cases`: 200 frames for training, here 300 for the test."""
    generate = ks_generator(seed)
    return generate(np.linspace(*KS_LENGTHS, 16), 200, 0), generate(np.linspace(*KS_LENGTHS, 33)[1::2], 300, 2)


def drift_data(seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Of `transport_equations`: 200 steps for training, 600 for the test."""
    return transport_equations.drift_data(seed)[0], transport_equations.drift_data(seed + 500, steps=600)[1]


def alone(source: ph.PhysicsBlock) -> ph.HybridSolver:
    """The network of the comparison, without the solver."""
    return ph.HybridSolver(source, comparison_cases.small_network(), ph.coupling.Replacement())


DRIFT = transport_cases.CASES["diffusivity"]
CASES = {
    "burgers": Case(burgers_data, comparison_cases.BURGERS.source, alone, early=199),
    "ks": Case(ks_data, comparison_cases.KS.source, alone, early=60),
    "diffusivity": Case(drift_data, DRIFT.source, lambda s: DRIFT.hybrid(s, ph.coupling.Replacement()), early=200),
}

KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "clean": (1, {}),
    "adjusted": (1, dict(target="adjusted")),
    "iterates, clean": (4, dict(where="every_step")),
    "iterates, adjusted": (4, dict(where="every_step", target="adjusted")),
}
"""Kind of noise → unrolled steps, settings."""


def training(steps: int, updates: int, noise: ph.Noise | None = None) -> list[Stage]:
    """One stage from scratch, the noise always on."""
    return [Stage(ph.Unrolled(steps, noise=noise), updates, lr=2e-3)]


def leaves(own: ph.metrics.Frame, reference: ph.metrics.Frame) -> torch.Tensor:
    """1 where a state exceeds twice the largest value of its reference, `(trajectory,)`."""
    return (own.rows.abs().amax(1) > 2 * reference.rows.abs().amax()).double()


def energy(own: ph.metrics.Frame, reference: ph.metrics.Frame) -> torch.Tensor:
    """⟨u²⟩ / ⟨u*²⟩, `(trajectory,)`."""
    return (own.rows**2).mean(1) / (reference.rows**2).mean(1)


def numbers(evaluation: Evaluation, early: int) -> dict[str, dict[str, float]]:
    """Solver → number."""
    found = {}
    for name, nrmse in evaluation.nrmse.items():
        wrong = torch.cat([nrmse > 0.5, torch.ones(len(nrmse), 1, dtype=torch.bool)], 1)
        late = evaluation["energy"][name][:, evaluation.steps // 2 :]
        found[name] = {
            "capped": float(nrmse.clamp(max=1).mean()),
            "left": float((evaluation["leaves"][name] > 0).any(1).double().mean()),
            "time": float(wrong.double().argmax(1).double().mean()),
            "energy": float(late.mean(1).median()),
            "mae_early": float(evaluation.mae[name][:, :early].mean()),
        }
    return found


def study(case: Case, methods: dict[str, list[Stage]], settings: dict[str, Any]) -> StudyResult:
    """Networks alone beside the coarse solver."""
    source = case.source()
    solvers = {"source": source, "alone": lambda seed: case.solver(source)}
    measured = dict(
        metrics={"leaves": leaves, "energy": energy}, summary=lambda e: numbers(e, min(case.early, e.steps))
    )
    return ph.study(solvers, case.data, methods, **settings, **measured)


def candidates(case: Case) -> dict[str, list[Stage]]:
    """All kinds of noise at all σ."""
    return {
        f"{kind} σ={sigma:g}": training(steps, case.updates, ph.Noise(sigma, **settings))
        for kind, (steps, settings) in KINDS.items()
        for sigma in (SIGMAS if steps == 1 else SIGMAS[1:3])
    }


def best(sweep: StudyResult, names: list[str]) -> str:
    """The candidate with the smallest capped error."""
    rows = sweep.runs[TUNING_SEED].rows
    return min(names, key=lambda name: rows[name]["capped"])


def figures(sweep: StudyResult, table: Table) -> dict[str, Figure]:
    """Capped error over σ on the tuning seed, and of the chosen ones for all seeds."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    rows = sweep.runs[TUNING_SEED].rows
    for colour, kind in enumerate(KINDS):
        chosen = {
            float(name.split("=")[1]): row["capped"] for name, row in rows.items() if name.startswith(f"{kind} σ")
        }
        left.semilogx(list(chosen), list(chosen.values()), "o-", color=f"C{colour}", label=kind)
    for name, style in (("one_step", "-"), ("unrolled_4", "--")):
        left.axhline(rows[name]["capped"], color="#888888", ls=style, label=f"{name}, no noise")
    left.set(xlabel="σ / standard deviation of the data", ylabel="mean of min(nRMSE, 1)", title="one seed")
    left.legend(fontsize=7, frameon=False)
    ph.plot.comparison(table, "capped", ax=right, quantity="mean of min(nRMSE, 1)", log=False)
    return {"noise_long": figure}


def main() -> None:
    options = lab.options(__doc__, "noise_long_rollouts", case=dict(choices=list(CASES), default="burgers"))
    case, settings = CASES[options.case], lab.study_settings(options, quick=0.02)
    folder, updates = options.out / options.case, case.updates
    if options.quick:
        settings["steps"] = 40
    plain = {"one_step": training(1, updates), "unrolled_4": training(4, updates)}
    trials = candidates(case)
    sweep = study(case, {**plain, **trials}, {**settings, "folder": folder / "sweep", "seeds": [TUNING_SEED]})
    print(sweep.table(COLUMNS))
    few, many = ([name for name in trials if name.startswith("iterates") == unrolled] for unrolled in (False, True))
    chosen = [best(sweep, few), best(sweep, many)]
    found = study(case, {**plain, **{name: trials[name] for name in chosen}}, {**settings, "folder": folder})
    print(found.table([*COLUMNS, "updates", "seconds"]))
    lab.save_figures(folder, figures(sweep, found.table(["capped"])))


if __name__ == "__main__":
    main()
