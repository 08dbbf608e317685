"""Products with the Jacobian, also of several processes: data-parallel updates against those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.parallel import ENGINES, trained

import phi_hybrid as ph
from phi_hybrid.optim.closure import flattened
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.pde import poisson


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Weights by engine, of two processes."""
    folder, here = tmp_path_factory.mktemp("parallel"), Path(__file__).parent.parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "cases" / "parallel.py"), str(rank), "2", str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [w.communicate(timeout=100)[0] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert all(w.returncode == 0 for w in workers), "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("engine", ENGINES)
def test_update_of_the_joint_batch(engine: str, parallel: list[dict[str, torch.Tensor]]) -> None:
    alone, start = trained(engine, None, slice(None)), trained(engine, None, slice(None), updates=0)
    moved = float((alone - start).norm())
    for weights in parallel:
        assert float((weights[engine] - alone).norm()) < 1e-6 * moved
    assert torch.equal(parallel[0][engine], parallel[1][engine])


def test_products_with_the_jacobian() -> None:
    """J·t through a captured linear solve against rows of J; frozen and unused parameters."""
    solve = ph.capture(poisson.solve)
    f = solve.flatten(poisson.noise(poisson.square(3), 2, 0))[0].double()
    torch.manual_seed(0)
    net, unused = (
        torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Tanh()).double(),
        torch.nn.Parameter(torch.ones(3)),
    )
    y = solve.native(net(f.flatten(1)).view_as(f))[0]
    jacobian = Jacobian(flattened(y), [*net.parameters(), unused], 2)
    tangent = [torch.randn_like(p) for p in jacobian.parameters]
    rows = jacobian.rows_of(5)
    expected = rows @ torch.cat([t.flatten().double() for t in tangent])
    assert float((jacobian.times(tangent) - expected).norm()) < 1e-12 * float(expected.norm())
