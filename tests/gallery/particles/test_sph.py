"""Smoothed particles: kernels of all pairs within a radius, pressure and friction between them, walls that damp.

The search for neighbours is dense, since PhiFlow 3.4's `sph.neighbor_graph` fails on every backend, and since a sparse
graph has as many entries as there are neighbours.
"""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.physics import sph
from phi.torch.flow import *

import phi_hybrid as ph

TANK = Box(x=4, y=4, z=4)
LENGTH = 0.8
REACH = 1.2
GRAVITY = vec(x=0, y=0, z=-0.1)


def accelerated(v, deltas, dt, stiffness, viscosity):
    distances = math.vec_length(deltas, eps=1e-5)
    kernel = sph.evaluate_kernel(deltas, distances, REACH, 3, "poly6")["kernel"]
    kernel = math.where(distances < REACH, kernel, 0)
    mass = 0.01 * math.mean(v.geometry.volume)
    density = math.sum(kernel, dual) * mass
    pressure = stiffness * (density - 0.01)
    near_density, near_pressure = rename_dims((density, pressure), instance, dual)
    gap = math.maximum(REACH - distances, 0)
    push = -math.safe_div(deltas, distances) * (pressure + near_pressure) / (2 * near_density) * gap**2
    drag = math.pairwise_differences(v.values) / near_density * gap
    force = math.sum(-mass * push + viscosity * mass * drag, dual)
    return v + (force / density + GRAVITY) * dt


@jit_compile
def step(v: Field, dt=0.02, stiffness=20.0, viscosity=0.025):
    v = accelerated(v, math.pairwise_differences(v.points), dt, stiffness, viscosity)
    return v.shifted(dt * v.values)


@jit_compile
def bounce(v: Field, damping=-0.9) -> Field:
    inside = math.clip(v.points, TANK.lower, TANK.upper)
    v = field.where(inside == v.points, v, v * damping)
    return v.shifted_to(inside)


def both(v):
    return bounce(step(v))


def start():
    points = pack_dims(math.meshgrid(x=3, y=4, z=3), spatial, instance("particles")) * LENGTH
    points += 0.01 * math.random_normal(points.shape)
    return (Field(Sphere(points, volume=LENGTH**3, variable_attrs=("pos",)), vec(x=0.0, y=0.0, z=0.0), 0),)


KINDS = {"SPH": Kind(both, start, rounding=1e-6), "SPH, walls": Kind(bounce, start, rounding=1e-6)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


def test_derivatives_by_stiffness_and_viscosity() -> None:
    check_derivatives(Kind(step, start), stiffness=20.0, viscosity=0.025, rounding=1e-6)


def test_sparse_neighbours_are_refused() -> None:
    """How many there are depends on the places: no graph of fixed shapes can hold them."""

    def count(x):
        return math.vec_length(math.pairwise_differences(x, max_distance=REACH, format="coo"), eps=1e-5)

    with pytest.raises(ph.CaptureError, match="value out of a trac|takes a value"):
        ph.capture(count, start()[0].points)
