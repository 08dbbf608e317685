"""Forced turbulence of higher order: `fluid.incompressible_rk4` with a momentum equation of sixth-order stencils."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = dict(extrapolation=extrapolation.PERIODIC, bounds=Box(x=2 * PI, y=2 * PI), x=16, y=16)


def momentum(v, force, viscosity=0.004):
    return advect.finite_difference(v, v, order=6) + diffuse.finite_difference(v, viscosity, order=6) + force


@jit_compile
def step(v, p, dt, force, viscosity=0.004):
    return fluid.incompressible_rk4(
        momentum, v, p, dt, pressure_order=4, pressure_solve=Solve("CG", 1e-5, 1e-5), force=force, viscosity=viscosity
    )


def several(*state, **keywords):
    return iterate(step, 3, *state, **keywords)


def start():
    return CenteredGrid(Noise(vector="x,y", smoothness=2), **DOMAIN) * 0.1, CenteredGrid(0, **DOMAIN)


FORCE = CenteredGrid(lambda x, y: vec(x=math.sin(3 * y), y=0), **DOMAIN)
KEYWORDS = {"dt": 0.01, "force": FORCE}
KINDS = {"Kolmogorov flow": Kind(step, start, KEYWORDS), "Kolmogorov flow, 3 steps": Kind(several, start, KEYWORDS)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name], steps=2)


def test_values_in_double_precision() -> None:
    check_values(Kind(step, start, KEYWORDS, precision=64), steps=2)


def test_derivatives_by_force_and_viscosity() -> None:
    check_derivatives(KINDS["Kolmogorov flow"], steps=1, force=FORCE, viscosity=0.004)
