"""Points that follow a velocity grid with Runge–Kutta: a tensor of places as state, the grid closed over or given."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

import phi_hybrid as ph

DOMAIN = Box(x=6, y=5)
math.seed(0)
with ph.linear_solve.linear_solves():
    FLOW, _ = fluid.make_incompressible(StaggeredGrid(Noise(vector="x,y"), 0, DOMAIN, x=20, y=18))


@jit_compile
def step(x, step_size=0.12):
    return advect.points(geom.Point(x), FLOW, step_size, integrator=advect.rk4).center


def one():
    return (stack([vec(x=2.7, y=2.2)], instance("start")),)


def many():
    return (pack_dims(CenteredGrid(0, 0, DOMAIN, x=4, y=3).points, spatial, instance("start")),)


def along(x, flow):
    return advect.points(geom.Point(x), flow, 0.12, integrator=advect.rk4).center


KINDS = {"Streamline": Kind(step, one, rounding=1e-6), "Streamlines": Kind(step, many, rounding=1e-6)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


def test_derivatives_by_the_places() -> None:
    check_derivatives(KINDS["Streamlines"], rounding=1e-6)


def test_derivatives_by_the_flow() -> None:
    check_derivatives(Kind(along, many), flow=FLOW, rounding=1e-6)
