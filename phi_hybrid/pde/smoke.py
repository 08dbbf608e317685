"""Smoke that flows into a box and rises, without viscosity: ∂u/∂t + u·∇u = −∇p + β s ŷ, ∇·u = 0, ∂s/∂t + u·∇s = q.

State: `{"velocity": staggered (batch, x, y), "smoke": centred (batch, x, y)}`. Input: the inflow q, smoke per time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid, resample
from phi.geom import Box, Sphere
from phi.math import Tensor
from phi.math.extrapolation import ZERO_GRADIENT
from phi.physics import advect, fluid

from phi_hybrid.pde.checks import require, require_number

__all__ = ["inflow_at", "smoke_step", "still_air"]

# --- step ---


def smoke_step(
    dt: float, buoyancy: float = 1.0, obstacles: Sequence[fluid.Obstacle] = ()
) -> Callable[[dict[str, Field], Field], dict[str, Field]]:
    """One step: smoke (MacCormack) with inflow, then velocity (semi-Lagrangian) with lift, then projection.

    As in the smoke plumes of Thuerey et al., Physics-based Deep Learning (arXiv 2109.05237).

    Args:
        dt: time step.
        buoyancy: β, acceleration per unit of smoke.
        obstacles: inside which the air rests.

    Returns:
        `step({"velocity": …, "smoke": …}, inflow) -> state`: staggered and centred `(batch, x, y)`, and q, smoke per time,
        centred. To be captured, or used within `linear_solves()`.

    Raises:
        StateError: for a time step or buoyancy that is not finite.
    """
    require_number("dt", dt)
    require_number("buoyancy", buoyancy)

    def step(state: dict[str, Field], inflow: Field) -> dict[str, Field]:
        velocity = state["velocity"]
        smoke = advect.mac_cormack(state["smoke"], velocity, dt) + dt * inflow
        lift = resample(smoke * math.vec(x=0.0, y=buoyancy), velocity)
        velocity = advect.semi_lagrangian(velocity, velocity, dt) + dt * lift
        return {"velocity": fluid.make_incompressible(velocity, obstacles)[0], "smoke": smoke}

    return step


# --- states ---


def still_air(x: int, y: int, dx: float = 1.0) -> dict[str, Field]:
    """State without motion and smoke in a closed box of `x` × `y` cells of edge `dx`, `(x, y)`."""
    grid = dict(x=x, y=y, bounds=Box(x=x * dx, y=y * dx))
    return {"velocity": StaggeredGrid(0.0, 0, **grid), "smoke": CenteredGrid(0.0, ZERO_GRADIENT, **grid)}


# --- inputs ---


def inflow_at(place: Tensor, radius: float, rate: float, like: Field) -> Field:
    """q = rate × the share of a cell that lies in a circle, to within 0.18 of the rate.

    So q changes smoothly with the place. With whole cells, one more or less at the edge can decide how a plume rises, since
    nothing here smooths it.

    Args:
        place: centre of the circle, `(batch, vector)`.
        radius: of the circle, at least one cell. All smoke together is right to 14 % with one, to 2 % with three cells.
        rate: smoke per time.
        like: centred field that gives the grid and the boundary, `(x, y)`.

    Raises:
        StateError: for a circle that the grid does not resolve.
    """
    require_number("radius", radius, positive=True)
    cell = float(math.max(like.dx))
    require(radius >= cell, f"radius = {radius}: expected at least {cell:g}, the edge of a cell; take a finer grid")
    share = resample(Sphere(place, radius=radius), like, soft=True).values
    return like.with_values(math.cast(share, like.values.dtype) * rate)
