"""How the time of a periodic flow grows: with cells, dimensions, batch, unrolled steps and threads; captured and compiled.

    pytest tests/benchmarks/test_bench_scaling.py -n 0

The step of `test_bench_peers`: semi-Lagrangian advection, explicit diffusion, projection, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from cases.timed import there
from phi.torch.flow import PERIODIC, Field, Noise, StaggeredGrid, advect, batch, diffuse, fluid, math

import phi_hybrid as ph
from phi_hybrid.steps import BoundStep

WAYS = ["captured", "inductor"]
SQUARES = (32, 64, 128, 256, 512, 1024)
CUBES = (16, 32, 64, 128)
BATCHES = (1, 8, 64)
UNROLLED = (4, 16, 64)


@cache
def bound(cells: int, dims: int, size: int, way: str) -> tuple[BoundStep, tuple[torch.Tensor, ...]]:
    math.seed(0)
    sizes = {name: cells for name in "xyz"[:dims]}
    state = there(StaggeredGrid(Noise(batch(b=size)), PERIODIC, **sizes))
    block = ph.capture(_step, compile=way == "inductor", check=False)
    step = block.bind(state)
    return step, step.flatten(state)


def _step(u: Field) -> Field:
    u = diffuse.explicit(advect.semi_lagrangian(u, u, 0.5), 0.1, 0.5)
    return fluid.make_incompressible(u)[0]


def gradient(step: BoundStep, tensors: tuple[torch.Tensor, ...], steps: int) -> Callable[[], object]:
    def run() -> object:
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(sum((t**2).sum() for t in step.unroll(steps, *leaves)[-1]), leaves)

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cells", SQUARES)
def test_cells(measure: Callable, cells: int, threads: int, way: str) -> None:
    torch.set_num_threads(threads)
    step, tensors = bound(cells, 2, 1, way)
    with torch.no_grad():
        measure(f"step {cells}², {threads} threads", way, lambda: step.native(*tensors), rounds=40)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cells", CUBES)
def test_three_dimensions(measure: Callable, cells: int, way: str) -> None:
    step, tensors = bound(cells, 3, 1, way)
    with torch.no_grad():
        measure(f"step {cells}³", way, lambda: step.native(*tensors))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", BATCHES)
def test_batch(measure: Callable, size: int, way: str) -> None:
    step, tensors = bound(64, 2, size, way)
    measure(f"gradient of four steps 64², batch {size}", way, gradient(step, tensors, 4))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", UNROLLED)
def test_unrolled(measure: Callable, steps: int, way: str) -> None:
    step, tensors = bound(64, 2, 1, way)
    measure(f"gradient of {steps} steps 64²", way, gradient(step, tensors, steps))
