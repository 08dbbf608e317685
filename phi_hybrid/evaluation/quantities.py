"""Quantities of states: integrals, spectra and diagnostics of flows.

`total`, `energy`, `vorticity` and `divergence` are PhiFlow functions of a state: they can be captured, and be what a
metric or a loss is `of`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from phi import field
from phi import math as phi_math
from phi.field import CenteredGrid, Field
from phi.geom import Geometry
from phi.math.extrapolation import PERIODIC
from phi.physics.fluid import Obstacle

from phi_hybrid.bridge.checks import require, require_instance, require_number
from phi_hybrid.bridge.layout import FieldLayout, flatten
from phi_hybrid.bridge.numbers import in_double
from phi_hybrid.errors import StateError
from phi_hybrid.steps.bound import Tensors

# --- integrals ---


def total(state: Field) -> Any:
    """Integral ∫ u dV, a mass or momentum: `(trajectory, x, y, vector)` → `(trajectory, vector)`.

    A stored face of a staggered field counts with the volume of a cell.
    """
    parts = [phi_math.sum(part, part.shape.spatial) for part in _components(state)]
    return phi_math.stack(parts, phi_math.channel("component")) * _cell_volume(state)


def energy(state: Field) -> Any:
    """Energy ½ ∫ |u|² dV, `(trajectory, x, y, vector)` → `(trajectory,)`; faces as in `total`."""
    squares = [(phi_math.abs(part) if part.dtype.kind is complex else part) ** 2 for part in _components(state)]
    return 0.5 * sum(phi_math.sum(square, square.shape.non_batch) for square in squares) * _cell_volume(state)


def _components(state: Field) -> list[Any]:
    """Values of every component, `(trajectory, x, y)`."""
    require_instance("state", state, Field, "a field; of a dict or a tuple pick one, lambda s: energy(s['velocity'])")
    values = state.values
    split = values.shape.dual or values.shape.channel
    return phi_math.unstack(values, split) if split else [values]


def _cell_volume(state: Field) -> float:
    return math.prod(float(state.dx.vector[n]) for n in state.resolution.names)


# --- spectra ---


def energy_spectrum(tensors: Tensors, layout: FieldLayout, complete: bool = True) -> torch.Tensor:
    """Energy spectrum E(kₙ) = ½ Σ |û(κ)|² over |κ|/Δk ≈ n, û = FFT(u)/N, Δk = 2π / longest edge: `(batch, n)`.

    Faces enter as they are: a shift does not change |û|.

    Args:
        tensors: values of a periodic field, `(…, x[, y[, z]][, vector])`, one tensor per component if it is staggered: what
            `bridge.flatten` returns. All batch dims become one, of one entry if there is none.
        layout: layout of the field.
        complete: whether to leave out shells that are not complete, beyond the Nyquist wavenumber of the coarsest dim.

    Raises:
        StateError: for fields that are not periodic.
    """
    if not isinstance(layout, FieldLayout):
        raise StateError(
            f"the energy spectrum is that of one field on a grid, not of {layout}: pick a part, or resample it to a grid first"
        )
    open_sides = [f"{side} {kind}" for side, kind in layout.boundary_kinds if kind != "periodic"]
    if open_sides:
        raise StateError(
            f"the energy spectrum is that of periodic fields, but this one has the boundaries {', '.join(open_sides)}: "
            "the jump at the edges would show as small scales. Window it and make it periodic with SpectrumError(of=…)"
        )
    power = 0
    for tensor, axes in zip(tensors, layout.leaves):
        space = [i for i, a in enumerate(axes) if a.kind == "spatial"]
        rest = [i for i, a in enumerate(axes) if a.kind not in ("spatial", "batch")]
        modes = torch.fft.fftn(in_double(tensor), dim=space, norm="forward").abs().square()
        count = math.prod(size for size, a in zip(modes.shape, axes) if a.kind == "batch")
        power = power + 0.5 * (modes.sum(rest) if rest else modes).reshape(count, -1)
    shell, count = _shells(layout)
    found = power.new_zeros(len(power), int(shell.max()) + 1).index_add_(1, shell.to(power.device), power)
    return found[:, :count] if complete else found


@lru_cache(maxsize=16)
def _shells(layout: FieldLayout) -> tuple[torch.Tensor, int]:
    """Shell number of every mode, and how many shells are complete."""
    names = layout.geometry.resolution.names  # the order of the axes
    sizes = [layout.geometry.resolution.get_size(n) for n in names]
    edges = [float(layout.geometry.bounds.size.vector[n]) for n in names]
    numbers = [torch.fft.fftfreq(s, 1 / s, dtype=torch.float64) * max(edges) / e for s, e in zip(sizes, edges)]
    length = sum(part.square() for part in torch.meshgrid(*numbers, indexing="ij")).sqrt()
    nyquist = min(s / 2 * max(edges) / e for s, e in zip(sizes, edges))
    return length.round().long().flatten(), int(nyquist) + 1


# --- flows ---


def vorticity(velocity: Field) -> Field:
    """Vorticity ω = ∂v/∂x − ∂u/∂y of a periodic velocity in the plane, a centred scalar `(trajectory, x, y)`.

    By differences of neighbouring faces, at the lower corner of each cell, where the velocity is staggered; by central
    differences where it is centred. PhiFlow's `field.curl` has periodic corners twice. Dims count in alphabetical order,
    however the grid declares them.

    Raises:
        StateError: for what is no velocity, is not periodic or has not two dims.
    """
    _require_velocity(velocity)
    names, staggered = sorted(velocity.resolution.names), velocity.is_staggered
    if len(names) != 2 or velocity.boundary != PERIODIC:
        raise StateError(
            f"vorticity takes a periodic velocity in the plane, got one along {', '.join(names)} with boundary "
            f"{velocity.boundary}; PhiFlow's field.curl(velocity) takes staggered ones with other boundaries"
        )
    first, second = names
    options = dict(difference="backward" if staggered else "central", padding=PERIODIC, stack_dim=None)

    def slope(component: str, along: str) -> Any:
        values = velocity.values[{"~vector" if staggered else "vector": component}]
        return phi_math.spatial_gradient(values, float(velocity.dx.vector[along]), dims=along, **options)

    shift = -0.5 * velocity.dx if staggered else 0
    return CenteredGrid(slope(second, first) - slope(first, second), PERIODIC, velocity.bounds.shifted(shift))


def divergence(velocity: Field, obstacle: Obstacle | Geometry | None = None) -> Field:
    """Divergence ∇·u in every cell, zero in those that touch an obstacle, a centred scalar `(trajectory, x, y)`.

    Raises:
        StateError: for what is no velocity.
    """
    _require_velocity(velocity)
    found = field.divergence(velocity)
    if obstacle is None:
        return found
    body = obstacle.geometry if isinstance(obstacle, Obstacle) else obstacle
    require_instance("obstacle", body, Geometry, "an obstacle or its geometry, e.g. Sphere(x=1, y=1, radius=0.5)")
    distance = body.approximate_signed_distance(found.geometry.center)
    return found.with_values(phi_math.where(distance > phi_math.max(found.dx), found.values, 0))


def _require_velocity(velocity: Any) -> None:
    """Raises StateError for what is no field with a component along each dim."""
    way_out = "a velocity field; of a dict or a tuple pick one, lambda s: s['velocity']"
    require_instance("velocity", velocity, Field, way_out)
    shape = velocity.values.shape
    components = {name for labels in (*shape.channel.labels, *shape.dual.labels) for name in labels or ()}
    if velocity.is_grid and components != {*velocity.resolution.names}:
        raise StateError(
            f"a field of shape {velocity.shape} over {', '.join(velocity.resolution.names)} is no velocity, which has a component "
            "along each of these, e.g. channel(vector='x,y')"
        )


def largest_divergence(velocity: Field, obstacle: Obstacle | Geometry | None = None) -> float:
    """Largest divergence, max |∇·u|·dx / max |u|: about 1 for random faces, 1e-6 for projected float32 ones.

    Args:
        velocity: centred or staggered, `(trajectory, x, y)`; the maxima are over all of it.
        obstacle: obstacle or geometry; cells that touch it do not count.
    """
    change, speed = (
        max(float(t.abs().max()) for t in flatten(u)[0]) for u in (divergence(velocity, obstacle), velocity)
    )
    return change * float(phi_math.max(velocity.dx)) / speed if speed else 0.0


def strouhal_number(signal: np.ndarray, dt: float, length: float, speed: float) -> np.ndarray:
    """Strouhal number St = f·D/U of the strongest oscillation, from the peak of the periodogram.

    Args:
        signal: e.g. the transverse velocity at a point behind the obstacle, `(…, time)`, at least two periods long.
        dt: time between two values.
        length: D, of the obstacle.
        speed: U, of the stream.

    Returns:
        One number per signal, `(…)`; NaN for a signal that does not oscillate, or is NaN or infinite at some time.

    Raises:
        StateError: for complex signals, for a signal of fewer than three values, and units that are not positive.
    """
    for name, unit in {"dt": dt, "length": length, "speed": speed}.items():
        require_number(name, unit, above=0)
    signal = np.asarray(signal)
    require(not np.iscomplexobj(signal), "signal", str(signal.dtype), "real values, e.g. signal.real")
    steps = signal.shape[-1] if signal.ndim else 1
    require(steps >= 3, "signal", signal.shape, "a shape (…, time) with at least two periods along the last axis")
    signal = np.where(np.isfinite(signal).all(-1, keepdims=True), signal, math.nan).astype(float)
    windowed = (signal - signal.mean(-1, keepdims=True)) * np.hanning(steps + 2)[1:-1]
    padded = 64 * steps
    power = np.abs(np.fft.rfft(windowed, padded)) ** 2
    lowest = padded // steps  # one period within the signal
    peak = lowest + np.argmax(power[..., lowest:], -1)
    oscillates = power.max(-1) > np.finfo(float).eps * steps * (signal**2).sum(-1)  # and is not NaN
    return np.where(oscillates, peak / (padded * dt) * length / speed, math.nan)


def time_of_decorrelation(correlations: np.ndarray, threshold: float, dt: float) -> np.ndarray:
    """Time until a correlation falls below a threshold for the first time, or its end, `(…, time)` → `(…)`.

    Args:
        correlations: values over time; entry 0 is the state after the first step. NaN counts as decorrelated.
        threshold: e.g. 0.8 or 0.95.
        dt: time between two values.
    """
    below = ~(np.asarray(correlations) >= threshold)
    return dt * np.where(below.any(-1), below.argmax(-1), below.shape[-1])
