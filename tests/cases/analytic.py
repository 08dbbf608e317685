"""Exact solutions and conserved quantities of the ready-made physics."""

from __future__ import annotations

import math as pymath

import numpy as np
from phi.torch.flow import Field, Tensor, math

from phi_hybrid.pde import grids, oscillators, quantum


def cole_hopf(x: np.ndarray, t: float, viscosity: float, amplitude: float = 1.0) -> np.ndarray:
    """Exact solution of unforced Burgers with u(x, 0) = −A sin x on 0 … 2π (Cole 1951, Hopf 1950).

    u(x, t) = ∫ u₀(y) w dy / ∫ w dy, w = exp(−((x − y)²/(2t) + A cos y)/(2ν)), by the trapezoidal rule; all terms are
    positive, so that it holds for any ν, steep fronts included.

    Args:
        x: positions, `(x,)`.
        t: time.
        viscosity: ν.
        amplitude: A.
    """
    if t == 0:
        return -amplitude * np.sin(x)
    reach = abs(amplitude) * t + 10 * np.sqrt(2 * viscosity * t)  # beyond it w < exp(−50) of its largest value
    narrowest = np.sqrt(2 * viscosity / (1 / t + abs(amplitude)))  # standard deviation of a peak of w
    shift = np.linspace(-reach, reach, 2 * pymath.ceil(4 * reach / narrowest) + 1)
    y = np.asarray(x)[:, None] + shift
    exponent = -(shift**2 / (2 * t) + amplitude * np.cos(y)) / (2 * viscosity)
    weight = np.exp(exponent - exponent.max(1, keepdims=True))
    return -amplitude * np.sum(np.sin(y) * weight, 1) / np.sum(weight, 1)


def taylor_green(grid: Field, time: float, viscosity: float) -> Field:
    """Exact decaying vortices, u = (cos x sin y, −sin x cos y)·exp(−2νt), on a box of length 2π (Taylor & Green 1937)."""
    cells, decay = grid.resolution.get_size("x"), pymath.exp(-2 * viscosity * time)
    face, centre = np.arange(cells) * 2 * np.pi / cells, (np.arange(cells) + 0.5) * 2 * np.pi / cells
    values = {
        "x": np.cos(face)[:, None] * np.sin(centre)[None, :] * decay,
        "y": -np.sin(centre)[:, None] * np.cos(face)[None, :] * decay,
    }
    return grid.with_values(grids.face_values(values))


def energy_of_chain(chain: oscillators.Oscillators, state: Tensor) -> Tensor:
    """E = Σ (ẋᵢ² + xᵢ²)/2 + Σ (α·sᵢ²/2 + β·sᵢ⁴/4), conserved while nothing drives the chain, `(batch)`."""
    x, v = state.phase["position"], state.phase["velocity"]
    total = math.sum((v**2 + x**2) / 2, "oscillators")
    if chain.count == 1:
        return total
    stretch = x.oscillators[1:] - x.oscillators[:-1]
    return total + math.sum(chain.coupling * stretch**2 / 2 + chain.cubic * stretch**4 / 4, "oscillators")


def energy_of_level(well: quantum.Well, level: int) -> float:
    """Eₙ = 2(1 − cos(πn·dx/L))/dx² of an eigenstate on the grid, which tends to (πn/L)² for many points."""
    dx = well.length / (well.points - 1)
    return 2 * (1 - pymath.cos(pymath.pi * level * dx / well.length)) / dx**2
