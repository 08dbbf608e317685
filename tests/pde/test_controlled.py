"""Steps with a control and whole sequences of them, captured or not, for all systems that have one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
from cases.small import noise, same
from phi.torch.flow import Tensor, batch, channel, math, wrap

import phi_hybrid as ph
from phi_hybrid.pde.controlled import Controlled
from phi_hybrid.pde.oscillators import Oscillators, nonlinear_oscillators
from phi_hybrid.pde.quantum import Well

torch.set_num_threads(1)

SYSTEMS = {
    "linear": Oscillators(),
    "nonlinear": nonlinear_oscillators(),
    "one": Oscillators(1, gain=2.0, dt=0.1),
    "both": Oscillators(4, coupling=0.3, cubic=0.7, gain=-1.5, dt=0.2),
    "quantum": Well(),
}
SMALL = SYSTEMS | {"both": Oscillators(3, 0.3, 0.7, -1.5, 0.2), "quantum": Well(5, 1.5, 0.1)}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def states(system: Controlled, trajectories: int) -> Tensor:
    if system.dims == ("x",):
        return system.superpositions(trajectories, 0, range(1, system.points - 1), phases=True)
    return system.random_states(trajectories, seed=0)


def controls(steps: int, trajectories: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return wrap(noise(steps, trajectories, seed=7, dtype=dtype), batch("time,trajectory"))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", ["both", "quantum"])
def test_sequence_rollout_and_repeated_steps_agree_captured_or_not(name: str, bits: int) -> None:
    system = SYSTEMS[name]
    with math.precision(bits):
        start, u = states(system, 3), controls(6, dtype=torch.float64 if bits == 64 else torch.float32)
        expected = start
        for n in range(6):
            expected = system.step(expected, u.time[n])
        assert expected.dtype.precision == bits
        step = ph.capture(system.step)
        assert not list(step.parameters())
        for f in (system.step, step, pickle.loads(pickle.dumps(step))):
            assert same(ph.rollout(f, start, 6, u).time[-1], expected)
        for f in (system.controlled, ph.capture(system.controlled)):
            assert same(f(start, u), expected)


@pytest.mark.parametrize("name", ["linear", "quantum"])
def test_values_keep_their_precision_whatever_the_global_one_is(name: str) -> None:
    system, u = SYSTEMS[name], controls(2)
    start = states(system, 3)
    with math.precision(32):
        found = [system.controlled(start, u), ph.capture(system.controlled)(start, u), system.step(start, 0.5)]
    assert same(found[0], found[1]) and [f.dtype.precision for f in found] == [64, 64, 64]


@pytest.mark.parametrize("name", ["nonlinear", "quantum"])
def test_batch_dims_of_state_and_control_are_combined(name: str) -> None:
    system = SYSTEMS[name]
    start, u = states(system, 2), wrap(noise(4, 3, dtype=torch.float64), batch("time,candidate"))
    found = ph.capture(system.controlled)(start, u)
    assert set(found.shape.batch.names) == {"trajectory", "candidate"}
    for i in range(2):
        for j in range(3):
            alone = system.controlled(start.trajectory[i], u.candidate[j]).native(system.dims)
            together = found.trajectory[i].candidate[j].native(system.dims)
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    everywhere = ph.rollout(ph.capture(system.step), start.trajectory[0], 4, u)
    assert everywhere.shape.get_size("candidate") == 3


@pytest.mark.parametrize("name", SMALL)
def test_derivatives(name: str) -> None:
    bound = ph.capture(SMALL[name].controlled).bind(*(inputs := (states(SMALL[name], 2), controls(2, 2))))
    check_derivatives(bound.native, bound.flatten(*inputs), second=name != "both")
    check_vmap(bound.native, bound.flatten(*inputs))


@pytest.mark.parametrize("name", ["nonlinear", "quantum"])
def test_trajectories_do_not_feel_each_other(name: str) -> None:
    inputs = states(SYSTEMS[name], 3), controls(4)
    bound = ph.capture(SYSTEMS[name].controlled).bind(*inputs)
    start, u = bound.flatten(*inputs)

    def real(result: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(result) if result.is_complex() else result

    jacobian = torch.func.jacrev(lambda c: real(bound.native(start, c)[0]))(u)  # (trajectory, …, time, trajectory)
    for i in range(3):
        for j in range(3):
            assert (jacobian[i, ..., j].abs().max() > 1e-3) if i == j else not jacobian[i, ..., j].any()


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ([1.0], r"control is a list: expected one value per batch entry, \(batch\), or a number; use wrap"),
        (controls(4, 2), r"control has shape .*time.* control of one time.*control.time\[n\].*controlled.*ph.rollout"),
        (wrap(torch.ones(2) * 1j, batch("trajectory")), "control has type complex.*: expected real numbers"),
        (wrap([1.0, 2.0], channel("u")), "control has shape .*u.*: expected one value .*make its dims batch dims"),
    ],
)
def test_wrong_controls(control: Any, message: str) -> None:
    system = Oscillators()
    for step in (system.step, ph.capture(system.step)):
        with pytest.raises(ph.StateError, match=message):
            step(states(system, 2), control)


def test_wrong_sequences() -> None:
    system = Oscillators()
    start = states(system, 2)
    with pytest.raises(ph.StateError, match=r"control has shape .*: expected one value per step and batch.*step\("):
        system.controlled(start, controls(4).time[0])
    with pytest.raises(ph.StateError, match=r"the state has shape .*time.* pick a frame, e.g. state.time\[0\]"):
        system.controlled(math.expand(start, batch(time=3)), controls(4, 2))
    with pytest.raises(ph.StateError, match="4 entries along 'time' but 5 steps"):
        ph.rollout(system.step, start, 5, controls(4, 2))
