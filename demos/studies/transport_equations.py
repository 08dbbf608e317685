"""Transport equations of which a solver does not know all: steps, reference data.

- Advection and diffusion, ∂u/∂t + c ∂u/∂x = ∂/∂x κ(x) ∂u/∂x + f. The solver knows the mean of κ only.
- FitzHugh–Nagumo, ∂u/∂t = D ∂²u/∂x² + r(u) − v + I, ∂v/∂t = D ∂²v/∂x² + ε (u + a − b v). The rate law is
  r(u) = u − u³/3; the solver has McKean's caricature of it, three straight lines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from phi.torch.flow import CenteredGrid, Field, Tensor, advect, channel, extrapolation, math, spatial

import phi_hybrid as ph
from phi_hybrid.pde import grids

Pair = tuple[ph.Trajectories, ph.Trajectories]
"""Of training and of test."""


def gradient_of_flux(u: Field, diffusivity: float | Tensor) -> Tensor:
    """∂/∂x κ ∂u/∂x on a periodic line, by fluxes through the faces between cells; κ at the upper face of each cell."""
    lower, middle = math.shift(u.values, (0, 1), "x", extrapolation.PERIODIC, stack_dim=None)
    flux = diffusivity * (middle - lower)
    before, here = math.shift(flux, (-1, 0), "x", extrapolation.PERIODIC, stack_dim=None)
    return (here - before) / u.dx.vector["x"] ** 2


# --- advection and diffusion with an unknown diffusivity ---

CELLS, SPEED, DIFFUSIVITY, CONTRAST, DRIFT_DT = 64, 1.0, 0.03, 0.9, 0.05


def positions(cells: int = CELLS) -> np.ndarray:
    """Centres of the cells of a line of length 2π, `(x,)`."""
    return (np.arange(cells) + 0.5) * 2 * np.pi / cells


def diffusivity(contrast: float = 0.0) -> Field:
    """κ(x) = κ₀ (1 + contrast · sin 2x) at the upper faces of the cells, `(x, vector)`."""
    values = DIFFUSIVITY * (1 + contrast * np.sin(2 * (positions() + np.pi / CELLS)))
    return grids.line(CELLS).with_values(grids.as_tensor(values[:, None], spatial("x"), channel(vector="x")))


def drift(u: Field, source: Field, diffusivity: Field) -> Field:
    """A step of advection (MacCormack), diffusion (explicit) and source; the diffusivity at the upper face of each cell."""
    u = advect.mac_cormack(u, u.with_values(math.ones(u.shape) * SPEED), DRIFT_DT)
    return u.with_values(u.values + DRIFT_DT * (gradient_of_flux(u, diffusivity.values) + source.values))


def drift_with(diffusivity: Field) -> ph.PhysicsBlock:
    """The step with a diffusivity that it holds for true."""
    return ph.capture(lambda u, source: drift(u, source, diffusivity))


def drift_data(seed: int, count: int = 16, steps: int = 200) -> Pair:
    """Random waves as initial states and sources, `count` trajectories each."""
    line, waves = grids.line(CELLS), dict(waves=5, amplitude=0.5)
    initial = grids.waves_1d(line, 2 * count, None, (1, 6), **waves, seed=2 * seed)
    source = grids.waves_1d(line, 2 * count, np.arange(steps) * DRIFT_DT, (1, 6), **waves, seed=2 * seed + 1)
    truth = drift_with(diffusivity(CONTRAST))
    return ph.Trajectories.generate(truth, initial, steps, (source,), metadata={"dt": DRIFT_DT}).split(count)


def drift_data_with_guess(seed: int) -> Pair:
    """The same trajectories, with the mean diffusivity as an input of the step."""
    training, test = (data.with_inputs(*data.step_inputs, diffusivity()) for data in drift_data(seed))
    return training, test


def places() -> tuple[Field]:
    """Where the network is: sin x and cos x."""
    x = positions()
    values = grids.as_tensor(np.stack([np.sin(x), np.cos(x)], 1), spatial("x"), channel(vector="sin,cos"))
    return (CenteredGrid(values, extrapolation.PERIODIC, bounds=grids.line(CELLS).bounds),)


# --- a reaction with an unknown rate law ---

EXCITED_DT, LENGTH = 0.5, 100.0


def cubic(u: Tensor) -> Tensor:
    """FitzHugh's rate law."""
    return u - u**3 / 3


def caricature(u: Tensor) -> Tensor:
    """McKean's: slope 1 for |u| < 1, and −1 beyond."""
    return math.clip(u, -1, 1) - (u - math.clip(u, -1, 1))


def reaction(law: Callable[[Tensor], Tensor], substeps: int = 5) -> Callable[[Field], Field]:
    """A step of FitzHugh–Nagumo in Euler's substeps, with D = 1, I = 0.5, ε = 0.08, a = 0.7, b = 0.8: u oscillates."""
    dt = EXCITED_DT / substeps

    def step(state: Field) -> Field:
        for _ in range(substeps):
            u, v = state.values.vector
            rate = math.stack([law(u) - v + 0.5, 0.08 * (u + 0.7 - 0.8 * v)], channel(vector="u,v"))
            state = state.with_values(state.values + dt * (rate + gradient_of_flux(state, 1.0)))
        return state

    return step


def reaction_data(seed: int, count: int = 16, steps: int = 200) -> Pair:
    """Random waves of both components as initial states."""
    line, waves = grids.line(CELLS, LENGTH), dict(modes=(1, 4), waves=5)
    parts = [grids.waves_1d(line, 2 * count, None, **waves, amplitude=a, seed=2 * seed + n)
             for n, a in enumerate((1.0, 0.5))]  # fmt: skip
    values = math.stack([part.values.vector[0] for part in parts], channel(vector="u,v"))
    truth = ph.capture(reaction(cubic))
    start = parts[0].with_values(values)
    return ph.Trajectories.generate(truth, start, steps, metadata={"dt": EXCITED_DT}).split(count)
