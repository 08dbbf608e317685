"""Colour and axis limits that a blown-up solver cannot flatten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEQUENTIAL, DIVERGING, DIFFERENCE = "viridis", "RdBu_r", "PuOr_r"
_OUTLIER = 10.0  # a frame this many times larger than the typical one does not set the scale


class Scale(NamedTuple):
    """Limits, colour map name and which ends of the colour bar are exceeded."""

    low: float
    high: float
    cmap: str
    extend: str


def value_scale(values: Sequence[np.ndarray], reference: np.ndarray | None, signed: bool) -> Scale:
    """Shared scale of arrays (time, …): the reference's range if there is one, else that of all calm frames.

    Signed data get symmetric limits and a diverging map, all others a sequential one.
    """
    low, high = finite_range([reference]) if reference is not None else calm_range(values)
    if signed or (low < 0 < high and min(-low, high) > 0.2 * max(-low, high)):
        high = max(-low, high) or 1.0
        return Scale(-high, high, DIVERGING, _extend(values, -high, high))
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return Scale(low, high, SEQUENTIAL, _extend(values, low, high))


def difference_scale(differences: Sequence[np.ndarray], reference: np.ndarray) -> Scale:
    """Symmetric scale of differences, at most the amplitude (half the range) of the reference: an error of 100 %."""
    low, high = finite_range(_finite_ones(differences))
    cap = 0.5 * float(np.ptp(finite_range([reference]))) or np.inf
    limit = min(max(-low, high), cap) or 1.0
    return Scale(-limit, limit, DIFFERENCE, _extend(differences, -limit, limit))


def finite_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value; (0, 1) where nothing is finite."""
    finite = np.concatenate([array[np.isfinite(array)].ravel() for array in values])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def calm_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Range over all frames of arrays (time, …) except those of solvers that blow up.

    Arrays with non-finite values count only if all have some. Of the rest, frames are left out whose largest magnitude
    exceeds ten times that of the typical (median) frame and of every first frame, so that decaying flows keep their
    initial range.
    """
    values = _finite_ones(values)
    frames = [frame for array in values for frame in array]
    sizes = np.array([np.max(np.abs(frame), where=np.isfinite(frame), initial=0.0) for frame in frames])
    first = max(np.max(np.abs(array[0]), where=np.isfinite(array[0]), initial=0.0) for array in values)
    calm = sizes <= _OUTLIER * max(float(np.median(sizes)), first)
    return finite_range([frame for frame, keep in zip(frames, calm) if keep])


def line_limits(values: Sequence[np.ndarray], scale: Scale) -> tuple[float, float]:
    """Limits of an axis for lines (time, x): the scale, widened by at most half its range for lines beyond it."""
    low, high = calm_range(values)
    span = scale.high - scale.low
    low = min(scale.low, max(low, scale.low - span / 2))
    high = max(scale.high, min(high, scale.high + span / 2))
    return low - 0.06 * span, high + 0.06 * span


def _finite_ones(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array for array in values if np.isfinite(array).all()] or list(values)


def _extend(values: Sequence[np.ndarray], low: float, high: float) -> str:
    slack = 1e-6 * (high - low)
    smallest, largest = finite_range(values)
    below, above = smallest < low - slack, largest > high + slack
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
