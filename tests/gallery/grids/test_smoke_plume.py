"""Smoke rises from a source: MacCormack advection, buoyancy, a pressure that is `None` at first and a guess then."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = Box(x=40, y=50)
SOURCE = Sphere(x=18, y=7.5, radius=4)


@jit_compile
def step(v, s, p, dt, rate=0.3):
    s = advect.mac_cormack(s, v, dt) + rate * resample(SOURCE, to=s, soft=True)
    v = advect.semi_lagrangian(v, v, dt) + resample(s * (0, 0.2), to=v) * dt
    v, p = fluid.make_incompressible(v, (), Solve("CG", 1e-3, x0=p))
    return v, s, p


def start():
    return StaggeredGrid(Noise(), 0, DOMAIN, x=16, y=20), CenteredGrid(0, ZERO_GRADIENT, DOMAIN, x=24, y=30), None


KINDS = {"Smoke plume": Kind(step, start, {"dt": 0.6}, captures=2)}


def test_values() -> None:
    check_values(KINDS["Smoke plume"])


def test_derivatives() -> None:
    check_derivatives(KINDS["Smoke plume"], rate=0.3)
