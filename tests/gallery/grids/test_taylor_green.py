"""Decaying vortices in double precision, a guess for the pressure from the first step on, the time step a tensor."""

from __future__ import annotations

from functools import partial

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = dict(x=14, y=14, boundary=PERIODIC, bounds=Box(x=2 * PI, y=2 * PI))
NU = 0.08


def velocity(x, t):
    (sx, sy), (cx, cy) = math.sin(x).vector, math.cos(x).vector
    return vec(x=cx * sy, y=-sx * cy) * math.exp(-2 * NU * t)


def pressure(x, t):
    return -math.sum(math.cos(2 * x), "vector") / 4 * math.exp(-4 * NU * t)


@jit_compile
def step(v, p, dt, viscosity=NU):
    v = diffuse.explicit(v, viscosity, dt)
    v = advect.semi_lagrangian(v, v, dt)
    return fluid.make_incompressible(v, (), Solve("CG", 1e-12, 1e-12, x0=p))


def start():
    time = math.linspace(0, 5.0, batch(time=60))
    v = StaggeredGrid(partial(velocity, t=time), **DOMAIN)
    p = CenteredGrid(partial(pressure, t=time), **DOMAIN)
    return v.time[0], p.time[0]


with math.precision(64):
    times = math.linspace(0, 5.0, batch(time=60))
    DT = times.time[1] - times.time[0]
KINDS = {"Taylor–Green": Kind(step, start, {"dt": DT}, precision=64)}


def test_values() -> None:
    check_values(KINDS["Taylor–Green"])


def test_derivatives() -> None:
    check_derivatives(KINDS["Taylor–Green"], viscosity=NU, dt=0.085)
