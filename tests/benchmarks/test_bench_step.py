"""One step and the gradient of four steps of Burgers: plain PhiFlow, `jit_compile`, captured, captured with inductor.

pytest tests/benchmarks/test_bench_step.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cases.timed import there
from phi import math
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Noise, StaggeredGrid, batch

from phi_hybrid import capture
from phi_hybrid.bridge import flatten, unflatten
from phi_hybrid.pde.burgers import burgers_step

CASES = {"1D 64": (1, 64, 1), "1D 512": (1, 512, 1)} | {
    f"2D {n}², batch {b}": (2, n, b) for n in (32, 64, 128) for b in (1, 8)
}
WAYS = ["eager", "jit_compile", "captured", "inductor"]


def initial(dim: int, cells: int, size: int) -> Any:
    torch.manual_seed(0)
    if dim == 1:
        return there(CenteredGrid(Noise(batch(b=size), vector="x"), PERIODIC, x=cells, bounds=Box(x=cells)))
    return there(StaggeredGrid(Noise(batch(b=size)), PERIODIC, x=cells, y=cells))


def step(u: Any) -> Any:
    return burgers_step(dt=0.1, viscosity=0.1)(u, 0.0)


@cache
def way(name: str, case: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The step on native tensors; the border to PhiFlow is crossed on neither side."""
    state = initial(*CASES[case])
    if name in ("captured", "inductor"):
        return capture(step, state, compile=name == "inductor").native
    function = math.jit_compile(step) if name == "jit_compile" else step
    return lambda state: function(state)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_forward(measure: Callable, case: str, name: str) -> None:
    state = initial(*CASES[case])
    function = way(name, case)
    arguments = flatten(state)[0] if name in ("captured", "inductor") else (state,)
    with torch.no_grad():
        measure(f"forward {case}", name, lambda: function(*arguments))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_four_steps(measure: Callable, case: str, name: str) -> None:
    tensors, layout = flatten(initial(*CASES[case]))
    function = way(name, case)

    def gradient() -> tuple[torch.Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        if name in ("captured", "inductor"):
            state = leaves
            for _ in range(4):
                state = function(*state)
        else:
            state = unflatten(layout, leaves)
            for _ in range(4):
                state = function(state)
            state = flatten(state)[0]
        return torch.autograd.grad(sum((t**2).sum() for t in state), leaves)

    measure(f"gradient {case}", name, gradient, rounds=7)
