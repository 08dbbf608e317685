"""Reference trajectories of few dims, and what data say of themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases.small import equal
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, batch, diffuse, expand, math

import phi_hybrid as ph


def heat(u: Field, nu: Any = 0.1) -> Field:
    return diffuse.explicit(u, nu, 0.001)


def wave(**batches: int) -> Field:
    u = CenteredGrid(lambda x: math.sin(2 * math.PI * x), PERIODIC, x=16, bounds=Box(x=1))
    return u.with_values(expand(u.values, batch(**batches))) if batches else u


@pytest.mark.parametrize("inputs", [(), (math.wrap(0.1),), (0.1,), (math.wrap([0.1, 0.2, 0.3], batch("time")),)])
@pytest.mark.parametrize("batches", [{}, {"trajectory": 1}, {"case": 1}])
def test_one_trajectory(batches: dict[str, int], inputs: tuple) -> None:
    u = wave(**batches)
    data = ph.Trajectories.generate(heat, u, 3, inputs, progress=False)
    assert (len(data), data.steps) == (1, 3)
    rolled = ph.rollout(heat, u, 3, *inputs)
    (found,), (expected,) = (ph.bridge.flatten(x)[0] for x in (data.trajectory, rolled))
    assert torch.equal(found.flatten(), expected.flatten())
    solver = ph.HybridSolver(heat, torch.nn.LazyConv1d(1, 3, padding=1))
    solver(
        data.initial_state, *ph.bridge.unflatten(data.whole().step_inputs.frame_layout, data.whole().step_inputs.at(0))
    )
    optimizer = torch.optim.SGD(solver.parameters(), 1e-3)
    assert len(ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, progress=False).fit(2)["loss"]) == 2


@pytest.mark.smoke
def test_representations_say_sizes_not_numbers() -> None:
    data = ph.Trajectories.generate(heat, wave(case=3), 4, (math.wrap(0.1),), metadata={"dt": 0.1}, progress=False)
    assert len(repr(data)) < 300 and "3 of 4 steps" in repr(data) and "x=16" in repr(data) and "MiB" in repr(data)
    window = data.windows(2).shuffled(0, 5, seed=0)
    assert "5 windows of 2 steps" in repr(window) and "tensor(" not in repr(window)
    solver = ph.HybridSolver(ph.capture(heat), torch.nn.Conv1d(2, 1, 3, padding=1))
    assert all(text in repr(solver) for text in ("heat", "Additive", "7 parameters", "not yet known"))
    assert "tensor(" not in repr(solver)
    bound = solver.bind(data.initial_state, math.wrap(0.1))
    assert "x=16" in repr(bound) and len(repr(bound)) < 800


def test_copies_are_exact() -> None:
    """Bounds that float32 cannot hold stay as they are in copies of data and solvers."""
    u = CenteredGrid(lambda x: math.sin(x), PERIODIC, x=16, bounds=Box(x=6.283185307179586))
    data = ph.Trajectories.generate(heat, u.with_values(expand(u.values, batch(case=2))), 3, progress=False)
    solver = ph.HybridSolver(ph.capture(heat), torch.nn.Conv1d(1, 1, 3, padding=1))
    expected = solver.rollout(data.initial_state, 3)
    for copied in (copy.deepcopy(solver), copy.deepcopy(copy.deepcopy(solver))):
        assert equal(*(ph.bridge.flatten(x)[0] for x in (copied.rollout(data.initial_state, 3), expected)))
    assert copy.deepcopy(data).state_layout == data.state_layout
    assert equal(*(ph.bridge.flatten(x)[0] for x in (solver.rollout(copy.deepcopy(data).initial_state, 3), expected)))
