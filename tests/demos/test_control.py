"""Controlled flows of the studies against plain PhiFlow by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from control_cases import Burgers, Smoke
from controllers import control, controlled, effort, errors, optimised, pairs, policy, run
from phi.math import batch, channel, spatial, wrap

from phi_hybrid.pde import burgers

torch.set_num_threads(1)
LINE = Burgers(cells=16, steps=6, actions=16, observations=33)


@pytest.fixture(scope="module")
def line() -> tuple:
    physics = LINE.physics()
    return LINE, physics, pairs(LINE, physics, 24, 0)


@pytest.fixture(scope="module")
def box() -> tuple:
    case = Smoke(cells=16, steps=4, band=2)
    physics = case.physics()
    return case, physics, pairs(case, physics, 24, 0)


def by_hand(case: Burgers, u: np.ndarray, target: np.ndarray, net: torch.nn.Module) -> tuple[np.ndarray, float]:
    """Plain PhiFlow under the controller of `Burgers`: the last velocity and ∫∫ f² dx dt."""
    grid, step = burgers.line(case.cells, 1.0), burgers.burgers_step(case.dt, case.viscosity)
    dims, work = (batch("b"), spatial("x"), channel(vector="x")), 0.0
    for n in range(case.steps):
        left = 1 - n / case.steps
        seen = np.concatenate([u, target, np.full((len(u), 1), left)], 1)
        action = net(torch.as_tensor(seen, dtype=torch.float32)).detach().numpy()
        f = (target - u) / (left * case.steps * case.dt) + action / max(left, 0.1)
        work = work + (f**2).sum(1) / case.cells * case.dt
        fields = [grid.with_values(wrap(torch.as_tensor(v[..., None], dtype=torch.float32), *dims)) for v in (u, f)]
        u = step(*fields).values.numpy("b,x,vector")[..., 0]
    return u, work


def test_the_controller_sets_the_force_and_the_loss_is_distance_and_weighted_effort(line: tuple) -> None:
    case, physics, data = line
    torch.manual_seed(0)
    net, objective, everything = policy(case), control(case), data.whole()
    solver = controlled(case, physics, net)
    states = run(solver, data)
    start, target = (data.states[-1][:, n, :, 0].numpy() for n in (0, -1))
    u, work = by_hand(case, start, target, net)
    np.testing.assert_allclose(states[-1][:, -1, :, 0], u, atol=1e-5)
    np.testing.assert_allclose(effort(case, states), work, rtol=1e-4)
    distance = np.sqrt(((u - target) ** 2).sum(1) / case.cells + 1e-6)
    expected = distance.mean() + case.effort_weight * work.mean()
    assert float(objective.loss(objective.outputs(solver, everything), everything)) == pytest.approx(expected, rel=1e-4)


def test_the_targets_are_reached_by_the_forces_of_the_data(line: tuple) -> None:
    """And without them they are missed: the inputs that a controller gets hold no force."""
    case, physics, data = line
    free = run(physics, data)
    assert errors(case, free, free, data) == {"error": 1.0, "force": 0.0}
    states = tuple(s[:, 1:] for s in data.states)
    assert errors(case, states, free, data)["error"] == 0 and errors(case, states, free, data)["force"] > 0.01
    _, force = case.samples(24, 0)
    np.testing.assert_array_equal(states[0][:, 3], force.values.native("trajectory,x,vector"))


def test_optimised_forces_are_a_lower_bound(line: tuple) -> None:
    case, physics, data = line
    data, objective = data[:4], control(case)
    states, calls = optimised(case, physics, data, 40)
    zero = run(controlled(case, physics, lambda seen: torch.zeros(len(seen), 16)), data)
    bound, trivial = (float(objective.loss(s, data.whole())) for s in (states, zero))
    assert bound < 0.9 * trivial and calls % case.steps == 0 and calls >= 40 * case.steps


# --- smoke ---


def test_forces_act_in_the_band_alone_and_move_smoke_outside(box: tuple) -> None:
    case, physics, data = box
    action = torch.randn(case.actions, generator=torch.Generator().manual_seed(0))
    solver = controlled(case, physics, lambda seen: action.expand(len(seen), -1))
    states, free = run(solver, data), run(physics, data)
    fx, fy = (f[:, 0] for f in states[:2])
    inner = slice(case.band + 1, case.cells - case.band - 1)  # faces next to the band still border on it
    assert float(fx.abs().max()) > 0 and float(fy.abs().max()) > 0
    assert not fx[:, inner, inner].any() and not fy[:, inner, inner].any()
    assert not (data.states[-1][:, 0] * case.in_band() > 0.2).any()
    assert float((states[-1][:, -1] - free[-1][:, -1]).norm()) > 0.02 * float(free[-1][:, -1].norm())


def test_targets_are_clear_of_the_band_and_the_flow_free_of_divergence(box: tuple) -> None:
    case, _, data = box
    targets = data.states[-1][:, -1]
    assert 0 < len(data) <= 24 and bool(case.usable(targets).all())
    assert not bool(case.usable(case.in_band()[None])[0])
    vx, vy = (torch.nn.functional.pad(v[:, -1], p) for v, p in zip(data.states[2:4], ((0, 0, 1, 1), (1, 1))))
    divergence = vx.diff(dim=1) + vy.diff(dim=2)
    assert float(divergence.abs().max()) < 1e-4 * float(vx.abs().max())


# --- trial and error ---


def test_rewards_of_an_episode_add_up_to_the_loss(line: tuple) -> None:
    pytest.importorskip("stable_baselines3", reason="optional: pip install -e '.[rl]'")
    from control_rl import Environments

    case, physics, data = line
    environments = Environments(case, physics, data, 5, 0)
    seen, total = environments.reset(), np.zeros(5)
    batch, net = environments.batch, policy(case)
    for n in range(case.steps):
        assert seen.shape == (5, case.observations) and seen[0, -1] == pytest.approx(1 - n / case.steps)
        seen, rewards, over, _ = environments.step(net(torch.from_numpy(seen)).detach().numpy())
        total += rewards
        assert over.all() == (n == case.steps - 1)
    objective = control(case)
    loss = float(objective.loss(objective.outputs(controlled(case, physics, net), batch), batch))
    assert -total.mean() / case.rl.reward_scale == pytest.approx(loss, rel=1e-4)
    assert environments.calls == 5 * case.steps and seen[0, -1] == 1
