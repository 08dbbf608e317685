"""Files of version 0.1 (commit f581428): data, checkpoints and state dicts load; pickled blocks say what to do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from phi.torch.flow import Field, advect, diffuse

import phi_hybrid as ph

FILES = Path(__file__).parent / "cases" / "files"


def step(u: Field, force: Field, nu: Any) -> Field:
    return diffuse.explicit(advect.mac_cormack(u, u, dt=0.05), nu, dt=0.05) + 0.05 * force


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return torch.load(FILES / "expected.pt", weights_only=True)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return ph.Trajectories.load(FILES / "trajectories.h5")


def make_solver() -> ph.HybridSolver:
    layers = [torch.nn.Conv1d(3, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv1d(4, 1, 3, padding=1)]
    return ph.HybridSolver(ph.capture(step), torch.nn.Sequential(*layers))


@pytest.mark.smoke
def test_data(data: ph.Trajectories, expected: dict[str, Any]) -> None:
    assert all(map(torch.equal, data.states, expected["states"]))
    assert all(map(torch.equal, data.inputs, expected["inputs"]))
    assert data.metadata == {"dt": 0.05} and data.trajectory.shape.get_size("time") == 5
    plume = ph.Trajectories.load(FILES / "plume.h5")
    assert all(map(torch.equal, plume.states, expected["plume"]))
    assert list(plume.trajectory) == ["velocity", "smoke"] and plume.trajectory["velocity"].is_staggered


def test_state_dict_with_scales_and_boundaries(data: ph.Trajectories, expected: dict[str, Any]) -> None:
    solver = make_solver()
    solver.load_state_dict(torch.load(FILES / "solver.pt", weights_only=True))
    assert bool(solver.scaled) and dict(solver.boundaries) == {"x-": "periodic", "x+": "periodic"}
    found = ph.rollout(solver, data.initial_state, 4, *data.step_inputs)
    for a, b in zip(ph.bridge.flatten(found)[0], expected["rollout"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_checkpoint(data: ph.Trajectories, expected: dict[str, Any]) -> None:
    """A training that 0.1 began ends with the weights it would have had there."""
    solver = make_solver()
    optimizer = torch.optim.Adam(solver.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=4, seed=3, progress=False)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), **settings).resume(FILES / "checkpoint.pt")
    assert trainer.update == 5
    assert trainer.fit(10)["loss"] == pytest.approx(expected["losses"], rel=1e-5)
    for found, weight in zip(solver.parameters(), expected["weights"], strict=True):
        torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6)


def test_pickled_block() -> None:
    with pytest.raises(ph.StateError, match=r"0\.1.*capture"):
        pickle.loads((FILES / "block.pickle").read_bytes())
