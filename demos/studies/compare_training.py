"""Compare ways to train a hybrid solver, with equal numbers of updates and with equal time.

Every method starts from the same weights, after a shared one-step training, and is tuned (learning rate) on validation
data of another seed. `noise` is the best of several noise levels, chosen on validation data of the same seed;
`noise_unrolled` starts from a one-step training with that noise instead. `replacement` predicts without the solver.

    python demos/studies/compare_training.py [--case burgers|ks] [--seeds N] [--quick | --full] [--out DIR]
    python demos/studies/compare_training.py --vary scheme [--seeds N]     several discretisations of Burgers, corrected
    python demos/studies/compare_training.py --case ks --tune --seed 1000  validation errors over learning rates
"""

from __future__ import annotations

import copy
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lab
import matplotlib.pyplot as plt
import torch
from comparison_cases import CASES, Case, Data, burgers_schemes
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.evaluation import Table
from phi_hybrid.training import Objective


@dataclass(frozen=True)
class Run:
    """One trained solver and what it took."""

    solver: ph.HybridSolver
    history: dict[str, Any]
    seconds: float


def train(
    solver: ph.HybridSolver,
    data: ph.Trajectories,
    objective: Objective,
    updates: int,
    rate: float,
    case: Case,
    seed: int,
) -> Run:
    """Adam with a cosine schedule on a copy of the solver."""
    solver = copy.deepcopy(solver)
    trainer = lab.adam(solver, data, objective, updates, rate, case.batch, seed)
    began = time.process_time()  # of the CPU, so that other processes do not count
    history = trainer.fit(updates)
    return Run(solver, history, time.process_time() - began)


def objectives(case: Case, updates: int) -> dict[str, Objective]:
    """The methods that start from the shared weights and need nothing else. The longest unrolling begins with the short
    one, for two thirds of the updates."""
    few, many = case.unrolled
    return {
        "one_step": ph.Unrolled(1),
        "pushforward": ph.training.Pushforward(few),
        f"nog_{few}": ph.Unrolled(few, gradient=ph.gradient.Detached()),
        f"unrolled_{few}": ph.Unrolled(few),
        f"unrolled_{many}": ph.Curriculum({0: ph.Unrolled(few), 2 * updates // 3: ph.Unrolled(many)}),
    }


def noisy(sigma: float) -> ph.Unrolled:
    return ph.Unrolled(1, noise=ph.Noise(sigma))


class Comparison:
    """All methods on one seed."""

    def __init__(self, case: Case, data: Data, seed: int, device: str = "cpu") -> None:
        self.case, self.data, self.seed = case, data, seed
        self.rates = {}
        self.source = case.source()
        torch.manual_seed(seed)
        self.untrained = ph.HybridSolver(self.source, case.network(), case.coupling).to(device)
        self.start = self.pretrained(self.untrained, ph.Unrolled(1))
        self.runs: dict[str, Run] = {}
        self.sweep: dict[float, float] = {}

    def pretrained(self, solver: ph.HybridSolver, objective: Objective) -> ph.HybridSolver:
        case = self.case
        return train(
            solver, self.data.training, objective, case.pretraining, case.pretraining_rate, case, self.seed
        ).solver

    def train(
        self,
        method: str,
        objective: Objective,
        start: ph.HybridSolver | None = None,
        data: ph.Trajectories | None = None,
        updates: int | None = None,
    ) -> Run:
        """Further training of the shared weights, or of others, on the training data or others."""
        start, data = self.start if start is None else start, self.data.training if data is None else data
        rate = self.rates.get(method) or self.case.rates.get(method, self.case.rate)
        return train(start, data, objective, updates or self.case.updates, rate, self.case, self.seed)

    def validation_error(self, solver: Callable) -> float:
        """MAE over the horizon on validation data, or as far as they go."""
        steps = min(self.case.horizon, self.data.validation.steps)
        evaluation = ph.evaluate({"solver": solver}, self.data.validation, steps)
        return evaluation.summary()["solver"]["mae"]

    def equal_updates(self) -> dict[str, Run]:
        """All methods with the same number of updates."""
        case = self.case
        for method, objective in objectives(case, case.updates).items():
            self.runs[method] = self.train(method, objective)
        levels = {sigma: self.train("noise", noisy(sigma)) for sigma in case.sigmas}
        self.sweep = {sigma: self.validation_error(run.solver) for sigma, run in levels.items()}
        best = min(self.sweep, key=self.sweep.get)
        many = f"unrolled_{case.unrolled[1]}"
        self.runs["noise"] = levels[best]
        noisy_start = self.pretrained(self.untrained, noisy(best))
        self.runs["noise_unrolled"] = self.train(many, objectives(case, case.updates)[many], noisy_start)
        calm = ph.training.precompute_corrections(self.source, self.data.training, iterations=case.precomputing)
        self.runs["pre"] = self.train("pre", ph.Unrolled(1), data=calm)
        alone = ph.HybridSolver(self.source, copy.deepcopy(self.untrained.network), ph.coupling.Replacement())
        alone = alone.to(next(alone.parameters()).device)  # its scales, too
        self.runs["replacement"] = self.train("replacement", ph.Unrolled(1), self.pretrained(alone, ph.Unrolled(1)))
        return self.runs

    def equal_time(self) -> dict[str, Run]:
        """The methods again, each with the updates that fit into the time of the slowest."""
        budget = max(run.seconds for run in self.runs.values())
        best = min(self.sweep, key=self.sweep.get)
        runs = {}
        for method in (*objectives(self.case, 0), "noise"):
            updates = round(self.case.updates * budget / self.runs[method].seconds)
            objective = {**objectives(self.case, updates), "noise": noisy(best)}[method]
            longer = updates > 1.05 * self.case.updates
            runs[method] = self.train(method, objective, updates=updates) if longer else self.runs[method]
        return runs

    def summary(self, runs: dict[str, Run]) -> lab.Rows:
        """Method → metric → number, on all test data."""
        solvers = {"source": self.source, **{method: run.solver for method, run in runs.items()}}
        early, horizon, long = self.case.early, self.case.horizon, self.data.test.steps
        rows = ph.evaluate(solvers, self.data.test).summary((early, horizon))
        unseen = {name: ph.evaluate(solvers, data).summary() for name, data in self.data.unseen.items()}
        return {
            method: {
                "mae": row[f"mae_{horizon}"],
                "nrmse": row[f"nrmse_{horizon}"],
                f"mae_{early}": row[f"mae_{early}"],
                f"mae_{long}": row["mae"],
                "blow_up": row["blow_up"],
                **{f"mae, {name}": rows_of[method]["mae"] for name, rows_of in unseen.items()},
                "seconds": runs[method].seconds if method in runs else 0.0,
                "updates": float(len(runs[method].history["update"])) if method in runs else 0.0,
            }
            for method, row in rows.items()
        }


def tune(case: Case, seed: int, rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)) -> None:
    """Prints the validation error of every method at several learning rates."""
    comparison = Comparison(case, case.data(seed), seed)
    sigma = case.sigmas[len(case.sigmas) // 2]
    found = {}
    for method, objective in {**objectives(case, case.updates), "noise": noisy(sigma)}.items():
        found[method] = {}
        for rate in rates:
            comparison.rates = {method: rate}
            found[method][f"{rate:g}"] = comparison.validation_error(comparison.train(method, objective).solver)
    print(Table(found))


def vary_scheme(case: Case, seed: int) -> lab.Rows:
    """Discretisation → errors before and after training, stability over the long test, and cost."""
    data, rows = case.data(seed), {}
    methods = {"one_step": ph.Unrolled(1), f"unrolled_{case.unrolled[0]}": ph.Unrolled(case.unrolled[0])}
    for name, source in burgers_schemes().items():
        comparison = Comparison(replace(case, source=lambda source=source: source), data, seed)
        summary = comparison.summary({m: comparison.train(m, objective) for m, objective in methods.items()})
        rows[name] = {f"mae {method}": row["mae"] for method, row in summary.items()}
        rows[name] |= {f"blow_up {method}": row["blow_up"] for method, row in summary.items()}
        rows[name]["ms a step"] = milliseconds(source, data.test)
    return rows


@torch.no_grad()
def milliseconds(step: ph.PhysicsBlock, data: ph.Trajectories, repeats: int = 200) -> float:
    """Time of one step of all trajectories, the median of several."""
    batch = data.whole()
    bound, inputs = batch.bind(step), batch.step_inputs.at(0)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        bound.step(*bound.state, *inputs)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Growth of the errors with time, and the noise sweep."""
    solvers = {"source": comparison.source, **{name: run.solver for name, run in comparison.runs.items()}}
    curves = ph.evaluate(solvers, comparison.data.test, comparison.case.horizon).curves()
    bounded = {name: curve for name, curve in curves.items() if torch.isfinite(curve).all()}
    sweep, ax = plt.subplots(figsize=(4.2, 3), layout="constrained")
    ax.loglog(list(comparison.sweep), list(comparison.sweep.values()), "o-")
    ax.set(xlabel="σ / standard deviation of the data", ylabel="MAE, validation", title="noise")
    dt = comparison.data.test.metadata["dt"]
    return {"errors": ph.plot.errors(bounded, dt=dt), "noise": sweep}


def report(title: str, per_seed: list[lab.Rows], out: Path) -> Table:
    """Prints a table over the seeds and writes it as Markdown and CSV."""
    table = Table.over_seeds(per_seed) if len(per_seed) > 1 else Table(per_seed[0])
    print(f"\n{title}, {len(per_seed)} seed(s), median [smallest, largest]\n{table}\n")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("md", table.markdown()), ("csv", table.csv())):
        (out / f"{title.replace(' ', '_')}.{name}").write_text(text + "\n")
    return table


def compare(case: Case, options: Namespace) -> None:
    """Both comparisons on every seed; tables and figures."""
    timed: list[lab.Rows] = []

    def run(seed: int) -> tuple[lab.Rows, Callable]:
        comparison = Comparison(case, case.data(seed), seed, options.device)
        rows = comparison.summary(comparison.equal_updates())
        print(f"noise sweep, validation: {comparison.sweep}")
        if options.full:
            timed.append(comparison.summary(comparison.equal_time()))
        return rows, lambda: figures(comparison)

    per_seed = lab.study(options, run, ["mae", "nrmse", "blow_up", "updates", "seconds"])
    tables = {"comparison": report("equal updates", per_seed, options.out)}
    if timed:
        tables["equal_time"] = report("equal time", timed, options.out)
    lab.save_figures(options.out, {name: ph.plot.comparison(table, "mae") for name, table in tables.items()})


def shortened(case: Case) -> Case:
    """A small version: a tenth of the pre-training, a twentieth of the updates, no longer test, nothing unseen."""

    def data(seed: int) -> Data:
        whole = case.data(seed)
        return Data(whole.training, whole.validation, whole.test.between(0, case.horizon))

    return replace(case, data=data, pretraining=case.pretraining // 10, updates=case.updates // 20, precomputing=5)


def main() -> None:
    options = lab.options(
        __doc__,
        "compare_training",
        ["cpu", "cuda"],
        case=dict(choices=list(CASES), default="burgers"),
        vary=dict(choices=["scheme"], help="compare discretisations of Burgers' equation instead of methods"),
        tune=dict(action="store_true", help="print validation errors over learning rates, and no more"),
    )
    if options.vary and options.case != "burgers":
        raise SystemExit(f"--vary scheme is about Burgers' equation, not about --case {options.case}; leave it out")
    case = shortened(CASES[options.case]) if options.quick else CASES[options.case]
    if options.case == "ks":
        options.out /= options.case
    if options.tune:
        tune(case, options.seed)
    elif options.vary:
        seeds = range(options.seed, options.seed + options.seeds)
        report("schemes", [vary_scheme(case, seed) for seed in seeds], options.out)
    else:
        compare(case, options)


if __name__ == "__main__":
    main()
