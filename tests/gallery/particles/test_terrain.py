"""Balls that bounce on hills: distances to a height map, a point cloud in 3D."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

SPACE = Box(x=20, y=20, z=12)
HILLS = CenteredGrid(lambda x, y: 2 + 1.5 * math.sin(x / 3) * math.cos(y / 4), x=16, y=16, bounds=Box(x=20, y=20))
TERRAIN = geom.Heightmap(HILLS.values, SPACE, max_dist=0.5)


@jit_compile
def step(balls: Field, dt, elasticity=0.5, gravity=vec(x=0, y=0, z=-9.0)):
    v = balls.values + dt * gravity
    distance, _, normal, *_ = TERRAIN.approximate_closest_surface(balls.points)
    bounces = (distance < balls.geometry.bounding_radius()) & (v.vector @ normal < 0)
    impact = -(1 + elasticity) * (v.vector @ normal.vector) * normal
    v = math.where(bounces, v + impact, v)
    x = math.clip(balls.points + dt * v, SPACE.lower, SPACE.upper)
    return balls.shifted_to(x).with_values(v)


def start():
    places = CenteredGrid(0, x=3, y=3, z=1, bounds=Box(x=(4, 15), y=(5, 16), z=(3.6, 4.4))).as_points().points
    balls = Sphere(places, radius=0.8)
    return (PointCloud(balls, math.zeros_like(balls.center)),)


KINDS = {"Terrain": Kind(step, start, {"dt": 0.1}, rounding=1e-6)}


def test_values() -> None:
    check_values(KINDS["Terrain"], steps=6)


def test_derivatives_by_places_gravity_and_elasticity() -> None:
    check_derivatives(KINDS["Terrain"], steps=4, gravity=vec(x=0, y=0, z=-9.0), elasticity=0.5, rounding=1e-6)
