"""Flow over a step on an unstructured mesh: implicit advection and diffusion, a nonsymmetric solve, then the pressure.

The pressure has the narrow stencil, since the wide one, PhiFlow's default on meshes, is singular with an outlet.
"""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

ALONG = concat([math.linspace(0, 0.4, spatial(x=4))[:-1], math.linspace(0.4, 1, spatial(x=5))], "x")
MESH = geom.build_mesh(x=ALONG, y=math.linspace(0, 1, spatial(y=7)), obstacles=Box(x=0.45, y=0.4))
BOUNDARY = {"x-": vec(x=0.2, y=0), "obstacle": 0, "y": 0, "x+": ZERO_GRADIENT}


@jit_compile_linear
def momentum(u, u_prev, dt, diffusivity=0.02):
    diffusion = dt * diffuse.differential(u, diffusivity, correct_skew=False)
    return u + dt * advect.differential(u, u_prev, order=1) + diffusion


@jit_compile
def step(v, dt):
    v = math.solve_linear(momentum, v, Solve(x0=v), u_prev=v, dt=-dt)
    v, _ = fluid.make_incompressible(v, wide_stencil=False)
    return v


def start():
    return (Field(MESH, tensor(vec(x=0, y=0)), BOUNDARY),)


def warm():
    noise = math.random_normal(instance(MESH), channel(vector="x,y")) * 0.05
    return (Field(MESH, noise, BOUNDARY),)


KINDS = {"Flow over a step, mesh": Kind(step, start, {"dt": 0.02}, captures=2, rounding=1e-6)}  # integers at first


def test_values() -> None:
    check_values(KINDS["Flow over a step, mesh"], steps=4)


def test_derivatives() -> None:
    check_derivatives(Kind(step, warm, {"dt": 0.02}), rounding=1e-6)
