"""The same periodic flow in jax-cfd and here: one step and the gradient of four steps, float32, 2 threads.

    pip install -e .[peers,test]
    pytest tests/benchmarks/test_bench_peers.py

2D, staggered, 64², 128², 256² on (2π)², batch 1, ν = 1e-3, dt = 0.3·dx. The scheme is the same: semi-Lagrangian
advection with one Euler step backwards, explicit diffusion of its result, exact projection; `test_fields_agree` checks
it. jax-cfd's step is put together from its own parts, since its ready-made steps add the diffusion of the state before
advection. What differs:

- jax-cfd interpolates with `map_coordinates` and stores the upper face of each cell, PhiFlow pads, gathers, and stores
  the lower one; fields are rolled by one cell between the two.
- both project with FFTs, jax-cfd in float32 inside of the compiled program, phi_hybrid in float64 by an operator that
  no compiler looks into.
- jax compiles four steps and their gradient to one program, phi_hybrid one step that is called four times from Python.
- jax's threads are limited by `PJRT_NPROC`; `XLA_FLAGS=intra_op_parallelism_threads=2`, as for older versions, has no
  effect in 0.10.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from phi.torch.flow import Field, advect

from phi_hybrid import capture
from phi_hybrid.bridge import flatten
from phi_hybrid.pde.navier_stokes import divergence_free_noise, navier_stokes_step, periodic_square

os.environ["PJRT_NPROC"] = "2"
jax = pytest.importorskip("jax")
cfd = pytest.importorskip("jax_cfd.base")

VISCOSITY = 1e-3
CELLS = (64, 128, 256)
WAYS = ["jax-cfd", "captured", "inductor"]
FACES = ((1.0, 0.5), (0.5, 1.0))
Components = tuple[Any, ...]


def time_step(cells: int) -> float:
    return 0.3 * 2 * math.pi / cells


@cache
def initial(cells: int) -> Field:
    return divergence_free_noise(periodic_square(cells), 1, wavenumber=4, speed=1.0, seed=0)


@cache
def captured(cells: int, compile: bool) -> Callable[..., Components]:
    step = navier_stokes_step(time_step(cells), advection=advect.semi_lagrangian)
    return capture(lambda u: step(u, VISCOSITY), initial(cells), compile=compile).native


@cache
def jax_step(cells: int) -> Callable[[Components], Components]:
    """On components `(x, y)`."""
    grid = cfd.grids.Grid((cells, cells), domain=((0, 2 * math.pi), (0, 2 * math.pi)))
    boundary, dt = cfd.boundaries.periodic_boundary_conditions(2), time_step(cells)

    def step(components: Components) -> Components:
        v = tuple(boundary.impose_bc(cfd.grids.GridArray(c, f, grid)) for c, f in zip(components, FACES))
        v = tuple(cfd.advection.advect_step_semilagrangian(c, v, dt) for c in v)
        v = tuple(c.bc.impose_bc(c.array + dt * cfd.diffusion.diffuse(c, VISCOSITY)) for c in v)
        return tuple(c.data for c in cfd.pressure.projection(v, cfd.pressure.solve_fast_diag))

    return step


def to_jax(tensors: Components) -> Components:
    return tuple(jax.numpy.asarray(np.roll(t[0].numpy(), -1, axis)) for axis, t in enumerate(tensors))


def from_jax(components: Components) -> Components:
    return tuple(torch.from_numpy(np.roll(np.asarray(c), 1, axis))[None] for axis, c in enumerate(components))


def step_of(way: str, cells: int) -> Callable[[], Components]:
    tensors = flatten(initial(cells))[0]
    if way == "jax-cfd":
        step, components = jax.jit(jax_step(cells)), to_jax(tensors)
        return lambda: jax.block_until_ready(step(components))
    step = captured(cells, way == "inductor")
    return lambda: step(*tensors)


def gradient_of(way: str, cells: int) -> Callable[[], Components]:
    """Of Σu² after four steps with respect to the first state."""
    tensors = flatten(initial(cells))[0]
    if way == "jax-cfd":

        def energy(components: Components) -> Any:
            for _ in range(4):
                components = jax_step(cells)(components)
            return sum((c**2).sum() for c in components)

        gradient, components = jax.jit(jax.grad(energy)), to_jax(tensors)
        return lambda: jax.block_until_ready(gradient(components))
    step = captured(cells, way == "inductor")

    def gradient() -> Components:
        state = leaves = [t.clone().requires_grad_() for t in tensors]
        for _ in range(4):
            state = step(*state)
        return torch.autograd.grad(sum((t**2).sum() for t in state), leaves)

    return gradient


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cells", CELLS)
def test_forward(measure: Callable, cells: int, way: str) -> None:
    with torch.no_grad():
        measure(f"forward periodic {cells}²", way, step_of(way, cells))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cells", CELLS)
def test_gradient_of_four_steps(measure: Callable, cells: int, way: str) -> None:
    measure(f"gradient periodic {cells}²", way, gradient_of(way, cells))


@pytest.mark.parametrize("of", [step_of, gradient_of])
@pytest.mark.parametrize("cells", CELLS)
def test_fields_agree(cells: int, of: Callable) -> None:
    theirs, ours = from_jax(of("jax-cfd", cells)()), of("captured", cells)()
    for a, b in zip(theirs, ours):
        assert torch.norm(a - b) <= 1e-3 * torch.norm(b)
