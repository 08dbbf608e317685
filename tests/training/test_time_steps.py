"""Time steps that differ from trajectory to trajectory and from step to step, as inputs of a captured step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.small import SmallNet, line, native_of, noise, same
from phi.torch.flow import Field, Solve, StaggeredGrid, advect, batch, diffuse, fluid, math

import phi_hybrid as ph
from phi_hybrid.training import estimate_scales

TRAJECTORIES, STEPS = 4, 6
DIMS = {"trajectory": (TRAJECTORIES,), "time": (STEPS,), "trajectory,time": (TRAJECTORIES, STEPS)}


def times(dims: str) -> Any:
    return math.wrap(0.05 + 0.1 * noise(*DIMS[dims], seed=7).abs(), batch(dims))


def step(u: Field, dt: Any) -> Field:
    return diffuse.explicit(advect.mac_cormack(u, u, dt), 0.1, dt, substeps=2)


def by_name(u: Field, *, dt: Any) -> Field:
    return step(u, dt)


def at(dt: Any, n: int) -> Any:
    return dt.time[n] if "time" in dt.shape else dt


def plain_states(dt: Any) -> list[Field]:
    """A loop of plain PhiFlow, without a captured step."""
    states = [line(0, trajectory=TRAJECTORIES)]
    for n in range(STEPS):
        states.append(step(states[-1], at(dt, n)))
    return states


@pytest.fixture(params=DIMS)
def dt(request: pytest.FixtureRequest) -> Any:
    return times(request.param)


@pytest.mark.parametrize("chosen", [step, by_name])
def test_data_and_rollouts_are_the_loop_by_hand(chosen: Any, dt: Any) -> None:
    inputs: Any = {"dt": dt} if chosen is by_name else (dt,)
    states = plain_states(dt)
    block = ph.capture(chosen)
    expected = ph.Trajectories.from_fields(states, inputs)
    generated = ph.Trajectories.generate(block, states[0], STEPS, inputs, progress=False)
    given = ph.Trajectories.from_tensors(expected.states, states[0].trajectory[0], inputs)
    for data in (generated, given):
        assert data.layouts == expected.layouts and torch.equal(data.inputs[0], expected.inputs[0])
        torch.testing.assert_close(data.states[0], expected.states[0])
    positional = () if chosen is by_name else expected.step_inputs
    named = dict(zip(expected.input_layout.keywords, expected.step_inputs))
    found = ph.rollout(block, expected.initial_state, STEPS, *positional, **named)
    assert same(found, generated.trajectory)
    assert float(ph.evaluate({"physics": block}, expected).mae["physics"].max()) < 1e-6
    for n in range(len(windows := generated.windows(2))):  # every window takes its own times along
        window = windows[n]
        u = window.initial_state
        for k in range(2):
            u = step(u, at(ph.bridge.unflatten(window.step_inputs.layout, window.step_inputs.tensors)[0], k))
            torch.testing.assert_close(ph.bridge.flatten(u)[0][0], window.targets[0][:, k])


def test_new_times_need_no_new_graph(dt: Any) -> None:
    block = ph.capture(step)
    u = line(0, trajectory=TRAJECTORIES)
    ph.rollout(block, u, STEPS, dt)
    graphs = len(block.known)
    longer = ph.rollout(block, u, STEPS, 2 * dt)
    assert len(block.known) == graphs
    u = step(step(u, at(2 * dt, 0)), at(2 * dt, 1))
    math.assert_close(longer.time[2].values, u.values, rel_tolerance=1e-5, abs_tolerance=1e-5)


@pytest.mark.smoke
def test_training_is_the_loop_by_hand(dt: Any) -> None:
    data = ph.Trajectories.from_fields(plain_states(dt), (dt,))
    data = ph.Trajectories((data.states[0] * 0.9,), data.inputs, data.state_layout, data.input_layout)
    trained, by_hand = (ph.HybridSolver(ph.capture(step), SmallNet(2, 1, 1)) for _ in range(2))
    optimizers = [torch.optim.SGD(s.parameters(), 1e-2) for s in (trained, by_hand)]
    trainer = ph.Trainer(trained, data, ph.Unrolled(3), optimizer=optimizers[0], batch_size=5, progress=False)
    estimate_scales(by_hand, data)
    losses = []
    for number in range(4):
        window = data.windows(3).shuffled(number, 5, 0)
        (lengths,), u, found = window.inputs, window.states[0][:, 0], []
        for n in range(3):
            (u,) = native_of(by_hand, u, lengths[:, n] if lengths.ndim > 1 else lengths)
            found.append(u)
        loss = (((torch.stack(found, 1) - window.targets[0]) / data.scale[0]) ** 2).sum() / (3 * u.numel())
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        losses.append(loss.item())
    assert trainer.fit(4)["loss"] == losses
    assert float(by_hand.input_scale[1]) == pytest.approx(float((data.inputs[0] ** 2).mean().sqrt()), rel=1e-5)
    seen = by_hand.network.seen[:, 1]  # dt, the same at all points
    assert torch.equal(seen, seen[:, :1].expand_as(seen))


def test_flow_with_a_pressure_solve() -> None:
    """Staggered velocity in a closed box; every trajectory has its own sequence of steps."""

    def flow(v: Field, dt: Any) -> Field:
        return fluid.make_incompressible(advect.semi_lagrangian(v, v, dt), (), Solve("CG", 1e-5, 1e-5))[0]

    dt = math.wrap(0.1 + 0.2 * noise(2, 3, seed=3).abs(), batch("case,time"))
    v = flow(StaggeredGrid(lambda x, y: math.vec(x=math.sin(y), y=math.cos(x)), 0, x=6, y=6), 0.1)
    v = v * math.ones(batch(case=2))
    data = ph.Trajectories.generate(ph.capture(flow), v, 3, (dt,), progress=False)
    for n in range(3):
        v = flow(v, dt.time[n])
    last = ph.bridge.flatten(v)[0]
    for own, expected in zip(data.states, last):
        torch.testing.assert_close(own[:, -1], expected, rtol=1e-3, atol=1e-4)
    solver = ph.HybridSolver(ph.capture(flow), SmallNet(3, 2, 2))
    optimizer = torch.optim.Adam(solver.parameters(), 1e-3)
    history = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, validation=data, progress=False).fit(2)
    assert len(history["loss"]) == 2
