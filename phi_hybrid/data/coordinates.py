"""Coordinates of points and times in a file → PhiFlow's box and time step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from phi.geom import Box

from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.errors import DataError, StateError

EVEN = 1e-3
"""Share of a spacing by which points may be off, beside rounding."""


def time_step(times: np.ndarray, where: str) -> float:
    """Δt of equally spaced times; DataError if they are not."""
    return _spacing(np.asarray(times), f"times in {where}", "interpolate the states in time, or select a part of them")


def box_of(
    coordinates: Mapping[str, np.ndarray], periodic: Collection[str], bounds: Box | None, where: str
) -> tuple[dict[str, int], Box]:
    """Cells along each dim, and the box whose cell centres are the points.

    Args:
        coordinates: dim → evenly spaced, ascending.
        periodic: dims along which a shift of the box by half a cell means nothing.
        bounds: the box, where the user knows it.
        where: name of the file.

    Raises:
        DataError: if points are not evenly spaced.

    Warns:
        UserWarning: if points seem to lie at the faces of cells, of which the outer ones are walls.
    """
    advice = "interpolate them to a uniform grid, then use Trajectories.from_tensors"
    spacings = {n: _spacing(x, f"points along {n} in {where}", advice) for n, x in coordinates.items()}
    sizes = {n: len(x) for n, x in coordinates.items()}
    if bounds is not None:
        require_instance("bounds", bounds, Box, "a box, e.g. Box(x=1, y=1)")
        if list(bounds.shape.get_labels("vector")) != list(sizes):
            raise StateError(f"bounds = {bounds}: expected a box with the dims {list(sizes)} of {where}, in this order")
        return sizes, bounds
    sides = {}
    for name, points in coordinates.items():
        half, rounding = 0.5 * spacings[name], _rounding(points)
        first, last = float(points[0]), float(points[-1])
        if name not in periodic and _digits(first, rounding) < _digits(first - half, rounding):
            warnings.warn(
                f"{where}: the points along {name}, {first:g} … {last:g}, look like faces or nodes, the outer ones at the "
                f"sides. They are taken as centres of cells, so that the domain is {first - half:g} … {last + half:g}, half "
                "a cell more on each side; give bounds=Box(…) if that is wrong, or interpolate to cell centres",
                stacklevel=3,
            )
        sides[name] = (_tidy(first - half, rounding), _tidy(last + half, rounding))
    return sizes, Box(**sides)


def _spacing(points: np.ndarray, what: str, advice: str) -> float:
    if points.ndim != 1 or len(points) < 2 or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise DataError(f"{what}: {points.dtype} {points.shape}, expected at least two finite numbers along one axis")
    exact = points.astype(np.float64)
    spacing = (exact[-1] - exact[0]) / (len(points) - 1)
    off = np.abs(exact - np.linspace(exact[0], exact[-1], len(points)))
    if spacing <= 0 or off.max() > EVEN * spacing + _rounding(points):
        n = int(off.argmax())
        raise DataError(
            f"the {what} are not equally spaced in ascending order: entry {n} is {exact[n]:g}, expected "
            f"{exact[0] + n * spacing:g} of {exact[0]:g} … {exact[-1]:g} in {len(points) - 1} equal steps; {advice}"
        )
    return _tidy(spacing, 2 * _rounding(points) / (len(points) - 1))


def _rounding(points: np.ndarray) -> float:
    """Error of single points, from the precision in which they are kept."""
    eps = np.finfo(points.dtype).eps if points.dtype.kind == "f" else np.finfo(np.float64).eps
    return 4 * float(eps) * float(np.abs(points).max())


def _tidy(value: float, error: float) -> float:
    """The number of fewest digits within `error`, so that 0.1 in single precision is 0.1, and 2π is 2π."""
    found = _candidate(value, error)
    return float(value if found is None else found[1])


def _digits(value: float, error: float) -> int:
    """Digits after the point that tell the value, many if none does."""
    found = _candidate(value, error)
    return 99 if found is None else found[0]


def _candidate(value: float, error: float) -> tuple[int, Any] | None:
    for digits, unit in [
        *((n, 1.0) for n in range(4)),
        *((n, math.pi) for n in range(4)),
        *((n, 1.0) for n in range(4, 13)),
    ]:
        rounded = round(value / unit, digits) * unit
        if abs(rounded - value) <= error:
            return digits, rounded + 0.0  # −0.0 is another bound than 0.0
    return None
