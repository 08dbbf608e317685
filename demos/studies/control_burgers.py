"""Control a flow from a given state to a given target with little force, by a network trained through the solver.

Burgers' equation, or with --case smoke a cloud of smoke that only forces along the walls of its box can move. A network
sees state, target and remaining time, and sets the force of every step. It is trained
  supervised   on the forces of the data, without a solver,
  dp           from there on, through all steps of the captured solver, to reach the target with little force,
  model-free   by PPO, if stable-baselines3 is installed: pip install -c constraints.txt -e ".[rl]".
`optimised` searches the forces of every sample anew, through the solver: the lower bound.

    python demos/studies/control_burgers.py [--case smoke] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lab
from control_cases import Burgers, Smoke
from control_figures import figures
from controllers import errors, optimised, pairs, run, supervised, through_solver

import phi_hybrid as ph

CASES = {"burgers": Burgers(), "smoke": Smoke()}
HELD_OUT, LOOKS = 64, 8


def compare(case: Any, seed: int, out: Path) -> tuple[lab.Rows, Callable]:
    """All controllers; metrics, and figures to draw. Held-out errors are looked at during a training, over solver calls."""
    physics, budget = case.physics(), case.budget
    training = pairs(case, physics, budget.pairs, 2 * seed)
    held_out = pairs(case, physics, 2 * HELD_OUT, 2 * seed + 1)[:HELD_OUT]
    data_calls = budget.pairs * case.steps
    states = {"source": run(physics, held_out)}
    costs, curves = {}, {}

    def enter(name: str, train: Callable) -> ph.HybridSolver:
        rows = curves[name] = []

        def look(solver: ph.HybridSolver, calls: int) -> None:
            found = errors(case, run(solver, held_out), states["source"], held_out)
            rows.append({"calls": data_calls + calls, **found})

        began = time.perf_counter()
        solver = train(look)
        costs[name] = {"seconds": time.perf_counter() - began}
        if not rows:
            look(solver, 0)
        states[name], costs[name]["calls"] = run(solver, held_out), rows[-1]["calls"]
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
    return rows, lambda: figures(case, curves, states, held_out, out)


def main() -> None:
    options = lab.options(__doc__, "control_burgers", case=dict(choices=list(CASES), default="burgers"))
    case = CASES[options.case]
    case = replace(case, budget=case.budget.times(lab.share(options, case.quick)))
    lab.study(options, lambda seed: compare(case, seed, options.out), ["error", "force", "calls", "seconds"])


if __name__ == "__main__":
    main()
