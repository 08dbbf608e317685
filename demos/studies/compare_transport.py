"""Correct three transport equations by networks that are trained in several ways, with five seeds.

The cases are in `transport_cases.py`. All methods start from the same weights, after a shared one-step training, and get
the same number of further updates; `one_step_long` gets about the processor time of the longest unrolling instead. `alone`
is the same network without the solver; `inside`, where there is one, sets the unknown coefficient inside of the step.

    python demos/studies/compare_transport.py --case diffusivity|reaction|chaos --seeds 5 [--quick] [--out DIR]
    python demos/studies/compare_transport.py --case … --tune     validation errors over learning rates and noise, costs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
import transport_equations as equations
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


def costs(case: Case) -> dict[str, float]:
    """Milliseconds of processor time per update by unrolled steps."""
    data, _ = case.data(TUNING_SEED)

    def trainer(steps: int) -> ph.Trainer:
        return lab.adam(case.hybrid(case.source()), data, ph.Unrolled(steps), 10**6, 1e-3, 16, 0)

    return lab.costs({steps: trainer(steps) for steps in (1, *case.unrolled)})


def study(case: Case, trainings: Mapping[str, list[Stage]], coupling: Any, **settings: Any) -> StudyResult:
    """The trainings of a network with the solver, or without it."""
    source = case.source()
    solvers = {"source": source, "hybrid": lambda seed: case.hybrid(source, coupling)}
    summary = dict(summary=lambda evaluation: evaluation.summary((case.early,)), dt=case.dt)
    return ph.study(solvers, case.data, trainings, **settings, **summary)


def studies(case: Case, settings: dict[str, Any]) -> dict[str, StudyResult]:
    """Row of the table → study it is from: with the solver, without it, and inside of it."""
    trainings, folder = methods(case), settings["folder"]

    def some(where: str, names: tuple[str, ...], of: Case, coupling: Any) -> StudyResult:
        few = {f"{where}, {name}": trainings[name] for name in names}
        return study(of, few, coupling, **{**settings, "folder": folder / where})

    found = [study(case, trainings, case.coupling, **settings)]
    found.append(some("alone", ("one_step", f"unrolled_{case.unrolled[1]}"), case, ph.coupling.Replacement()))
    if case.inside:
        found.append(some("inside", ("one_step", f"unrolled_{case.unrolled[0]}"), case.inside, case.inside.coupling))
    rows: dict[str, StudyResult] = {}
    for own in found:
        for row in next(iter(own.runs.values())).rows:
            rows.setdefault(row, own)  # all have the source
    return rows


def figures(case: Case, table: Table, found: dict[str, StudyResult], seed: int) -> dict[str, Figure]:
    """All seeds as dots, and space-time images of the first seed."""
    test, until = case.data(seed)[1], dict(time=slice(0, 201))
    trajectories = {"reference": test.trajectory[until]}
    for row in ("source", "one_step", f"unrolled_{case.unrolled[1]}", [*found][-1]):
        data = case.inside.data(seed)[1] if row.startswith("inside") else test
        states = ph.rollout(found[row].solver(row), data.initial_state, data.steps, *data.step_inputs, check=False)
        trajectories[row] = states[until]
    component = test.trajectory.values.shape.get_item_names("vector")[0]
    drawn = {
        "comparison": ph.plot.comparison(table, "mae", quantity="MAE, unseen initial states"),
        "spacetime": ph.plot.spacetime(trajectories, reference="reference", dt=case.dt, quantity=component),
    }
    if case.inside:
        drawn["coefficient"] = coefficient(found["inside, one_step"].solver("inside, one_step"), test)
    return drawn


@torch.no_grad()
def learned(solver: ph.HybridSolver, test: ph.Trajectories) -> np.ndarray:
    """Diffusivities that a network sets in the middle of the test, `(trajectory, x)`."""
    middle, (source, *_) = test.steps // 2, test.step_inputs
    (places,), guess = equations.places(), equations.diffusivity()
    fields = [test.trajectory.time[middle], source.time[middle], guess, places]
    channels = [torch.as_tensor(f.values.numpy("trajectory,vector,x")).expand(len(test), -1, -1) for f in fields]
    output = solver.eval().scaled_network(torch.cat(channels, 1).float())
    return (guess.values.numpy("vector,x") * output.exp().numpy())[:, 0]


def coefficient(solver: ph.HybridSolver, test: ph.Trajectories) -> Figure:
    """The true diffusivity, that of the source, and those that the network sets for 16 states."""
    found, x = learned(solver, test), equations.positions() + np.pi / equations.CELLS
    figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.plot(x, found.T, color="C0", lw=0.7, alpha=0.6, label=["set by the network", *[""] * (len(found) - 1)])
    for contrast, style, name in ((equations.CONTRAST, "k-", "true"), (0.0, "k:", "source")):
        ax.plot(x, equations.diffusivity(contrast).values.numpy("vector,x")[0], style, lw=1.3, label=name)
    ax.set(xlabel="x", ylabel="κ", ylim=(0, None))
    ax.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    which = dict(choices=list(CASES), default="diffusivity")
    options = lab.options(__doc__, "compare_transport", case=which, tune=dict(action="store_true"))
    case = CASES[options.case].scaled(lab.share(options, quick=0.05))
    seeds, folder = range(options.seed, options.seed + options.seeds), options.out / options.case
    settings = dict(seeds=seeds, folder=folder)
    columns = ["mae", f"mae_{case.early}", "nrmse", "blow_up", "updates", "seconds"]
    if options.tune:
        settings |= {"seeds": [TUNING_SEED], "folder": folder / "tuning"}
        print(study(case, candidates(case), case.coupling, **settings).table(columns))
        print("processor time per update, ms:", costs(case))
        return
    found = studies(case, settings)
    per_seed = [{row: own.runs[seed].rows[row] for row, own in found.items()} for seed in seeds]
    print(table := lab.table(per_seed, columns))
    (folder / "table.md").write_text(table.markdown() + "\n", encoding="utf-8")
    lab.save_figures(folder, figures(case, table, found, options.seed))


if __name__ == "__main__":
    main()
