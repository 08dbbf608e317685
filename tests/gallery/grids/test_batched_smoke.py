"""Plumes with other sources and obstacles in each entry of the batch."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = Box(x=60, y=60)
cases = batch(case=3)
RATE = tensor([0.2, 0.1, 0.3], cases)
OBSTACLE = Cuboid(vec(x=wrap([12, 30, 44], cases), y=38), half_size=vec(x=9, y=6))
SOURCE = Sphere(x=tensor([24.0, 30, 35], cases), y=8, radius=5)


@jit_compile
def step(v, s, p, dt=0.8, rate=RATE, source=SOURCE):
    s = advect.mac_cormack(s, v, dt) + rate * resample(source, to=s, soft=True)
    lift = resample(s * (0, 0.15), to=v)
    v = advect.semi_lagrangian(v, v, dt) + lift * dt
    v, p = fluid.make_incompressible(v, OBSTACLE, Solve(x0=p))
    return v, s, p


def start():
    return StaggeredGrid(0, 0, DOMAIN, x=16, y=16), CenteredGrid(0, ZERO_GRADIENT, DOMAIN, x=30, y=30), None


KINDS = {"Batched smoke": Kind(step, start, captures=2)}


def test_values() -> None:
    check_values(KINDS["Batched smoke"])


def test_derivatives_by_rates_and_sources() -> None:
    check_derivatives(KINDS["Batched smoke"], rate=RATE, source=SOURCE)
