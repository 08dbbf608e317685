"""Networks of a library: neural operators of `neuraloperator` in place of the correction."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from cases.small import equal, line
from phi.torch.flow import math

import phi_hybrid as ph

models = pytest.importorskip("neuralop.models", reason="pip install neuraloperator: the extra 'operators'")


def operator(kind: str, seed: int = 0) -> torch.nn.Module:
    """Sees state and force on a line, returns a correction; has complex weights and entries in its state dict that are no tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"n_modes": (4,), "hidden_channels": 8, "in_channels": 2, "out_channels": 1, "n_layers": 2}
        rank = {"factorization": "tucker", "rank": 0.5} if kind == "TFNO" else {}
        return getattr(models, kind)(**settings, **rank)


def trainer_of(
    block: ph.PhysicsBlock, data: ph.Trajectories, kind: str, seed: int = 0, **settings: object
) -> ph.Trainer:
    solver = ph.HybridSolver(block, operator(kind, seed))
    optimizer = torch.optim.AdamW(solver.parameters(), 3e-3)
    return ph.Trainer(solver, data, ph.Unrolled(3), optimizer=optimizer, batch_size=24, progress=False, **settings)


def tensors(solver: ph.HybridSolver) -> list[torch.Tensor]:
    return [t for t in solver.state_dict().values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("kind", ["FNO", "TFNO"])
def test_operators_train_resume_and_run(
    kind: str, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    trainer = trainer_of(block, data, kind, checkpoint=tmp_path / "a.pt", validation=data[:1], validate_every=10)
    losses = trainer.fit(40)["loss"]
    assert losses[-1] < 0.8 * losses[0]
    resumed = trainer_of(block, data, kind, seed=1, validation=data[:1], validate_every=10).resume(tmp_path / "a.pt")
    assert trainer.fit(50) == resumed.fit(50)
    assert equal(tensors(trainer.solver), tensors(resumed.solver))
    errors = ph.evaluate({"source": block, "hybrid": trainer.solver, "copy": copy.deepcopy(trainer.solver)}, data)
    mae = {name: float(errors["mae"][name].mean()) for name in ("source", "hybrid", "copy")}
    assert mae["hybrid"] == mae["copy"] < mae["source"]


def test_an_ensemble_of_operators(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    u, force = line(0, b=3), line(1, b=3)
    solvers = [trainer_of(block, data, "FNO", seed).solver for seed in (0, 1)]
    members = ph.Ensemble(solvers).rollout(u, 3, force)
    for number, solver in enumerate(solvers):
        math.assert_close(members.member[number].values, solver.rollout(u, 3, force).values, abs_tolerance=1e-5)
