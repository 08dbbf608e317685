"""Motion of a marker between two snapshots: its centre of mass, its turning, and the flow that carried it."""

from __future__ import annotations

import numpy as np
import torch
from phi import math
from phi.field import Field, StaggeredGrid
from phi.math import Tensor, batch, channel, dual, rename_dims, spatial, wrap
from phi.math.extrapolation import PERIODIC

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require, require_count, require_number
from phi_hybrid.errors import StateError

__all__ = ["estimate_flow", "estimate_motion", "solenoidal_waves"]


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
        StateError: for markers that are no centred periodic scalars in 2D, or on different grids; for a time of 0.
    """
    _check(before, after)
    if not isinstance(time, Tensor):
        _require_time(time)
    with math.precision(before.values.dtype.precision):  # PhiML would convert the values to the global precision
        (start, axes), (end, turned) = _centre_and_axes(before), _centre_and_axes(after)
        velocity = _nearest_image(end - start, before.bounds.size) / time
        return velocity, _angle(turned * math.conjugate(axes)) / (2 * time)


def estimate_flow(before: Field, after: Field, time: float, waves: int = 4, smoothness: float = 0.03) -> Field:
    """Large-scale incompressible flow that carries one marker into the other.

    First the way d of the centre of mass, see `estimate_motion`; then the displacement s = Σ cⱼ·wⱼ that is left, by linear
    least squares in the `solenoidal_waves` wⱼ (optical flow, Horn & Schunck 1981),

        min over c of  ∫ (m₀(x − d) − s·∇m̄ − m₁)² + λ Σ exp(0.2·|kⱼ|²)·cⱼ²,  u = (d + s)/t,  m̄ the mean of m₀(x − d) and m₁.

    Of first order in s: exact where markers differ little, an estimate to be repeated where the flow turns and strains
    them. Beside the marker, u is what the waves continue.

    Args:
        before: m₀, non-negative, centred and periodic, `(batch, x, y)`.
        after: m₁, the same some time later.
        time: t between the two.
        waves: largest |k|, in waves per box.
        smoothness: λ, relative to the mean of ∫(wⱼ·∇m̄)²; larger for noise and strain.

    Returns:
        Staggered velocity `(batch, x, y)` without divergence.

    Raises:
        StateError: as `estimate_motion`, and for a marker that is uniform.
    """
    _require_time(time)
    require_number("smoothness", smoothness, least=0)
    displacement, _ = estimate_motion(before, after, 1.0)
    with math.precision(before.values.dtype.precision):
        moved, basis = _shifted(before, displacement), solenoidal_waves(before, waves)
        slope = ((moved + after) / 2).gradient(boundary=PERIODIC).values
        carried = math.sum(basis.at_centers().values * slope, "vector")
        penalty = smoothness * np.exp(0.2 * np.sum(_wavevectors(waves) ** 2, 1))
        weights = _least_squares(carried, moved.values - after.values, penalty)
        uniform = rename_dims(displacement, "vector", dual(vector="x,y"))
        return basis.with_values((math.sum(weights * basis.values, "wave") + uniform) / time)


def solenoidal_waves(grid: Field, waves: int) -> Field:
    """Velocities without divergence: two uniform ones, and the curls of cos(k·x) and sin(k·x) for all |k| up to a number.

    Args:
        grid: any periodic field, for its cells `(x, y)`.
        waves: largest |k|, in waves per box.

    Returns:
        Staggered, `(wave, x, y)`, of speed 1 at most; without divergence in the discrete sense.

    Raises:
        StateError: if `waves` is no integer ≥ 1.
    """
    require_count("waves", waves)
    k, size = _wavevectors(waves), [grid.resolution.get_size(d) for d in "xy"]
    corner = np.stack(np.meshgrid(*[np.arange(n) / n for n in size], indexing="ij"), -1)
    phase = 2 * np.pi * corner @ k[2::2].T
    wavenumber = 2 * np.pi * np.hypot(*(k[2:] / grid.bounds.size.numpy("vector")).T)
    psi = np.stack([np.cos(phase), np.sin(phase)], -1).reshape(*size, -1) / wavenumber
    dx = grid.dx.numpy("vector")
    flow = {"x": (np.roll(psi, -1, 1) - psi) / dx[1], "y": -(np.roll(psi, -1, 0) - psi) / dx[0]}
    uniform = {"x": [1.0, 0.0], "y": [0.0, 1.0]}
    components = {d: np.concatenate([np.broadcast_to(uniform[d], (*size, 2)), flow[d]], -1) for d in "xy"}
    precision = torch.float64 if math.get_precision() == 64 else torch.float32
    tensors = {
        d: wrap(torch.as_tensor(c, dtype=precision), spatial("x,y"), batch("wave")) for d, c in components.items()
    }
    rest = StaggeredGrid(0, PERIODIC, grid.bounds, grid.resolution)
    return rest.with_values(math.stack(tensors, dual("vector")))


def _wavevectors(waves: int) -> np.ndarray:
    """k of `solenoidal_waves` in waves per box, `(wave, 2)`: twice 0, then each k of a half-plane twice."""
    half = [(i, j) for i in range(waves + 1) for j in range(-waves, waves + 1) if (i, j) > (0, 0)]
    return np.repeat([(0, 0), *[k for k in half if np.hypot(*k) <= waves]], 2, 0).astype(float)


def _shifted(marker: Field, displacement: Tensor) -> Field:
    """m(x − d), each mode times exp(−ik·d)."""
    k = 2 * math.PI * math.fftfreq(marker.resolution, marker.dx)
    turn = math.exp(-1j * math.sum(k * displacement, "vector"))
    return marker.with_values(math.real(math.ifft(math.fft(marker.values) * turn)))


def _least_squares(images: Tensor, target: Tensor, penalty: np.ndarray) -> Tensor:
    """c with Σ cⱼ·imageⱼ ≈ target: `(batch, wave, x, y)`, `(batch, x, y)` → `(batch, wave)`."""
    dims = target.shape.batch
    a = math.reshaped_native(images, [dims, "wave", "x,y"])
    b = math.reshaped_native(target, [dims, "x,y", channel(column=1)])
    matrix = a @ a.mT
    scale = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    seen = images.available and not _compat.functorch_active()  # not while captured or under vmap
    if seen and (scale == 0).any():
        raise StateError(
            "a marker that is the same everywhere shows no motion: give one that varies, in every batch entry"
        )
    ridge = torch.diag(torch.as_tensor(penalty, dtype=a.dtype, device=a.device))
    weights = torch.linalg.solve(matrix + scale * ridge, a @ b)
    return math.reshaped_tensor(weights[..., 0], [dims, batch("wave")])


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


def _require_time(time: float) -> None:
    """Raises StateError for a time in which nothing can move; negative ones lead back."""
    require_number("time", time)
    require(time != 0, "time", time, "another number than 0: what passes between the two markers")


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
