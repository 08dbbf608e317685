"""What a state amounts to: integrals over space and the energy spectrum."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from phi import field
from phi import math as phi_math
from phi.field import Field
from phi.geom import Geometry

from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.bridge.layout import FieldLayout
from phi_hybrid.errors import StateError
from phi_hybrid.steps.bound import Tensors


def total(state: Field) -> Any:
    """∫ u dV, `(trajectory, x, y, vector)` → `(trajectory, vector)`: mass of a density, momentum of a velocity.

    A stored face of a staggered field counts with the volume of a cell.
    """
    parts = [phi_math.sum(part, part.shape.spatial) for part in _components(state)]
    return phi_math.stack(parts, phi_math.channel("component")) * _cell_volume(state)


def energy(state: Field) -> Any:
    """½ ∫ |u|² dV, `(trajectory, x, y, vector)` → `(trajectory,)`; faces as in `total`."""
    return 0.5 * sum(phi_math.sum(part**2, part.shape.non_batch) for part in _components(state)) * _cell_volume(state)


def energy_spectrum(tensors: Tensors, layout: FieldLayout) -> torch.Tensor:
    """E(kₙ) = ½ Σ |û(κ)|² over |κ|/Δk ≈ n, û = FFT(u)/N, Δk = 2π / longest edge: `(trajectory, n)`, n = 0, 1, …

    The shells that are complete: up to the Nyquist wavenumber of the coarsest dim. Faces enter as they are.

    Args:
        tensors: of a periodic field, `(trajectory, x[, y[, z]][, vector])`, one per component if it is staggered.
        layout: of the field.

    Raises:
        StateError: for fields that are not periodic.
    """
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
        modes = torch.fft.fftn(tensor.double(), dim=space, norm="forward").abs().square()
        power = power + 0.5 * (modes.sum(rest) if rest else modes).flatten(1)
    shell, count = _shells(layout)
    found = power.new_zeros(len(power), int(shell.max()) + 1).index_add_(1, shell.to(power.device), power)
    return found[:, :count]


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


def _components(state: Field) -> list[Any]:
    """Values of every component, `(trajectory, x, y)`."""
    require_instance("state", state, Field, "a field; of a dict or a tuple pick one, lambda s: energy(s['velocity'])")
    values = state.values
    split = values.shape.dual or values.shape.channel
    return phi_math.unstack(values, split) if split else [values]


def _cell_volume(state: Field) -> float:
    return math.prod(float(state.dx.vector[n]) for n in state.resolution.names)


# --- flows ---


def strouhal_number(signal: np.ndarray, dt: float, length: float, speed: float) -> np.ndarray:
    """St = f·D/U of the strongest oscillation, from the peak of the periodogram on a fine grid of frequencies.

    Args:
        signal: e.g. the transverse velocity at a point behind the obstacle, `(…, time)`, at least two periods long.
        dt: time between two values.
        length: D, of the obstacle.
        speed: U, of the stream.

    Returns:
        One number per signal, `(…)`.
    """
    signal = np.asarray(signal, dtype=float)
    steps = signal.shape[-1]
    windowed = (signal - signal.mean(-1, keepdims=True)) * np.hanning(steps + 2)[1:-1]
    padded = 64 * steps
    power = np.abs(np.fft.rfft(windowed, padded)) ** 2
    lowest = padded // steps  # one period within the signal
    peak = lowest + np.argmax(power[..., lowest:], -1)
    return peak / (padded * dt) * length / speed


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ a·b / √(Σ a²·Σ b²) over the last two axes, `(…, x, y)` → `(…)`."""
    return (a * b).sum((-1, -2)) / ((a**2).sum((-1, -2)) * (b**2).sum((-1, -2))).sqrt()


def vorticity(velocity: Field) -> torch.Tensor:
    """ω = ∂v/∂x − ∂u/∂y of a periodic staggered velocity at the corners of the cells, `(trajectory, time, x, y)`."""
    u, v = (velocity.values[{"~vector": d}] for d in "xy")
    dx, dy = (float(velocity.dx.vector[d]) for d in "xy")
    u, v = (
        torch.as_tensor(c.native([c.shape.batch.only(n) for n in ("trajectory", TIME)] + ["x", "y"])) for c in (u, v)
    )
    return (v - v.roll(1, -2)) / dx - (u - u.roll(1, -1)) / dy


def time_of_decorrelation(correlations: np.ndarray, threshold: float, dt: float) -> np.ndarray:
    """Time until a correlation falls below a threshold for the first time, `(…, time)` → `(…)`; its end if it does not.

    Entry 0 is the state after the first step.
    """
    below = ~(np.asarray(correlations) >= threshold)  # NaN counts as decorrelated
    return dt * np.where(below.any(-1), below.argmax(-1), below.shape[-1])


def largest_divergence(velocity: Field, obstacle: Geometry | None = None) -> float:
    """max |∇·u|·dx / max|u| over all cells that touch no obstacle: 1 for random faces, 1e-6 for projected float32 ones."""
    divergence = field.divergence(velocity).values
    if obstacle is not None:
        cells = velocity.geometry.center if velocity.is_centered else field.divergence(velocity).geometry.center
        distance = obstacle.approximate_signed_distance(cells)
        divergence = phi_math.where(distance > phi_math.max(velocity.dx), divergence, 0)
    fastest = max(
        float(phi_math.max(abs(velocity.values[{"~vector": d}]), phi_math.shape).native())
        for d in velocity.vector.item_names
    )
    return (
        float(phi_math.max(abs(divergence), phi_math.shape).native())
        * float(phi_math.max(velocity.dx).native())
        / fastest
    )
