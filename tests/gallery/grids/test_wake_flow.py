"""Flow around a cylinder in 3D, infinite along z, with an inflow and periodic sides."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

import phi_hybrid as ph

CYLINDER = geom.infinite_cylinder(x=9, y=8, radius=3, inf_dim="z")


@jit_compile
def step(v, p, dt=0.6):
    v = advect.semi_lagrangian(v, v, dt)
    return fluid.make_incompressible(v, CYLINDER, Solve(x0=p))


def start():
    boundary = {"x-": vec(x=1.5, y=0, z=0), "x+": ZERO_GRADIENT, "y": PERIODIC, "z": PERIODIC}
    v = StaggeredGrid((3.0, 0, 0), boundary, x=18, y=10, z=3, bounds=Box(x=32, y=16, z=4))
    with ph.linear_solve.linear_solves():
        return fluid.make_incompressible(v, CYLINDER, Solve("scipy-direct"))


KINDS = {"Wake flow, 3D": Kind(step, start)}


def test_values() -> None:
    check_values(KINDS["Wake flow, 3D"])


def test_derivatives() -> None:
    check_derivatives(KINDS["Wake flow, 3D"])
