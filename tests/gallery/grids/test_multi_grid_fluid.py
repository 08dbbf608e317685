"""A fine grid inside a coarse one: the coarse velocity is the boundary of the fine velocity, fields as boundaries."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

LARGE, SMALL = Box(x=40, y=40), Box(x=(12, 28), y=(14, 30))
BODY = Sphere(x=20, y=22, radius=3)
SOURCE = Sphere(x=20, y=5, radius=3)


@jit_compile
def step(v, v_small, s, p, dt=0.9, rate=0.25):
    s = advect.mac_cormack(s, v_small, dt) + rate * resample(SOURCE, s, soft=True)
    lift = s * (0, 0.2)
    v_small = advect.semi_lagrangian(v_small, v_small, dt) + lift.at(v_small) * dt
    v = advect.semi_lagrangian(v, v, dt) + lift.at(v) * dt
    v, p = fluid.make_incompressible(v, [BODY], Solve(x0=p))
    guess = CenteredGrid(0, p, v_small.bounds, v_small.resolution)
    v_small = StaggeredGrid(v_small, ZERO_GRADIENT, v_small.bounds, v_small.resolution)
    v_small, _ = fluid.make_incompressible(v_small, [BODY], Solve("auto", 1e-5, 1e-5, x0=guess))
    return v, StaggeredGrid(v_small, v, v_small.bounds, v_small.resolution), s, p


def start():
    v = StaggeredGrid(0, 0, LARGE, x=14, y=14)
    v_small = v.at(StaggeredGrid(0, boundary=v, bounds=SMALL, x=16, y=16))
    return v, v_small, CenteredGrid(0, ZERO_GRADIENT, LARGE, x=30, y=30), None


KINDS = {"Nested grids": Kind(step, start, captures=2)}


def test_values() -> None:
    check_values(KINDS["Nested grids"])


def test_derivatives() -> None:
    check_derivatives(KINDS["Nested grids"], rate=0.25)
