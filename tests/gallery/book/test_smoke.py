"""Smoke as in the book: a plume with an inflow grid, grids declared x before y and y before x, and a batch of inflows."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

GRIDS = {
    "x before y": dict(x=16, y=20, bounds=Box(x=(0, 40), y=(0, 60))),
    "y before x": dict(y=20, x=16, bounds=Box(y=(0, 60), x=(0, 40))),
}


def inflow(domain, order):
    places = {"x": 14.0, "y": 9.0}
    centre = tensor([places[d] for d in order.split(" before ")], channel(vector=order.replace(" before ", ",")))
    return CenteredGrid(Sphere(center=centre, radius=6), extrapolation.BOUNDARY, **domain) * 0.2


def stepping(order):
    domain = GRIDS[order]
    source = inflow(domain, order)
    up = (0, 0.8) if order == "x before y" else (0.8, 0)

    def step(velocity, smoke, pressure, dt=1.0, nu=0.01):
        smoke = advect.semi_lagrangian(smoke, velocity, dt) + source
        force = (smoke * up).at(velocity)
        velocity = advect.semi_lagrangian(velocity, velocity, dt) + dt * force
        velocity = diffuse.explicit(velocity, nu, dt)
        velocity, pressure = fluid.make_incompressible(velocity, (), Solve("CG", 1e-3))
        return velocity, smoke, pressure

    def start():
        velocity = StaggeredGrid(0, extrapolation.ZERO, **domain)
        return velocity, CenteredGrid(0, extrapolation.BOUNDARY, **domain), None

    return Kind(step, start, {"dt": 1.3}, captures=2)


PLACES = tensor([(5, 3), (6, 4), (8, 5)], batch("inflow_loc"), channel(vector="x,y"))
BOX = dict(x=16, y=20, bounds=Box(x=(0, 16), y=(0, 20)))
SOURCES = 0.3 * CenteredGrid(Sphere(center=PLACES, radius=2), extrapolation.BOUNDARY, **BOX)


def batched(smoke, velocity):
    smoke = advect.mac_cormack(smoke, velocity, dt=1) + SOURCES
    velocity = advect.semi_lagrangian(velocity, velocity, dt=1) + (smoke * (0, 1)).at(velocity)
    solve = Solve("CG", 1e-3, rank_deficiency=0, suppress=[math.NotConverged])
    velocity, _ = fluid.make_incompressible(velocity, [], solve)
    return smoke, velocity


def empty():
    smoke = CenteredGrid(0, extrapolation.BOUNDARY, **BOX)
    return smoke, StaggeredGrid(math.zeros(batch(inflow_loc=3)), extrapolation.ZERO, **BOX)


KINDS = {f"Book: smoke, {order}": stepping(order) for order in GRIDS}
KINDS["Book: smoke, batch of inflows"] = Kind(batched, empty, captures=2)


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


@pytest.mark.parametrize("order", GRIDS)
def test_derivatives_by_the_viscosity(order: str) -> None:
    check_derivatives(KINDS[f"Book: smoke, {order}"], nu=0.01)


def test_derivatives_of_the_batch() -> None:
    check_derivatives(KINDS["Book: smoke, batch of inflows"])
