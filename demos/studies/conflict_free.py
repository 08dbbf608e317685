"""Data, constraint and conservation in one loss: a tuned weighted sum, or gradients combined without conflict?

A coarse solver is corrected by a network that may break what the physics keeps. Its loss has three terms: the distance from
the reference, and two that say what should hold.

    turbulence   decaying flow in 2D, 64² → 32²: divergence, energy; the correction comes after the projection
    smoke        advection by a fixed vortical flow, 64² → 32²: mass, no negative smoke
    burgers      Burgers' equation in 1D, 256 → 64: momentum, energy

`sum_1` weights both constraints by 1. `tuned` is the sum whose weight of 0.01, 0.1, 1 and 10 was best on validation
trajectories, by the geometric mean of the three errors. `ConFIG` and `PCGrad` have weight 1 and no parameter. All make
equally many updates, 4 steps unrolled; a backward pass for each term makes theirs slower, see `seconds`. `sum_1_long` is the
sum with as many more updates as that takes.

    python demos/studies/conflict_free.py [--case turbulence|smoke|burgers] [--rate 1e-3] [--quick | --full] [--seed N] [--seeds N]
        [--out DIR]
"""

from __future__ import annotations

import math as m
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lab
import torch
from phi.field import Field
from phi.torch.flow import CenteredGrid, Noise, advect, batch, diffuse, field, math, res_net

import phi_hybrid as ph
from phi_hybrid import losses, metrics
from phi_hybrid.optim import ConFIG, PCGrad
from phi_hybrid.pde import burgers
from phi_hybrid.pde import navier_stokes as ns

UNROLL = 4
WEIGHTS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Method:
    """How the terms of the loss are combined."""

    weight: float = 1.0
    """Of the constraints."""
    long: bool = False
    """More updates, in about the time of a backward pass for each term."""
    combine: Any = None


@dataclass(frozen=True)
class Case:
    """A flow, what should hold of it, and the sizes of its study."""

    step: Callable[[int], Callable]
    """Cells → step."""
    initial: Callable[[int, int, int], Field]
    """Cells, trajectories, seed → states."""
    terms: Mapping[str, losses.Term]
    """The constraints of the loss."""
    measured: Mapping[str, metrics.Metric]
    """How far each is from what should hold."""
    fine: int = 64
    coarse: int = 32
    every: int = 2
    dims: int = 2
    channels: int = 2
    steps: int = 32
    updates: int = 400
    long: float = 2.1  # times as many updates, in about the time of `ConFIG` and `PCGrad`
    batch: int = 4
    rate: float = 1e-3
    trajectories: int = 8

    def data(self, seed: int) -> tuple[ph.Trajectories, ph.Trajectories, ph.Trajectories]:
        """Training, validation and test trajectories."""
        start = self.initial(self.fine, 3 * self.trajectories, seed)
        about = dict(coarsen=self.fine // self.coarse, every=self.every, progress=False)
        data = ph.Trajectories.generate(ph.capture(self.step(self.fine)), start, self.steps, **about)
        training, held_out = data.split(self.trajectories)
        return training, *held_out.split(self.trajectories)


# --- flows ---


def turbulence_step(cells: int) -> Callable:
    dt = 0.1 * 32 / cells
    flow = ns.navier_stokes_step(dt, ns.diffusion_substeps(2e-3, dt, 2 * m.pi / cells, 2), advect.mac_cormack)
    return lambda velocity: flow(velocity, 2e-3)


def smoke_step(cells: int) -> Callable:
    dt = 0.1 * 32 / cells
    wind = ns.divergence_free_noise(ns.periodic_square(cells), 1, 3, 1.5, 0).trajectory[0]
    return lambda smoke: advect.mac_cormack(smoke, wind, dt)


def clouds(cells: int, count: int, seed: int) -> Field:
    torch.manual_seed(seed)
    grid = ns.periodic_square(cells)
    noise = CenteredGrid(Noise(batch(trajectory=count), scale=2), grid.boundary, grid.bounds, grid.resolution)
    return noise.with_values(math.maximum(noise.values, 0))


def burgers_step(cells: int) -> Callable:
    dt = 0.05 * (64 / cells)
    substeps = burgers.diffusion_substeps(0.01, dt, 2 * m.pi / cells, 1)
    return lambda u: diffuse.explicit(advect.mac_cormack(u, u, dt), 0.01, dt, substeps=substeps)


def undershoot(smoke: Field) -> Field:
    return smoke.with_values(math.minimum(smoke.values, 0))


def below_zero(smoke: Field) -> Any:
    """Negative share of the smoke."""
    negative, all_of_it = (math.sum(v, v.shape.spatial) for v in (-math.minimum(smoke.values, 0), abs(smoke.values)))
    return negative / all_of_it


VOLUME, LENGTH = (2 * m.pi) ** 2, 2 * m.pi
CASES = {
    "turbulence": Case(
        turbulence_step,
        lambda cells, count, seed: ns.divergence_free_noise(ns.periodic_square(cells), count, 5, 1.5, seed),
        {"divergence": losses.Vanishing(field.divergence), "energy": losses.Conserved(ph.quantities.energy, VOLUME)},
        {"divergence": metrics.Divergence(), "energy": metrics.Drift(ph.quantities.energy)},
        updates=250,
        long=1.6,
    ),
    "smoke": Case(
        smoke_step,
        clouds,
        {"mass": losses.Conserved(ph.quantities.total, VOLUME), "undershoot": losses.Vanishing(undershoot)},
        {
            "mass": metrics.Drift(ph.quantities.total),
            "undershoot": metrics.Drift(below_zero, scale=1.0),
        },
        channels=1,
    ),
    "burgers": Case(
        burgers_step,
        lambda cells, count, seed: burgers.waves_1d(
            burgers.line(cells, LENGTH), count, None, (1, 4), 5, amplitude=1.0, seed=seed
        ),
        {
            "momentum": losses.Conserved(ph.quantities.total, LENGTH),
            "energy": losses.Conserved(ph.quantities.energy, LENGTH),
        },
        {
            "momentum": metrics.Drift(ph.quantities.total, scale=LENGTH),
            "energy": metrics.Drift(ph.quantities.energy),
        },
        fine=256,
        coarse=64,
        every=4,
        dims=1,
        channels=1,
        updates=1500,
        long=1.8,
        batch=8,
    ),
}


# --- methods ---


SUMS = {f"sum_{w:g}": Method(w) for w in WEIGHTS}
METHODS = {
    "state_only": Method(0.0),
    **SUMS,
    "sum_1_long": Method(long=True),
    "ConFIG": Method(combine=ConFIG()),
    "PCGrad": Method(combine=PCGrad()),
}


def trained(case: Case, data: ph.Trajectories, method: Method, seed: int) -> ph.HybridSolver:
    """A correction trained on the state and, unless their weight is 0, on the constraints."""
    torch.manual_seed(seed)
    network = res_net(case.channels, case.channels, [32, 32], periodic=True, in_spatial=case.dims)
    solver = ph.HybridSolver(ph.capture(case.step(case.coarse)), network)
    constraints = {name: (method.weight, term) for name, term in case.terms.items()} if method.weight else {}
    objective = ph.Unrolled(UNROLL, losses=losses.Losses({"state": losses.L2(), **constraints}))
    updates = round(case.updates * (case.long if method.long else 1))
    lab.adam(solver, data, objective, updates, case.rate, case.batch, seed, combine=method.combine).fit(updates)
    return solver


def errors(case: Case, solvers: Mapping[str, Any], data: ph.Trajectories) -> dict[str, dict[str, float]]:
    """Mean over trajectories and steps: distance from the reference, and of each constraint from what should hold."""
    found = ph.evaluate(solvers, data, metrics=dict(case.measured))
    names = ["mae", *case.measured]
    return {s: {name: float(found[name][s].mean()) for name in names} for s in solvers}


def tuned(case: Case, sums: Mapping[str, ph.HybridSolver], validation: ph.Trajectories) -> str:
    """The sum with the smallest geometric mean of all errors on validation trajectories."""
    found = errors(case, sums, validation)
    score = {name: sum(m.log(max(e, 1e-12)) for e in found[name].values()) for name in sums}
    print("sum of logarithms of errors:", {name: round(s, 2) for name, s in score.items()}, flush=True)
    return min(score, key=score.get)


def run(case: Case, seed: int) -> tuple[lab.Rows, Callable]:
    training, validation, test = case.data(seed)
    solvers, seconds = {}, {}
    for name, method in METHODS.items():
        began = time.process_time()
        solvers[name] = trained(case, training, method, seed)
        seconds[name] = time.process_time() - began
    best = tuned(case, {name: solvers[name] for name in SUMS}, validation)
    found = errors(case, {"source": ph.capture(case.step(case.coarse)), **solvers}, test)
    rows = {n: {**found[n], "weight": METHODS[n].weight, "seconds": seconds[n]} for n in METHODS}
    others = {name: row for name, row in rows.items() if name not in SUMS or name == "sum_1"}
    source = {**found["source"], "weight": 0.0, "seconds": 0.0}
    return {"source": source, "tuned": rows[best], **others}, dict


def main() -> None:
    which = {"choices": list(CASES), "default": "turbulence"}
    options = lab.options(__doc__, "conflict_free", case=which, rate={"type": float, "default": 1e-3})
    case = CASES[options.case]
    case = replace(case, updates=round(case.updates * lab.share(options, 0.05)), rate=options.rate)
    lab.study(options, lambda seed: run(case, seed), ["mae", *case.measured, "weight", "seconds"])


if __name__ == "__main__":
    main()
