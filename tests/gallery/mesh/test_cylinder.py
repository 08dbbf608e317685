"""Flow around a cylinder on a mesh with named boundaries of its own, as those that GMsh writes."""

from __future__ import annotations

import numpy as np
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


def ring(around=12, layers=4):
    """Quadrilaterals between a circle and a square, with the boundaries of a channel."""
    angle = np.arange(around) * 2 * np.pi / around
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    square = circle / np.abs(circle).max(-1, keepdims=True)
    points = np.concatenate([(0.4 * circle) * (1 - s) + square * 1.5 * s for s in np.linspace(0, 1, layers)])
    following = (np.arange(around) + 1) % around
    cells = [
        (i + a * around, j + a * around, j + (a + 1) * around, i + (a + 1) * around)
        for a in range(layers - 1)
        for i, j in enumerate(following)
    ]
    outer = [(i + (layers - 1) * around, j + (layers - 1) * around) for i, j in enumerate(following)]
    quarter = ((angle + np.pi / 4 + np.pi / around) // (np.pi / 2)).astype(int) % 4
    sides = {
        name: [edge for i, edge in enumerate(outer) if quarter[i] == n]
        for n, name in enumerate(("x+", "y+", "x-", "y-"))
    }
    sides["cyl"] = list(enumerate(following.tolist()))
    return geom.mesh_from_numpy(points.tolist(), cells, sides)


MESH = ring()
BOUNDARY = {"x-": vec(x=1, y=0), "x+": ZERO_GRADIENT, "y": 0, "cyl": 0}


@jit_compile_linear
def momentum(u, u_prev, dt, diffusivity=0.03):
    diffusion = dt * diffuse.differential(u, diffusivity, correct_skew=False)
    return u + dt * advect.differential(u, u_prev, order=1) + diffusion


@jit_compile
def step(v, dt):
    v = math.solve_linear(momentum, v, Solve(x0=v), u_prev=v, dt=-dt)
    v, _ = fluid.make_incompressible(v, (), Solve("scipy-direct"), wide_stencil=False)
    return v


def start():
    return (Field(MESH, tensor(vec(x=0, y=0)), BOUNDARY),)


def warm():
    return (Field(MESH, math.random_normal(instance(MESH), channel(vector="x,y")) * 0.1, BOUNDARY),)


KINDS = {"Cylinder, mesh": Kind(step, start, {"dt": 0.01}, captures=2, rounding=1e-6)}  # integers at first


def test_values() -> None:
    check_values(KINDS["Cylinder, mesh"])


def test_derivatives() -> None:
    check_derivatives(Kind(step, warm, {"dt": 0.01}), rounding=1e-6)
