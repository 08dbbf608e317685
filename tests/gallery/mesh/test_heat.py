"""Heat in a channel of boxes on a mesh: implicit diffusion where a union of boxes is not obstacle."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

VALID = union(
    Box(x=(0, 0.45), y=(0.4, 0.6)),
    Box(x=(0.3, 0.7), y=(0, 0.2)),
    Box(x=(0.3, 0.45), y=1),
    Box(x=(0.6, 1), y=(0.4, 0.6)),
)
MESH = geom.build_mesh(Box(x=1, y=1), x=14, y=14, obstacles=~VALID)
BOUNDARY = {"x-": 1, "x+": ZERO_GRADIENT, "y": ZERO_GRADIENT, "obstacle": ZERO_GRADIENT}


@jit_compile
def step(t, dt, conductivity=0.8):
    return diffuse.implicit(t, conductivity, dt, correct_skew=False)


def start():
    return (Field(MESH, tensor(0), BOUNDARY),)


def warm():
    return (Field(MESH, math.random_uniform(instance(MESH)), BOUNDARY),)


KINDS = {"Heat, mesh": Kind(step, start, {"dt": 0.01}, captures=2, rounding=1e-6)}  # tensor(0) is an integer


def test_values() -> None:
    check_values(KINDS["Heat, mesh"], steps=4)


def test_derivatives() -> None:
    check_derivatives(Kind(step, warm, {"dt": 0.01}), rounding=1e-6)


def test_derivatives_by_the_conductivity() -> None:
    check_derivatives(Kind(step, warm, {"dt": 0.01}), conductivity=0.8, rounding=1e-6)
