"""Correct a coarse solver of decaying vortices in three dimensions with a network that is trained through the solver.

Random vortices of a few waves per box decay in a periodic cube of length 2π. The reference has 32³ cells, the
coarse solver 16³; both take the same steps and advect by MacCormack's scheme. Test trajectories start from other random
states. All methods make the same number of updates from a network that is zero at first; `one_step_long` has six times
as many, which take 1.2 times as long as `unrolled_4`. `network_alone` learns to replace the solver.

    python demos/studies/vortices_3d.py [--quick | --full] [--seed N] [--seeds N] [--tune] [--out DIR]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import lab
import numpy as np
import torch
from matplotlib.figure import Figure
from phi.field import CenteredGrid, Field, StaggeredGrid
from phi.geom import Box
from phi.math import batch, dual, spatial, stack, wrap
from phi.math.extrapolation import PERIODIC
from phi.physics import advect
from phi.torch.flow import math as phi_math
from phi.torch.flow import res_net

import phi_hybrid as ph
from phi_hybrid.pde import navier_stokes as ns
from phi_hybrid.studies import Stage, StudyResult

VISCOSITY, DT, LENGTH = 0.02, 0.1, 2 * math.pi
METHODS = {"one_step": (1, 1), "unrolled_4": (4, 1), "one_step_long": (1, 6)}
"""Method → unrolled steps, multiple of the updates."""
FACTORS, SIGMAS = (1 / 3, 1, 3), (1e-3, 1e-2, 3e-2, 1e-1)
"""On the learning rate, and noise, that are tried by --tune."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    fine: int = 32
    coarse: int = 16
    spin_up: int = 8  # steps before the first stored one, until waves have become vortices
    steps: int = 30
    training: int = 20  # trajectories, four at a time, as those of the test
    test: int = 4
    updates: int = 400
    batch: int = 2
    rate: float = 5e-3
    filters: tuple[int, ...] = (16, 16)
    sigma: float = 1e-2  # of the noise, in standard deviations of the data

    def methods(self) -> dict[str, list[Stage]]:
        """Stage of each method."""
        found = {method: self.stages(*sizes) for method, sizes in METHODS.items()}
        return {**found, "noise": self.stages(noise=ph.Noise(self.sigma))}

    def candidates(self) -> dict[str, list[Stage]]:
        """One step and four at several rates, one step with several levels of noise."""
        rates = [(n, factor * self.rate) for n in (1, 4) for factor in FACTORS]
        found = {f"{n} steps, rate {rate:.2g}": replace(self, rate=rate).stages(n) for n, rate in rates}
        return {**found, **{f"noise {s:g}": self.stages(noise=ph.Noise(s)) for s in SIGMAS}}

    def stages(self, steps: int = 1, times: int = 1, noise: ph.Noise | None = None) -> list[Stage]:
        """So many times the updates, over so many steps."""
        objective = ph.Unrolled(steps, noise=noise)
        return [Stage(objective, times * self.updates, lr=self.rate, batch_size=self.batch)]


def physics(cells: int) -> ph.PhysicsBlock:
    """The solver on this many cells per dim: advection, explicit diffusion, projection."""
    flow = ns.navier_stokes_step(DT, ns.diffusion_substeps(VISCOSITY, DT, LENGTH / cells, 3), advect.mac_cormack)
    return ph.capture(lambda velocity: flow(velocity, VISCOSITY))


def random_flow(cells: int, trajectories: int, seed: int, wavenumber: float = 2.0) -> Field:
    """Velocities of root mean square 1 per component with energy around one wavenumber, `(trajectory, x, y, z)`.

    Curls of random vector potentials at the edges of the cells, so that they have no divergence on the grid.
    """
    rng, k = np.random.default_rng(seed), np.fft.fftfreq(cells, 1 / cells)
    radius = np.sqrt(sum(n**2 for n in np.meshgrid(k, k, k, indexing="ij")))
    amplitude = np.exp(-((radius / wavenumber - 1) ** 2) / (2 * 0.3**2))
    noise = np.fft.fftn(rng.standard_normal((3, trajectories, cells, cells, cells)), axes=(2, 3, 4))
    x, y, z = np.fft.ifftn(amplitude * noise, axes=(2, 3, 4)).real

    def slope(potential: np.ndarray, axis: int) -> np.ndarray:
        return np.roll(potential, -1, axis) - potential

    curl = np.stack([slope(z, 2) - slope(y, 3), slope(x, 3) - slope(z, 1), slope(y, 1) - slope(x, 2)])
    curl /= np.sqrt((curl**2).mean((0, 2, 3, 4), keepdims=True))
    components = [wrap(torch.as_tensor(u).float(), batch("trajectory"), spatial("x,y,z")) for u in curl]
    grid = StaggeredGrid(0, PERIODIC, x=cells, y=cells, z=cells, bounds=Box(x=LENGTH, y=LENGTH, z=LENGTH))
    return grid.with_values(stack(dict(zip("xyz", components)), dual("vector")))


@cache
def reference_data(case: Case, seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
    """Training and test trajectories, coarsened; four at a time, which fit into little memory."""
    fine, parts = physics(case.fine), []
    about = dict(coarsen=case.fine // case.coarse, metadata={"dt": DT, "viscosity": VISCOSITY, "seed": seed})
    for number in range((case.training + case.test) // 4):
        start = ph.repeat(fine, random_flow(case.fine, 4, 1000 * seed + number), case.spin_up)
        parts.append(ph.Trajectories.generate(fine, start, case.steps, **about))
    return ph.Trajectories.concat(*parts).split(case.training)


def correction(case: Case) -> torch.nn.Module:
    """Network from velocity to velocity, zero at first."""
    network = res_net(3, 3, list(case.filters), in_spatial=3, periodic=True)
    for parameter in network.Res_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def study(
    case: Case, methods: dict[str, list[Stage]], coupling: ph.coupling.Coupling, name: str, options: lab.Options
) -> StudyResult:
    """Trainings of the network with the solver, or in its place."""
    source, settings = physics(case.coarse), lab.study_settings(options, quick=0.05)
    settings |= dict(summary=lab.against_source, metrics={"spectrum": ph.metrics.SpectrumError()}, dt=DT)
    settings["folder"] = options.out / name
    solvers = {"source": source, "hybrid": lambda seed: ph.HybridSolver(source, correction(case), coupling)}
    return ph.study(solvers, lambda seed: reference_data(case, seed), methods, **settings)


def trained(case: Case, options: lab.Options) -> tuple[StudyResult, StudyResult]:
    """The hybrid solver by all methods, and the network alone; the source beside both."""
    alone = study(case, {"network_alone": case.stages()}, ph.coupling.Replacement(), "network_alone", options)
    return study(case, case.methods(), ph.coupling.After(), "hybrid", options), alone


def vorticity_along_z(velocity: Field) -> Field:
    """∂v/∂x − ∂u/∂y by differences of neighbouring faces, at the edges of the cells along z, `(time, x, y, z)`."""
    u, v = (velocity.values[{"~vector": d}] for d in "xy")
    slope = dict(dx=LENGTH / velocity.resolution.get_size("x"), difference="backward", padding=PERIODIC, stack_dim=None)
    values = phi_math.spatial_gradient(v, dims="x", **slope) - phi_math.spatial_gradient(u, dims="y", **slope)
    return CenteredGrid(values, PERIODIC, velocity.bounds)


def figures(case: Case, found: StudyResult, seed: int) -> dict[str, Figure]:
    """Figures of one seed by name."""
    test = reference_data(case, seed)[1]
    solvers = {name: found.solver(name, seed) for name in ("source", "unrolled_4")}
    rollouts = {name: ph.rollout(solver, test.initial_state, test.steps) for name, solver in solvers.items()}
    rollouts = {"reference": test.trajectory, **rollouts}
    show = dict(reference="reference", dt=DT, quantity=vorticity_along_z, times=4)
    return {
        "rollout": ph.plot.rollout(
            rollouts, **show, title="Vorticity along z in the middle plane, unseen initial state"
        ),
        "spectrum": ph.plot.spectrum(rollouts, reference="reference"),
        "errors": ph.plot.errors(found.curves(), dt=DT),
    }


def main() -> None:
    tune = dict(action="store_true", help="rates and noise of --seed, and no more")
    options = lab.options(__doc__, "vortices_3d", tune=tune)
    case = Case(training=4, test=4, steps=16) if options.quick else Case()
    columns = ["mae", "/ source", "worst time", "mae_10", "spectrum", "blow_up", "updates", "seconds"]
    if options.tune:
        print(study(case, case.candidates(), ph.coupling.After(), "tuning", options).table(columns))
        return
    found, alone = trained(case, options)
    for result in (found, alone):
        print(result.table(columns))
    lab.save_figures(options.out, figures(case, found, options.seed))


if __name__ == "__main__":
    main()
