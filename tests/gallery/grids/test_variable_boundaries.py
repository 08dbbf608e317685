"""A profile flows in: the boundary is a field of its own, with its own resolution."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = Box(x=8, y=6)


def profile(strength=1.0):
    return CenteredGrid(lambda x, y: vec(x=strength * math.tanh(y - 3), y=0), ZERO_GRADIENT, DOMAIN, x=1, y=16)


def step(v: Field, pressure, dt=0.5):
    v = advect.semi_lagrangian(v, v, dt)
    v = diffuse.explicit(v, 0.02, dt)
    v, pressure = fluid.make_incompressible(v, solve=Solve(x0=pressure))
    return v, pressure


def start():
    boundary = {"x-": profile().as_boundary(), "x+": ZERO_GRADIENT, "y": 0}
    return StaggeredGrid(0, boundary, DOMAIN, x=20, y=14), None


def controlled(v, pressure, inflow):
    boundary = {"x-": inflow.as_boundary(), "x+": ZERO_GRADIENT, "y": 0}
    return step(StaggeredGrid(v.values, boundary, DOMAIN, x=20, y=14), pressure)


KINDS = {"Inflow profile": Kind(step, start, captures=2)}


def test_values() -> None:
    check_values(KINDS["Inflow profile"])


def test_padding_with_the_profile() -> None:
    def pad(v):
        return v.pad(2)["x"].values

    def fresh():
        boundary = {"x-": profile().as_boundary(), "x+": ZERO_GRADIENT, "y": 0}
        return (CenteredGrid(Noise(vector="x,y"), boundary, DOMAIN, x=12, y=10),)

    check_values(Kind(pad, fresh, repeats=False))


def test_derivatives() -> None:
    check_derivatives(KINDS["Inflow profile"])


def test_derivatives_by_the_profile() -> None:
    check_derivatives(Kind(controlled, start), inflow=profile())
