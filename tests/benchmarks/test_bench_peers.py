"""The same periodic flow in jax-cfd, by hand in torch, and here: one step and the gradient of four, float32, 2 threads.

    pip install -e .[peers,test]
    pytest tests/benchmarks/test_bench_peers.py -n 0

2D, staggered, 64², 128², 256² on (2π)², batch 1 and 8, ν = 1e-3, dt = 0.3·dx. The scheme is the same: semi-Lagrangian
advection with one Euler step backwards, explicit diffusion of its result, exact projection; `test_fields_agree` checks
it. jax-cfd's step is put together from its own parts, since its ready-made steps add the diffusion of the state before
advection; `vmap` gives it a batch. What differs:

- jax-cfd interpolates with `map_coordinates` and stores the upper face of each cell, PhiFlow pads, gathers, and stores
  the lower one; fields are rolled by one cell between the two.
- all project with FFTs: jax-cfd in float32 without a look at the result, compiled steps in float32 and with a look, the step
  by hand (`by_hand.py`, with inductor) in float64 without one, captured steps in float64 and with a look.
- four steps and their gradient are one program each, but for the captured step, whose operations are called one by one.
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
from benchmarks.by_hand import periodic_step
from phi.torch.flow import Field, advect

from phi_hybrid import capture
from phi_hybrid.bridge import flatten
from phi_hybrid.pde.navier_stokes import divergence_free_noise, navier_stokes_step, periodic_square
from phi_hybrid.steps import BoundStep

os.environ["PJRT_NPROC"] = "2"
jax = pytest.importorskip("jax")
cfd = pytest.importorskip("jax_cfd.base")

VISCOSITY = 1e-3
CELLS = (64, 128, 256)
BATCHES = (1, 8)
WAYS = ["jax-cfd", "by hand", "captured", "inductor"]
FACES = ((1.0, 0.5), (0.5, 1.0))
Components = tuple[Any, ...]


def time_step(cells: int) -> float:
    return 0.3 * 2 * math.pi / cells


@cache
def initial(cells: int, batch: int) -> Field:
    return divergence_free_noise(periodic_square(cells), batch, wavenumber=4, speed=1.0, seed=0)


@cache
def captured(cells: int, batch: int, compile: bool) -> BoundStep:
    step = navier_stokes_step(time_step(cells), advection=advect.semi_lagrangian)
    return capture(lambda u: step(u, VISCOSITY), compile=compile).bind(initial(cells, batch))


@cache
def by_hand(cells: int, steps: int) -> Callable[..., Components]:
    step = periodic_step(cells, 2 * math.pi, VISCOSITY, time_step(cells))

    def several(*state: torch.Tensor) -> Components:
        for _ in range(steps):
            state = step(*state)
        return state

    return torch.compile(several, dynamic=False)


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


def batched(cells: int, batch: int) -> Callable[[Components], Components]:
    return jax_step(cells) if batch == 1 else jax.vmap(jax_step(cells))


def to_jax(tensors: Components) -> Components:
    rolled = [np.roll(t.numpy(), -1, axis + 1) for axis, t in enumerate(tensors)]
    return tuple(jax.numpy.asarray(t[0] if len(t) == 1 else t) for t in rolled)


def from_jax(components: Components) -> Components:
    axes = range(np.ndim(components[0]) - 2, np.ndim(components[0]))
    rolled = [np.roll(np.asarray(c), 1, axis) for axis, c in zip(axes, components)]
    return tuple(torch.from_numpy(t).reshape(-1, *t.shape[-2:]) for t in rolled)


def step_of(way: str, cells: int, batch: int) -> Callable[[], Components]:
    tensors = flatten(initial(cells, batch))[0]
    if way == "jax-cfd":
        step, components = jax.jit(batched(cells, batch)), to_jax(tensors)
        return lambda: jax.block_until_ready(step(components))
    if way == "by hand":
        return lambda: by_hand(cells, 1)(*tensors)
    step = captured(cells, batch, way == "inductor")
    return lambda: step.native(*tensors)


def gradient_of(way: str, cells: int, batch: int) -> Callable[[], Components]:
    """Of Σu² after four steps with respect to the first state."""
    tensors = flatten(initial(cells, batch))[0]
    if way == "jax-cfd":

        def energy(components: Components) -> Any:
            for _ in range(4):
                components = batched(cells, batch)(components)
            return sum((c**2).sum() for c in components)

        gradient, components = jax.jit(jax.grad(energy)), to_jax(tensors)
        return lambda: jax.block_until_ready(gradient(components))

    def four_steps(*state: torch.Tensor) -> Components:
        if way == "by hand":
            return by_hand(cells, 4)(*state)
        return captured(cells, batch, way == "inductor").unroll(4, *state)[-1]

    def gradient() -> Components:
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(sum((t**2).sum() for t in four_steps(*leaves)), leaves)

    return gradient


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cells", CELLS)
def test_forward(measure: Callable, cells: int, batch: int, way: str) -> None:
    with torch.no_grad():
        measure(f"forward periodic {cells}², batch {batch}", way, step_of(way, cells, batch), rounds=60)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cells", CELLS)
def test_gradient_of_four_steps(measure: Callable, cells: int, batch: int, way: str) -> None:
    measure(f"gradient periodic {cells}², batch {batch}", way, gradient_of(way, cells, batch), rounds=40)


@pytest.mark.parametrize("of", [step_of, gradient_of])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cells", CELLS)
def test_fields_agree(cells: int, batch: int, of: Callable) -> None:
    ours = of("captured", cells, batch)()
    for theirs in (
        from_jax(of("jax-cfd", cells, batch)()),
        of("by hand", cells, batch)(),
        of("inductor", cells, batch)(),
    ):
        for a, b in zip(theirs, ours):
            assert torch.norm(a - b) <= 1e-3 * torch.norm(b)
