"""Waves on water that a ball stirs: a body built inside the step, at a place that depends on the time."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


def displaced(ball: Sphere, *fields: Field, depth=0.4):
    return [field.where(ball, depth * math.sin(-PI / 2), f) for f in fields]


@jit_compile
def step(now, before, time, dt=0.02, speed=1.2, damping=0.1):
    ball = Sphere(center=now.bounds.center + math.rotate_vector(vec(x=0, y=-2.1), time), radius=0.9)
    now, before = displaced(ball, now, before)
    following = 2.0 * now - before + dt * dt * (speed * now.laplace() - damping * (now - before))
    return following, now, time + dt


def start():
    """The time begins as a Python number, as users write it. Two numbers are constants, the third one is an input."""
    noise = CenteredGrid(Noise(), x=24, y=24, bounds=Box(x=8, y=8), boundary=ZERO_GRADIENT)
    return noise, noise, 0


def at_a_time():
    return *start()[:2], tensor(0.3)


KINDS = {"Waves": Kind(step, start, captures=3, rounding=1e-6), "Waves, the time a tensor": Kind(step, at_a_time)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name], steps=5)


def test_derivatives() -> None:
    check_derivatives(KINDS["Waves, the time a tensor"], speed=1.2, damping=0.1)
