"""Train on trajectories that the reference computes meanwhile, or on a stored set that took the same time?

A correction of a coarse solver for a range of viscosities and amplitudes, both drawn at random: Burgers' equation in 1D
(256 cells → 64) and decaying turbulence in 2D (64² → 32²). `stream_R` trains on a `Stream`, a new block of which comes
every R updates. `stored_N` trains on N stored trajectories of the same distribution. All have the same processor time,
that of the reference included, so that streams make fewer updates. All unroll 4 steps, with a rate that falls like a
cosine over the updates of each. Test trajectories have parameters and initial states that none has seen.

    python demos/studies/stream_or_stored.py [--case burgers|turbulence] [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math as m
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lab
import torch
from matplotlib.figure import Figure
from phi.field import Field
from phi.torch.flow import Tensor, advect, batch, diffuse, math, res_net

import phi_hybrid as ph
from phi_hybrid.data import Stream
from phi_hybrid.pde import burgers
from phi_hybrid.pde import navier_stokes as ns

UNROLL = 4
COSTS = "updates", "trajectories", "seconds", "MiB"


@dataclass(frozen=True)
class Case:
    """A flow, and the sizes of its study."""

    step: Callable[[int], Callable]
    """Cells → coarse-sized step `state, viscosity -> state`."""
    initial: Callable[[int, int, int], Field]
    """Cells, trajectories, seed → states."""
    viscosities: tuple[float, float]
    fine: int
    coarse: int
    every: int
    dims: int
    steps: int = 16
    updates: int = 3000
    """That the time allows without generating anything."""
    batch: int = 8
    streams: tuple[tuple[int, int], ...] = ((4, 4), (8, 16))
    """Blocks kept, and updates for each new one."""
    stored: tuple[int, ...] = (8, 32, 128)
    test_steps: int = 64

    def draw(self, count: int) -> tuple[Field, Tensor]:
        """Random waves of random amplitude, and viscosities, logarithmically uniform."""
        seed = int(torch.randint(0, 2**31, ()))
        low, high = map(m.log, self.viscosities)
        amplitude, exponent = (math.random_uniform(batch(trajectory=count)) for _ in range(2))
        return self.initial(self.fine, count, seed) * (0.5 + amplitude), math.exp(low + (high - low) * exponent)

    def stream(self, seed: int, **settings: int) -> Stream:
        settings = {"steps": self.steps, "trajectories": self.batch, **settings}
        factor = self.fine // self.coarse
        return Stream(self.reference, self.draw, seed=seed, coarsen=factor, every=self.every, **settings)

    @property
    def reference(self) -> ph.PhysicsBlock:
        return ph.capture(self.step(self.fine))


def burgers_step(cells: int) -> Callable:
    """Half a coarse time step on the fine grid, MacCormack advection and explicit diffusion."""
    dt = 0.05 * (64 / cells if cells > 64 else 1)
    substeps = burgers.diffusion_substeps(0.05, dt, 2 * m.pi / cells, 1)

    def step(u: Field, viscosity: Tensor) -> Field:
        return diffuse.explicit(advect.mac_cormack(u, u, dt), viscosity, dt, substeps=substeps)

    return step


def burgers_waves(cells: int, count: int, seed: int) -> Field:
    return burgers.waves_1d(burgers.line(cells, 2 * m.pi), count, None, (1, 4), 5, amplitude=0.5, seed=seed)


def turbulence_step(cells: int) -> Callable:
    dt = 0.1 * (32 / cells)
    substeps = ns.diffusion_substeps(1e-2, dt, 2 * m.pi / cells, 2)
    return ns.navier_stokes_step(dt, substeps, advect.mac_cormack)


def turbulence_waves(cells: int, count: int, seed: int) -> Field:
    return ns.divergence_free_noise(ns.periodic_square(cells), count, 5, 1.5, seed)


CASES = {
    "burgers": Case(burgers_step, burgers_waves, (0.005, 0.05), fine=256, coarse=64, every=4, dims=1),
    "turbulence": Case(
        turbulence_step, turbulence_waves, (1e-3, 1e-2), 64, 32, 2, 2, updates=600, batch=4, test_steps=32
    ),
}


def new_solver(case: Case, seed: int) -> ph.HybridSolver:
    """Sees the state and the logarithm of the viscosity, which is an input of the step."""
    torch.manual_seed(seed)
    network = res_net(case.dims + 1, case.dims, [32, 32, 32], periodic=True, in_spatial=case.dims)
    return ph.HybridSolver(ph.capture(case.step(case.coarse)), network)


def trained(case: Case, data: Stream | ph.Trajectories, updates: int, seed: int) -> ph.HybridSolver:
    solver = new_solver(case, seed)
    lab.adam(solver, data, ph.Unrolled(UNROLL), updates, 1e-3, case.batch, seed).fit(updates)
    return solver


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """Result and processor time, which other programs of the machine do not change much."""
    began = time.process_time()
    return function(*args), time.process_time() - began


def run(case: Case, seed: int) -> tuple[lab.Rows, Callable]:
    test = case.stream(1000 + seed, steps=case.test_steps).stored(32 // case.batch)
    solvers, rows = {"source": ph.capture(case.step(case.coarse))}, {"source": dict.fromkeys(COSTS, 0)}
    per_update, per_block = prices(case, seed)
    for keep, reuse in case.streams:
        name, stream = f"stream_{reuse}", case.stream(seed, keep=keep, reuse=reuse)
        updates = round((case.updates * per_update - keep * per_block) / (per_update + per_block / reuse))
        solvers[name], spent = timed(trained, case, stream, updates, seed)
        rows[name] = costs(updates, case.batch * stream.computed, spent, stream.at(0))
    for count in case.stored:
        stored, generating = timed(case.stream(seed).stored, count // case.batch)
        updates, name = max(50, round(case.updates - generating / per_update)), f"stored_{count}"
        solvers[name], spent = timed(trained, case, stored, updates, seed)
        rows[name] = costs(updates, count, spent + generating, stored)
    evaluation = ph.evaluate(solvers, test, batch_size=32)
    summary = evaluation.summary((case.test_steps // 4,))
    metrics = {name: {**summary[name], **row} for name, row in rows.items()}
    return metrics, lambda: figures(evaluation)


def prices(case: Case, seed: int) -> tuple[float, float]:
    """Seconds of an update and of a block."""
    stream = case.stream(seed)
    sample = stream.block(0)  # captures the reference
    per_block = min(timed(stream.block, n)[1] for n in range(1, 5))
    trainer = lab.adam(new_solver(case, seed), sample, ph.Unrolled(UNROLL), 100, 1e-3, case.batch, seed)
    trainer.fit(5)
    return timed(trainer.fit, 45)[1] / 40, per_block


def costs(updates: int, trajectories: int, seconds: float, data: ph.Trajectories) -> dict[str, float]:
    """What a method spent, and how much of its data is in memory at once."""
    return dict(zip(COSTS, (updates, trajectories, seconds, size(data))))


def size(data: ph.Trajectories) -> float:
    """MiB in memory."""
    return sum(t.numel() * t.element_size() for t in (*data.states, *data.inputs)) / 2**20


def figures(evaluation: ph.evaluation.Evaluation) -> dict[str, Figure]:
    return {"errors": ph.plot.errors(evaluation.curves())}


def main() -> None:
    options = lab.options(__doc__, "stream_or_stored", case={"choices": list(CASES), "default": "burgers"})
    case = CASES[options.case]
    case = replace(case, updates=round(case.updates * lab.share(options, 0.05)))
    columns = ["mae", f"mae_{case.test_steps // 4}", "nrmse", *COSTS]
    lab.study(options, lambda seed: run(case, seed), columns)


if __name__ == "__main__":
    main()
