"""Smoke between many boxes, joined to one obstacle, with an inflow that is passed by keyword."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

DOMAIN = dict(x=24, y=24, bounds=Box(x=48, y=48))
BARS = [Box(x=(6 + 8 * n, 10 + 8 * n), y=(18, 38)) for n in range(0, 5, 2)] + [Box["x,y", 6:42, 38:42]]
LETTERS = union(BARS)


@jit_compile
def step(smoke, v, pressure, inflow, dt=1.0):
    smoke = advect.semi_lagrangian(smoke, v, dt) + inflow
    v = advect.semi_lagrangian(v, v, dt) + resample(smoke * (0, 0.15), to=v)
    v, pressure = fluid.make_incompressible(v, LETTERS, Solve("CG-adaptive", 1e-5, x0=pressure))
    return smoke, v, pressure


def start():
    return CenteredGrid(0, ZERO_GRADIENT, **DOMAIN), StaggeredGrid(0, 0, **DOMAIN), None


INFLOW = (
    CenteredGrid(Box(x=(8, 14), y=(4, 8)), ZERO_GRADIENT, **DOMAIN)
    + CenteredGrid(Box(x=(34, 40), y=(4, 8)), ZERO_GRADIENT, **DOMAIN) * 0.7
)
KINDS = {"Fluid logo": Kind(step, start, {"inflow": INFLOW}, captures=2)}


def test_values() -> None:
    check_values(KINDS["Fluid logo"])


def test_derivatives_by_the_inflow() -> None:
    check_derivatives(KINDS["Fluid logo"], inflow=INFLOW)
