"""Correct a coarse solver of a smoke plume around an obstacle with a network that is trained through the solver.

Smoke flows into a closed box at random places, rises, and meets a cylinder. The reference has 64×80 cells and two steps for
each of the coarse solver, which has 16×20. The network corrects velocity and smoke. Its last layer is zero at first, so that
every training starts from the source solver. All methods make the same number of updates; then the cheaper ones are trained
again, for as long as the dearest has taken (processor time).

    python demos/studies/plume_correction.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import lab
import torch
from matplotlib.figure import Figure
from phi.math import batch, channel, wrap
from phi.torch.flow import Obstacle, Sphere, res_net, vec

import phi_hybrid as ph
from phi_hybrid.evaluation import Evaluation
from phi_hybrid.pde import smoke
from phi_hybrid.training import losses

DT, BUOYANCY, SIZE = 1.0, 0.1, (32.0, 40.0)
CYLINDER = Obstacle(Sphere(vec(x=16.0, y=22.0), radius=4.0))


@dataclass(frozen=True)
class Method:
    """How a network is trained: unrolled steps in the first and in the second half of the updates, noise, coupling."""

    steps: tuple[int, int]
    noise: ph.Noise | None = None
    coupling: ph.coupling.Coupling = field(default_factory=ph.coupling.After)

    def objective(self, half: int) -> ph.Unrolled:
        """Absolute errors of all steps, in which small errors of early times count."""
        return ph.Unrolled(self.steps[half], losses.Losses({"state": losses.L1()}), noise=self.noise)


METHODS = {
    "one_step": Method((1, 1)),
    "noise": Method((1, 1), ph.Noise(0.02)),
    "unrolled_4": Method((4, 4)),
    "unrolled_16": Method((4, 16)),
    "network_alone": Method((4, 4), coupling=ph.coupling.Replacement()),
}


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    coarse: tuple[int, int] = (16, 20)
    finer: int = 4
    every: int = 2  # fine steps per coarse step
    spin_up: int = 10  # coarse steps before the first stored one
    steps: int = 40
    training: int = 24
    test: int = 8
    updates: int = 200
    batch: int = 4
    filters: tuple[int, ...] = (32, 32, 32)


def physics(dt: float) -> ph.PhysicsBlock:
    """The solver, captured for each grid that it is called on."""
    return ph.capture(smoke.smoke_step(dt, BUOYANCY, [CYLINDER]))


def reference_data(case: Case, seed: int = 0) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Training and test trajectories, which differ in the place of the inflow, coarsened."""
    x, y = (n * case.finer for n in case.coarse)
    air = smoke.still_air(x, y, SIZE[0] / x)
    random = torch.rand(case.training + case.test, 2, generator=torch.Generator().manual_seed(seed))
    places = random * torch.tensor([16.0, 4.0]) + torch.tensor([8.0, 4.0])
    inflow = smoke.inflow_at(wrap(places, batch("trajectory"), channel(vector="x,y")), 3.0, 0.2, air["smoke"])
    fine = physics(DT / case.every)
    start = ph.repeat(fine, air, case.spin_up * case.every, inflow)
    about = dict(coarsen=case.finer, every=case.every, metadata={"dt": DT, "seed": seed})
    return ph.Trajectories.generate(fine, start, case.steps, (inflow,), **about).split(case.training)


def correction(case: Case) -> torch.nn.Module:
    """Network from velocity, smoke and inflow to velocity and smoke, zero at first."""
    network = res_net(4, 3, list(case.filters))
    for parameter in network.Res_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def trained(
    method: Method, source: ph.PhysicsBlock, case: Case, data: ph.Trajectories, seed: int, updates: int
) -> tuple[ph.HybridSolver, float]:
    """Solver, and seconds of processor time."""
    torch.manual_seed(seed)
    solver, began = ph.HybridSolver(source, correction(case), method.coupling), time.process_time()
    for half, rate in enumerate((3e-3, 1e-3)):
        lab.adam(solver, data, method.objective(half), updates // 2, rate, case.batch, seed).fit(updates // 2)
    return solver, time.process_time() - began


def trained_methods(
    source: ph.PhysicsBlock, case: Case, data: ph.Trajectories, seed: int
) -> dict[str, tuple[ph.HybridSolver, float]]:
    """Method → solver and seconds: all with equal updates, then those that were cheaper with equal time."""
    found = {name: trained(method, source, case, data, seed, case.updates) for name, method in METHODS.items()}
    longest = max(seconds for _, seconds in found.values())
    for name, method in METHODS.items():
        updates = round(case.updates * longest / found[name][1])
        if updates > 1.1 * case.updates:
            found[f"{name}, equal time"] = trained(method, source, case, data, seed, updates)
    return found


def run(case: Case, data: tuple, seed: int) -> tuple[lab.Rows, Callable]:
    training, test = data
    source = physics(DT)
    found = trained_methods(source, case, training, seed)
    solvers = {"source": source, **{name: solver for name, (solver, _) in found.items()}}
    evaluation = ph.evaluate(solvers, test)
    rows, errors = evaluation.summary((10,)), {name: mae.mean(0) for name, mae in evaluation.mae.items()}
    for name, row in rows.items():
        row["/ source"] = row["mae"] / rows["source"]["mae"]
        row["worst time"] = float((errors[name] / errors["source"]).max())
        row["seconds"] = found[name][1] if name in found else 0.0
    return rows, lambda: figures(evaluation, solvers, test)


def figures(evaluation: Evaluation, solvers: dict, test: ph.Trajectories) -> dict[str, Figure]:
    """Figures by name."""
    shown = {name: solvers[name] for name in ("source", "unrolled_16", "network_alone")}
    rollouts = {n: ph.rollout(s, test.initial_state, test.steps, *test.step_inputs) for n, s in shown.items()}
    show = dict(reference="reference", dt=DT, part="smoke", times=4)
    title = "Smoke around a cylinder, unseen place of the inflow"
    equal_updates = {name: curve for name, curve in evaluation.curves().items() if "time" not in name}
    return {
        "rollout": ph.plot.rollout({"reference": test.trajectory, **rollouts}, **show, title=title),
        "errors": ph.plot.errors(equal_updates, dt=DT),
    }


def main() -> None:
    options = lab.options(__doc__, "plume_correction")
    case = Case()
    if options.quick:
        case = replace(case, training=6, test=2, steps=16, updates=20)
    if options.full:
        case = replace(case, training=48, updates=2000)
    data = reference_data(case)
    columns = ["mae", "/ source", "worst time", "mae_10", "mae velocity", "mae smoke", "blow_up", "seconds"]
    lab.study(options, lambda seed: run(case, data, seed), columns)


if __name__ == "__main__":
    main()
