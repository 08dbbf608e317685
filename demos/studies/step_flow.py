"""Flow over a backward-facing step: solver, inflow that varies in time, reattachment.

∂u/∂t + u·∇u = ν ∇²u − ∇p, ∇·u = 0 in a channel that is twice as high behind the step. State: velocity, staggered
`(batch, x, y)`. Input: strength of the inflow, one per batch entry.
"""

from __future__ import annotations

import numpy as np
from phi.field import Field, StaggeredGrid
from phi.geom import Box
from phi.math import Tensor
from phi.math.extrapolation import ZERO_GRADIENT
from phi.physics import advect, diffuse, fluid
from phi.torch.flow import math, vec

import phi_hybrid as ph

LENGTH, HEIGHT, INLET = 10.0, 2.0, 1.0
"""Of the channel and of the block below the inflow, in heights of the step. The mean inflow is 1."""
REYNOLDS, DT = 400.0, 0.1
"""Re = 2·U·h/ν as in Armaly et al. (1983), time step of the coarse solver."""

# --- solver ---


def channel(cells: int, values: object = 0.0) -> Field:
    """Velocity in the channel with so many cells across: closed on the left for what differs from the inflow, open right."""
    size = dict(x=round(cells * LENGTH / HEIGHT), y=cells, bounds=Box(x=LENGTH, y=HEIGHT))
    return StaggeredGrid(values, {"x": (0, ZERO_GRADIENT), "y": 0}, **size)


def inflow(cells: int) -> Field:
    """Parabola of mean 1 in the upper half of the channel, everywhere along it; means over faces, so that the flux is exact."""
    dx, gap = HEIGHT / cells, HEIGHT - 1.0

    def mean(x: Tensor) -> Tensor:
        y = (x.vector["y"] - 1.0) / gap
        return vec(x=math.where(y > 0, 6 * y * (1 - y) - (dx / gap) ** 2 / 2, 0.0), y=0 * y)

    return channel(cells, mean)


def walls(cells: int) -> Field:
    """How many of the neighbours of a face lie beyond a wall that the flow slides along."""
    dx = HEIGHT / cells

    def count(x: Tensor) -> Tensor:
        along, across = x.vector["x"], x.vector["y"]
        beside_block = (across > 1) & (across < 1 + 0.9 * dx) & (along < INLET - 0.1 * dx)
        sides = (across < 0.9 * dx) | (across > HEIGHT - 0.9 * dx) | beside_block
        face_of_block = (along > INLET) & (along < INLET + 0.9 * dx) & (across < 1 - 0.1 * dx)
        return vec(x=math.to_float(sides), y=math.to_float(face_of_block))

    return channel(cells, count)


def physics(cells: int, dt: float, reynolds: float = REYNOLDS) -> ph.PhysicsBlock:
    """`step(velocity, strength) -> velocity`: MacCormack advection, explicit diffusion, walls, inflow, projection.

    PhiFlow's walls hold the velocity along them zero at the ghost points, half a cell outside. One more difference to the
    wall, ν·(u − 0)/dx², moves the zero onto the wall itself. The inflow is set in the first columns.
    """
    nu, dx, grid = 2 / reynolds, HEIGHT / cells, channel(cells)
    substeps = ph.pde.navier_stokes.diffusion_substeps(nu, dt, dx, 2)
    slower = 1 / (1 + dt * nu / dx**2 * walls(cells).values)
    profile = inflow(cells).values
    later = channel(cells, lambda x: math.to_float(x > 2.2 * dx).vector["x"] * vec(x=1.0, y=1.0)).values
    block = fluid.Obstacle(Box(x=(-1.0, INLET), y=(-1.0, 1.0)))

    def step(velocity: Field, strength: Tensor) -> Field:
        wanted = strength * profile
        velocity = advect.mac_cormack(velocity, velocity, dt)
        values = diffuse.explicit(velocity, nu, dt, substeps=substeps).values * slower
        difference = grid.with_values(later * (values - wanted))
        return grid.with_values(wanted + fluid.make_incompressible(difference, [block])[0].values)

    return ph.capture(step)


# --- inflow and walls ---


def strengths(count: int, steps: int, seed: int) -> np.ndarray:
    """1 + 0.5 Σ aₖ sin(2πt/Tₖ + φₖ) of three waves with periods of 2.5 to 8, Σ|aₖ| = 1, `(trajectory, time)`."""
    rng = np.random.default_rng(seed)
    amplitude = rng.dirichlet(np.ones(3), count)[:, :, None]
    period, phase = rng.uniform(2.5, 8, (count, 3, 1)), rng.uniform(0, 2 * np.pi, (count, 3, 1))
    return 1 + 0.5 * (amplitude * np.sin(2 * np.pi * np.arange(steps) * DT / period + phase)).sum(1)


def lower_wall(trajectory: Field) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the step, and velocity of the mean flow in the row of faces next to the lower wall behind it."""
    row = trajectory.vector["x"].values.y[0]
    mean = math.mean(row, row.shape.batch).numpy("x")
    x = (np.arange(len(mean)) + 1) * LENGTH / len(mean) - INLET
    return x[x > 0.01], mean[x > 0.01]


def reattachment(x: np.ndarray, velocity: np.ndarray) -> float:
    """Where the flow along the wall turns from backward to forward for the last time; ∞ if it does not."""
    turns = np.flatnonzero((velocity[:-1] < 0) & (velocity[1:] >= 0))
    if not len(turns):
        return np.inf
    n = turns[-1]
    return float(x[n] - velocity[n] * (x[n + 1] - x[n]) / (velocity[n + 1] - velocity[n]))
