"""Motion of a marker between two snapshots: how its centre of mass moved, and how far it turned."""

from __future__ import annotations

from phi import math
from phi.field import Field
from phi.math import Tensor
from phi.math.extrapolation import PERIODIC

from phi_hybrid.errors import StateError

__all__ = ["estimate_motion"]


def estimate_motion(before: Field, after: Field, time: float) -> tuple[Tensor, Tensor]:
    """Mean and angular velocity of a marker, from its centres of mass and its principal axes.

        u = (c₁ − c₀)/t,  ω = arg(q₁·q₀*)/(2t),  q = μ_xx − μ_yy + 2i·μ_xy with the central moments μ = ⟨dd⟩ − ⟨d⟩⟨d⟩.

    A first guess of the velocity for inverses of flows (Holl et al. 2022, arXiv 2109.15048, use both numbers likewise).
    Exact for rigid motion of a blob smaller than the box, as far as the grid resolves it, by less than half a box and less
    than a quarter turn; beyond these it is off by whole boxes and half turns. A round blob does not show its turning:
    where |q| ≪ ⟨d²⟩, ω is arbitrary, and 0 where q = 0. Only the shape turns, not the fluid: in shear or strain ω is not
    the vorticity. Empty markers have no centre, and give NaN.

    Args:
        before: marker, non-negative, centred and periodic, `(batch, x, y)`.
        after: the same some time later.
        time: t between the two.

    Returns:
        `(u, ω)`: velocity `(batch, vector)` in length per time, and angular velocity `(batch)` in radians per time,
        anticlockwise.

    Raises:
        StateError: for markers that are no centred periodic scalars in 2D, or on different grids.
    """
    _check(before, after)
    with math.precision(before.values.dtype.precision):  # PhiML would convert the values to the global precision
        (start, axes), (end, turned) = _centre_and_axes(before), _centre_and_axes(after)
        velocity = _nearest_image(end - start, before.bounds.size) / time
        return velocity, _angle(turned * math.conjugate(axes)) / (2 * time)


def _centre_and_axes(marker: Field) -> tuple[Tensor, Tensor]:
    """Centre of mass `(batch, vector)` and q, complex `(batch)`, whose argument is twice the angle of the long axis."""
    share = marker.values / math.sum(marker.values, "x,y")
    size = marker.bounds.size
    turn = math.exp(2j * math.PI * (marker.points - marker.bounds.lower) / size)  # has no edges, unlike the positions
    about = marker.bounds.lower + size * _angle(math.sum(share * turn, "x,y")) / (2 * math.PI)
    distance = _nearest_image(marker.points - about, size)
    offset = math.sum(share * distance, "x,y")
    d = distance - offset
    complex_distance = d.vector["x"] + 1j * d.vector["y"]
    return about + offset, math.sum(share * complex_distance**2, "x,y")


def _nearest_image(distance: Tensor, size: Tensor) -> Tensor:
    return distance - size * math.round(distance / size)


def _angle(z: Tensor) -> Tensor:
    return math.arctan(math.imag(z), divide_by=math.real(z))


def _check(before: Field, after: Field) -> None:
    expected = "expected a centred periodic scalar (batch, x, y), e.g. heat.square(cells).with_values(…)"
    for name, marker in (("before", before), ("after", after)):
        if not isinstance(marker, Field) or not marker.is_grid:
            raise StateError(f"{name} is a {type(marker).__name__}: {expected}")
        if marker.is_staggered or marker.boundary != PERIODIC or marker.shape.non_batch.names != ("x", "y"):
            kind = "staggered" if marker.is_staggered else "centred"
            raise StateError(f"{name} is {kind} with shape {marker.shape} and boundary {marker.boundary}: {expected}")
    if before.resolution != after.resolution or before.bounds != after.bounds:
        raise StateError(
            f"before has {before.resolution} on {before.bounds} and after {after.resolution} on {after.bounds}: "
            "expected two snapshots on the same grid; resample one of them"
        )
