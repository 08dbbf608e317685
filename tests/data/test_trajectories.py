"""Selecting, splitting and replacing trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import faces, forced_step, line
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    batch,
    channel,
    math,
    spatial,
)

import phi_hybrid as ph

STEPS = 5


def generate(step_: Any, *args: Any, **kwargs: Any) -> ph.Trajectories:
    return ph.Trajectories.generate(step_, *args, progress=False, **kwargs)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    """Four trajectories on a line, force with time."""
    u, f = line(0, b=4), line(1, b=4, time=STEPS)
    return generate(ph.capture(forced_step), u, STEPS, (f,), metadata={"dt": 0.1, "names": ["a", "b"]})


def test_split_is_disjoint_and_complete(data: ph.Trajectories) -> None:
    for first in (1, 3, 0.25, 0.5):
        a, b = data.split(first)
        assert len(a) == (first if isinstance(first, int) else first * 4) and len(a) + len(b) == 4
        assert torch.equal(torch.cat([a.states[0], b.states[0]]), data.states[0])
        assert torch.equal(torch.cat([a.inputs[0], b.inputs[0]]), data.inputs[0])
        assert not any(torch.equal(x, y) for x in a.states[0] for y in b.states[0])
        assert a.metadata == data.metadata


@pytest.mark.parametrize("first", [0, 4, -1, 0.0, 1.0, 0.01])
def test_split_that_leaves_nothing(first: int | float, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match="1 … 3"):
        data.split(first)


@pytest.mark.parametrize(("start", "stop"), [(0, STEPS), (1, 4), (STEPS - 1, STEPS)])
def test_between(start: int, stop: int, data: ph.Trajectories) -> None:
    part = data.between(start, stop)
    assert part.steps == stop - start and part.metadata == data.metadata
    assert torch.equal(part.states[0], data.states[0][:, start : stop + 1])
    assert torch.equal(part.inputs[0], data.inputs[0][:, start:stop])
    constant = generate(forced_step, line(0, b=2), 2, (line(1, b=2),))
    assert torch.equal(constant.between(1, 2).inputs[0], constant.inputs[0])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, STEPS + 1)])
def test_between_out_of_range(start: int, stop: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=f"0 … {STEPS}"):
        data.between(start, stop)


def test_concat_undoes_split(data: ph.Trajectories) -> None:
    whole = ph.Trajectories.concat(*data.split(1))
    assert torch.equal(whole.states[0], data.states[0]) and torch.equal(whole.inputs[0], data.inputs[0])
    assert whole.layouts == data.layouts and whole.scale == data.scale and whole.metadata == data.metadata
    assert torch.equal(ph.Trajectories.concat(data).states[0], data.states[0])
    twice = ph.Trajectories.concat(data, replace(data, metadata={"dt": 0.1, "names": ["c"]}))
    assert len(twice) == 2 * len(data) and twice.metadata == {"dt": 0.1}
    without_inputs = data.with_inputs()
    assert ph.Trajectories.concat(without_inputs, without_inputs).inputs == ()


def test_concat_of_inputs_that_are_longer_than_the_steps(data: ph.Trajectories) -> None:
    """A force of more times than steps is allowed: the windows are the same, whichever set comes first."""
    longer = generate(ph.capture(forced_step), line(0, b=4), STEPS, (line(1, b=4, time=STEPS + 2),))
    assert longer.inputs[0].shape[1] == STEPS + 2
    for sets in ((data, longer), (longer, data)):
        joined = ph.Trajectories.concat(*sets)
        for part, expected in zip((joined[:4], joined[4:]), sets, strict=True):
            assert torch.equal(part.states[0], expected.states[0])
            assert torch.equal(part.whole().inputs[0], expected.whole().inputs[0])
    twice = ph.Trajectories.concat(longer, longer)
    assert torch.equal(twice.inputs[0], torch.cat([longer.inputs[0]] * 2))  # so that older trainings go on


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda d: d.between(0, 2), r"'sets\[1\]': 2.*between.*Mixture"),
        (lambda d: d.with_inputs(), r"sets\[1\] .*inputs: tuple of 0 and tuple of 1"),
        (lambda d: d.with_inputs(1 * line(1, b=4).b[0]), r"inputs: dims \(x=8.* and \(time=any"),
        (lambda d: generate(lambda u: u, faces("periodic", 0, b=2), STEPS), "states: "),
        (lambda d: generate(forced_step, *doubles()[:1], STEPS, doubles()[1:]), r"float64 on cpu where sets\[0\]"),
        (lambda d: d.states[0], r"sets\[1\] = tensor.*Trajectories"),
    ],
)
def test_sets_that_are_not_alike(other: Callable, named: str, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=named):
        ph.Trajectories.concat(data, other(data))


def doubles() -> tuple[Field, Field]:
    return line(0, b=2, dtype=torch.float64), line(1, b=2, time=STEPS, dtype=torch.float64)


def test_no_sets_at_all() -> None:
    with pytest.raises(ph.StateError, match="at least one"):
        ph.Trajectories.concat()


def test_selection(data: ph.Trajectories) -> None:
    assert torch.equal(data[[2, 0]].states[0], data.states[0][[2, 0]])
    assert torch.equal(data[1:].inputs[0], data.inputs[0][1:])
    assert torch.equal(data[3].states[0], data.states[0][3:])
    with pytest.raises(ph.DataError, match="empty"):
        data[4:]


def test_scale_is_the_standard_deviation(data: ph.Trajectories) -> None:
    assert data.scale == pytest.approx([np.std(data.states[0].double().numpy(), ddof=1)])
    turning = generate(lambda u: u * 1j, line(0, b=2) + 2.0, 3)
    assert turning.scale == pytest.approx([np.std(turning.states[0].numpy(), ddof=1)]) and turning.scale[0] > 2
    still = generate(lambda u: u, line(0) * 0 + 3.0, 2)
    assert still.scale == (1.0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_with_their_place(bad: float, data: ph.Trajectories) -> None:
    states, inputs = data.states[0].clone(), data.inputs[0].clone()
    states[2, 3, 7, 0] = bad
    with pytest.raises(ph.DataError, match=r"state tensor 0 .*trajectory 2 at index \[3, 7, 0\]"):
        ph.Trajectories((states,), data.inputs, data.state_layout, data.input_layout)
    inputs[1, 4, 0, 0] = bad
    with pytest.raises(ph.DataError, match=r"input tensor 0 .*trajectory 1 at index \[4, 0, 0\]"):
        ph.Trajectories(data.states, (inputs,), data.state_layout, data.input_layout)


def test_a_guess_in_place_of_an_unknown_coefficient() -> None:
    def decay(u: Field, rate: Any) -> Field:
        return u - 0.1 * rate * u

    rate = CenteredGrid(lambda x: 1 + x.vector["x"] / 8, PERIODIC, Box(x=8, y=8), x=4, y=4)
    u = rate * math.ones(batch(case=3))
    data = ph.Trajectories.generate(decay, u, 4, (rate,), progress=False)
    guess = rate.with_values(1.0 + 0 * rate.values)
    other = data.with_inputs(guess)
    assert all(map(torch.equal, other.states, data.states))
    (given,) = ph.bridge.flatten(guess)[0]
    assert torch.equal(other.inputs[0], given.expand(3, 4, 4))
    varying = data.with_inputs(math.expand(guess.values, batch(time=4)) * math.ones(batch(trajectory=3)))
    assert varying.inputs[0].shape == (3, 4, 4, 4)
    with pytest.raises(ph.StateError, match="'time': 3"):
        data.with_inputs(math.expand(guess.values, batch(time=3)))
    with pytest.raises(ph.DataError, match="NaN"):
        data.with_inputs(guess * float("nan"))
    assert ph.evaluate({"true": decay}, data).mae["true"].max() < 1e-6 < ph.evaluate({"g": decay}, other).mae["g"].max()


def test_replaced_values_are_looked_at_again(data: ph.Trajectories) -> None:
    broken = data.states[0].clone()
    broken[2, 3, 1] = np.nan
    with pytest.raises(ph.DataError, match="state tensor 0 holds NaN"):
        replace(data, states=(broken,))
    with pytest.raises(ph.DataError, match="state tensor 0 holds NaN"):
        replace(data[1:], states=(broken[1:],))
    assert replace(data, metadata={}).states[0] is data.states[0]


def test_scale_of_whole_numbers() -> None:
    """They are exact: no deviation is rounding."""
    ones = math.ones(batch(trajectory=2, time=3), spatial(x=8, y=8), channel(vector="x,y"))
    grid = CenteredGrid(0.0, PERIODIC, x=8, y=8)
    states = {"u": grid.with_values(ones), "count": grid.with_values(math.to_int32(ones))}
    assert ph.Trajectories.from_fields(states).scale == (1.0, 1.0)
