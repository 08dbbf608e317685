"""The Kuramoto–Sivashinsky equation, ∂u/∂t + u ∂u/∂x + ∂²u/∂x² + ∂⁴u/∂x⁴ = 0, on a periodic line.

Modes with wavenumber |k| < 1 grow at the rate k² − k⁴, the nonlinear term passes their energy on to short waves, which
decay: spatio-temporal chaos on domains longer than about 20 (Kuramoto 1978, Sivashinsky 1977).

State u: centred `(batch, x, vector)` or scalar. Input: the stretch of the line, a number per batch entry.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from numbers import Number
from typing import Any

from phi import math
from phi.field import Field
from phi.math import Tensor
from phi.math.extrapolation import PERIODIC

from phi_hybrid import _compat
from phi_hybrid.errors import StateError
from phi_hybrid.pde import grids
from phi_hybrid.pde.checks import require, require_count, require_number

__all__ = ["Scheme", "etd1", "etdrk2", "initial_states", "kuramoto_sivashinsky_step", "line", "phi_functions"]

Scheme = Callable[[Tensor, Callable[[Tensor], Tensor], float], Callable[[Tensor], Tensor]]
"""`(rate, nonlinear, dt) -> advance` for dv/dt = λ·v + N(v): rates λ per mode, the function N, and the time step; the
result takes Fourier coefficients v, complex `(batch, x, vector)`, one time step further. What does not depend on v is
computed once, however many substeps follow."""


# --- exponential time differencing ---


def etd1(rate: Tensor, nonlinear: Callable[[Tensor], Tensor], dt: float) -> Callable[[Tensor], Tensor]:
    """First-order exponential time differencing, v⁺ = e^z v + dt·φ₁(z)·N(v), z = λ·dt (Cox & Matthews 2002).

    On lengths of 45 … 65, trajectories stay bounded with steps up to 0.25 (300 time units, dealiased); with 0.5 nearly all
    end in infinity.

    Args:
        rate: λ of each mode, `(batch, x)`, 1 per time.
        nonlinear: N, of Fourier coefficients.
        dt: time step.

    Returns:
        `advance(v) -> v`.
    """
    z = rate * dt
    factor, weight = math.exp(z), dt * phi_functions(z)[0]
    return lambda v: factor * v + weight * nonlinear(v)


def etdrk2(rate: Tensor, nonlinear: Callable[[Tensor], Tensor], dt: float) -> Callable[[Tensor], Tensor]:
    """Second-order exponential Runge–Kutta, v⁺ = a + dt·φ₂(z)·(N(a) − N(v)), a the `etd1` step (Cox & Matthews 2002).

    On lengths of 45 … 65, trajectories stay bounded with steps up to 0.7. Arguments and result are those of `etd1`.
    """
    z = rate * dt
    phi_1, phi_2 = phi_functions(z)
    factor, weight, correction = math.exp(z), dt * phi_1, dt * phi_2

    def advance(v: Tensor) -> Tensor:
        before = nonlinear(v)
        a = factor * v + weight * before
        return a + correction * (nonlinear(a) - before)

    return advance


_SERIES_BELOW, _SERIES_TERMS = 0.5, 14


def phi_functions(z: Tensor) -> tuple[Tensor, Tensor]:
    """φ₁(z) = (e^z − 1)/z and φ₂(z) = (e^z − 1 − z)/z², to rounding in either precision, for real z of any shape.

    The quotients lose |z|⁻¹ and |z|⁻² digits to cancellation. Below |z| = ½ the series φ₂ = Σ zⁿ/(n + 2)! is taken, whose
    first 14 terms are exact in double precision, and φ₁ = 1 + z·φ₂.
    """
    small = abs(z) < _SERIES_BELOW
    near, far = math.where(small, z, 0.0), math.where(small, 1.0, z)  # neither branch may yield NaN, even in gradients
    series = 1 / pymath.factorial(_SERIES_TERMS + 1)
    for n in reversed(range(2, _SERIES_TERMS + 1)):
        series = near * series + 1 / pymath.factorial(n)
    quotient = (math.exp(far) - 1) / far
    return math.where(small, 1 + near * series, quotient), math.where(small, series, (quotient - 1) / far)


# --- the step ---


def kuramoto_sivashinsky_step(
    dt: float, substeps: int = 1, scheme: Scheme = etdrk2, dealias: bool = True
) -> Callable[..., Any]:
    """One step of the Kuramoto–Sivashinsky equation: Fourier modes, exact linear terms, u ∂u/∂x = ½ ∂(u²)/∂x by `scheme`.

    Args:
        dt: time step, all substeps together; 0.25 is a good value for `etdrk2` on lengths of 45 … 65.
        substeps: applications of `scheme`, each over `dt / substeps`.
        scheme: `etdrk2` (second order in time, the default), `etd1` (first order), or one of your own.
        dealias: whether u² is computed on 3/2 as many points: free of aliasing errors, no mode lost. With 48 cells on
            14π … 21π, errors of resolution are 5 to 15 times smaller, and long trajectories do not blow up.

    Returns:
        `step(u, stretch=1.0) -> u`: u centred `(batch, x, vector)` or scalar on a periodic line of length L₀; the
        equation is solved on a line of length L = stretch·L₀, `stretch` being a number or a tensor with one value per
        batch entry, `(batch)`. To be captured or used as it is. Where a captured step is given a stretch that is not
        positive and finite, its result is NaN.

    Raises:
        StateError: for steps that are not positive; from the step, for states and stretches that do not fit.
    """
    require_number("dt", dt, positive=True, way_out="backwards in time the equation is ill-posed")
    require_count("substeps", substeps)
    expected = "expected a function (rate, nonlinear, dt) -> advance; use etdrk2 or etd1"
    require(callable(scheme), f"scheme = {scheme!r}: {expected}")

    def step(u: Field, stretch: float | Tensor = 1.0) -> Field:
        _check_state(u)
        with math.precision(u.values.dtype.precision):
            return advanced(u, stretch)

    def advanced(u: Field, stretch: float | Tensor) -> Field:
        cells = u.resolution.volume
        points = -(-3 * cells // 2) if dealias else cells
        k = 2 * pymath.pi * math.fftfreq(u.resolution, u.dx).vector[0] / _checked_stretch(stretch)
        half_gradient = -0.5j * k

        def nonlinear(v: Tensor) -> Tensor:
            values = math.real(math.ifft(_with_modes(v, points)))
            return half_gradient * _with_modes(math.fft(values**2), cells)

        advance = scheme(k**2 - k**4, nonlinear, dt / substeps)
        v = math.fft(u.values)
        for _ in range(substeps):
            v = advance(v)
        return u.with_values(math.real(math.ifft(v)))

    return step


def _with_modes(v: Tensor, count: int) -> Tensor:
    """Fourier coefficients of the same function on `count` points, `(batch, x, vector)`.

    Zero for the shortest wave of an even grid, of which a real function has no derivative there.
    """
    dim, before = v.shape.spatial.name, v.shape.spatial.size
    lowest = (min(before, count) + 1) // 2
    lower, upper = v[{dim: slice(lowest)}], v[{dim: slice(before - lowest + 1, None)}]
    gap = math.zeros(v.shape.with_dim_size(dim, count - 2 * lowest + 1), dtype=v.dtype)
    return math.concat([lower, gap, upper], dim) * (count / before)


# --- states ---


def line(cells: int, length: float = 16 * pymath.pi) -> Field:
    """Zero on a periodic line, `(x, vector)`, centred. On the default length waves with 1 … 7 periods grow."""
    return grids.line(cells, length)


def initial_states(
    grid: Field, trajectories: int, seed: int, modes: tuple[int, int] = (1, 8), waves: int = 5, amplitude: float = 0.5
) -> Field:
    """Random smooth states of zero mean, u(x) = Σ Aᵢ sin(2π mᵢ x/L + φᵢ); roll them out for a while to reach the attractor.

    Args:
        grid: periodic line, `(x, vector)`.
        trajectories: number of samples.
        seed: of NumPy's generator; a finer grid gets the same states.
        modes: smallest and largest m, waves per domain.
        waves: number of sines in each state.
        amplitude: A is uniform in ±amplitude.

    Returns:
        Field like `grid` with dims `(trajectory, x, vector)`.

    Raises:
        StateError: for modes that the grid does not resolve.
    """
    _check_state(grid)
    cells = grid.resolution.volume
    if not 1 <= modes[0] <= modes[1] < cells / 2:
        raise StateError(
            f"modes = {modes}: expected 1 ≤ smallest ≤ largest < cells/2 = {cells / 2:g}; use fewer modes or a finer grid"
        )
    return grids.waves_1d(grid, trajectories, None, modes, waves, amplitude, seed)


# --- checks ---


def _check_state(u: Field) -> None:
    if not isinstance(u, Field) or not u.is_grid or u.is_staggered or u.spatial_rank != 1 or u.boundary != PERIODIC:
        what = f"{u.spatial_rank}D field with boundary {u.boundary}" if isinstance(u, Field) else type(u).__name__
        where = ", staggered" if isinstance(u, Field) and u.is_staggered else ""
        raise StateError(
            f"state is a {what}{where}: expected a centred grid on a periodic line; make one with "
            "kuramoto_sivashinsky.line(cells, length)"
        )
    if u.values.shape.channel.volume != 1:
        raise StateError(
            f"state has channels {u.values.shape.channel}: expected one component, `vector='x'` or none; make it a batch "
            "dim if these are independent states"
        )


def _checked_stretch(stretch: float | Tensor) -> float | Tensor:
    """The stretch; NaN where it is not positive and finite and nobody can be told."""
    expected = (
        "expected 0 < L/L₀ < ∞, a number or a tensor with one value per batch entry, e.g. "
        "wrap([0.9, 1.1], batch('trajectory'))"
    )
    if not isinstance(stretch, (Number, Tensor)):
        raise StateError(f"stretch is a {type(stretch).__name__}: {expected}")
    varies = isinstance(stretch, Tensor)
    if varies and math.non_batch(stretch.shape):
        raise StateError(f"stretch has shape {stretch.shape}: {expected}")
    valid = (stretch > 0) & (stretch < math.INF)
    hidden = varies and (_compat.functorch_active() or not stretch.available)  # while captured or under vmap
    if not hidden and not math.wrap(valid).all:
        raise StateError(f"stretch = {stretch}: {expected}")
    return math.where(valid, stretch, math.NAN) if varies else stretch
