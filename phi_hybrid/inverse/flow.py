"""Flows run backwards in time: inverses of advection, Burgers' and Navier–Stokes steps near a state.

All return to the order of the scheme, not to rounding: interpolation and viscosity have smoothed the flow on its way.
`local_inverse` makes a step back exact where it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from phi.field import Field
from phi.math import Tensor
from phi.physics import advect, fluid

from phi_hybrid.bridge.checks import require, require_callable, require_count, require_number
from phi_hybrid.pde.heat import Sharpening

__all__ = ["advect_back", "burgers_back", "carried", "carried_back", "local_inverse", "navier_stokes_back"]

State = TypeVar("State", Field, dict[str, Field])


def local_inverse(
    step: Callable[[State], State], back: Callable[[State], State], iterations: int = 1
) -> Callable[[State, State], State]:
    """Inverse of a step near a state, by x ← x + B(y) − B(P(x)), with P the step and B a rough way back.

    The error shrinks by ‖1 − B′P′‖ per iteration, a number of the order of dt in what the grid resolves well. A solution
    stays as it is, unlike under B alone. Where P damps by a factor K and B does not amplify, m iterations restore the part
    1 − (1 − K)ᵐ, amplifying noise by no more than m (van Cittert 1931): few iterations are the damping.

    Exact in the limit where P is invertible; x keeps what P loses. Diverges where ‖1 − B′P′‖ > 1: over times in which the
    flow folds, or with a B that sharpens too much, for which a single iteration is best.

    Args:
        step: P, `x -> y`; one step or many.
        back: B, `y -> x`, over the same time.
        iterations: m.

    Returns:
        `inverse(y, x) -> x̃`, fields or dicts of fields `(batch, x, …)`; to be captured, or used within `linear_solves()`.

    Raises:
        StateError: for what is no function, and for a number of iterations that is no integer ≥ 1.
    """
    for name, function in (("step", step), ("back", back)):
        require_callable(name, function, "a function state -> state")
    require_count("iterations", iterations)

    def inverse(y: State, x: State) -> State:
        target = back(y)
        for _ in range(iterations):
            x = _corrected(x, target, back(step(x)))
        return x

    return inverse


def _corrected(x: State, target: State, reached: State) -> State:
    if isinstance(x, dict):
        return {name: _corrected(x[name], target[name], reached[name]) for name in x}
    return x.with_values(x.values + (target.values - reached.values))


def _require_scheme(dt: float | Tensor, **functions: Callable) -> None:
    if not isinstance(dt, Tensor):  # an input of the step that is captured
        require_number("dt", dt, above=0)
    for name, function in functions.items():
        require_callable(name, function, "a function, e.g. advect.mac_cormack")


# --- advection ---


def advect_back(
    dt: float, advection: Callable[..., Any] = advect.semi_lagrangian, **options: object
) -> Callable[[Field, Field], Field]:
    """Advection along the reversed velocity, the inverse of `advection(u, velocity, dt)` for a given velocity.

    Exact for uniform flow by whole cells. Else two errors remain per step. That of the trajectories, dt²·u·∇u, adds up to
    first order in dt; `advect.mac_cormack` corrects it to second order in steady flow, `integrator=advect.rk4` removes it
    there. That of the interpolation, which smooths in both directions, is of order dx² for `advect.semi_lagrangian`, and
    dx⁴ for `advect.mac_cormack` except at maxima and minima, where it is dx² too.

    Args:
        dt: time step of the way forward, > 0.
        advection: its scheme.
        options: of the scheme.

    Returns:
        `back(u, velocity) -> u`, `(batch, x, …)`; to be captured or used as it is.
    """
    _require_scheme(dt, advection=advection)
    return lambda u, velocity: advection(u, -velocity, dt, **options)


def carried(
    dt: float, flow: Callable[[Field], Field], advection: Callable[..., Any] = advect.semi_lagrangian
) -> Callable[..., Any]:
    """A flow with a marker: ∂m/∂t + u·∇m = 0 next to a step of the velocity.

    Args:
        dt: time step.
        flow: `velocity -> velocity`, one step.
        advection: of the marker, along the velocity before the step.

    Returns:
        `step({"velocity": …, "marker": …}) -> state`: staggered or centred `(batch, x, y)`, and centred `(batch, x, y)`.

    Raises:
        StateError: for a time step that is not positive, and for what is no function.
    """
    _require_scheme(dt, flow=flow, advection=advection)

    def step(state: dict[str, Field]) -> dict[str, Field]:
        marker = advection(state["marker"], state["velocity"], dt)
        return {"velocity": flow(state["velocity"]), "marker": marker}

    return step


def carried_back(
    dt: float, flow_back: Callable[[Field], Field], advection: Callable[..., Any] = advect.semi_lagrangian
) -> Callable[..., Any]:
    """`carried` in reverse: first the velocity, then the marker along the velocity found.

    Args:
        dt: time step of the way forward, > 0.
        flow_back: `velocity -> velocity`, e.g. from `navier_stokes_back`.
        advection: of the marker.

    Returns:
        `back(state) -> state`, as for `carried`. As exact as `advect_back` and the velocity are.

    Raises:
        StateError: for a time step that is not positive, and for what is no function.
    """
    _require_scheme(dt, flow_back=flow_back, advection=advection)

    def back(state: dict[str, Field]) -> dict[str, Field]:
        velocity = flow_back(state["velocity"])
        return {"velocity": velocity, "marker": advection(state["marker"], -velocity, dt)}

    return back


# --- equations of motion ---


def navier_stokes_back(
    dt: float,
    advection: Callable[..., Any] = advect.semi_lagrangian,
    force: Field | None = None,
    drag: float = 0.0,
    sharpening: Sharpening | None = None,
) -> Callable[[Field], Field]:
    """`navier_stokes_step` in reverse: force and drag taken off, diffusion sharpened, advection by −u, projection.

    Of first order in dt for periodic flows that the grid resolves. Viscosity is left out unless a `sharpening` is given,
    because reversed diffusion multiplies rounding by exp(νk²·dt) at every step. Obstacles are left out too.

    Args:
        dt: time step of the way forward, > 0.
        advection: scheme of the way forward.
        force: f, of the way forward, `(x, y)`.
        drag: μ, 1 per time, of the way forward.
        sharpening: with the viscosity, and the time of all steps that are to be taken back.

    Returns:
        `back(velocity) -> velocity`: staggered, periodic, `(batch, x, y)`. To be captured, or used within
        `linear_solves()`.

    Raises:
        StateError: for a time step that is not positive, and a drag that takes off all velocity in one step.
    """
    _require_scheme(dt, advection=advection)
    require_number("drag", drag)
    require(
        drag * dt < 1, "drag", drag, f"less than 1/dt = {1 / dt:g}, which takes off all velocity; take a smaller dt"
    )

    def back(velocity: Field) -> Field:
        values = velocity.values if force is None else velocity.values - dt * force.values
        velocity = velocity.with_values(values / (1 - dt * drag) if drag else values)
        if sharpening is not None:
            velocity = sharpening(velocity, dt)
        return fluid.make_incompressible(advection(velocity, -velocity, dt))[0]

    return back


def burgers_back(
    dt: float, advection: Callable[..., Any] = advect.semi_lagrangian, sharpening: Sharpening | None = None
) -> Callable[[Field, Field], Field]:
    """`burgers_step` in reverse: force taken off, diffusion sharpened, advection by −u.

    Of first order in dt before a shock. Behind it the waves that ran into the shock are gone: what comes back is bounded,
    but only one of the many states that lead to the same one. The noise of the sharpening should not be less than the
    error of the scheme there, or else that is sharpened.

    Args:
        dt: time step of the way forward, > 0.
        advection: scheme of the way forward, e.g. `advect.mac_cormack` or `burgers.upwind`.
        sharpening: with the viscosity, and the time of all steps that are to be taken back; without, viscosity is left out.

    Returns:
        `back(u, force) -> u`, periodic fields `(batch, x, vector)` or staggered `(batch, x, y)`; to be captured or used as
        it is.

    Raises:
        StateError: for a time step that is not positive, and for what is no function.
    """
    _require_scheme(dt, advection=advection)

    def back(u: Field, force: Field) -> Field:
        u = u - dt * force
        if sharpening is not None:
            u = sharpening(u, dt)
        return advection(u, -u, dt)  # not by −dt, which would turn `upwind` to the wrong side

    return back
