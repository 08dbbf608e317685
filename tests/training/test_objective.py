"""Losses and gradients of unrolled training against hand-written loops in plain PhiFlow and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.chains import (
    STEPS,
    agree,
    force_at,
    gradient_of,
    make_data,
    make_solver,
    reference,
    squares,
    step_by_hand,
    target_at,
    value_and_gradient,
    windows,
)
from cases.small import (
    SmallNet,
    component_values,
    equal,
    finite_differences,
    forced_step,
    line,
    native_of,
    noise,
    relative_difference,
)
from phi.torch.flow import Field, batch, math

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.training.gradient import Checkpointed, Detached, Full, Paths, SignConsistent, Truncated
from phi_hybrid.training.losses import L2, BeforeCorrection, EveryStep, Geometric, LastStep, Losses, Steps

TRAJECTORIES = 3


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module")
def long() -> ph.Trajectories:
    return make_data()


@pytest.fixture(scope="module")
def hybrid(block: ph.PhysicsBlock, long: ph.Trajectories) -> ph.HybridSolver:
    return make_solver(block, long)


@pytest.fixture(scope="module")
def other(long: ph.Trajectories) -> ph.PhysicsBlock:
    """The step that the data come from."""
    block = ph.capture(reference)
    block(long.initial_state, *(f.time[0] for f in long.step_inputs))  # `native` knows the layout
    return block


@pytest.mark.smoke
def test_gradient_by_finite_differences(block: ph.PhysicsBlock) -> None:
    """Through three unrolled steps under a constant force, for every weight."""
    u, f = (line(n, dtype=torch.float64, b=TRAJECTORIES) for n in (0, 1))
    with math.precision(64):
        data = ph.Trajectories.generate(reference, u, 6, (f,), progress=False)
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1, width=2).double())
    solver.set_scales(torch.tensor([0.5, 1.5]), torch.tensor([0.3]))
    objective, dataset = ph.Unrolled(3), data.windows(3)
    b = dataset.collate([dataset[n] for n in (1, 8)])

    def loss() -> torch.Tensor:
        return objective.loss(objective.outputs(solver, b), b)

    parameters = list(solver.parameters())
    assert relative_difference(torch.autograd.grad(loss(), parameters), finite_differences(loss, parameters)) < 1e-7


def test_outputs_are_the_states_after_each_step(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b = long.whole()
    with math.precision(64):
        rolled = hybrid.rollout(long.initial_state, STEPS, *long.step_inputs)
    for y, values in zip(ph.Unrolled(STEPS).outputs(hybrid, b), component_values(rolled, ("trajectory", "time"))):
        torch.testing.assert_close(y, values[:, 1:], rtol=1e-12, atol=1e-12)


def test_scale_of_each_component_of_the_state() -> None:
    """A state of fields of very different size: each is measured in its own unit."""
    big, small = 1e3 * noise(4, 5, 8, 1), 1e-3 * noise(4, 5, 8, 1, seed=1)
    layouts = ph.bridge.flatten((line(0), line(1)))[1], ph.bridge.flatten(())[1]
    data = ph.Trajectories((big, small), (), *layouts)
    objective, b = ph.Unrolled(4), data.whole()
    outputs = tuple(t + s for t, s in zip(b.targets, (big.std(), small.std())))
    assert float(objective.loss(outputs, b)) == pytest.approx(1.0, rel=1e-5)


def test_windows_of_another_length(block: ph.PhysicsBlock) -> None:
    """A batch of one step must not be broadcast against four."""
    f = line(1, b=TRAJECTORIES)
    data = ph.Trajectories.generate(block, line(0, b=TRAJECTORIES), STEPS, (f,), progress=False)
    for of_batch, of_objective in ((1, 4), (4, 1)):
        b = data.windows(of_batch)[0]
        with pytest.raises(ph.StateError, match=f"{of_objective} steps .*{of_batch}"):
            ph.Unrolled(of_objective).outputs(block, b)


def test_step_that_makes_ensembles() -> None:
    """Results with more batch dims than the reference would be broadcast against it."""

    def ensemble(u: Field) -> Field:
        return u * math.wrap(torch.ones(TRAJECTORIES), batch("member"))

    data = ph.Trajectories.generate(lambda u: u * 0.5, line(0, b=TRAJECTORIES), STEPS, progress=False)
    with pytest.raises(ph.StateError, match="member"):
        ph.Unrolled(2).outputs(ph.HybridSolver(ensemble, SmallNet(1, 1, 1)), data.windows(2)[0])
    with pytest.raises(ph.StateError, match="member"):
        ph.evaluate({"ensemble": ensemble}, data)


def by_hand(loss: torch.Tensor, solver: ph.HybridSolver) -> list[torch.Tensor]:
    return [loss.detach(), *gradient_of(loss, solver)]


def step_losses(solver: ph.HybridSolver, b: Batch, warm_up: int = 0) -> list[torch.Tensor]:
    """Loss of each step that counts."""
    u, losses = b.initial, []
    for n in range(b.steps):
        with torch.set_grad_enabled(n >= warm_up):
            u, _ = step_by_hand(solver, u, force_at(b, n))
        losses.append(squares(u, target_at(b, n), b.scale))
    return losses[warm_up:]


def test_warm_up_by_hand(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b = windows(long, 4)
    for warm_up in range(4):
        expected = by_hand(sum(step_losses(hybrid, b, warm_up)) / (4 - warm_up), hybrid)
        assert agree(value_and_gradient(ph.Unrolled(4, warm_up=warm_up), hybrid, b), expected)


@pytest.mark.parametrize(
    ("at", "weights"),
    [
        (EveryStep(), [1, 1, 1, 1]),
        (LastStep(), [0, 0, 0, 1]),
        (Steps(1, 3), [1, 0, 1, 0]),
        (Geometric(0.7), [1, 0.7, 0.49, 0.343]),
    ],
    ids=repr,
)
def test_loss_placement_by_hand(at: Any, weights: Any, hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b = windows(long, 4)
    loss = sum(w * loss for w, loss in zip(weights, step_losses(hybrid, b))) / sum(weights)
    assert agree(value_and_gradient(ph.Unrolled(4, Losses({"state": L2(at)})), hybrid, b), by_hand(loss, hybrid))


@pytest.mark.parametrize("mode", [Full(), Truncated(2), Checkpointed(2), Paths(network=0)], ids=repr)
def test_losses_before_the_correction_by_hand(mode: Any, hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    """Together with another loss, so that one gradient passes through both."""
    steps = STEPS
    b, losses = windows(long, steps), Losses({"state": L2(), "source": (0.3, BeforeCorrection(L2(LastStep())))})
    seen = torch.Tensor.detach if isinstance(mode, Paths) else lambda t: t
    u, loss = b.initial, 0.0
    for n in range(steps):
        if n and n % 2 == 0 and isinstance(mode, Truncated):
            u = tuple(t.detach() for t in u)
        u, before = step_by_hand(hybrid, u, force_at(b, n), seen)
        loss = loss + squares(u, target_at(b, n), b.scale) / steps
    loss = loss + 0.3 * squares(before, target_at(b, steps - 1), b.scale)
    assert agree(value_and_gradient(ph.Unrolled(steps, losses, mode), hybrid, b), by_hand(loss, hybrid))


def test_pushforward_by_hand(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    """The last R + 1 steps of the window for some R; every R is as frequent."""
    steps, ways = 3, {}
    b = windows(long, steps)
    for taken in range(1, steps + 1):
        u = tuple(s[:, steps - taken] for s in b.states)
        for n in range(steps - taken, steps):
            u, _ = step_by_hand(hybrid, tuple(t.detach() for t in u), force_at(b, n))
        ways[taken] = by_hand(squares(u, target_at(b, steps - 1), b.scale), hybrid)
    torch.manual_seed(0)
    drawn = []
    for _ in range(12 * steps):
        found = value_and_gradient(ph.training.Pushforward(steps), hybrid, b)
        (taken,) = [t for t, way in ways.items() if abs(found[0] - way[0]) < 1e-10 * way[0]]
        assert agree(found, ways[taken])
        drawn.append(taken)
    assert all(drawn.count(t) > 4 for t in ways)  # of 12 on average


@pytest.mark.parametrize(
    ("mode", "through"),
    [
        (Full(), True),
        (Full(), False),
        (Detached(), True),
        (Checkpointed(2), False),
        (Paths(network=0), True),
        (SignConsistent(), True),
    ],
    ids=repr,
)
def test_diverted_chain_by_hand(
    mode: Any, through: bool, other: ph.PhysicsBlock, hybrid: ph.HybridSolver, long: ph.Trajectories
) -> None:
    steps = STEPS
    b = windows(long, steps)

    def chain(seen: Any = lambda t: t) -> list[torch.Tensor]:
        u, loss = b.initial, 0.0
        for n in range(steps):
            if isinstance(mode, Detached):
                u = tuple(t.detach() for t in u)
            expected = native_of(other, *u, *force_at(b, n))
            if not through:
                expected = tuple(t.detach() for t in expected)
            u, _ = step_by_hand(hybrid, u, force_at(b, n), seen)
            loss = loss + squares(u, expected, b.scale) / steps
        return by_hand(loss, hybrid)

    expected = chain(torch.Tensor.detach if isinstance(mode, Paths) else lambda t: t)
    if isinstance(mode, SignConsistent):
        physics = chain(torch.Tensor.detach)
        expected = [expected[0], *(p * (p.sign() == g.sign()) for g, p in zip(expected[1:], physics[1:]))]
    assert agree(value_and_gradient(ph.training.Diverted(steps, other, mode, through), hybrid, b), expected)


def test_one_step_is_supervised_training_for_every_objective(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    """The diverted chain as well, since the reference has generated the data."""
    b = windows(long, 1)
    expected = value_and_gradient(ph.Unrolled(1), hybrid, b)
    assert equal(value_and_gradient(ph.training.Pushforward(1), hybrid, b), expected)
    for through in (True, False):
        found = value_and_gradient(ph.training.Diverted(1, reference, through_reference=through), hybrid, b)
        assert agree(found, expected, 1e-13)


def test_diverted_chain_of_a_perfect_solver(other: ph.PhysicsBlock, long: ph.Trajectories) -> None:
    objective, b = ph.training.Diverted(3, other), windows(long, 3)
    assert objective.loss(objective.outputs(other, b), b) == 0.0


def test_diverted_chain_of_complex_states() -> None:
    """|½u − iu|² = 1.25 |u|²."""
    with math.precision(64):
        data = ph.Trajectories.generate(lambda u: u * 1j, line(0, b=2) * (1 + 2j), 1, progress=False)
    objective, b = ph.training.Diverted(1, lambda u: u * 1j), data.whole()
    found = objective.loss(objective.outputs(ph.capture(lambda u: u * 0.5), b), b)
    expected = 1.25 * (b.initial[0].abs() ** 2).mean() / data.scale[0] ** 2
    assert not found.is_complex() and float(found) == pytest.approx(float(expected), rel=1e-6)


def test_curriculum_takes_the_stage_of_the_update() -> None:
    first, second = ph.Unrolled(1), ph.Unrolled(4, noise=ph.Noise(0.1, schedule=ph.training.Ramp(1, 0, 10)))
    curriculum = ph.Curriculum({5: second, 0: first})
    assert curriculum.steps == 4
    assert [curriculum.at(n) is first for n in (0, 4)] == [True, True]
    assert [curriculum.at(n).noise.sigma for n in (5, 10, 11)] == pytest.approx([0.05, 0.0, 0.0])


def test_what_an_objective_tells_about_itself() -> None:
    assert repr(ph.Unrolled(4)) == "Unrolled(steps=4)"
    assert repr(ph.Unrolled(4, gradient=Detached())) == "Unrolled(steps=4, gradient=Detached())"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ph.Unrolled(0), "0"),
        (lambda: ph.Unrolled(4, warm_up=4), "warm_up = 4"),
        (lambda: ph.Unrolled(4, warm_up=-1), "warm_up = -1"),
        (lambda: ph.training.Pushforward(0), "0"),
        (lambda: ph.training.Diverted(0, forced_step), "0"),
        (lambda: ph.Curriculum({}), "{}"),
        (lambda: ph.Curriculum({5: ph.Unrolled(1)}), "5: "),
        (lambda: ph.Curriculum({0: ph.Unrolled(1)}).loss((), None), r"curriculum.at\("),
        (lambda: ph.Curriculum({0: ph.Unrolled(1)}).outputs(None, None), r"curriculum.at\("),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()


def test_losses_before_the_correction_need_physics(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b, objective = windows(long, 2), ph.Unrolled(2, Losses({"source": BeforeCorrection()}))
    with pytest.raises(ph.StateError, match="HybridSolver"):
        objective.outputs(hybrid.physics, b)
    alone = ph.HybridSolver(hybrid.physics, SmallNet(4, 2, 2).double(), ph.coupling.Replacement())
    with pytest.raises(ph.StateError, match="Replacement|no physics"):
        objective.outputs(alone, b)
