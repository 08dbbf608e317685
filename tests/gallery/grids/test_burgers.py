"""Burgers on a line and in a plane: implicit diffusion, then advection by itself."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


@jit_compile
def step(v, dt=0.4, nu=0.08):
    v = diffuse.implicit(v, nu, dt=dt)
    return advect.semi_lagrangian(v, v, dt=dt)


def line():
    return (CenteredGrid(Noise(smoothness=2.0), PERIODIC, x=48, bounds=Box(x=24)),)


def plane():
    return (CenteredGrid(Noise(vector="x,y"), PERIODIC, x=24, y=16, bounds=Box(x=20, y=10)),)


KINDS = {"Burgers, 1D": Kind(step, line), "Burgers, 2D": Kind(step, plane)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name], steps=5)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives(name: str) -> None:
    check_derivatives(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_by_the_viscosity(name: str) -> None:
    check_derivatives(KINDS[name], nu=0.08)
