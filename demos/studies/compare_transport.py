"""Correct three transport equations by networks that are trained in several ways, with five seeds.

The cases are in `transport_cases.py`. All methods start from the same weights, after a shared one-step training, and get
the same number of further updates; `one_step_long` gets about the processor time of the longest unrolling instead. `alone`
is the same network without the solver; `inside`, where there is one, sets the unknown coefficient inside of the step.

    python demos/studies/compare_transport.py --case diffusivity|reaction|chaos --seeds 5 [--quick] [--out DIR]
    python demos/studies/compare_transport.py --case … --tune     validation errors over learning rates and noise, costs
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lab
from matplotlib.figure import Figure
from transport_cases import CASES, Case

import phi_hybrid as ph
from phi_hybrid.evaluation import Table
from phi_hybrid.studies import Stage, StudyResult
from phi_hybrid.training import Objective

RATES, SIGMAS, TUNING_SEED = (3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 1e-3, 1e-2, 1e-1), 1000


def begin(case: Case) -> Stage:
    """The one-step training that all methods share."""
    return Stage(ph.Unrolled(1), case.pretraining, lr=2e-3)


def longest(case: Case) -> Objective:
    """Two thirds of the updates on the shorter unrolling, as in `compare_training.py`."""
    few, many = case.unrolled
    return ph.Curriculum({0: ph.Unrolled(few), 2 * case.updates // 3: ph.Unrolled(many)})


def objectives(case: Case) -> dict[str, tuple[Objective, float]]:
    """Method → objective, multiple of the updates."""
    few, many = case.unrolled
    noise = ph.Noise(case.sigma)
    return {
        "one_step": (ph.Unrolled(1), 1),
        "noise": (ph.Unrolled(1, noise=noise), 1),
        f"unrolled_{few}": (ph.Unrolled(few), 1),
        f"unrolled_{many}": (longest(case), 1),
        "one_step_long": (ph.Unrolled(1), case.long),
    }


def methods(case: Case) -> dict[str, list[Stage]]:
    """Stages of every method."""
    return {
        name: [
            begin(case),
            Stage(objective, round(times * case.updates), lr=case.unrolled_rate if "unrolled" in name else case.rate),
        ]
        for name, (objective, times) in objectives(case).items()
    }


def candidates(case: Case) -> dict[str, list[Stage]]:
    """One step and the shorter unrolling over learning rates, and noise over σ at the rate of one step."""
    found = {}
    for name in ("one_step", f"unrolled_{case.unrolled[0]}"):
        objective, _ = objectives(case)[name]
        for rate in RATES:
            found[f"{name} {rate:g}"] = [begin(case), Stage(objective, case.updates, lr=rate)]
    for sigma in SIGMAS:
        noise = ph.Unrolled(1, noise=ph.Noise(sigma))
        found[f"noise σ={sigma:g}"] = [begin(case), Stage(noise, case.updates, lr=case.rate)]
    return found


def costs(case: Case, updates: int = 20, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of processor time per update, the least of several, by turns."""
    data, _ = case.data(TUNING_SEED)
    few, many = case.unrolled
    trainers, least = {}, {}
    for steps in (1, few, many):
        trainers[steps] = lab.adam(case.hybrid(case.source()), data, ph.Unrolled(steps), 10**6, 1e-3, 16, 0)
        trainers[steps].fit(2)
    for _ in range(repeats):
        for steps, trainer in trainers.items():
            began = time.process_time()
            trainer.fit(len(trainer.history["loss"]) + updates)
            spent = 1e3 * (time.process_time() - began) / updates
            least[steps] = min(spent, least.get(steps, spent))
    return {f"{steps} steps": ms for steps, ms in least.items()}


def study(case: Case, trainings: Mapping[str, list[Stage]], coupling: Any, **settings: Any) -> StudyResult:
    """The trainings of a network with the solver, or without it."""
    source = case.source()
    solvers = {"source": source, "hybrid": lambda seed: case.hybrid(source, coupling)}
    summary = dict(summary=lambda evaluation: evaluation.summary((case.early,)), dt=case.dt)
    return ph.study(solvers, case.data, trainings, **settings, **summary)


def comparison(case: Case, settings: dict[str, Any]) -> tuple[list[lab.Rows], StudyResult, StudyResult]:
    """Rows of every seed, and the studies with the solver and without it."""
    trainings, folder = methods(case), settings["folder"]
    hybrid = study(case, trainings, case.coupling, **settings)
    few = {f"alone, {name}": trainings[name] for name in ("one_step", f"unrolled_{case.unrolled[1]}")}
    alone = study(case, few, ph.coupling.Replacement(), **{**settings, "folder": folder / "alone"})
    studies = [hybrid, alone]
    if case.inside:
        few = {f"inside, {name}": trainings[name] for name in ("one_step", f"unrolled_{case.unrolled[0]}")}
        studies.append(study(case.inside, few, case.inside.coupling, **{**settings, "folder": folder / "inside"}))
    rows = [{name: row for found in studies for name, row in found.runs[seed].rows.items()} for seed in hybrid.runs]
    return rows, hybrid, alone


def figures(case: Case, table: Table, hybrid: StudyResult, alone: StudyResult, seed: int) -> dict[str, Figure]:
    """All seeds as dots, and space-time images of the first seed."""
    test, many = case.data(seed)[1], f"unrolled_{case.unrolled[1]}"
    shown = {name: hybrid.solver(name) for name in ("source", "one_step", many)}
    shown[f"alone, {many}"] = alone.solver(f"alone, {many}")
    start, until = (test.initial_state, test.steps, *test.step_inputs), dict(time=slice(0, 201))
    trajectories = {name: ph.rollout(solver, *start, check=False)[until] for name, solver in shown.items()}
    trajectories = {"reference": test.trajectory[until], **trajectories}
    component = test.trajectory.values.shape.get_item_names("vector")[0]
    return {
        "comparison": ph.plot.comparison(table, "mae", quantity="MAE, unseen initial states"),
        "spacetime": ph.plot.spacetime(trajectories, reference="reference", dt=case.dt, quantity=component),
    }


def main() -> None:
    which = dict(choices=list(CASES), default="diffusivity")
    options = lab.options(__doc__, "compare_transport", case=which, tune=dict(action="store_true"))
    case, settings = CASES[options.case], lab.study_settings(options, quick=0.05)
    settings["folder"] = folder = options.out / options.case
    columns = ["mae", f"mae_{case.early}", "nrmse", "blow_up", "updates", "seconds"]
    if options.tune:
        settings |= {"seeds": [TUNING_SEED], "folder": folder / "tuning"}
        print(study(case, candidates(case), case.coupling, **settings).table(columns))
        print("processor time per update, ms:", costs(case))
        return
    per_seed, hybrid, alone = comparison(case, settings)
    print(table := lab.table(per_seed, columns))
    lab.save_figures(folder, figures(case, table, hybrid, alone, options.seed))


if __name__ == "__main__":
    main()
