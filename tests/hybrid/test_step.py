"""Hybrid solvers on states of several parts: some corrected, all seen, on several grids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.small import SmallNet, same, zero_net
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, Field, Noise, StaggeredGrid, advect, batch

import phi_hybrid as ph

BOX = Box(x=8, y=8)


def plume(smoke_cells: int = 8, seed: int = 0, **batches: int) -> dict[str, Field]:
    """A periodic velocity and smoke, which may be finer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "velocity": StaggeredGrid(Noise(batch(**batches)), PERIODIC, BOX, x=4, y=4),
            "smoke": CenteredGrid(Noise(batch(**batches)), ZERO_GRADIENT, BOX, x=smoke_cells, y=smoke_cells),
        }


def step(state: dict[str, Field]) -> dict[str, Field]:
    v, s = state["velocity"], state["smoke"]
    return {"velocity": advect.semi_lagrangian(v, v, 0.3), "smoke": advect.semi_lagrangian(s, v, 0.3)}


def faces(v: Field) -> list[torch.Tensor]:
    return list(ph.bridge.flatten(v)[0])


@pytest.mark.smoke
def test_one_part_is_corrected_and_all_are_seen() -> None:
    """By hand: smoke as means over 2×2 cells beside the velocity's faces; the correction goes to the faces alone."""
    net, state = SmallNet(3, 2, 2), plume(b=2)
    solver = ph.HybridSolver(ph.capture(step), net, corrects=["velocity"])
    after, found = step(state), solver(state)
    (smoke,) = faces(after["smoke"])
    means = smoke.unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    seen = torch.stack([*faces(after["velocity"]), means], 1)
    torch.testing.assert_close(net.seen, seen, rtol=0, atol=1e-6)
    change = net(seen)
    for n, (a, b) in enumerate(zip(faces(found["velocity"]), faces(after["velocity"]))):
        torch.testing.assert_close(a, b + change[:, n], rtol=0, atol=1e-6)
    assert same(found["smoke"], after["smoke"])


def test_coarser_parts_are_seen_by_the_cells_around() -> None:
    net, state = SmallNet(3, 1, 2), plume(b=2)
    solver = ph.HybridSolver(ph.capture(step), net, corrects=["smoke"])
    solver(state)
    (u, _) = faces(step(state)["velocity"])
    assert torch.equal(net.seen[:, 0], u.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("coupling", [ph.Additive(), ph.coupling.Multiplicative(), ph.coupling.Parallel(ph.Additive())])
def test_a_zero_network_is_the_bare_solver_to_the_last_bit(coupling: Any) -> None:
    state = plume(b=2)
    solver = ph.HybridSolver(step, zero_net(3, 2, 2), coupling, corrects=["velocity"])
    assert same(solver(state), step(state))


def test_before_corrects_what_the_physics_gets() -> None:
    state, net = plume(8, b=2), SmallNet(3, 2, 2)
    solver = ph.HybridSolver(step, net, ph.coupling.Before(), corrects=["velocity"])
    inner = ph.HybridSolver(lambda s: s, net, ph.coupling.Parallel(), corrects=["velocity"])
    assert same(solver(state), step(inner(state)))


def test_one_solver_around_another_corrects_parts_of_different_grids() -> None:
    state = plume(b=2)
    inner = ph.HybridSolver(ph.capture(step), SmallNet(3, 2, 2, seed=1), corrects=["velocity"])
    outer = ph.HybridSolver(inner, SmallNet(3, 1, 2, seed=2), corrects=["smoke"])
    found, once, plain = outer(state), inner(state), step(state)
    assert same(found["velocity"], once["velocity"]) and not same(found["velocity"], plain["velocity"])
    assert same(once["smoke"], plain["smoke"]) and not same(found["smoke"], plain["smoke"])


def test_tuples_by_number_and_a_batch_dim_on_some_parts_only() -> None:
    v, s = plume(4)["velocity"], plume(4, b=3)["smoke"]

    def pair(state: tuple[Field, Field]) -> tuple[Field, Field]:
        new = step({"velocity": state[0], "smoke": state[1]})
        return new["velocity"], new["smoke"]

    solver = ph.HybridSolver(pair, SmallNet(3, 1, 2), corrects=[1])
    found, plain = solver((v, s)), pair((v, s))
    assert not same(found[1], plain[1]) and found[1].shape.get_size("b") == 3
    for a, b in zip(faces(found[0]), faces(plain[0])):
        assert a.shape == (3, 4, 4) and torch.equal(a[0], b)
    trajectory = solver.rollout((v, s), 2)
    assert trajectory[1].shape.get_size("time") == 3


def slower(state: dict[str, Field]) -> dict[str, Field]:
    """Velocity decays, which `step` does not know."""
    return {**step(state), "velocity": 0.9 * step(state)["velocity"]}


def test_training_on_parts() -> None:
    """Scales: what is seen has mean square 1, and an output of 1 is the error of a step in the corrected part."""
    data = ph.Trajectories.generate(ph.capture(slower), plume(case=6), 4, progress=False)
    net = SmallNet(3, 2, 2, width=8)
    solver = ph.HybridSolver(ph.capture(step), net, corrects=["velocity"])
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, batch_size=6, progress=False)
    batch_ = data.cut(slice(None), 0, 1)
    after = ph.capture(step)(batch_.initial_state)
    errors = [a - t[:, 0] for a, t in zip(ph.bridge.flatten(after)[0], batch_.targets)]
    assert solver.output_scale.shape == (2,) and solver.input_scale.shape == (3,)
    for scale, error in zip(solver.output_scale, errors):
        assert 0.5 < float(scale / error.square().mean().sqrt()) < 1.5
    assert float(errors[2].abs().max()) < 1e-5
    losses = trainer.fit(60)["loss"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize(
    ("corrects", "channels", "names"),
    [
        ([0], 3, r"0.*velocity"),
        (None, 3, "corrects"),
        (["velocity"], 7, "velocity 2, smoke 1"),
    ],
)
def test_wrong_parts_and_channels_are_named(corrects: Any, channels: int, names: str) -> None:
    solver = ph.HybridSolver(step, SmallNet(channels, 2, 2), corrects=corrects)
    with pytest.raises(ph.StateError, match=names):
        solver(plume(b=2))
