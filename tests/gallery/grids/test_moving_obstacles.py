"""Obstacles as arguments and results: a box and a disk that move through a periodic domain."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = Box(x=40, y=30)


def moved(body, dt):
    return body.at((body.geometry.center + body.velocity * dt) % DOMAIN.size)


@jit_compile
def step(v, p, box, disk, dt=0.5):
    box, disk = moved(box, dt), moved(disk, dt)
    v = advect.mac_cormack(v, v, dt)
    v, p = fluid.make_incompressible(v, (box, disk), Solve(x0=p))
    return v, p, box, disk


def start():
    box = Obstacle(Cuboid(vec(x=9.3, y=22.1), x=8, y=6), velocity=vec(x=3.0, y=0))
    disk = Obstacle(Sphere(x=28.2, y=9.4, radius=5.1), velocity=vec(x=-1.0, y=2))
    return StaggeredGrid(0, PERIODIC, DOMAIN, x=20, y=15), None, box, disk


KINDS = {"Moving obstacles": Kind(step, start, captures=2)}


def test_values() -> None:
    check_values(KINDS["Moving obstacles"], steps=4)


def test_derivatives_by_position_size_and_velocity() -> None:
    check_derivatives(KINDS["Moving obstacles"])
