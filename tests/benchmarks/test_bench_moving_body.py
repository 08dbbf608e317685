"""A ball moves through an open box of 64² cells: advection and a projection whose matrix changes with every step.

Eager PhiFlow solves with SciPy's conjugate gradients to 1e-5, the captured step by factors of the new matrix.

pytest tests/benchmarks/test_bench_moving_body.py -n 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.timed import there
from phi.torch.flow import ZERO_GRADIENT, Noise, Obstacle, Solve, Sphere, StaggeredGrid, advect, fluid, math, vec, wrap

import phi_hybrid as ph

DT, STEPS = 0.5, 10


def step(v: Any, body: Obstacle) -> tuple:
    body = body.shifted(DT * body.velocity)
    v = advect.mac_cormack(v, v, DT)
    v, _ = fluid.make_incompressible(v, body, Solve("scipy-CG", 1e-5, 1e-5, max_iterations=3000))
    return v, body


def start() -> tuple:
    math.seed(0)
    body = Obstacle(Sphere(vec(x=wrap(torch.tensor(12.0)), y=32.0), radius=6.0), velocity=(0.3, 0.1))
    return there((StaggeredGrid(Noise(scale=16), ZERO_GRADIENT, x=64, y=64) * 0.5, body))


def several(step: Callable, state: tuple, steps: int) -> tuple:
    with torch.no_grad():
        for _ in range(steps):
            state = step(*state)
    return state


@pytest.mark.parametrize("way", ["eager", "captured"])
def test_ten_steps(measure: Callable, way: str) -> None:
    run = step if way == "eager" else ph.capture(step)
    state = several(run, start(), 1)
    measure("a moving body, 64², 10 steps", way, lambda: several(run, state, STEPS), rounds=7)


def test_hundred_steps_need_one_graph() -> None:
    block = ph.capture(step)
    _, body = several(block, start(), 100)
    assert block._captures == 1
    assert float(body.geometry.center.vector["x"]) == pytest.approx(12 + 100 * DT * 0.3, rel=1e-5)
