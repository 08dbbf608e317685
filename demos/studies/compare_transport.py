"""Correct three transport equations by networks that are trained in several ways, with five seeds.

The cases are in `transport_cases.py`. All methods start from the same weights, after a shared one-step training, and get
the same number of further updates; `one_step_long` gets about the processor time of the longest unrolling instead. `alone`
is the same network without the solver.

    python demos/studies/compare_transport.py --case diffusivity|reaction|chaos --seeds 5 [--quick] [--out DIR]
    python demos/studies/compare_transport.py --case … --tune     validation errors over learning rates and noise, costs
"""

from __future__ import annotations

import time
from pathlib import Path

import lab
import torch
from matplotlib.figure import Figure
from transport_cases import CASES, Case

import phi_hybrid as ph
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
        name: [begin(case), Stage(objective, round(times * case.updates), lr=case.rates.get(name, 1e-3))]
        for name, (objective, times) in objectives(case).items()
    }


def candidates(case: Case) -> dict[str, list[Stage]]:
    """Methods over learning rates, and noise over σ at the rate of one step."""
    few, many = case.unrolled
    found = {}
    for name in ("one_step", f"unrolled_{few}", f"unrolled_{many}", "one_step_long"):
        objective, times = objectives(case)[name]
        for rate in RATES:
            found[f"{name} {rate:g}"] = [begin(case), Stage(objective, round(times * case.updates), lr=rate)]
    for sigma in SIGMAS:
        noise = ph.Unrolled(1, noise=ph.Noise(sigma))
        found[f"noise σ={sigma:g}"] = [begin(case), Stage(noise, case.updates, lr=case.rates.get("one_step", 1e-3))]
    return found


def costs(case: Case, updates: int = 20, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of processor time per update, the least of several, by turns."""
    data, _ = case.data(TUNING_SEED)
    few, many = case.unrolled
    trainers, least = {}, {}
    for steps in (1, few, many):
        solver = case.hybrid(case.source())
        trainers[steps] = ph.Trainer(solver, data, ph.Unrolled(steps), batch_size=16)
        trainers[steps].fit(2)
    for _ in range(repeats):
        for steps, trainer in trainers.items():
            began = time.process_time()
            trainer.fit(updates)
            spent = 1e3 * (time.process_time() - began) / updates
            least[steps] = min(spent, least.get(steps, spent))
    return {f"{steps} steps": ms for steps, ms in least.items()}


def study(case: Case, trainings: dict[str, list[Stage]], folder: Path, alone: bool, settings: dict) -> StudyResult:
    """The trainings with the solver, and without it if `alone`."""
    source = case.source()
    solvers = {"source": source, "hybrid": lambda seed: case.hybrid(source)}
    if alone:
        solvers["alone"] = lambda seed: case.hybrid(source, ph.coupling.Replacement())
    summary = dict(summary=lambda evaluation: evaluation.summary((case.early,)), dt=case.dt)
    return ph.study(solvers, case.data, trainings, **{**settings, "folder": folder}, **summary)


def figures(case: Case, found: StudyResult, seed: int) -> dict[str, Figure]:
    """All seeds as dots, and space-time images of the first seed."""
    table, test = found.table(["mae"]), case.data(seed)[1]
    trajectories = {"reference": test.trajectory}
    many = f"unrolled_{case.unrolled[1]}"
    for name in ("source", "hybrid, one_step", f"hybrid, {many}", f"alone, {many}"):
        trajectories[name] = ph.rollout(
            found.solver(name), test.initial_state, test.steps, *test.step_inputs, check=False
        )
    steps = min(test.steps, 200)
    first = {name: states[dict(time=slice(0, steps + 1))] for name, states in trajectories.items()}
    component = first["reference"].values.shape.channel.get_item_names("vector")[0]
    show = dict(reference="reference", dt=case.dt, quantity=component)
    return {
        "comparison": ph.plot.comparison(table, "mae", quantity="MAE, unseen initial states"),
        "spacetime": ph.plot.spacetime(first, **show),
    }


def main() -> None:
    case = dict(choices=list(CASES), default="diffusivity")
    options = lab.options(__doc__, "compare_transport", case=case, tune=dict(action="store_true"))
    torch.set_num_threads(1)
    chosen, folder = CASES[options.case], options.out / options.case
    settings = lab.study_settings(options, quick=0.05)
    if options.tune:
        settings["seeds"] = [TUNING_SEED]
        found = study(chosen, candidates(chosen), folder / "tuning", False, settings)
        print(found.table(["mae", f"mae_{chosen.early}", "updates", "seconds"]))
        print("processor time per update, ms:", costs(chosen))
        return
    found = study(chosen, methods(chosen), folder, True, settings)
    print(found.table(["mae", f"mae_{chosen.early}", "nrmse", "blow_up", "updates", "seconds"]))
    lab.save_figures(folder, figures(chosen, found, options.seed))


if __name__ == "__main__":
    main()
