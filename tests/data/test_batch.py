"""Windows of trajectories and their batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.small import forced_step, line, same
from torch.utils.data import DataLoader

import phi_hybrid as ph
from phi_hybrid.data import Windows

STEPS = 5


def generate(step_: Any, *args: Any, **kwargs: Any) -> ph.Trajectories:
    return ph.Trajectories.generate(step_, *args, progress=False, **kwargs)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    """Four trajectories on a line, force with time."""
    u, f = line(0, b=4), line(1, b=4, time=STEPS)
    return generate(ph.capture(forced_step), u, STEPS, (f,), metadata={"dt": 0.1, "names": ["a", "b"]})


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_windows_are_slices(steps: int, data: ph.Trajectories) -> None:
    windows, (states,), (inputs,) = data.windows(steps), data.states, data.inputs
    places = [(trajectory, start) for trajectory in range(4) for start in range(STEPS - steps + 1)]
    assert len(windows) == len(places)
    for window, (trajectory, start) in zip(map(windows.__getitem__, range(len(places))), places):
        assert window.steps == steps
        assert torch.equal(window.states[0][0], states[trajectory, start : start + steps + 1])
        assert torch.equal(window.inputs[0][0], inputs[trajectory, start : start + steps])
        assert torch.equal(window.initial[0], states[trajectory, start][None])
        assert torch.equal(window.targets[0][0], states[trajectory, start + 1 : start + steps + 1])
        frame = data.trajectory.trajectory[trajectory].time[start]
        assert same(window.initial_state.trajectory[0], frame)
        for n in range(steps):
            assert torch.equal(window.step_inputs.at(n)[0][0], inputs[trajectory, start + n])
    assert torch.equal(windows[-1].states[0], window.states[0])
    for beyond in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[beyond]


def test_constant_inputs_are_not_cut() -> None:
    constant = generate(forced_step, line(0, b=2), STEPS, (line(1, b=2),))
    window = constant.windows(2)[5]
    assert torch.equal(window.inputs[0], constant.inputs[0][1:])
    assert torch.equal(window.step_inputs.at(1)[0], window.inputs[0])


def test_loader_shuffles_and_collates(data: ph.Trajectories) -> None:
    windows = data.windows(2)
    loader = DataLoader(
        windows, batch_size=3, shuffle=True, collate_fn=windows.collate, generator=torch.Generator().manual_seed(0)
    )
    batches = list(loader)
    assert [len(b.states[0]) for b in batches] == [3] * 5 + [1]
    found = torch.cat([b.states[0] for b in batches]).flatten(1)
    forces = torch.cat([b.inputs[0] for b in batches]).flatten(1)
    expected = torch.cat([windows[n].states[0] for n in range(len(windows))]).flatten(1)
    expected_forces = torch.cat([windows[n].inputs[0] for n in range(len(windows))]).flatten(1)
    order = [int((expected == row).all(1).nonzero()) for row in found]
    assert sorted(order) == list(range(len(windows))) and order != sorted(order)
    assert torch.equal(forces, expected_forces[order])


@pytest.mark.parametrize("steps", [0, STEPS + 1, -1])
def test_windows_that_do_not_fit(steps: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=f"{steps} steps .*1 … 5"):
        Windows(data, steps)
