"""Planets that attract each other: named instances, pairwise differences, sums over the dual dim."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

BODIES = stack({"star": vec(x=0.1, y=0), "near": vec(x=-6, y=1), "far": vec(x=2, y=9)}, instance("bodies"))
MASS = wrap([600, 12, 8], instance(BODIES))


@jit_compile
def step(x, v, dt=0.3, mass=MASS):
    apart = math.pairwise_differences(x)
    a = 0.01 * math.sum(math.safe_div(mass.bodies.as_dual() * apart, math.vec_squared(apart) ** 1.5), "~bodies")
    return x + v * dt, v + a * dt


def start():
    v = math.safe_div(math.rotate_vector(BODIES, PI / 2), math.vec_length(BODIES))
    return tensor(BODIES), v


def start_with_integers():
    """Places given as integers are numbers of another type than those that follow: one graph more."""
    return math.to_int64(10 * BODIES), start()[1]


KINDS = {
    "Gravity": Kind(step, start, rounding=1e-6),
    "Gravity, integers at first": Kind(step, start_with_integers, captures=2, rounding=1e-6),
}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name], steps=5)


def test_derivatives_by_places_velocities_and_masses() -> None:
    check_derivatives(KINDS["Gravity"], mass=math.to_float(MASS), rounding=1e-6)
