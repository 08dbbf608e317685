"""Control a flow from a given state to a given target with little force, by a network trained through the solver.

Burgers' equation, or with --case smoke a cloud of smoke that only forces along the walls of its box can move. A network
sees state, target and remaining time, and sets the force of every step. It is trained
  supervised   on the forces of the data, without a solver,
  dp           from there on, through all steps of the captured solver, to reach the target with little force,
  model-free   by PPO, if stable-baselines3 is installed: pip install -c constraints.txt -e ".[rl]".
`optimised` searches the forces of every sample anew, through the solver: the lower bound.

    python demos/control_burgers.py [--case smoke] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from common import arguments, require_cpu, save_figures, seed_table, write_metrics
from control_cases import Burgers, Smoke
from control_figures import figures
from controllers import errors, optimised, pairs, run, supervised, through_solver

import phi_hybrid as ph

CASES = {"burgers": Burgers(), "smoke": Smoke()}
HELD_OUT, LOOKS = 64, 8


class Curve:
    """Held-out errors over solver calls, looked at during a training."""

    def __init__(self, case: Any, held_out: ph.Trajectories, free: tuple, before: int) -> None:
        self.case, self.held_out, self.free, self.before = case, held_out, free, before
        self.rows: list[dict[str, float]] = []

    def __call__(self, solver: ph.HybridSolver, calls: int) -> None:
        row = errors(self.case, run(solver, self.held_out), self.free, self.held_out)
        self.rows.append({"calls": self.before + calls, **row})


def compare(case: Any, seed: int) -> tuple[dict, dict, dict, ph.Trajectories]:
    """Metrics, curves and held-out states of all controllers."""
    physics, budget = case.physics(), case.budget
    training = pairs(case, physics, budget.pairs, 2 * seed)
    held_out = pairs(case, physics, 2 * HELD_OUT, 2 * seed + 1)[:HELD_OUT]
    data_calls = budget.pairs * case.steps
    states = {"source": run(physics, held_out)}
    costs, curves = {}, {}

    def enter(name: str, train: Any) -> ph.HybridSolver:
        curve = curves[name] = Curve(case, held_out, states["source"], data_calls)
        began = time.perf_counter()
        solver = train(curve)
        costs[name] = {"seconds": time.perf_counter() - began}
        if not curve.rows:
            curve(solver, 0)
        states[name], costs[name]["calls"] = run(solver, held_out), curve.rows[-1]["calls"]
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in {**curve.rows[-1], **costs[name]}.items()), flush=True)
        return solver

    start = enter("supervised", lambda look: supervised(case, physics, training, budget.supervised, seed))
    for weight in (case.effort_weight, *case.front):
        name, weighted = f"dp, {weight:g}" if weight in case.front else "dp", replace(case, effort_weight=weight)
        train = partial(through_solver, weighted, start, training, budget.through_solver, seed, LOOKS)
        enter(name, train)
    if importlib.util.find_spec("stable_baselines3"):
        from control_rl import model_free

        enter("model-free", partial(model_free, case.exploring, physics, training, budget.model_free, seed, LOOKS))
    else:
        print('without model-free control, which needs stable-baselines3: pip install -c constraints.txt -e ".[rl]"')
    began = time.perf_counter()
    states["optimised"], calls = optimised(case.smooth, physics, held_out, budget.optimised)
    costs["optimised"] = {"seconds": (time.perf_counter() - began) / len(held_out), "calls": calls}
    states["data"] = tuple(s[:, 1:] for s in held_out.states)
    free = {"calls": 0, "seconds": 0.0}
    rows = {n: {**errors(case, s, states["source"], held_out), **costs.get(n, free)} for n, s in states.items()}
    rows["dp"]["break_even"] = rows["dp"]["calls"] / calls  # uses after which the training has paid for itself
    return rows, {name: curve.rows for name, curve in curves.items()}, states, held_out


def main() -> None:
    parser = arguments(__doc__, "control_burgers")
    parser.add_argument("--case", choices=list(CASES), default="burgers")
    options = parser.parse_args()
    require_cpu(options.device)
    torch.set_num_threads(1)
    case = CASES[options.case]
    factor = case.quick if options.quick else 3 if options.full else 1
    case = replace(case, budget=case.budget.times(factor))
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        rows, curves, states, held_out = compare(case, seed)
        per_seed.append(rows)
        print(
            f"\nseed {seed}, {len(held_out)} held-out pairs\n{seed_table([rows], ['error', 'force', 'calls', 'seconds'])}"
        )
        if seed == options.seed:
            save_figures(options.out, figures(case, curves, states, held_out, options.out))
    if options.seeds > 1:
        print(f"\nmedian [smallest, largest]\n{seed_table(per_seed, ['error', 'force', 'calls'])}")
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
