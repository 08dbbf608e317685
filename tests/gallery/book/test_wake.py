"""The wake flow that networks correct in the book: y before x, a solver object with obstacles, `Re` a tensor."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.physics._boundaries import OPEN, STICKY, Domain
from phi.torch.flow import *


class Karman:
    """Masks, inflow and obstacle of a domain, and the step."""

    def __init__(self, domain):
        self.domain = domain
        self.mask = domain.staggered_grid(HardGeometryMask(Box(y=(-9, 4), x=(-9, 99))))
        self.inflow = domain.scalar_grid(Box(y=(4, 9), x=(12, 38)))
        self.obstacles = [Obstacle(Sphere(center=tensor([26, 24], channel(vector="y,x")), radius=6))]

    def step(self, marker_in, velocity_in, Re, res, dt=1.0):
        velocity = diffuse.explicit(u=velocity_in, diffusivity=1.0 / Re * dt * res * res, dt=dt)
        velocity = velocity * (1.0 - self.mask) + self.mask * (1, 0)
        marker = advect.semi_lagrangian(marker_in + 1.0 * self.inflow, velocity, dt=dt)
        velocity = advected = advect.semi_lagrangian(velocity, velocity, dt=dt)
        velocity, pressure = fluid.make_incompressible(velocity, self.obstacles, Solve("CG", 1e-3))
        self.solve_info = {"pressure": pressure, "advected_velocity": advected}
        return [marker, velocity]


def solver():
    with pytest.warns(FutureWarning, match="Domain"):
        domain = Domain(y=24, x=12, boundaries={"y": (OPEN, OPEN), "x": (STICKY, STICKY)}, bounds=Box(y=96.0, x=48.0))
    return Karman(domain)


@jit_compile
def step(marker, velocity, Re, resolution=12):
    m, v = SOLVER.step(marker_in=marker, velocity_in=velocity, Re=Re, res=resolution)
    return m, v


def start():
    return SOLVER.domain.scalar_grid(), SOLVER.domain.staggered_grid((1.0, 0))


def batched():
    marker, velocity = start()
    return marker * math.ones(batch(batch=2)), velocity + math.random_normal(batch(batch=2)) * 0.1


SOLVER = solver()
RE = {"Re": tensor(400.0)}
KINDS = {"Book: wake": Kind(step, start, RE), "Book: wake, batch": Kind(step, batched, RE)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


def test_one_graph_for_all_reynolds_numbers() -> None:
    from cases.gallery import assert_same, exactly

    import phi_hybrid as ph

    block = ph.capture(step)
    for Re in (150.0, 600.0, 2400.0):
        with exactly():
            expected = step(*start(), Re=tensor(Re))
        assert_same(block(*start(), Re=tensor(Re)), expected, 0.0)
    assert block._captures == 1


def test_derivatives_by_the_reynolds_number() -> None:
    check_derivatives(KINDS["Book: wake"], Re=400.0)
