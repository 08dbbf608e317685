"""Rollouts against loops over single steps and against PhiFlow's own iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import (
    SmallNet,
    component_values,
    equal,
    faces,
    forced_step,
    line,
    same,
    step,
)
from phi.torch.flow import ZERO_GRADIENT, Field, batch, channel, math, spatial, wrap

import phi_hybrid as ph


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module")
def solver(block: ph.PhysicsBlock) -> ph.HybridSolver:
    return ph.HybridSolver(block, SmallNet(2, 1, 1, gain=0.5))


def over_time(make: Callable[..., Field], steps: int, **batches: int) -> Field:
    """A force that changes with time."""
    return math.stack([make(100 + n, **batches) for n in range(steps)], batch("time"))


def loop(one_step: Callable, u: Any, steps: int, force: Any) -> list[Any]:
    states = [u]
    for n in range(steps):
        f = force.time[n] if "time" in force.shape else force
        with torch.no_grad():
            states.append(one_step(states[-1], f))
    return states


@pytest.mark.parametrize(
    ("kind", "force", "name"),  # batch dims on either side of `time`
    [("plain", "constant", "z"), ("block", "constant", "b"), ("block", "time", "z"), ("solver", "time", "b")],
)
def test_rollout_is_a_loop_of_steps(
    name: str, kind: str, force: str, block: ph.PhysicsBlock, solver: ph.HybridSolver
) -> None:
    one_step, dim = {"plain": forced_step, "block": block, "solver": solver}[kind], {name: 2}
    u, f = line(0, **dim), line(1, **dim) if force == "constant" else over_time(line, 5, **dim)
    trajectory = ph.rollout(one_step, u, 4, f)
    assert trajectory.shape.get_size("time") == 5
    assert "time" in trajectory.shape.batch
    expected = loop(one_step, u, 4, f)
    assert same(expected[0], u)
    assert all(same(trajectory.time[n], state) for n, state in enumerate(expected))


@pytest.mark.parametrize("kind", ["plain", "block", "solver"])
@pytest.mark.parametrize("given", ["state", "force"])
def test_gradients_by_states_and_inputs_are_those_of_a_loop(
    kind: str, given: str, block: ph.PhysicsBlock, solver: ph.HybridSolver
) -> None:
    one_step = {"plain": forced_step, "block": block, "solver": solver}[kind]
    fields, found = {"state": line(0, b=2), "force": line(1, b=2)}, []
    for way in (ph.rollout, ph.repeat, None):
        values = fields[given].values.native("b,x,vector").clone().requires_grad_()
        wrapped = wrap(values, batch("b"), spatial("x"), channel(vector="x"))
        u, f = ({**fields, given: fields[given].with_values(wrapped)}[name] for name in ("state", "force"))
        if way is ph.rollout:
            last = way(one_step, u, 3, f).time[3]
        elif way is ph.repeat:
            last = way(one_step, u, 3, f)
        else:
            last = one_step(one_step(one_step(u, f), f), f)
        math.sum(last.values**2, last.values.shape).native().backward()
        found.append(values.grad)
    assert float(found[2].abs().max()) > 0.01
    for gradient in found[:2]:
        torch.testing.assert_close(gradient, found[2], rtol=1e-5, atol=1e-6)


def test_gradients_by_weights_alone_are_not_recorded(solver: ph.HybridSolver) -> None:
    u, f = line(0, b=2), line(1, b=2)
    assert not solver.rollout(u, 2, f).values.native("b,time,x,vector").requires_grad
    values = u.values.native("b,x,vector").clone().requires_grad_()
    u = u.with_values(wrap(values, batch("b"), spatial("x"), channel(vector="x")))
    with torch.no_grad():
        assert not ph.repeat(solver, u, 2, f).values.native("b,x,vector").requires_grad


def test_rollout_equals_phiflow_iterate() -> None:
    """`math.iterate` gives values of the same steps; it stacks faces in a layout of its own."""
    u = faces("inflow", 0, b=2)
    expected = math.iterate(step, batch(time=3), u)
    for found in (ph.rollout(step, u, 3), ph.rollout(ph.capture(step, check=False), u, 3)):
        for n in range(4):
            assert equal(component_values(found.time[n], "b"), component_values(expected.time[n], "b"))


def test_no_steps(block: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), line(1, b=2)
    trajectory = ph.rollout(block, u, 0, f)
    assert trajectory.shape.get_size("time") == 1 and same(trajectory.time[0], u)


def test_numbers_and_tensors_as_inputs() -> None:
    """A tensor with `time` is sliced, one without and a Python number are constant."""

    def scaled(u: Field, viscosity: float, strength: math.Tensor, drift: math.Tensor) -> Field:
        return u + viscosity * u.laplace() + strength * drift

    u = line(0, b=2)
    strength = math.wrap(torch.tensor([1.0, 2.0, 3.0]), batch("time"))
    trajectory = ph.rollout(ph.capture(scaled), u, 3, 0.01, strength, math.wrap(torch.tensor([0.5, -0.5]), batch("b")))
    (values,) = component_values(trajectory, ("time", "b"))
    state = u
    for n in range(3):
        state = scaled(state, 0.01, math.wrap(float(n + 1)), math.wrap(torch.tensor([0.5, -0.5]), batch("b")))
        assert torch.equal(values[n + 1], component_values(state, "b")[0])


def test_state_is_repeated_along_batch_dims_of_the_inputs(block: ph.PhysicsBlock, solver: ph.HybridSolver) -> None:
    u, f = line(0), over_time(line, 3, b=2)
    for one_step in (forced_step, block, solver):
        trajectory = ph.rollout(one_step, u, 3, f)
        (values,) = component_values(trajectory, ("time", "b"))
        assert torch.equal(values[0], component_values(u)[0].expand(2, -1, -1))
        for n in range(2):
            alone = ph.rollout(one_step, u, 3, f.b[n])
            torch.testing.assert_close(component_values(alone, ("time",))[0], values[:, n])


@pytest.mark.smoke
def test_more_entries_than_steps_are_left(block: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), over_time(line, 5, b=2)
    assert same(ph.rollout(block, u, 2, f), ph.rollout(block, u, 2, f.time[:2]))


def test_no_gradients_and_no_dropout(block: ph.PhysicsBlock) -> None:
    """NumPy's integers count, too."""
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1, dropout=0.5))
    u, f = line(0, b=2), line(1, b=2)
    first, second = solver.rollout(u, np.int64(2), f), ph.rollout(solver, u, 2, f)
    assert same(first, second) and not component_values(first, ("time", "b"))[0].requires_grad
    assert solver.network.drop.training


def test_too_short_input(block: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="3 entries .*4"):
        ph.rollout(block, line(0, b=2), 4, over_time(line, 3, b=2))
    with pytest.raises(ph.StateError, match="steps = -1"):
        ph.rollout(block, line(0, b=2), -1, line(1, b=2))


def test_state_with_time(block: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="'time'"):
        ph.rollout(block, line(0, time=2), 2, line(1))


@pytest.mark.parametrize("steps", [0, 2])
def test_non_finite_initial_state(steps: int, block: ph.PhysicsBlock) -> None:
    u = line(0, b=2)
    u = u.with_values(math.where(u.values > 0, float("nan"), u.values))
    bad = int((component_values(line(0, b=2), "b")[0] > 0).sum())
    with pytest.raises(ph.NonFiniteError, match=f"initial state holds {bad} NaN") as caught:
        ph.rollout(block, u, steps, line(1, b=2))
    assert caught.value.step == 0


def doubling(u: Field, f: Field) -> Field:
    """Overflows single precision at a known step: u, u², u⁴, …, with 1e3^(2^n) > 3.4e38 for n = 4."""
    return u * u + 0 * f


@pytest.mark.parametrize("captured", [True, False])
def test_divergence_is_reported_at_its_step(captured: bool) -> None:
    u = line(0, b=2)
    u = u.with_values(math.wrap(torch.tensor([1.0, 1e3]), batch("b")) + 0 * u.values)
    one_step = ph.capture(doubling) if captured else doubling
    with pytest.raises(ph.NonFiniteError, match="step 4 of 9") as caught:
        ph.rollout(one_step, u, 9, line(1, b=2))
    assert caught.value.step == 4
    (values,) = component_values(caught.value.trajectory, ("time", "b"))
    assert values.shape[0] == 4 and torch.isfinite(values).all()
    expected = torch.tensor([1e3]) ** torch.tensor([1.0, 2.0, 4.0, 8.0])
    torch.testing.assert_close(values[:, 1, 0, 0], expected)
    unchecked = ph.rollout(one_step, u, 9, line(1, b=2), check=False)
    finite = torch.isfinite(component_values(unchecked, ("time", "b"))[0])
    assert len(finite) == 10 and finite[:4].all() and finite[:, 0].all() and not finite[4:, 1].any()


OTHER_KINDS: dict[str, Callable] = {
    "resolution": lambda u: u.x[:4],
    "boundary": lambda u: u.with_boundary(ZERO_GRADIENT),
    "structure": lambda u: (u, u),
    "placement": lambda u: u.at_centers(),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_step_that_returns_another_kind_of_state(kind: str) -> None:
    u = faces("periodic", 0, b=2) if kind == "placement" else line(0, b=2)
    for one_step in (OTHER_KINDS[kind], ph.capture(OTHER_KINDS[kind])):
        with pytest.raises(ph.StateError, match="repeated"):
            ph.rollout(one_step, u, 2)


def test_step_that_adds_a_batch_dim_of_its_own() -> None:
    """The state is repeated along a batch dim that the step adds by itself."""

    def ensemble(u: Field) -> Field:
        return u * math.wrap(torch.tensor([1.0, 2.0, 3.0]), batch("member"))

    (values,) = component_values(ph.rollout(ensemble, line(0), 2), ("time", "member"))
    for member in range(3):
        expected = component_values(line(0))[0]
        for n in range(3):
            torch.testing.assert_close(values[n, member], expected * (member + 1) ** n)


def test_inputs_have_the_precision_of_the_state(block: ph.PhysicsBlock) -> None:
    """NumPy values take it, as in a single step, with all their digits; torch values of another one are an error."""
    u = line(0, dtype=torch.float64)
    scaled = ph.capture(lambda u, factor: u * factor)
    trajectory = ph.rollout(scaled, u, 1, math.wrap(np.array([0.1, 0.2]), batch("b")))
    (found,) = component_values(trajectory.time[1], ("b",))
    assert torch.equal(found, torch.stack([component_values(u)[0] * f for f in (0.1, 0.2)]))
    with pytest.raises(ph.StateError, match="torch.float32, torch.float64"):
        ph.rollout(block, line(0), 2, line(1, dtype=torch.float64))
