"""Numbers that flows are compared by, besides point-wise errors."""

from __future__ import annotations

import numpy as np
import torch
from phi import field, math
from phi.field import Field
from phi.geom import Geometry

TIME = "time"


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
        divergence = math.where(distance > math.max(velocity.dx), divergence, 0)
    fastest = max(
        float(math.max(abs(velocity.values[{"~vector": d}]), math.shape).native()) for d in velocity.vector.item_names
    )
    return float(math.max(abs(divergence), math.shape).native()) * float(math.max(velocity.dx).native()) / fastest
