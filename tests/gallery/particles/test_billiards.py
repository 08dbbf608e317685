"""Balls that collide: a point cloud of spheres with velocities, pairwise distances, impulses where they touch."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


def rack(layers=3, radius=0.04):
    places = [vec(x=0.15, y=0.5)]
    for i in range(layers):
        places += [vec(x=0.26 + 2 * i * radius, y=0.5 + (2 * j - 0.8 * i) * radius) for j in range(i + 1)]
    return Sphere(stack(places, instance("ball")), radius=radius)


@jit_compile
def step(v: PointCloud, dt: float, elasticity=0.7):
    moved = advect.points(v, v, dt)
    apart = math.pairwise_differences(moved.points)
    distance = math.vec_length(apart, eps=1e-4)
    direction = -math.safe_div(apart, distance)
    closing = -math.pairwise_differences(v.values)
    approach = direction.vector * closing.vector
    touches = (approach < 0) & (distance < 2 * v.geometry.radius)
    impulse = -(1 + elasticity) * 0.5 * approach * direction
    radii = v.geometry.radius + rename_dims(v.geometry.radius, instance, dual)
    impact = math.safe_div(distance - radii, approach)
    shift = math.sum(math.where(touches, math.minimum(impact - dt, 0) * impulse, 0), dual)
    v = v.with_elements(v.geometry.shifted(shift))
    v += math.sum(math.where(touches, impulse, 0), dual)
    return advect.points(v, v, dt)


def start():
    balls = rack()
    hit = math.scatter(math.zeros(balls.shape), indices=vec(ball=0), values=vec(x=4, y=0.1))
    return (Field(balls, hit, 0),)


KINDS = {"Billiards": Kind(step, start, {"dt": 0.004}, rounding=1e-6)}


def test_values() -> None:
    check_values(KINDS["Billiards"], steps=6)


def test_derivatives_by_places_and_velocities() -> None:
    check_derivatives(KINDS["Billiards"], steps=4, rounding=1e-6)
