"""A force steers smoke to a place: its gradient through several steps, as controllers are trained."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

BOX = dict(y=14, x=18, bounds=Box(y=14, x=18))


def step(smoke, velocity, force, dt=0.8):
    velocity = advect.semi_lagrangian(velocity, velocity, dt) + dt * force
    velocity, _ = fluid.make_incompressible(velocity, (), Solve("CG", 1e-4))
    return advect.mac_cormack(smoke, velocity, dt), velocity


def start():
    smoke = CenteredGrid(Box(y=(3, 8), x=(4, 9)), ZERO_GRADIENT, **BOX)
    return smoke, StaggeredGrid(Noise(scale=6), 0, **BOX)


def burgers(u, force, dt=0.05, nu=0.02):
    return diffuse.explicit(advect.semi_lagrangian(u, u, dt), nu, dt, substeps=2) + dt * force


def line():
    return (CenteredGrid(Noise(batch(sample=3)), PERIODIC, x=32, bounds=Box(x=1)),)


FORCE = StaggeredGrid(lambda y, x: vec(y=math.sin(x / 3), x=0.3 * math.cos(y / 2)), 0, **BOX)
PUSH = CenteredGrid(lambda x: math.sin(2 * PI * x), PERIODIC, x=32, bounds=Box(x=1))
KINDS = {
    "Book: controlled smoke": Kind(step, start, {"force": FORCE}),
    "Book: controlled Burgers": Kind(burgers, line, {"force": PUSH}),
}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_by_the_force(name: str) -> None:
    check_derivatives(KINDS[name], steps=3, force=KINDS[name].keywords["force"])
