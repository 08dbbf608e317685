"""A cavity under a moving lid: a vector as boundary value of a staggered grid."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


@jit_compile
def step(v, p, dt=0.8, viscosity=0.12):
    v = advect.semi_lagrangian(v, v, dt)
    v = diffuse.explicit(v, viscosity, dt)
    v, p = fluid.make_incompressible(v, solve=Solve(x0=p))
    return v, p


def start():
    return StaggeredGrid(0, {"x": 0, "y-": 0, "y+": vec(x=0.7, y=0)}, x=20, y=14), None


def driven(v, p, lid):
    """The lid as an argument: its velocity is part of the boundary."""
    v = StaggeredGrid(v.values, {"x": 0, "y-": 0, "y+": lid}, x=20, y=14)
    return step(v, p)


KINDS = {"Lid-driven cavity": Kind(step, start, captures=2)}


def test_values() -> None:
    check_values(KINDS["Lid-driven cavity"])


def test_derivatives_by_the_viscosity() -> None:
    check_derivatives(KINDS["Lid-driven cavity"], viscosity=0.12)


def test_derivatives_by_the_velocity_of_the_lid() -> None:
    check_derivatives(Kind(driven, start), lid=vec(x=0.7, y=0))
