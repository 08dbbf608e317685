"""One step and the gradient of four steps of Navier–Stokes: plain PhiFlow, `jit_compile`, captured, with inductor.

    pytest tests/benchmarks/test_bench_navier_stokes.py            (-k "not 3D" leaves out what takes longest,
                                                                   -k by_turns is for busy machines)

Float32, semi-Lagrangian advection, explicit diffusion, projection; the same step on all sides, from a state 10 steps
after noise (wake: after the gust behind the cylinder). Plain PhiFlow solves with the `Solve` given here, since its
default does not converge everywhere: CG to a relative residual of 1e-5, of 1e-3 for the wake of 256×128 (with 1e-5 it
stops at 1000 iterations). `rank_deficiency=0` keeps it from bordering the singular matrices of closed and periodic
boxes with ones, which makes CG diverge. What is captured solves directly, or by CG to 1e-7 (the sphere), whatever
`Solve` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from cases.timed import there
from phi import math
from phi.torch.flow import PERIODIC, Noise, Obstacle, Solve, Sphere, StaggeredGrid, advect, batch, diffuse, fluid

from phi_hybrid import capture
from phi_hybrid.bridge import flatten, unflatten
from phi_hybrid.pde.navier_stokes import Wake
from phi_hybrid.steps import BoundStep

pytestmark = pytest.mark.usefixtures("mended_phiml")

FLOW = Wake()
BALANCED = Solve("CG", 1e-5, rank_deficiency=0)
WAYS = ["eager", "jit_compile", "captured", "inductor"]
SMALL = ["wake 64×32", "periodic 64², batch 1", "periodic 64², batch 8", "periodic 128², batch 1"]
REQUIRED = {
    ("wake 64×32", "captured"): 80,
    ("wake 64×32", "inductor"): 250,
    ("wake 256×128", "captured"): 35,
    ("wake 256×128", "inductor"): 60,
}
"""Times that a step must be faster than plain PhiFlow."""


@dataclass(frozen=True)
class Case:
    start: Callable[[], Any]
    solve: Solve
    obstacles: tuple[Obstacle, ...] = ()
    viscosity: float = 0.1
    dt: float = 0.5

    def step(self, u: Any) -> Any:
        u = advect.semi_lagrangian(u, u, self.dt)
        u = diffuse.explicit(u, self.viscosity, self.dt)
        return fluid.make_incompressible(u, self.obstacles, self.solve)[0]


def wake(cells: int, tolerance: float) -> Case:
    viscosity = FLOW.viscosity(300.0)
    return Case(
        lambda: FLOW.disturbed(cells, 1).trajectory[0], Solve("CG", tolerance), (FLOW.obstacle,), viscosity, dt=1.0
    )


def box(boundary: Any, size: int = 1, obstacles: tuple[Obstacle, ...] = (), **cells: int) -> Case:
    return Case(lambda: StaggeredGrid(Noise(batch(b=size)), boundary, **cells), BALANCED, obstacles)


CASES = {
    "wake 64×32": wake(64, 1e-5),
    "wake 256×128": wake(256, 1e-3),
    **{f"periodic {n}², batch {b}": box(PERIODIC, b, x=n, y=n) for n in (64, 128, 256) for b in (1, 8)},
    "3D periodic 64³": box(PERIODIC, x=64, y=64, z=64),
    "3D sphere 64×32×32": box(0, 1, (Obstacle(Sphere(x=16, y=16, z=16, radius=5)),), x=64, y=32, z=32),
}


@cache
def initial(case: str) -> Any:
    torch.manual_seed(0)
    state, block = there(CASES[case].start()), capture(CASES[case].step)
    with torch.no_grad():
        for _ in range(10):
            state = block(state)
    return state


@cache
def way(name: str, case: str) -> Callable[..., tuple[torch.Tensor, ...]] | BoundStep:
    """The step on native tensors; the border to PhiFlow is crossed on neither side."""
    step = CASES[case].step
    if name in ("captured", "inductor"):
        return capture(step, initial(case), compile=name == "inductor").bind(initial(case))
    return math.jit_compile(step) if name == "jit_compile" else step


def forward(name: str, case: str) -> Callable[[], Any]:
    state = initial(case)
    function = way(name, case)
    arguments = flatten(state)[0] if name in ("captured", "inductor") else (state,)

    def run() -> Any:
        with torch.no_grad():
            return function(*arguments)

    return run


def gradient(name: str, case: str) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Of Σu² after four steps with respect to the first state."""
    tensors, layout = flatten(initial(case))
    function = way(name, case)

    def run() -> tuple[torch.Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        if name in ("captured", "inductor"):
            state = function.unroll(4, *leaves)[-1]
        else:
            state = unflatten(layout, leaves)
            for _ in range(4):
                state = function(state)
            state = flatten(state)[0]
        return torch.autograd.grad(sum((t**2).sum() for t in state), leaves)

    return run


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_forward(measure: Callable, case: str, name: str) -> None:
    measure(f"forward {case}", name, forward(name, case))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_four_steps(measure: Callable, case: str, name: str) -> None:
    measure(f"gradient {case}", name, gradient(name, case), rounds=7)


@pytest.mark.parametrize("of", [forward, gradient])
@pytest.mark.parametrize("case", SMALL)
def test_by_turns(by_turns: Callable, case: str, of: Callable) -> None:
    by_turns(f"{of.__name__} {case}, by turns", {name: of(name, case) for name in WAYS}, rounds=5)


@pytest.mark.parametrize("case, name", REQUIRED)
def test_required_ratio(ratio: Callable, case: str, name: str) -> None:
    assert ratio(f"forward {case}", name, "eager") >= REQUIRED[case, name]
