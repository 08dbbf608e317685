"""Velocity from markers (PIV): points carried by a velocity grid that is the argument, in a loss to minimise."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

SPACE = dict(x=12, y=10, bounds=Box(x=6, y=5))
math.seed(1)
MARKERS = SPACE["bounds"].sample_uniform(batch(count=2), instance(markers=12))


@jit_compile
def simulate(v):
    return advect.points(MARKERS, v, dt=0.15, integrator=advect.rk4)


def loss(v, seen):
    return math.l2_loss(seen - simulate(v))


def start():
    return (StaggeredGrid(Noise(batch(seed=2)), **SPACE),)


def compared():
    return start()[0] * 0.5, simulate.f(start()[0])


KINDS = {
    "Markers": Kind(simulate, start, repeats=False, rounding=1e-6),
    "Markers, loss": Kind(loss, compared, repeats=False, rounding=1e-6),
}


def test_values_of_the_markers() -> None:
    check_values(KINDS["Markers"])


def test_values_of_the_loss() -> None:
    check_values(KINDS["Markers, loss"])


def test_derivatives_by_the_velocity() -> None:
    check_derivatives(KINDS["Markers, loss"], rounding=1e-6)
