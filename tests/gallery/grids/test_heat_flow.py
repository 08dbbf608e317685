"""Heat in a plate with conducting bars: implicit diffusion with a conductivity field, a hot side and periodic ones."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

PLATE = Box(x=6, y=4)
BOUNDARY = {"x-": 1, "x+": ZERO_GRADIENT, "y": PERIODIC}
BARS = union(Box(x=(0, 6), y=(1.5, 2.5)), Box(x=(2.5, 3.5), y=(0.5, 3.5)))
CONDUCTIVITY = CenteredGrid(BARS, ZERO_GRADIENT, PLATE, x=18, y=12) + 0.02


@jit_compile
def step(t, dt, conductivity=CONDUCTIVITY):
    return diffuse.implicit(t, conductivity, dt)


def start():
    return (CenteredGrid(0, BOUNDARY, PLATE, x=18, y=12),)


KINDS = {"Heat flow": Kind(step, start, {"dt": 0.5})}


def test_values() -> None:
    check_values(KINDS["Heat flow"])


def test_derivatives_by_the_conductivity() -> None:
    check_derivatives(KINDS["Heat flow"], conductivity=CONDUCTIVITY)
