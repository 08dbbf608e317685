"""Several steps as one compiled program; `eager` stands for the compiler, which is tested in slow tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    Noise,
    Tensor,
    advect,
    batch,
    diffuse,
    math,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.steps import Repeatable, bind, flatten_arguments, unroll
from phi_hybrid.tracing.graph import TOGETHER, CapturedGraph, unrolled

STEPS = 8 * TOGETHER + 3
"""A rollout that is long enough for programs, and not a multiple of them."""


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of steps of the programs that were run."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run, counts = CapturedGraph.several, []
    monkeypatch.setattr(CapturedGraph, "several", lambda self, *args: counts.append(len(args[1])) or run(self, *args))
    return counts


def transport(u: Field, force: Tensor | float = 0.0) -> Field:
    return diffuse.explicit(advect.semi_lagrangian(u, u, 0.1), 0.01, 0.1) + 0.1 * force


def start(rows: int = 2) -> Field:
    math.seed(0)
    return CenteredGrid(Noise(batch(b=rows), vector="x,y"), PERIODIC, Box(x=6, y=6), x=6, y=6)


def both(step: Callable = transport) -> tuple[ph.PhysicsBlock, ph.PhysicsBlock]:
    return ph.capture(step), ph.capture(step, compile=True)


def test_rollouts_and_repeats(calls: list[int]) -> None:
    plain, own = both()
    force = wrap(torch.linspace(-1, 1, STEPS), batch("time"))
    expected = ph.rollout(plain, start(), STEPS, force)
    found = ph.rollout(own, start(), STEPS, force)
    assert calls == [TOGETHER] * 8
    assert found.shape == expected.shape
    math.assert_close(found.values, expected.values, abs_tolerance=1e-4)
    math.assert_close(ph.repeat(own, start(), STEPS, force).values, expected.time[-1].values, abs_tolerance=1e-4)
    assert calls == [TOGETHER] * 16


def test_short_rollouts_are_not_worth_a_program(calls: list[int]) -> None:
    ph.rollout(both()[1], start(), 8 * TOGETHER - 1)
    assert calls == []


def test_unrolled_gradients(calls: list[int]) -> None:
    gradients = []
    for block in both():
        tensors, layout, inputs = flatten_arguments(block, start(), (0.3,), {})
        leaves = tuple(t.clone().requires_grad_() for t in tensors)
        bound = bind(block, leaves, layout, inputs)
        states = unroll(Repeatable(bound.step, leaves, bound.layout), inputs, 2 * TOGETHER + 1)
        assert len(states) == 2 * TOGETHER + 1
        gradients.append(torch.autograd.grad(sum((t**2).sum() for state in states for t in state), leaves))
    assert calls == [TOGETHER] * 2
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bound_steps_unroll(calls: list[int]) -> None:
    for block, programs in zip(both(), ([], [TOGETHER] * 2)):
        bound = block.bind(start(), 0.3)
        tensors = bound.flatten(start(), 0.3)
        states, state = bound.unroll(2 * TOGETHER + 1, *tensors), tensors
        for found in states:
            state = bound.native(*state, *tensors[len(state) :])
            torch.testing.assert_close(found, state, rtol=0, atol=1e-5)
        assert len(states) == 2 * TOGETHER + 1 and calls == programs
        assert bound.unroll(0, *tensors) == []
    with pytest.raises(ph.StateError, match="steps = -1"):
        bound.unroll(-1, *tensors)
    with pytest.raises(ph.StateError, match="cannot be repeated"):
        ph.capture(lambda u: u.with_boundary(0)).bind(start()).unroll(2, *tensors)


def test_programs_share_no_code() -> None:
    """Torch compiles a piece of code eight times at most, and then runs it as it is."""
    graphs = [ph.capture(lambda u, f=factor: u * f, start()).graphs[0].module for factor in (2.0, 3.0)]
    first, second = (unrolled(graph, 3) for graph in graphs)
    assert type(first).forward.__code__ is not type(second).forward.__code__
    x = torch.ones(2, 6, 6, 2)
    for module, factor in ((first, 2.0), (second, 3.0)):
        assert [float(t.mean()) for t in module(x)] == [factor, factor**2, factor**3]


def test_transformations_take_the_graph_itself(calls: list[int]) -> None:
    _, own = both()
    bound = own.bind(start())
    tensors = bound.flatten(start())
    torch.func.jvp(lambda *state: bound.unroll(TOGETHER, *state)[-1], tensors, tensors)
    assert calls == []


def test_a_state_that_is_not_finite(calls: list[int]) -> None:
    plain, own = both(lambda u: u * 1e4)
    errors = []
    for block in (plain, own):
        with pytest.raises(ph.NonFiniteError) as caught:
            ph.rollout(block, start(), STEPS)
        errors.append(caught.value)
    assert errors[0].step == errors[1].step and calls
    assert errors[0].trajectory.shape == errors[1].trajectory.shape


def test_a_solve_that_fails_in_a_program(calls: list[int]) -> None:
    """Its steps are repeated one by one, to name the one in which it failed."""

    def step(u: Tensor) -> Tensor:
        grid = CenteredGrid(u, PERIODIC, x=5)
        rhs = grid - math.mean(u, "x") + math.where(u > 1e6, math.NAN, 0.0)
        return 3 * u + 0 * math.solve_linear(lambda p: p.laplace(), rhs, math.Solve("CG", 1e-5, x0=0 * grid)).values

    errors = []
    for block in both(step):
        with pytest.raises(ph.SolveError) as caught:
            ph.rollout(block, math.wrap(torch.arange(1.0, 6.0), spatial("x")), STEPS)
        errors.append(caught.value)
    assert errors[0].step == errors[1].step > TOGETHER
    assert errors[0].trajectory.shape == errors[1].trajectory.shape
    assert calls[-1] == TOGETHER


@pytest.mark.slow
def test_programs_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plain, own = (ph.rollout(block, start(), STEPS).values for block in both())
    math.assert_close(own, plain, abs_tolerance=1e-4)


@pytest.mark.slow
def test_programs_of_equal_code_keep_their_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call looks at constants again; whether to record gradients is looked at."""
    monkeypatch.undo()
    weights = [factor * start() for factor in (2.0, 3.0)]
    blocks = [ph.capture(lambda u, w=w: u * w, start(), compile=True) for w in weights]
    (x,) = (t.requires_grad_() for t in blocks[0].flatten(start()))
    for _ in range(2):
        for block, w in zip(blocks, weights):
            (constant,) = block.flatten(w)
            with torch.no_grad():
                (y,) = block.native(x)
            assert not y.requires_grad
            torch.testing.assert_close(y, x * constant)
            (y,) = block.native(x)
            torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], constant)
            assert not block.native(x.detach())[0].requires_grad
