"""Train the correction of a coarse Burgers solver with half-inverse gradients and with other optimizers, in equal time.

Data and solvers are those of burgers_correction.py: the reference has 512 cells, the solver that is corrected 64; the
network has 1.7k weights. The loss is that of 4 unrolled steps; `adam_one_step` is trained on single steps, but judged
alike. All learning rates fall like a cosine over the time. Errors are on trajectories not seen in training. The training
would be paid back by rollouts that are cheaper than those of the coarsest plain solver that is as accurate; in one dimension
they are not, since the network takes longer than the reference solver.

    python demos/hig_burgers.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from burgers_correction import LINE, Case, physics, reference_data
from common import arguments, require_device, save_figures, seed_table, write_metrics
from contest import LOOKS, figure
from phi.field import Field
from phiml.nn import conv_net

import phi_hybrid as ph
from phi_hybrid.data import coarsening as coarsen
from phi_hybrid.optim import HIG, GolubKahan, Smooth, Update

STEPS, LOOKED_AT, HORIZON = 4, 256, 50
SECONDS = 60


@dataclass(frozen=True)
class Entrant:
    """An optimizer of a solver, and what it looks at."""

    make: Callable[[ph.HybridSolver], torch.optim.Optimizer]
    batch: int
    steps: int = STEPS


def hig(kappa: float, lr: float) -> Callable[[ph.HybridSolver], HIG]:
    """Rates are large because the loss is a mean over 256 numbers; a whole Gauss–Newton step has 256·σ²/2 = 32."""
    return lambda solver: HIG(solver, lr, kappa, Smooth(0.01), engine=GolubKahan(0.1), progress=False)


ENTRANTS = {
    "adam_one_step": Entrant(lambda solver: torch.optim.Adam(solver.parameters(), 1e-2), 16, steps=1),
    "adam": Entrant(lambda solver: torch.optim.Adam(solver.parameters(), 1e-2), 16),
    "gauss_newton": Entrant(hig(1.0, 32), 16),
    "hig": Entrant(hig(0.5, 48), 16),
}


def untrained(case: Case, seed: int) -> ph.HybridSolver:
    torch.manual_seed(seed)
    return ph.HybridSolver(physics(case, case.coarse), conv_net(2, 1, [16, 16, 16], in_spatial=1, periodic=True))


def train(
    solver: ph.HybridSolver, data: dict[str, ph.Trajectories], entrant: Entrant, seconds: float, seed: int
) -> tuple[dict[str, list[float]], Update | None]:
    """Until the time is over, with `data['loss']`; returns the history and the last update, as in contest.py."""
    optimizer = entrant.make(solver)
    rate = optimizer.param_groups[0]["lr"]
    settings = dict(optimizer=optimizer, batch_size=entrant.batch, seed=seed, progress=False)
    trainer = ph.Trainer(solver, data["loss"], ph.Unrolled(entrant.steps), **settings)
    history = {"seconds": [0.0], "updates": [0], **{name: [windows_loss(solver, d)] for name, d in data.items()}}
    used = 0.0
    for look in range(1, LOOKS + 1):
        while used < seconds * look / LOOKS:
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * used / seconds)) / 2
            began = time.perf_counter()
            trainer.fit(trainer.update + 1)
            used += time.perf_counter() - began
        now = {
            "seconds": used,
            "updates": trainer.update,
            **{name: windows_loss(solver, d) for name, d in data.items()},
        }
        for key, value in now.items():
            history[key].append(value)
    return history, getattr(optimizer, "last", None)


@torch.no_grad()
def windows_loss(solver: ph.HybridSolver, data: ph.Trajectories) -> float:
    """The loss of evenly spaced windows."""
    windows, objective = data.windows(STEPS), ph.Unrolled(STEPS)
    apart = max(len(windows) // LOOKED_AT, 1)
    batch = windows.collate([windows[i] for i in range(0, len(windows), apart)])
    return float(objective.loss(objective.outputs(solver, batch), batch))


def rollout_seconds(step: Callable, data: ph.Trajectories) -> tuple[Field, float]:
    """All rollouts at once, and the time of each."""
    arguments = (data.initial_state, data.steps, *data.step_inputs)
    ph.rollout(step, data.initial_state, 2, *data.step_inputs)  # captures
    began = time.perf_counter()
    found = ph.rollout(step, *arguments, check=False)
    return found, (time.perf_counter() - began) / len(data)


def plain_solvers(case: Case, seed: int) -> dict[str, dict[str, float]]:
    """Error, on the coarse grid, and time of the solver without network on finer and finer grids, the reference's last."""
    found = {}
    for factor in (1, 2, 4, 8):
        _, test = reference_data(replace(case, coarse=factor * case.coarse), seed)
        states, seconds = rollout_seconds(physics(case, factor * case.coarse), test)
        error = abs(coarsen(states, factor) - coarsen(test.trajectory, factor)).values.time[1:]
        name = "source" if factor == 1 else f"plain_{factor * case.coarse}"
        found[name] = {"mae": float(error.mean), "rollout_seconds": seconds}
    return found


def break_even(row: dict[str, float], plain: dict[str, dict[str, float]]) -> float:
    """Rollouts after which the training is paid back, against the coarsest plain solver that is as accurate."""
    other = next(p["rollout_seconds"] for p in plain.values() if p["mae"] <= row["mae"])
    saved = other - row["rollout_seconds"]
    return row["seconds"] / saved if saved > 0 else math.inf


def compete(case: Case, seconds: float, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Every entrant trains the same initial solver; returns metrics and what `figure` draws."""
    training, test = reference_data(case, seed)
    plain, source = plain_solvers(case, seed), physics(case, case.coarse)
    metrics = {name: dict(row) for name, row in plain.items()}
    metrics["source"].update(ph.evaluate({"source": source}, test).summary((HORIZON,))["source"])
    drawn = {}
    for name, entrant in ENTRANTS.items():
        solver = untrained(case, seed)
        history, last = train(solver, {"loss": training, "held_out": test}, entrant, seconds, seed)
        drawn[name] = (history, None if last is None else last.singular_values)
        row = {key: values[-1] for key, values in history.items()}
        row.update(ph.evaluate({name: solver}, test).summary((HORIZON,))[name])
        row["rollout_seconds"] = rollout_seconds(solver, test)[1]
        metrics[name] = {**row, "break_even": break_even(row, plain)}
    return metrics, drawn


def main() -> None:
    options = arguments(__doc__, "hig_burgers").parse_args()
    require_device(options.device)
    torch.set_num_threads(1)  # 64 cells are too few to share
    seconds = SECONDS * (0.1 if options.quick else 3 if options.full else 1)
    case = replace(LINE, trajectories=LINE.trajectories // 2) if options.quick else LINE
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        metrics, drawn = compete(case, seconds, seed)
        per_seed.append(metrics)
        for name, row in metrics.items():
            shown = ("loss", "held_out", "mae", f"mae_{HORIZON}", "updates", "rollout_seconds", "break_even")
            print(f"seed {seed}, {name}: " + ", ".join(f"{k} {row[k]:.4g}" for k in shown if k in row))
        if seed == options.seed:
            save_figures(options.out, {"training": figure(drawn)})
    rows = [{name: run[name] for name in ENTRANTS} for run in per_seed]
    print(seed_table(rows, ["loss", "held_out", "mae", f"mae_{HORIZON}"]))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
