"""Train the correction of a coarse Burgers solver with half-inverse gradients and with other optimizers, in equal time.

Data and solvers are those of flows.py: the reference has 512 cells, the solver that is corrected 64; the
network has 1.7k weights. The loss is that of 4 unrolled steps; `adam_one_step` is trained on single steps, but judged
alike. All learning rates fall like a cosine over the time. Errors are on trajectories not seen in training. The training
would be paid back by rollouts that are cheaper than those of the coarsest plain solver that is as accurate; in one dimension
they are not, since the network takes longer than the reference solver.

    python demos/studies/hig_burgers.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import lab
import torch
from contest import cosine, curves, last, race, uses_to_pay
from flows import LINE, Burgers
from phi.field import Field
from phi.torch.flow import conv_net

import phi_hybrid as ph
from phi_hybrid.data import coarsen
from phi_hybrid.optim import HIG, GolubKahan, Smooth

STEPS, LOOKED_AT, HORIZON, LOOKS, SECONDS = 4, 256, 50, 40, 60


@dataclass(frozen=True)
class Entrant:
    """An optimizer of a solver, and the unrolled steps that it looks at; 16 windows per update."""

    make: Callable[[ph.HybridSolver], torch.optim.Optimizer]
    steps: int = STEPS


def hig(kappa: float, lr: float) -> Callable[[ph.HybridSolver], HIG]:
    """Rates are large because the loss is a mean over 256 numbers; a whole Gauss–Newton step has 256·σ²/2 = 32."""
    return lambda solver: HIG(solver, lr, kappa, Smooth(0.01), engine=GolubKahan(0.1), progress=False)


ENTRANTS = {
    "adam_one_step": Entrant(lambda solver: torch.optim.Adam(solver.parameters(), 1e-2), steps=1),
    "adam": Entrant(lambda solver: torch.optim.Adam(solver.parameters(), 1e-2)),
    "gauss_newton": Entrant(hig(1.0, 32)),
    "hig": Entrant(hig(0.5, 48)),
}


def untrained(case: Burgers, seed: int) -> ph.HybridSolver:
    """The coarse solver with a network of random weights."""
    torch.manual_seed(seed)
    return ph.HybridSolver(case.physics(case.coarse), conv_net(2, 1, [16, 16, 16], in_spatial=1, periodic=True))


def train(
    solver: ph.HybridSolver, data: dict[str, ph.Trajectories], entrant: Entrant, seconds: float, seed: int
) -> tuple[dict[str, list[float]], torch.optim.Optimizer]:
    """Training on `data['loss']` until the time is over; losses of all data by name."""
    optimizer = entrant.make(solver)
    rate = optimizer.param_groups[0]["lr"]
    settings = dict(optimizer=optimizer, batch_size=16, seed=seed, progress=False)
    trainer = ph.Trainer(solver, data["loss"], ph.Unrolled(entrant.steps), **settings)

    def update(share: float) -> None:
        optimizer.param_groups[0]["lr"] = rate * cosine(share)
        trainer.fit(trainer.update + 1)

    def look() -> dict[str, float]:
        return {name: windows_loss(solver, part) for name, part in data.items()}

    clock = time.perf_counter if next(solver.parameters()).is_cuda else time.process_time
    return race([(lambda: update, 1.0)], look, seconds, LOOKS, clock), optimizer


@torch.no_grad()
def windows_loss(solver: ph.HybridSolver, data: ph.Trajectories) -> float:
    """Loss of evenly spaced windows."""
    windows, objective = data.windows(STEPS), ph.Unrolled(STEPS)
    apart = max(len(windows) // LOOKED_AT, 1)
    batch = windows.collate([windows[i] for i in range(0, len(windows), apart)])
    return float(objective.loss(objective.outputs(solver, batch), batch))


def rollout_seconds(step: Callable, data: ph.Trajectories) -> tuple[Field, float]:
    """All rollouts at once, and the time of each."""
    ph.rollout(step, data.initial_state, 2, *data.step_inputs)  # captures
    began = time.perf_counter()
    found = ph.rollout(step, data.initial_state, data.steps, *data.step_inputs, check=False)
    return found, (time.perf_counter() - began) / len(data)


def plain_solvers(case: Burgers, seed: int) -> lab.Rows:
    """Error, on the coarse grid, and time of the solver without network on finer and finer grids, the reference's last."""
    found = {}
    for factor in (1, 2, 4, 8):
        cells = factor * case.coarse
        _, test = replace(case, coarse=cells).data(seed)
        states, seconds = rollout_seconds(case.physics(cells), test)
        error = abs(coarsen(states, factor) - coarsen(test.trajectory, factor)).values.time[1:]
        name = "source" if factor == 1 else f"plain_{cells}"
        found[name] = {"mae": float(error.mean), "rollout_seconds": seconds}
    return found


def break_even(row: dict[str, float], plain: lab.Rows) -> float:
    """Rollouts after which the training is paid back, against the coarsest plain solver that is as accurate."""
    other = next(p["rollout_seconds"] for p in plain.values() if p["mae"] <= row["mae"])
    return uses_to_pay(row["seconds"], other - row["rollout_seconds"])


def compete(case: Burgers, seconds: float, seed: int) -> tuple[lab.Rows, Callable]:
    """The same initial solver, trained by every entrant; metrics, and figures to draw."""
    training, test = case.data(seed)
    plain, source = plain_solvers(case, seed), case.physics(case.coarse)
    metrics = {name: dict(row) for name, row in plain.items()}
    metrics["source"].update(ph.evaluate({"source": source}, test).summary((HORIZON,))["source"])
    histories, spectra = {}, {}
    for name, entrant in ENTRANTS.items():
        solver = untrained(case, seed)
        histories[name], optimizer = train(solver, {"loss": training, "held_out": test}, entrant, seconds, seed)
        if isinstance(optimizer, HIG):
            spectra[name] = optimizer.last.singular_values
        row = last(histories[name]) | ph.evaluate({name: solver}, test).summary((HORIZON,))[name]
        row["rollout_seconds"] = rollout_seconds(solver, test)[1]
        metrics[name] = {**row, "break_even": break_even(row, plain)}
    return metrics, lambda: {"training": curves(histories, [("seconds", "loss"), ("updates", "loss")], spectra)}


def main() -> None:
    options = lab.options(__doc__, "hig_burgers", ["cpu", "cuda"])
    seconds = SECONDS * lab.share(options, 0.1)
    case = replace(LINE, trajectories=LINE.trajectories // 2) if options.quick else LINE
    errors = ["mae", "rollout_seconds"]
    lab.study(
        options,
        lambda seed: compete(case, seconds, seed),
        errors,
        ["loss", "held_out", f"mae_{HORIZON}", "updates", "break_even"],
    )


if __name__ == "__main__":
    main()
