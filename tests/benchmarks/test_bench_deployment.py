"""One step of a hybrid solver: captured, loaded from a file, exported for torch alone, and compiled ahead of time.

pytest tests/benchmarks/test_bench_deployment.py -n 0
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from phi.torch.flow import Box, Obstacle, Sphere, StaggeredGrid, advect, batch, diffuse, fluid, math

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

CASES = [f"{kind} {n}²" for kind in ("box", "body") for n in (32, 64)]
WAYS = ["captured", "loaded", "exported", "compiled"]
BODY = Obstacle(Sphere(x=0.4, y=0.5, radius=0.15))


def solver_and_state(case: str) -> tuple[ph.HybridSolver, Any]:
    kind, size = case.split()

    def step(v: Any) -> Any:
        v = diffuse.explicit(advect.semi_lagrangian(v, v, 0.01), 0.001, 0.01)
        return fluid.make_incompressible(v, BODY if kind == "body" else ())[0]

    torch.manual_seed(0)
    cells = int(size[:-1])
    state = StaggeredGrid(lambda x: math.sin(6 * x), 0, x=cells, y=cells, bounds=Box(x=1, y=1))
    layers = [torch.nn.Conv2d(2, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 2, 3, padding=1)]
    solver = ph.HybridSolver(ph.capture(step), torch.nn.Sequential(*layers))
    solver.set_scales(torch.ones(2), 0.01 * torch.ones(2))
    return solver, math.expand(state, batch(b=1))


@pytest.fixture(autouse=True)
def two_threads() -> None:
    """A single one, as where many such programs run side by side."""
    torch.set_num_threads(1)


@cache
def way(name: str, case: str, folder: Path) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    solver, state = solver_and_state(case)
    tensors, path = flatten(state)[0], folder / f"{name}.pt2"
    solver.eval()
    if name == "captured":
        return solver.bind(state).native, tensors
    if name == "loaded":
        solver.save(path, state)
        function = ph.load(path).bind(state).native
    else:
        ph.export(solver, state, path=path, compile=name == "compiled")
        load = torch._inductor.aoti_load_package if name == "compiled" else lambda p: torch.export.load(p).module()
        function = load(str(path))
    print(f"{case}, {name}: {os.path.getsize(path) / 2**20:.2f} MiB")
    return function, tensors


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_step(measure: Callable, case: str, name: str, tmp_path: Path) -> None:
    function, tensors = way(name, case, tmp_path)
    with torch.no_grad():
        measure(f"step {case}", name, lambda: function(*tensors), rounds=200)
