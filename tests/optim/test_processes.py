"""Data-parallel updates against those of one process on all samples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.parallel import ENGINES, trained


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Weights by engine, of two processes."""
    folder, here = tmp_path_factory.mktemp("parallel"), Path(__file__).parent.parent
    path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "cases.parallel.py"), str(rank), "2", str(folder)],
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
