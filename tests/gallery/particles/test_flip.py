"""Water as particles: velocities go to a grid and back, pressure where there are particles, obstacles push."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.field._point_cloud import distribute_points
from phi.torch.flow import *

DOMAIN = Box(x=16, y=16)
RAMP = Box(x=(1, 7), y=(7, 8.5)).rotated(-20)


def on_grid(particles):
    return particles.at(StaggeredGrid(0, 0, DOMAIN, x=16, y=16), scatter=True, outside_handling="clamp")


def stepping(transfer):
    @jit_compile
    def step(particles: Field, pressure=None, dt=0.1, gravity=vec(x=0, y=-9.0)):
        grid_v = before = field.finite_fill(on_grid(particles))
        like = CenteredGrid(0, grid_v.extrapolation.spatial_gradient(), grid_v.bounds, grid_v.resolution)
        occupied = resample(field.mask(particles), like, scatter=True, outside_handling="clamp")
        grid_v, pressure = fluid.make_incompressible(grid_v + gravity * dt, [RAMP], active=occupied)
        if transfer == "FLIP":
            particles += resample(grid_v - before, to=particles)
        else:
            particles = resample(grid_v, particles)
        free = grid_v * resample(~RAMP, to=grid_v)
        particles = advect.points(particles, free, dt, advect.finite_rk4)
        return fluid.boundary_push(particles, [RAMP, ~DOMAIN], separation=0.5), pressure

    return step


def start():
    pool, drop = Box(x=(0, 16), y=(0, 3)), Box(x=(2, 6), y=(11, 14))
    return distribute_points(union(drop, pool), x=16, y=16) * (0, 0), None


KINDS = {name: Kind(stepping(name), start, captures=2, rounding=1e-6) for name in ("FLIP", "PIC")}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


def test_derivatives_by_gravity_and_particles() -> None:
    check_derivatives(KINDS["FLIP"], gravity=vec(x=0, y=-9.0), rounding=1e-6)
