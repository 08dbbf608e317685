"""A bar that turns in an open domain: an obstacle with an angular velocity as argument and result.

Three graphs: PhiFlow describes the rotation by nothing at first, then by an angle, then by a matrix. The angle is a Python
number of double precision in eager PhiFlow, a tensor of single precision in the captured step.
"""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


@jit_compile
def step(v, p, bar: Obstacle, dt=0.7):
    bar = bar.rotated(bar.angular_velocity * dt)
    v = advect.mac_cormack(v, v, dt)
    v, p = fluid.make_incompressible(v, bar, Solve(x0=p))
    return v, p, bar


def start():
    bar = Obstacle(Cuboid(vec(x=21, y=19), x=4, y=22), angular_velocity=0.08)
    return StaggeredGrid(0, ZERO_GRADIENT, Box(x=40, y=40), x=20, y=20), None, bar


KINDS = {"Rotating bar": Kind(step, start, captures=3, rounding=1e-5)}


def test_values() -> None:
    check_values(KINDS["Rotating bar"], steps=4)


def test_derivatives_by_position_and_angle() -> None:
    check_derivatives(KINDS["Rotating bar"])
