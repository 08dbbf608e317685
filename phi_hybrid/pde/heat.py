"""The heat equation, ∂u/∂t = ν ∇²u, on periodic grids, and its inverse, which sharpens as far as noise allows.

State u: any periodic field `(batch, x, …)`. No inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phi import math
from phi.field import Field
from phi.math import Tensor
from phi.math.extrapolation import PERIODIC

from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require_number
from phi_hybrid.pde.grids import centred_square

__all__ = ["Sharpening", "filtered", "heat_step", "square"]

# --- step ---


def heat_step(dt: float, viscosity: float | Tensor) -> Callable[[Field], Field]:
    """Exact diffusion, u ↦ F⁻¹ exp(−νk²·dt) F u: every mode decays by its own factor, whatever the time step.

    Unlike PhiFlow's `diffuse.fourier` it knows the size of the cells, and keeps the precision of the field.

    Args:
        dt: time step.
        viscosity: ν, length² per time, a number or `(batch)`.

    Returns:
        `step(u) -> u`, periodic fields `(batch, x, …)`, to be captured or used as it is. It raises StateError for fields
        with another boundary.

    Raises:
        StateError: for a time step or viscosity that is not finite.
    """
    require_number("dt", dt)
    require_number("viscosity", viscosity)
    return lambda u: filtered(u, lambda k2: math.exp(-viscosity * dt * k2))


@dataclass(frozen=True)
class Sharpening:
    """Diffusion backwards in time, in which each mode is amplified as far as it is likely signal and not noise.

    Seen through diffusion over the time T, y = K·x + n with K = exp(−νk²T), the best linear estimate of x is Wiener's,

        x̂ = G·y,  G = K/(K² + (σ/s)²) = K⁻¹ · S/(S + N),  S = K²s² and N = σ² the power of signal and noise in y.

    G ≈ K⁻¹ where the signal is stronger than the noise, at most s/(2σ), and 0 where the signal has drowned; the mean is
    kept. For every x of the assumed strength, |x̂ₖ| ≤ √n·s, the error of K·x̂ is at most half the noise level. Going back
    by a part t of the way amplifies by G^(t/T): many small steps give what a single one gives, with the same bounds.
    Near a state x, the inverse of `heat_step` is x̃ = x + G·(y − K·x): modes that tell nothing stay as they are in x.

    Holl et al. 2022 (arXiv 2109.15048) likewise amplify by the probability that a mode is signal.

    Args:
        viscosity: ν, length² per time, a number or `(batch)`.
        time: T, the whole time to go back.
        noise: σ, standard deviation of the noise of y per cell, rounding at least; in units of y, a number or `(batch)`.
        signal: s, standard deviation of x per cell, or the least upper estimate of it; in units of x.

    Raises:
        StateError: where viscosity, time, noise or signal are numbers that are not positive and finite.
    """

    viscosity: float | Tensor
    time: float
    noise: float | Tensor
    signal: float | Tensor = 1.0

    def __post_init__(self) -> None:
        rounding = "without noise take that of rounding, e.g. 1e-15 times the largest value"
        for name in ("viscosity", "time", "noise", "signal"):
            require_number(name, getattr(self, name), positive=True, way_out=rounding if name == "noise" else "")

    def __call__(self, u: Field, time: float | None = None) -> Field:
        """u as it was some time ago, F⁻¹ G^(t/T) F u.

        Args:
            u: periodic, `(batch, x, …)`; a state, or an update of one.
            time: t; all of T without.

        Raises:
            StateError: for fields that are not periodic.
        """
        part = 1.0 if time is None else time / self.time
        return filtered(u, lambda k2: math.where(k2 > 0, math.exp(part * self._log_gain(k2)), 1))

    def _log_gain(self, k2: Tensor) -> Tensor:
        """ln G = νk²T − ln(1 + (σ/s)²·exp(2νk²T)), without numbers that overflow."""
        decay = self.viscosity * self.time * k2
        return decay - math.soft_plus(2 * (decay - math.log(math.wrap(self.signal) / self.noise)))


def filtered(u: Field, factor: Callable[[Tensor], Tensor]) -> Field:
    """F⁻¹ factor(k²) F u, each mode times a number.

    Args:
        u: periodic, centred or staggered, `(batch, x, …)`.
        factor: of the squared angular wavenumber, 1 per length², `(x, …)` ↦ `(batch, x, …)`.

    Raises:
        StateError: for fields that are not periodic grids.
    """
    if not isinstance(u, Field) or not u.is_grid or u.boundary != PERIODIC:
        what = f"a field with boundary {u.boundary}" if isinstance(u, Field) else f"a {type(u).__name__}"
        raise StateError(
            f"got {what}: expected a periodic grid, of which the waves are the modes; e.g. heat.square(cells)"
        )
    with math.precision(u.values.dtype.precision):
        k2 = (2 * math.PI) ** 2 * math.vec_squared(math.fftfreq(u.resolution, u.dx), "vector")
        return u.with_values(math.real(math.ifft(math.fft(u.values) * factor(k2))))


# --- states ---


def square(cells: int = 64, length: float | None = None) -> Field:
    """Zero on a periodic square, centred `(x, y)`; cells of size 1 without a `length`."""
    return centred_square(cells, length)
