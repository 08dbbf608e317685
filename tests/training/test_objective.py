"""Losses and gradients of unrolled training against hand-written loops in plain PhiFlow and finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cases.chains as chains
import numpy as np
import pytest
import torch
from cases.chains import agree, force_at, gradient_of, squares, step_by_hand, target_at
from cases.small import (
    SmallNet,
    component_values,
    equal,
    faces,
    finite_differences,
    forced_step,
    line,
    native_of,
    noise,
    relative_difference,
)
from phi.torch.flow import Field, batch, dual, math

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.training.gradient import Checkpointed, Detached, Full, Paths, SignConsistent, Truncated
from phi_hybrid.training.losses import L2, BeforeCorrection, EveryStep, Geometric, LastStep, Losses, Steps

TRAJECTORIES, STEPS = 3, 6


def reference(u: Field, f: Field) -> Field:
    """What the solver is to learn: another viscosity and a force that counts double."""
    return forced_step(forced_step(u, f) * 0.9, f)


def make_data(kind: str, force: str) -> ph.Trajectories:
    def make(seed: int, **batches: int) -> Field:
        double = dict(dtype=torch.float64, **batches)
        return line(seed, **double) if kind == "line" else faces(kind, seed, **double)

    f = make(1, b=TRAJECTORIES) if force == "constant" else make(1, b=TRAJECTORIES, time=STEPS)
    with math.precision(64):
        return ph.Trajectories.generate(reference, make(0, b=TRAJECTORIES), STEPS, (f,), progress=False)


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


CASES = [("line", "constant"), ("line", "time"), ("closed", "constant"), ("closed", "time")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: Any, block: ph.PhysicsBlock) -> tuple[str, str, ph.Trajectories, ph.HybridSolver]:
    kind, force = request.param
    dims = 1 if kind == "line" else 2
    solver = ph.HybridSolver(block, SmallNet(2 * dims, dims, dims, width=2).double())
    solver.set_scales(torch.linspace(0.5, 1.5, 2 * dims), torch.linspace(0.2, 0.4, dims))
    return kind, force, make_data(kind, force), solver


def network_channels(field: Field, kind: str) -> torch.Tensor:
    """`(1, channel, *spatial)` of one field: the lower faces at the walls, which are zero, are not stored."""
    values = component_values(field)
    if kind == "line":
        return values[0].mT[None]
    x, y = values
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 1, 0)), torch.nn.functional.pad(y, (1, 0))])[None]


def add_channels(field: Field, channels: torch.Tensor, kind: str) -> Field:
    if kind == "line":
        return field + field.with_values(math.wrap(channels[0].mT, math.spatial("x"), math.channel(vector="x")))
    components = {"x": channels[0, 0, 1:], "y": channels[0, 1, :, 1:]}
    wrapped = {n: math.wrap(c, math.spatial("x,y")) for n, c in components.items()}
    return field + field.with_values(math.stack(wrapped, dual("vector")))


def loss_by_hand(
    kind: str,
    force: str,
    data: ph.Trajectories,
    solver: ph.HybridSolver,
    windows: Sequence[tuple[int, int]],
    steps: int,
) -> torch.Tensor:
    """Plain PhiFlow, one window after the other."""
    trajectory, (f,) = data.trajectory, data.step_inputs
    all_states = [np.concatenate([v.numpy().ravel() for v in leaf]) for leaf in data.states]
    sigma = [float(np.std(leaf, ddof=1)) for leaf in all_states]
    view = (1, -1, *[1] * (1 if kind == "line" else 2))
    total, count = torch.zeros((), dtype=torch.float64), 0
    with math.precision(64):
        for number, start in windows:
            u, force_n = trajectory.trajectory[number].time[start], f.trajectory[number]
            for n in range(start, start + steps):
                force_now = force_n.time[n] if force == "time" else force_n
                after = forced_step(u, force_now)
                seen = torch.cat([network_channels(after, kind), network_channels(force_now, kind)], 1)
                output = solver.output_scale.view(view) * solver.network(seen / solver.input_scale.view(view))
                u = add_channels(after, output, kind)
                targets = component_values(trajectory.trajectory[number].time[n + 1])
                for value, target, s in zip(component_values(u), targets, sigma):
                    total = total + (((value - target) / s) ** 2).sum()
                    count += value.numel()
    return total / count


def batch_of(data: ph.Trajectories, windows: Sequence[tuple[int, int]], steps: int) -> Any:
    dataset = data.windows(steps)
    return dataset.collate([dataset[number * (STEPS - steps + 1) + start] for number, start in windows])


@pytest.mark.parametrize("steps", [1, 3])
def test_loss_and_gradient_by_hand(case: tuple, steps: int) -> None:
    kind, force, data, solver = case
    windows = [(0, 0), (2, 3), (1, 2)]
    objective = ph.Unrolled(steps)
    b = batch_of(data, windows, steps)
    found = objective.loss(objective.outputs(solver, b), b)
    expected = loss_by_hand(kind, force, data, solver, windows, steps)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    parameters = list(solver.parameters())
    gradients = torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)
    assert relative_difference(*gradients) < 1e-11
    assert all(g.abs().max() > 0 for g in gradients[1])


def test_gradient_by_finite_differences(case: tuple) -> None:
    """Through four unrolled steps, for every weight."""
    data, solver = case[2:]
    objective = ph.Unrolled(4)
    b = batch_of(data, [(0, 1), (2, 0)], 4)

    def loss() -> torch.Tensor:
        return objective.loss(objective.outputs(solver, b), b)

    parameters = list(solver.parameters())
    assert relative_difference(torch.autograd.grad(loss(), parameters), finite_differences(loss, parameters)) < 1e-7


def test_the_gradient_runs_through_all_steps(case: tuple) -> None:
    """The gradient of the last of three states differs from that of a step from its predecessor, detached."""
    data, solver = case[2:]
    three, one = ph.Unrolled(3), ph.Unrolled(1)
    b = batch_of(data, [(0, 0)], 3)
    outputs = three.outputs(solver, b)
    parameters = list(solver.parameters())
    through = torch.autograd.grad(sum((y[:, 2] ** 2).sum() for y in outputs), parameters)
    late = batch_of(data, [(0, 2)], 1)
    last = one.outputs(
        solver,
        type(late)(
            tuple(torch.stack([y[:, 1].detach(), y[:, 1].detach()], 1) for y in outputs),
            late.inputs,
            late.layouts,
            late.scale,
        ),
    )
    for y, z in zip(outputs, last):
        torch.testing.assert_close(y[:, 2], z[:, 0], rtol=1e-12, atol=1e-12)
    cut = torch.autograd.grad(sum((z[:, 0] ** 2).sum() for z in last), parameters)
    assert relative_difference(cut, through) > 0.01


def test_one_step_is_supervised_training(case: tuple) -> None:
    """Loss of one step is a mean squared error over pairs (uₙ, uₙ₊₁), in units of the data."""
    data, solver = case[2:]
    objective, windows = ph.Unrolled(1), [(n, t) for n in range(TRAJECTORIES) for t in range(STEPS)]
    b = batch_of(data, windows, 1)
    outputs = objective.outputs(solver, b)
    states = data.trajectory
    squares, count = 0.0, 0
    for number, start in windows:
        f = data.step_inputs[0].trajectory[number]
        f = f.time[start] if "time" in f.shape else f
        with torch.no_grad():
            u = solver(states.trajectory[number].time[start], f)
        target = states.trajectory[number].time[start + 1]
        for a, t, s in zip(component_values(u), component_values(target), data.scale):
            squares += float((((a - t) / s) ** 2).sum())
            count += t.numel()
    assert objective.loss(outputs, b).item() == pytest.approx(squares / count, rel=1e-12)


def test_outputs_are_the_states_after_each_step(case: tuple) -> None:
    data, solver = case[2:]
    b = batch_of(data, [(1, 1)], 4)
    outputs = ph.Unrolled(4).outputs(solver, b)
    with math.precision(64):
        f = data.step_inputs[0].trajectory[1]
        f = f.time[1:5] if "time" in f.shape else f
        rolled = solver.rollout(data.trajectory.trajectory[1].time[1], 4, f)
    for y, values in zip(outputs, component_values(rolled, ("time",))):
        torch.testing.assert_close(y[0], values[1:], rtol=1e-12, atol=1e-12)
        assert y.shape[:2] == (1, 4)


def test_perfect_predictions_cost_nothing(block: ph.PhysicsBlock) -> None:
    f = line(1, b=TRAJECTORIES, time=STEPS)
    data = ph.Trajectories.generate(block, line(0, b=TRAJECTORIES), STEPS, (f,), progress=False)
    objective, b = ph.Unrolled(STEPS), data.whole()
    assert objective.loss(objective.outputs(block, b), b) == 0.0


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
    for of_batch, of_objective in ((1, 4), (4, 1), (3, 2)):
        b = data.windows(of_batch)[0]
        with pytest.raises(ph.StateError, match=f"windows of {of_objective} steps but the batch has {of_batch}"):
            ph.Unrolled(of_objective).outputs(block, b)


def test_step_that_makes_ensembles() -> None:
    """Results with more batch dims than the reference would be broadcast against it."""

    def ensemble(u: Field) -> Field:
        return u * math.wrap(torch.ones(TRAJECTORIES), batch("member"))

    data = ph.Trajectories.generate(lambda u: u * 0.5, line(0, b=TRAJECTORIES), STEPS, progress=False)
    with pytest.raises(ph.StateError, match="batch dims .*member"):
        ph.Unrolled(2).outputs(ph.HybridSolver(ensemble, SmallNet(1, 1, 1)), data.windows(2)[0])
    with pytest.raises(ph.StateError, match="batch dims .*member"):
        ph.evaluate({"ensemble": ensemble}, data)


# --- objectives by hand, in plain torch on the native step of the physics ---

HORIZONS = range(1, chains.STEPS + 1)


@pytest.fixture(scope="module")
def long() -> ph.Trajectories:
    return chains.make_data()


@pytest.fixture(scope="module")
def hybrid(block: ph.PhysicsBlock, long: ph.Trajectories) -> ph.HybridSolver:
    return chains.make_solver(block, long)


@pytest.fixture(scope="module")
def other(long: ph.Trajectories) -> ph.PhysicsBlock:
    """The step that the data come from."""
    block = ph.capture(chains.reference)
    block(long.initial_state, *(f.time[0] for f in long.step_inputs))  # `native` knows the layout
    return block


def found_by(objective: Any, solver: ph.HybridSolver, b: Batch) -> list[torch.Tensor]:
    return chains.value_and_gradient(objective, solver, b)


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


@pytest.mark.parametrize("steps", HORIZONS)
def test_warm_up_by_hand(steps: int, hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b = chains.windows(long, steps)
    for warm_up in range(steps):
        losses = step_losses(hybrid, b, warm_up)
        expected = by_hand(sum(losses) / (steps - warm_up), hybrid)
        assert agree(found_by(ph.Unrolled(steps, warm_up=warm_up), hybrid, b), expected)


@pytest.mark.parametrize("steps", HORIZONS)
@pytest.mark.parametrize(
    ("at", "weights"),
    [
        (EveryStep(), [1, 1, 1, 1, 1]),
        (LastStep(), None),
        (Steps(1, 3), [1, 0, 1, 0, 0]),
        (Geometric(0.7), [1, 0.7, 0.49, 0.343, 0.2401]),
    ],
    ids=repr,
)
def test_loss_placement_by_hand(
    at: Any, weights: Any, steps: int, hybrid: ph.HybridSolver, long: ph.Trajectories
) -> None:
    b, placed = chains.windows(long, steps), Losses({"state": L2(at)})
    weights = [0.0] * (steps - 1) + [1.0] if weights is None else weights[:steps]
    if isinstance(at, Steps) and steps < 3:
        with pytest.raises(ph.StateError, match=rf"the loss sees {steps} steps; use 1 … {steps}"):
            found_by(ph.Unrolled(steps, placed), hybrid, b)
        return
    loss = sum(w * loss for w, loss in zip(weights, step_losses(hybrid, b))) / sum(weights)
    assert agree(found_by(ph.Unrolled(steps, placed), hybrid, b), by_hand(loss, hybrid))


@pytest.mark.parametrize("mode", [Full(), Truncated(2), Checkpointed(2), Paths(network=0)], ids=repr)
@pytest.mark.parametrize("steps", HORIZONS)
def test_losses_before_the_correction_by_hand(
    steps: int, mode: Any, hybrid: ph.HybridSolver, long: ph.Trajectories
) -> None:
    """Together with another loss, so that one gradient passes through both."""
    b, losses = chains.windows(long, steps), Losses({"state": L2(), "source": (0.3, BeforeCorrection(L2(LastStep())))})
    seen = torch.Tensor.detach if isinstance(mode, Paths) else lambda t: t
    u, loss = b.initial, 0.0
    for n in range(steps):
        if n and n % 2 == 0 and isinstance(mode, Truncated):
            u = tuple(t.detach() for t in u)
        u, before = step_by_hand(hybrid, u, force_at(b, n), seen)
        loss = loss + squares(u, target_at(b, n), b.scale) / steps
    loss = loss + 0.3 * squares(before, target_at(b, steps - 1), b.scale)
    assert agree(found_by(ph.Unrolled(steps, losses, mode), hybrid, b), by_hand(loss, hybrid))


@pytest.mark.parametrize("steps", HORIZONS)
def test_pushforward_by_hand(steps: int, hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    """The last R + 1 steps of the window for some R; every R is as frequent."""
    b = chains.windows(long, steps)
    ways = {}
    for taken in range(1, steps + 1):
        u = tuple(s[:, steps - taken] for s in b.states)
        for n in range(steps - taken, steps):
            u, _ = step_by_hand(hybrid, tuple(t.detach() for t in u), force_at(b, n))
        ways[taken] = by_hand(squares(u, target_at(b, steps - 1), b.scale), hybrid)
    torch.manual_seed(0)
    drawn = []
    for _ in range(12 * steps):
        found = found_by(ph.training.Pushforward(steps), hybrid, b)
        (taken,) = [t for t, way in ways.items() if abs(found[0] - way[0]) < 1e-10 * way[0]]
        assert agree(found, ways[taken])
        drawn.append(taken)
    assert all(drawn.count(t) > 4 for t in ways)  # of 12 on average


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("mode", [Full(), Detached(), Checkpointed(2), Paths(network=0), SignConsistent()], ids=repr)
@pytest.mark.parametrize("steps", HORIZONS)
def test_diverted_chain_by_hand(
    steps: int, mode: Any, through: bool, other: ph.PhysicsBlock, hybrid: ph.HybridSolver, long: ph.Trajectories
) -> None:
    b = chains.windows(long, steps)

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
    assert agree(found_by(ph.training.Diverted(steps, other, mode, through), hybrid, b), expected)


def test_one_step_is_supervised_training_for_every_objective(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    """The diverted chain as well, since the reference has generated the data."""
    b = chains.windows(long, 1)
    expected = found_by(ph.Unrolled(1), hybrid, b)
    assert equal(found_by(ph.training.Pushforward(1), hybrid, b), expected)
    for through in (True, False):
        found = found_by(ph.training.Diverted(1, chains.reference, through_reference=through), hybrid, b)
        assert agree(found, expected, 1e-13)


def test_diverted_chain_of_a_perfect_solver(long: ph.Trajectories) -> None:
    reference = ph.capture(chains.reference)
    objective, b = ph.training.Diverted(3, reference), chains.windows(long, 3)
    assert objective.loss(objective.outputs(reference, b), b) == 0.0


def test_curriculum_takes_the_stage_of_the_update() -> None:
    first, second = ph.Unrolled(1), ph.Unrolled(4, noise=ph.Noise(0.1, schedule=ph.training.Ramp(1, 0, 10)))
    curriculum = ph.Curriculum({5: second, 0: first})
    assert curriculum.steps == 4
    assert [curriculum.at(n) is first for n in (0, 4)] == [True, True]
    assert [curriculum.at(n).noise.sigma for n in (5, 10, 11)] == pytest.approx([0.05, 0.0, 0.0])


def test_what_an_objective_tells_about_itself() -> None:
    assert repr(ph.Unrolled(4)) == "Unrolled(steps=4)"
    assert repr(ph.Unrolled(4, gradient=Detached())) == "Unrolled(steps=4, gradient=Detached())"


def test_losses_before_the_correction_need_physics(hybrid: ph.HybridSolver, long: ph.Trajectories) -> None:
    b, objective = chains.windows(long, 2), ph.Unrolled(2, Losses({"source": BeforeCorrection()}))
    with pytest.raises(ph.StateError, match="losses before the correction .* need a HybridSolver"):
        objective.outputs(hybrid.physics, b)
    alone = ph.HybridSolver(hybrid.physics, SmallNet(4, 2, 2).double(), ph.coupling.Replacement())
    with pytest.raises(ph.StateError, match="calls no physics"):
        objective.outputs(alone, b)
