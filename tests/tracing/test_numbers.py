"""Python floats that change from call to call: inputs of one graph, unless the step needs them as numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi.torch.flow import CenteredGrid, Noise, Tensor, math, spatial, wrap

import phi_hybrid as ph

STATE = wrap(torch.linspace(-1, 1, 6), spatial("x"))


def decay(state: Tensor, dt: float, rate: float = 1.0) -> Tensor:
    return state - dt * rate * state


def test_a_float_that_goes_on_changing_needs_one_graph_more() -> None:
    block = ph.capture(decay)
    for dt in (0.1, 0.2, 0.3, np.float32(0.4), 0.5):
        math.assert_close(block(STATE, dt), decay(STATE, dt), rel_tolerance=1e-6, abs_tolerance=0)
    assert block._captures == 3


def test_first_values_keep_their_own_graphs() -> None:
    block = ph.capture(decay)
    first = block(STATE, 0.1)
    block(STATE, 0.2), block(STATE, 0.3)
    assert (block(STATE, 0.1).native("x") == first.native("x")).all()
    assert block._captures == 3


def test_several_floats_may_change_together() -> None:
    block = ph.capture(decay)
    for dt, rate in ((0.1, 1.0), (0.2, 2.0), (0.3, 4.0), (0.5, 6.0), (0.7, 8.0)):
        math.assert_close(block(STATE, dt, rate=rate), decay(STATE, dt, rate), rel_tolerance=1e-6, abs_tolerance=1e-7)
    assert block._captures == 3


def test_a_time_that_is_counted_on() -> None:
    """It begins as the number 0, and is a tensor from the fourth step on, as under PhiFlow's `jit_compile`."""

    def driven(state: Tensor, time: float) -> tuple[Tensor, float]:
        return state + math.sin(time), time + 0.1

    block, found, expected = ph.capture(driven), (STATE, 0), (STATE, 0)
    for _ in range(6):
        found, expected = block(*found), driven(*expected)
    math.assert_close(found[0], expected[0], rel_tolerance=1e-6, abs_tolerance=1e-6)
    assert float(found[1]) == pytest.approx(expected[1], rel=1e-6)
    assert block._captures == 3


def test_floats_within_a_state() -> None:
    def step(state: dict) -> dict:
        return {"u": state["u"] * state["factors"][1], "factors": state["factors"]}

    block = ph.capture(step)
    for factor in (1.5, 2.5, 3.5, 4.5):
        result = block({"u": STATE, "factors": (1, factor)})
        math.assert_close(result["u"], STATE * factor, rel_tolerance=1e-6, abs_tolerance=0)
    assert block._captures == 3


def test_steps_that_branch_on_a_number_are_captured_for_each() -> None:
    def step(state: Tensor, dt: float) -> Tensor:
        return state * dt if dt > 0.25 else state + dt

    block = ph.capture(step)
    for dt in (0.1, 0.2, 0.3, 0.4):
        math.assert_close(block(STATE, dt), step(STATE, dt))
    assert block._captures == 4


def test_whole_numbers_and_flags_stay_constants() -> None:
    def step(state: Tensor, power: int, sign: bool) -> Tensor:
        return state**power if sign else -(state**power)

    block = ph.capture(step)
    for power, sign in ((1, True), (2, True), (3, False)):
        math.assert_close(block(STATE, power, sign), step(STATE, power, sign))
    assert block._captures == 3


def test_derivatives_beside_a_number() -> None:
    def loss(step, u: torch.Tensor, dt: float) -> torch.Tensor:
        return math.l2_loss(step(wrap(u, spatial("x")), dt)).native()

    block = ph.capture(decay)
    block(STATE, 0.1), block(STATE, 0.2)
    u = torch.linspace(-1, 1, 6, requires_grad=True)
    for dt in (0.3, 0.4):
        found, expected = (torch.autograd.grad(loss(step, u, dt), u)[0] for step in (block, decay))
        torch.testing.assert_close(found, expected)
    assert block._captures == 3


def test_bound_steps_keep_their_number() -> None:
    block = ph.capture(decay)
    bound = block.bind(STATE, 0.1)
    block(STATE, 0.2), block(STATE, 0.3)
    (result,) = bound.native(*bound.flatten(STATE, 0.1))
    torch.testing.assert_close(result, decay(STATE, 0.1).native("x"))
    with pytest.raises(ph.StateError, match=r"0\.3 and 0\.1"):
        bound.flatten(STATE, 0.3)


def test_a_field_and_its_time_step() -> None:
    u = CenteredGrid(Noise(), x=8, y=6)
    block = ph.capture(decay)
    for dt in (0.1, 0.2, 0.3, 0.4):
        math.assert_close(block(u, dt).values, decay(u, dt).values, rel_tolerance=1e-6, abs_tolerance=1e-6)
    assert block._captures == 3


def test_precisions_may_be_mixed_in_double_precision() -> None:
    """There, PhiFlow computes with doubles whatever the precision of a value; elsewhere mixing is refused."""
    single, double = STATE, wrap(torch.linspace(0, 1, 6, dtype=torch.float64), spatial("x"))
    block = ph.capture(lambda u, v: u * v)
    with math.precision(64):
        found = block(single, double)
        assert (found.native("x") == (single * double).native("x")).all() and found.dtype.precision == 64
    with pytest.raises(ph.StateError, match="different precision"):
        block(single, double)
