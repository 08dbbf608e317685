"""A velocity found by descent through the pressure solve: `functional_gradient` of a compiled loss, in the step."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

RES = dict(x=16, y=12)
AREA = union(Sphere(x=4, y=3, radius=2.2), Sphere(x=4, y=9, radius=2.2))
CONTROL = StaggeredGrid(AREA, 0, **RES)
RIGHT = StaggeredGrid(Box(x=(8, 16), y=(0, 12)), 0, **RES)
TARGET = (
    RIGHT * StaggeredGrid(lambda x: math.exp(-0.5 * math.vec_squared(x - (10, 3), "vector") / 36), 0, **RES) * (0, 2)
)


@jit_compile
def loss(v0):
    v1, p = fluid.make_incompressible(v0 * CONTROL)
    return field.l2_loss((v1 - TARGET) * RIGHT), v1, p


gradient_of = field.functional_gradient(loss, wrt="v0", get_output=True)


def step(v0, _l, _v, step_size=0.8):
    (value, v, p), dv0 = gradient_of(v0)
    return v0 - step_size * dv0, value, v


def start():
    return StaggeredGrid(Noise(), 0, **RES) * 0.1 * CONTROL, None, None


def one():
    return start()[:1]


KINDS = {
    "Pressure, loss": Kind(loss, one, repeats=False),
    "Descent through the pressure": Kind(step, start, captures=2),
}


def test_values_of_the_loss() -> None:
    check_values(KINDS["Pressure, loss"])


def test_derivatives_of_the_loss() -> None:
    check_derivatives(KINDS["Pressure, loss"])


def test_values_of_the_descent() -> None:
    check_values(KINDS["Descent through the pressure"])
