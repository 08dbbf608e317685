"""Flows that several studies share: solvers on fine and coarse grids, and reference trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from phi.math import batch, wrap
from phi.torch.flow import advect

import phi_hybrid as ph
from phi_hybrid.pde import burgers
from phi_hybrid.pde.navier_stokes import Wake

# --- forced Burgers ---


@dataclass(frozen=True)
class Burgers:
    """Sizes of an experiment with forced Burgers' equation on a periodic line or square."""

    dim: int = 1
    fine: int = 512
    coarse: int = 64
    length: float = 2 * math.pi
    dt: float = 0.025
    viscosity: float = 0.01
    trajectories: int = 16  # of training and of test, each
    steps: int = 199
    pretraining: int = 1500  # updates, one step
    updates: int = 600  # of each method, from the same weights on
    batch: int = 16
    filters: tuple[int, ...] = (32, 32, 32)

    @property
    def factor(self) -> int:
        """Fine cells per coarse cell, in each dim."""
        return self.fine // self.coarse

    def physics(self, cells: int) -> ph.PhysicsBlock:
        """Solver on so many cells per dim: MacCormack advection, explicit diffusion; captured on first use."""
        substeps = burgers.diffusion_substeps(self.viscosity, self.dt, self.length / cells, self.dim)
        return ph.capture(burgers.burgers_step(self.dt, self.viscosity, substeps, advect.mac_cormack))

    def waves(
        self, count: int, seed: int, modes: tuple[int, int] = (3, 6), amplitude: float = 0.5, steps: int | None = None,
        fine: ph.PhysicsBlock | None = None,
    ) -> ph.Trajectories:  # fmt: skip
        """Reference trajectories from random waves under a force of random waves, coarsened.

        Args:
            count: number of trajectories.
            seed: of initial states and forces.
            modes: smallest and largest wavenumber of the force in 1D.
            amplitude: of the force in 1D.
            steps: of each trajectory, those of the experiment by default.
            fine: the reference solver, captured before.
        """
        steps = self.steps if steps is None else steps
        times = np.arange(steps) * self.dt
        if self.dim == 1:
            grid, five = burgers.line(self.fine, self.length), dict(waves=5)
            initial = burgers.waves_1d(grid, count, None, (1, 4), amplitude=0.5, seed=2 * seed, **five)
            force = burgers.waves_1d(grid, count, times, modes, amplitude=amplitude, seed=2 * seed + 1, **five)
        else:
            force = burgers.waves_2d(burgers.square(self.fine, self.length), count, times, seed=seed)
            initial = 4 * force.time[0]
        fine = self.physics(self.fine) if fine is None else fine
        about = dict(dt=self.dt, viscosity=self.viscosity, seed=seed)
        return ph.Trajectories.generate(fine, initial, steps, (force,), coarsen=self.factor, metadata=about)

    def data(self, seed: int) -> tuple[ph.Trajectories, ph.Trajectories]:
        """Training and test trajectories."""
        return self.waves(2 * self.trajectories, seed).split(self.trajectories)


LINE = Burgers()
SQUARE = Burgers(2, 128, 32, 32.0, 0.1, 0.1, trajectories=6, steps=120, pretraining=600, updates=120, batch=8)


# --- wake of a cylinder ---

WAKE, WAKE_DT = Wake(), 1.0
TRAINING_RE = tuple(100.0 * 2**k for k in range(6))
DENSE_RE = tuple(100.0 * 2 ** (k / 2) for k in range(11))
"""Twice as many for the training, none of them in the validation or the test."""
VALIDATION_RE = tuple(100.0 * 2 ** (k + 0.25) for k in range(5))
TEST_RE = tuple(150.0 * 2**k for k in range(5))
REFERENCE, SOURCE = advect.mac_cormack, advect.semi_lagrangian


def wake_physics(cells: int, advection: Callable, dt: float = WAKE_DT, compile: bool = False) -> ph.PhysicsBlock:
    """Solver on this many cells along the stream, captured on first use."""
    step = WAKE.step(dt, WAKE.substeps(dt, cells, min(TRAINING_RE)), advection)
    return ph.capture(step, compile=compile)


def wake_data(
    reynolds: Sequence[float], fine: int, coarse: int, spin_up: int, settle: int, steps: int
) -> ph.Trajectories:
    """Trajectories of the reference from a state that sheds vortices, coarsened.

    Args:
        reynolds: Reynolds number of each trajectory.
        fine: cells along the stream of the reference.
        coarse: of the trajectories.
        spin_up: steps on half the fine resolution, until vortices are shed.
        settle: steps on the fine grid before the first stored one.
        steps: of each trajectory.
    """
    numbers, half = wrap(list(reynolds), batch("trajectory")), fine // 2
    early = ph.repeat(wake_physics(half, REFERENCE), WAKE.disturbed(half, len(reynolds)), spin_up, numbers)
    reference = wake_physics(fine, REFERENCE)
    start = ph.repeat(reference, early.at(WAKE.grid(fine)), settle, numbers)
    about = dict(coarsen=fine // coarse, metadata={"dt": WAKE_DT})
    return ph.Trajectories.generate(reference, start, steps, (numbers,), **about)
