"""Correct a coarse solver of a smoke plume around an obstacle with a network that is trained through the solver.

Smoke flows into a closed box at random places, rises, and meets a cylinder. The reference has 64×80 cells and two steps for
each of the coarse solver, which has 16×20. The network corrects velocity and smoke, and is told where the cylinder is. Its
last layer is zero at first, so that every training starts from the source solver. All methods make the same
number of updates; `one_step_long` makes nine times as many, in the time of `unrolled_16`. Every training is looked at on
the way, on validation trajectories.

    python demos/studies/plume_correction.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import lab
import torch
from matplotlib.figure import Figure
from phi import math
from phi.geom import Box, UniformGrid
from phi.math import Tensor, batch, channel, spatial, wrap
from phi.torch.flow import Obstacle, Sphere, res_net, vec

import phi_hybrid as ph
from phi_hybrid.evaluation import Evaluation
from phi_hybrid.pde import smoke
from phi_hybrid.training import AveragedWeights, Callback, losses

DT, BUOYANCY, SIZE = 1.0, 0.1, (32.0, 40.0)
ON_THE_WAY = (100, 200, 400, 800, 1600, 2400)
"""Updates after which a training is looked at in the table."""
CYLINDER = Obstacle(Sphere(vec(x=16.0, y=22.0), radius=4.0))


@dataclass(frozen=True)
class Method:
    """How a network is trained: unrolled steps in the first half, the third and the last quarter of the updates."""

    steps: tuple[int, int, int]
    noise: ph.Noise | None = None
    coupling: ph.coupling.Coupling = field(default_factory=ph.coupling.After)
    longer: int = 1  # multiple of the updates

    def objective(self, updates: int) -> ph.Curriculum:
        """Absolute errors of all steps, in which small errors of early times count."""
        starts = [0, updates // 2, updates * 3 // 4]
        found = (ph.Unrolled(n, losses.Losses({"state": losses.L1()}), noise=self.noise) for n in self.steps)
        return ph.Curriculum(dict(zip(starts, found)))


METHODS = {
    "one_step": Method((1, 1, 1)),
    "noise": Method((1, 1, 1), ph.Noise(0.02)),
    "unrolled_4": Method((4, 4, 4)),
    "unrolled_16": Method((4, 8, 16)),
    "network_alone": Method((4, 4, 4), coupling=ph.coupling.Replacement()),
    "one_step_long": Method((1, 1, 1), longer=9),
}


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    coarse: tuple[int, int] = (16, 20)
    finer: int = 4
    every: int = 2  # fine steps per coarse step
    spin_up: int = 10  # coarse steps before the first stored one
    steps: int = 40
    training: int = 512
    validation: int = 8
    test: int = 16
    updates: int = 2400
    batch: int = 8
    rate: float = 4e-3
    filters: tuple[int, ...] = (32,) * 6


def physics(dt: float, compile: bool = False) -> ph.PhysicsBlock:
    """The solver, captured for each grid that it is called on."""
    return ph.capture(smoke.smoke_step(dt, BUOYANCY, [CYLINDER]), compile=compile)


def reference_data(case: Case, seed: int) -> tuple[ph.Trajectories, ...]:
    """Trajectories of training, with their mirror images, validation and test; each has its place of the inflow."""
    x, y = (n * case.finer for n in case.coarse)
    air = smoke.still_air(x, y, SIZE[0] / x)
    held_out = case.validation + case.test
    count = held_out + case.training
    random = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    places = random * torch.tensor([16.0, 4.0]) + torch.tensor([8.0, 4.0])
    inflow = smoke.inflow_at(wrap(places, batch("trajectory"), channel(vector="x,y")), 3.0, 0.2, air["smoke"])
    fine = physics(DT / case.every)
    start = ph.repeat(fine, air, case.spin_up * case.every, inflow)
    about = dict(coarsen=case.finer, every=case.every, metadata={"dt": DT, "seed": seed})
    everything = ph.Trajectories.generate(fine, start, case.steps, (inflow,), **about)
    others, training = everything.split(held_out)
    return ph.Trajectories.concat(training, mirrored(training)), *others.split(case.validation)


def mirrored(data: ph.Trajectories) -> ph.Trajectories:
    """The box and the cylinder in it are symmetric about x = 16, so that mirror images of solutions are solutions."""
    u, v, density = (part.flip(2) for part in data.states)
    return replace(data, states=(-u, v, density), inputs=tuple(part.flip(1) for part in data.inputs))


def places(case: Case) -> tuple[Tensor, Tensor]:
    """Where the cylinder is, which convolutions do not know: its share, smoothed over a cell; how near it is, 1 inside."""
    box = Box(x=SIZE[0], y=SIZE[1])
    centres = UniformGrid(spatial(x=case.coarse[0], y=case.coarse[1]), box).center
    distance = CYLINDER.geometry.approximate_signed_distance(centres)
    solid = math.sigmoid(-2 * distance * case.coarse[0] / SIZE[0])
    near = math.exp(-math.maximum(distance, 0) / 4.0)
    return solid, near


def correction(case: Case) -> torch.nn.Module:
    """Network from velocity, smoke, inflow and places to velocity and smoke, zero at first."""
    network = res_net(6, 3, list(case.filters))
    for parameter in network.Res_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network.to(memory_format=torch.channels_last)  # faster


def hybrid(method: Method, source: ph.PhysicsBlock, case: Case) -> ph.HybridSolver:
    """The solver before its training."""
    return ph.HybridSolver(source, correction(case), method.coupling, features=places(case))


class Clock(Callback):
    """Processor time of the updates, without looks at anything else."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def before_update(self, trainer: ph.Trainer) -> None:
        self._began = time.process_time()

    def after_update(self, trainer: ph.Trainer, loss: float) -> None:
        self.seconds += time.process_time() - self._began


def trained(
    method: Method, source: ph.PhysicsBlock, case: Case, data: tuple[ph.Trajectories, ...], seed: int
) -> tuple[ph.HybridSolver, dict[int, float], float]:
    """Solver; updates → error on the validation on the way; processor time of the updates."""
    torch.manual_seed(seed)
    solver, updates, clock = hybrid(method, source, case), method.longer * case.updates, Clock()
    optimizer = torch.optim.Adam(solver.parameters())
    # warms up over as many updates in every method, then falls like a cosine
    rates = dict(max_lr=case.rate, total_steps=updates, pct_start=0.03 / method.longer, cycle_momentum=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, **rates)
    settings = dict(batch_size=case.batch, clip=1.0, seed=seed, callbacks=[clock, AveragedWeights(0.98)])
    settings |= dict(optimizer=optimizer, scheduler=schedule, validation=data[1], validate_every=100)
    trainer = ph.Trainer(solver, data[0], method.objective(updates), **settings)
    looks = trainer.fit(updates)["validation"]
    return solver, dict(zip(looks["update"], looks["mae"])), clock.seconds


def run(case: Case, seed: int) -> tuple[lab.Rows, Callable]:
    data = reference_data(case, seed)
    source, found = physics(DT), {}
    for name, method in METHODS.items():
        found[name] = trained(method, source, case, data, seed)
    solvers = {"source": source, **{name: solver for name, (solver, *_) in found.items()}}
    evaluation, before = ph.evaluate(solvers, data[2]), ph.evaluate({"source": source}, data[1]).mae["source"].mean()
    rows = lab.against_source(evaluation)
    for name, (_, looks, seconds) in found.items():
        ratios = {n: mae / float(before) for n, mae in looks.items()}
        rows[name] |= {"updates": METHODS[name].longer * case.updates, "seconds": seconds}
        rows[name] |= {f"after {n}": ratios[n] for n in ON_THE_WAY if n in ratios}
        rows[name]["worst look"] = max(ratios.values(), default=0.0)
    return rows, lambda: figures(evaluation, solvers, data[2])


def figures(evaluation: Evaluation, solvers: dict, test: ph.Trajectories) -> dict[str, Figure]:
    """Figures by name."""
    shown = {name: solvers[name] for name in ("source", "unrolled_4")}
    rollouts = {n: ph.rollout(s, test.initial_state, test.steps, *test.step_inputs) for n, s in shown.items()}
    show = dict(reference="reference", dt=DT, part="smoke", times=4)
    title = "Smoke around a cylinder, unseen place of the inflow"
    return {
        "rollout": ph.plot.rollout({"reference": test.trajectory, **rollouts}, **show, title=title),
        "errors": ph.plot.errors(evaluation.curves(), dt=DT),
    }


def main() -> None:
    options = lab.options(__doc__, "plume_correction")
    case = Case()
    if options.quick:
        case = replace(case, training=6, validation=2, test=2, steps=16, updates=20)
    if options.full:
        case = replace(case, training=1024, updates=7200)
    errors = ["mae", "/ source", "worst time", "mae_10", "mae velocity", "mae smoke", "blow_up", "updates", "seconds"]
    on_the_way = ["worst look", *(f"after {n}" for n in ON_THE_WAY)]
    lab.study(options, lambda seed: run(case, seed), errors, on_the_way)


if __name__ == "__main__":
    main()
