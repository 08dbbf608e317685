"""Reference data from PhiFlow states and from native tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases.small import equal, faces, forced_step, line, noise, same, scalar
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, batch, channel, iterate, math, spatial, vec

import phi_hybrid as ph

STEPS = 3


def generate(step_: Any, *args: Any, **kwargs: Any) -> ph.Trajectories:
    return ph.Trajectories.generate(step_, *args, progress=False, **kwargs)


def flow(state: dict, force: Any, number: Any) -> dict:
    return {"v": state["v"] * 0.9, "s": (state["s"][0] + number * force,)}


def forced(u: Any, *, force: Any) -> Any:
    return forced_step(u, force)


def y_before_x(seed: int = 0, **batches: int) -> Any:
    dims = [batch(n) for n in batches]
    values = math.wrap(noise(*batches.values(), 4, 5, 2, seed=seed), *dims, spatial("y,x"), channel(vector="x,y"))
    return CenteredGrid(values, {"x": PERIODIC, "y": ZERO_GRADIENT}, bounds=Box(y=1.0, x=2.0))


def made(name: str) -> ph.Trajectories:
    if name == "parts":
        inputs = scalar(2, b=4, time=STEPS), math.wrap(torch.arange(4.0), batch("b"))
        return generate(flow, {"v": faces("inflow", b=4), "s": (scalar(1, b=4),)}, STEPS, inputs)
    if name == "keywords":
        return generate(forced, line(0, b=4), STEPS, {"force": line(1, time=STEPS)})
    if name == "float64":
        return generate(lambda u: 0.5 * u, line(0, dtype=torch.float64, b=2), STEPS)
    if name == "y before x":
        return generate(lambda u: 0.5 * u, y_before_x(b=3), STEPS)
    return generate(lambda u: 0.5 * u, faces(name, b=2), STEPS)


CASES = ["parts", "keywords", "float64", "y before x", "periodic", "closed", "open"]


@pytest.fixture(scope="module", params=CASES)
def data(request: pytest.FixtureRequest) -> ph.Trajectories:
    return made(request.param)


def inputs_of(data: ph.Trajectories) -> Any:
    keywords = data.input_layout.keywords
    return dict(zip(keywords, data.step_inputs)) if keywords else data.step_inputs


def assert_equal(a: ph.Trajectories, b: ph.Trajectories) -> None:
    assert equal(a.states, b.states) and equal(a.inputs, b.inputs)
    assert a.layouts == b.layouts and a.scale == b.scale
    assert all(t.is_contiguous() for t in a.states)


# --- the way there and back ---


def test_from_fields_is_the_inverse_of_trajectory(data: ph.Trajectories) -> None:
    again = ph.Trajectories.from_fields(data.trajectory, inputs_of(data), metadata={"dt": 0.1})
    assert_equal(again, data)
    assert again.metadata == {"dt": 0.1}


def test_a_list_of_states(data: ph.Trajectories) -> None:
    state, layout = data.whole(), data.layouts.initial
    frames = [ph.bridge.unflatten(layout, tuple(t[:, n] for t in state.states)) for n in range(STEPS + 1)]
    assert_equal(ph.Trajectories.from_fields(frames, inputs_of(data)), data)


@pytest.mark.parametrize("numpy", [False, True])
def test_from_tensors(numpy: bool, data: ph.Trajectories) -> None:
    states = [t.numpy() if numpy else t for t in data.states]
    assert_equal(ph.Trajectories.from_tensors(states, data[:1].initial_state, inputs_of(data)), data)
    assert_equal(ph.Trajectories.from_tensors(states, data.trajectory, inputs_of(data)), data)


def test_one_array_as_it_is() -> None:
    states = noise(2, 4, 8, 1).double().numpy()
    data = ph.Trajectories.from_tensors(states, line())
    assert len(data) == 2 and data.steps == 3 and data.states[0].dtype == torch.float64
    assert np.array_equal(data.states[0].numpy(), states)
    foreign = np.flip(states, 1).astype(">f8")  # other byte order, negative strides
    foreign.flags.writeable = False
    assert np.array_equal(ph.Trajectories.from_tensors(foreign, line()).states[0].numpy(), states[:, ::-1])


def test_one_trajectory_of_iterate_and_of_rollout() -> None:
    u, f = line(0), line(1)
    expected = generate(forced_step, u, STEPS, (f,))
    loop = [u]
    for _ in range(STEPS):
        loop.append(forced_step(loop[-1], f))
    of_iterate = iterate(forced_step, batch(time=STEPS), u, f_kwargs={"force": f})
    for states in (loop, of_iterate, ph.rollout(forced_step, u, STEPS, f)):
        assert_equal(ph.Trajectories.from_fields(states, (f,)), expected)


def test_a_first_state_for_all_trajectories() -> None:
    u, f = line(0), line(1, trajectory=3)
    frames = [u, forced_step(u, f)]
    data = ph.Trajectories.from_fields(frames, (f,))
    assert len(data) == 3 and same(data.initial_state, u * math.ones(batch(trajectory=3)))
    still = ph.Trajectories.from_fields((line(0, time=4, trajectory=2), scalar(1)))  # a part that never changes
    assert still.states[1].shape == (2, 4, 6, 5) and torch.equal(still.states[1][1, 2], still.states[1][0, 0])


def test_a_list_is_one_state_if_its_parts_have_times() -> None:
    data = ph.Trajectories.from_fields([line(0, time=4), line(1, time=4)])
    assert data.steps == 3 and len(data.states) == 2


def test_python_numbers_and_arrays_take_the_precision_of_the_states() -> None:
    states, number = noise(2, 4, 8, 1).double(), math.wrap(np.array([1.0, 2.0]), batch("trajectory"))
    data = ph.Trajectories.from_tensors(states, line(), (number,))
    assert data.inputs[0].dtype == torch.float64


def test_a_number_for_all_trajectories() -> None:
    states = noise(2, 4, 8, 1)
    for data in (
        ph.Trajectories.from_tensors(states, line(), (math.wrap(0.5),)),
        ph.Trajectories.from_tensors(states, line()).with_inputs(math.wrap(0.5)),
    ):
        assert torch.equal(data.inputs[0], torch.tensor([0.5, 0.5]))


def test_the_data_trains_like_generated_data() -> None:
    f = line(1, b=4, time=STEPS)
    generated = generate(ph.capture(forced_step), line(0, b=4), STEPS, (f,))
    given = ph.Trajectories.from_tensors(generated.states, line(5), generated.step_inputs)
    assert ph.evaluate({"s": forced_step}, given).mae["s"].max() == 0
    given.split(2)[0].windows(2)[0].bind(ph.capture(forced_step))


# --- what is refused ---

STATES = noise(2, 4, 8, 1)


@pytest.mark.parametrize(
    ("states", "like", "match"),
    [
        (STATES[0], line(), r"\(4, 8, 1\), expected \(trajectory, time, x=8, vector=x\)"),
        (STATES[..., :4, :], line(), r"\(2, 4, 4, 1\), expected"),
        (noise(2, 4, 5, 4, 2), y_before_x(), r"expected \(trajectory, time, y=4, x=5, vector=x,y\)"),
        (STATES[:, :1], line(), "at least 2"),
        (STATES[:0], line(), r"\(0, 4, 8, 1\)"),
        (STATES.long(), line(), "int64"),
        (STATES.half(), line(), "float16"),
        (STATES.to(torch.complex64), line(), "complex64"),
        ([STATES, STATES], line(), "2 tensors .*has 1"),
        ([STATES], (line(), line()), "1 tensors .*has 2"),
        ([STATES, STATES[:1]], (line(), line()), r"states\[1\].*\(2, 4\) as in the first"),
        ([STATES, STATES.double()], (line(), line()), "float32.*float64"),
        (STATES, line(b=3), r"\['b'\]"),
        ("states", line(), "states = 'states'"),
        (STATES.to_sparse(), line(), "sparse_coo"),
        (STATES.to("meta"), line(), "meta"),
        (np.ma.masked_less(STATES.numpy(), 0), line(), "masked"),
        ([[1.0]], line(), r"states\[0\] = \[1.0\]"),
        (np.array([["a"]]), line(), "<U1"),
    ],
)
def test_wrong_tensors(states: Any, like: Any, match: str) -> None:
    with pytest.raises(ph.StateError, match=match):
        ph.Trajectories.from_tensors(states, like)


FRAMES = [line(0), line(1)]


@pytest.mark.parametrize(
    ("states", "match"),
    [
        (line(0), "no batch dim 'time'"),
        (line(0, time=1), "at least 2"),
        (FRAMES[:1], "at least 2"),
        ([], "at least 2"),
        (line(0, time=3, b=2), r"\['b'\]"),
        ([line(0, b=2), line(1, b=2)], r"states\[0\].*\['b'\]"),
        ([line(0), line(1, boundary=ZERO_GRADIENT)], r"states\[1\].*boundary"),
        ([line(0), line(1, cells=4)], r"states\[1\].*domain"),
        ([line(0), line(1, time=2)], r"states\[1\].*'time'"),
        ([line(0), line(1, dtype=torch.float64)], r"states\[1\].*float64"),
        ([line(0, trajectory=2), line(1, trajectory=3)], r"\[2, 3\] entries"),
        ((line(0, time=3), line(1, time=3, dtype=torch.float64)), "precisions"),
        ((line(0, time=3), line(1, time=2)), "'time' has sizes 3 and 2"),
    ],
)
def test_wrong_fields(states: Any, match: str) -> None:
    with pytest.raises(ph.StateError, match=match):
        ph.Trajectories.from_fields(states)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (line(1), "inputs = .*in|expected arguments"),
        ((line(1, time=4),), "'time': 4"),
        ((line(1, trajectory=3),), "'trajectory': 3"),
        ((line(1, dtype=torch.float64),), "precisions"),
    ],
)
def test_wrong_inputs(inputs: Any, match: str) -> None:
    with pytest.raises(ph.StateError, match=match):
        ph.Trajectories.from_fields(line(0, time=4, trajectory=2), inputs)


def test_values_that_are_not_finite_and_metadata() -> None:
    broken = STATES.clone()
    broken[1, 2, 3, 0] = float("nan")
    with pytest.raises(ph.DataError, match=r"trajectory 1 at index \[2, 3, 0\]"):
        ph.Trajectories.from_tensors(broken, line())
    with pytest.raises(ph.DataError, match="input tensor 0"):
        ph.Trajectories.from_tensors(STATES, line(), (float("nan") * line(),))
    with pytest.raises(ph.StateError, match="metadata = 0.1"):
        ph.Trajectories.from_tensors(STATES, line(), metadata=0.1)


def test_values_are_taken_without_gradients() -> None:
    data = ph.Trajectories.from_tensors(STATES.clone().requires_grad_(), line(), (line(1) * vec(x=1.0),))
    assert not data.states[0].requires_grad
