"""Generating, storing and cutting trajectories, against loops by hand and damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.small import component_values, equal, faces, forced_step, line, noise, same, scalar, step
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, Field, StaggeredGrid, batch, extrapolation, math, vec
from torch.utils.data import DataLoader

import phi_hybrid as ph
from phi_hybrid.data import Windows, coarsen

STEPS = 5


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


def generate(step_: Any, *args: Any, **kwargs: Any) -> ph.Trajectories:
    return ph.Trajectories.generate(step_, *args, progress=False, **kwargs)


@pytest.fixture(scope="module")
def data(block: ph.PhysicsBlock) -> ph.Trajectories:
    """Four trajectories on a line, force with time."""
    return generate(block, line(0, b=4), STEPS, (line(1, b=4, time=STEPS),), metadata={"dt": 0.1, "names": ["a", "b"]})


# --- generate ---


@pytest.mark.parametrize("kind", ["line", "inflow"])
@pytest.mark.parametrize("every", [1, 2])
def test_generate_is_a_loop_of_steps(kind: str, every: int, block: ph.PhysicsBlock) -> None:
    make = (
        (lambda s, **b: line(s, **b))
        if kind == "line"
        else (lambda s, **b: faces(kind, s, cells={"x": 8, "y": 4}, **b))
    )
    u, f = make(0, b=3), make(1, b=3, time=STEPS)
    if kind == "inflow":  # boundary values are added, too: the force must not change the inflow
        f = f.with_boundary({"x": ZERO_GRADIENT, "y-": vec(x=0.0, y=0.0), "y+": ZERO_GRADIENT})
    found = generate(block, u, STEPS, (f,), coarsen=2, every=every)
    assert len(found) == 3 and found.steps == STEPS
    for n in range(STEPS + 1):
        coarse = coarsen(u, 2)
        assert equal(component_values(found.trajectory.time[n], ("trajectory",)), component_values(coarse, "b"))
        assert found.trajectory.time[n].boundary == coarse.boundary
        for _ in range(every if n < STEPS else 0):
            u = forced_step(u, f.time[n])
    coarse_force = component_values(coarsen(f, 2), ("time", "b"))
    assert equal(component_values(found.step_inputs[0], ("time", "trajectory")), coarse_force)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "z"), ("y", "z")])  # on either side of `time`
def test_several_batch_dims_become_trajectories(first: str, second: str, block: ph.PhysicsBlock) -> None:
    """Alphabetical, the last one running fastest."""
    u, f = line(0, **{second: 2, first: 3}), line(1, **{first: 3, "time": STEPS})
    found = generate(block, u, STEPS, (f,))
    assert len(found) == 6
    number = 0
    for a in range(3):
        for b in range(2):
            expected = ph.rollout(block, u[{first: a, second: b}], STEPS, f[{first: a}])
            torch.testing.assert_close(found.states[0][number], component_values(expected, ("time",))[0])
            assert torch.equal(found.inputs[0][number], component_values(f[{first: a}], ("time",))[0])
            number += 1


def test_state_without_batch_is_one_trajectory(block: ph.PhysicsBlock) -> None:
    found = generate(block, line(0), STEPS, (line(1),))
    assert len(found) == 1 and found.states[0].shape == (1, STEPS + 1, 8, 1) and found.inputs[0].shape == (1, 8, 1)
    assert equal([found.states[0][0]], component_values(ph.rollout(block, line(0), STEPS, line(1)), ("time",)))


def test_batch_of_the_inputs_alone(block: ph.PhysicsBlock) -> None:
    found = generate(block, line(0), STEPS, (line(1, b=3),))
    assert len(found) == 3
    for n in range(3):
        expected = ph.rollout(block, line(0), STEPS, line(1, b=3).b[n])
        torch.testing.assert_close(found.states[0][n], component_values(expected, ("time",))[0])


def test_label_that_the_reference_ignores() -> None:
    """An input that only the network will see still makes trajectories of its own."""

    def ignoring(u: Field, label: math.Tensor) -> Field:
        return step(u)

    found = generate(ignoring, line(0), STEPS, (math.wrap(torch.tensor([1.0, 2.0, 3.0]), batch("b")),))
    assert len(found) == 3 and found.inputs[0].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(found.states[0][0], found.states[0][2])
    whole = found.whole().bind(ph.HybridSolver(ignoring, torch.nn.Conv1d(2, 1, 1)))
    assert whole.state[0].shape == (3, 8, 1)


def test_parameters_numbers_and_constant_inputs(block: ph.PhysicsBlock) -> None:
    def viscous(u: Field, viscosity: math.Tensor, dt: float, force: Field) -> Field:
        return u + dt * (viscosity * u.laplace() + force)

    viscosity = math.wrap(torch.tensor([0.01, 0.02]), batch("b"))
    found = generate(viscous, line(0, b=2), 3, (viscosity, 0.1, line(1)), coarsen=2)
    assert found.inputs[0].tolist() == pytest.approx([0.01, 0.02])
    assert found.inputs[1].shape == (2, 4, 1) and torch.equal(found.inputs[1][0], found.inputs[1][1])
    values, dt, force = found.step_inputs
    assert dt == 0.1 and values.shape.get_size("trajectory") == 2 and force.resolution.get_size("x") == 4
    u = line(0, b=2)
    for _ in range(3):
        u = viscous(u, viscosity, 0.1, line(1))
    assert equal([found.states[0][:, -1]], component_values(coarsen(u, 2), "b"))


def test_state_of_several_fields() -> None:
    def both(state: tuple[Field, Field]) -> tuple[Field, Field]:
        return step(state[0]), state[1] * 0.5

    v = faces("closed", cells={"x": 8, "y": 6}, b=2)
    s = v.at_centers().vector["x"]
    found = generate(both, (v, s), 3, coarsen=2)
    expected = coarsen((step(v), s * 0.5), 2)
    first = found.trajectory
    assert isinstance(first, tuple)
    for a, b in zip(first, expected):
        assert equal(component_values(a.time[1], ("trajectory",)), component_values(b, "b"))


def test_coarsen_by_a_function(block: ph.PhysicsBlock) -> None:
    """The function sees one state, or one input that has a grid, at a time."""

    def every_other(u: Field) -> Field:
        assert isinstance(u, Field)
        return coarsen(u, 2) * 2

    def labelled(u: Field, f: Field, label: math.Tensor) -> Field:
        return forced_step(u, f)

    u, f, label = line(0, b=2), line(1, b=2), math.wrap(torch.tensor([1.0, 2.0]), batch("b"))
    found = generate(labelled, u, 3, (f, label), coarsen=every_other)
    by_two = generate(labelled, u, 3, (f, label), coarsen=2)
    assert torch.equal(found.states[0], 2 * by_two.states[0])
    assert torch.equal(found.inputs[0], 2 * by_two.inputs[0]) and found.inputs[1].tolist() == [1.0, 2.0]


def test_diverging_reference_names_step_and_trajectory() -> None:
    u = line(0, b=3)
    u = u.with_values(math.wrap(torch.tensor([1.0, 1e3, 1.0]), batch("b")) + 0 * u.values)
    with pytest.raises(ph.DataError, match=r"stored step 4, .*trajectory 1\b"):
        generate(lambda v: v * v, u, 9)
    with pytest.raises(ph.DataError, match=r"stored step 2, .*trajectory 1\b"):  # step 4 again
        generate(lambda v: v * v, u, 9, every=2)
    with pytest.raises(ph.DataError, match="stored step 0, "):
        generate(lambda v: v * v, u * float("nan"), 9)


def test_nothing_is_written_when_the_reference_diverges(tmp_path: Path) -> None:
    u = line(0, b=2) * 0 + 1e3
    with pytest.raises(ph.DataError):
        generate(lambda v: v * v, u, 9, path=tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(inputs=()), "got 1 by position"),
        (dict(inputs=(line(1, time=3),)), "3 entries along 'time' but 5 steps"),
        (dict(coarsen=3), "cannot be coarsened by 3"),
        (dict(initial_states=line(0, time=2)), "has a dim 'time'"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = dict(initial_states=line(0), steps=5, inputs=(line(1),))
    with pytest.raises(ph.StateError, match=message):
        generate(forced_step, **{**arguments, **change})


def test_no_gradients_are_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    found = generate(lambda u: u * math.wrap(weight), line(0), 2)
    assert not found.states[0].requires_grad


# --- selection ---


def test_split_is_disjoint_and_complete(data: ph.Trajectories) -> None:
    for first in (1, 3, 0.25, 0.5):
        a, b = data.split(first)
        assert len(a) == (first if isinstance(first, int) else first * 4) and len(a) + len(b) == 4
        assert torch.equal(torch.cat([a.states[0], b.states[0]]), data.states[0])
        assert torch.equal(torch.cat([a.inputs[0], b.inputs[0]]), data.inputs[0])
        assert not any(torch.equal(x, y) for x in a.states[0] for y in b.states[0])
        assert a.metadata == data.metadata


@pytest.mark.parametrize("first", [0, 4, 5, -1, 0.0, 1.0, 0.01])
def test_split_that_leaves_nothing(first: int | float, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match="one part of 4 trajectories empty; use 1 … 3"):
        data.split(first)


@pytest.mark.parametrize(("start", "stop"), [(0, STEPS), (1, 4), (STEPS - 1, STEPS)])
def test_between(start: int, stop: int, data: ph.Trajectories) -> None:
    part = data.between(start, stop)
    assert part.steps == stop - start and part.metadata == data.metadata
    assert torch.equal(part.states[0], data.states[0][:, start : stop + 1])
    assert torch.equal(part.inputs[0], data.inputs[0][:, start:stop])
    constant = generate(forced_step, line(0, b=2), 2, (line(1, b=2),))
    assert torch.equal(constant.between(1, 2).inputs[0], constant.inputs[0])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1), (0, STEPS + 1)])
def test_between_out_of_range(start: int, stop: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=f"have steps 0 … {STEPS}"):
        data.between(start, stop)


def test_selection(data: ph.Trajectories) -> None:
    assert torch.equal(data[[2, 0]].states[0], data.states[0][[2, 0]])
    assert torch.equal(data[1:].inputs[0], data.inputs[0][1:])
    assert torch.equal(data[3].states[0], data.states[0][3:])
    with pytest.raises(ph.DataError, match="empty"):
        data[4:]


def test_scale_is_the_standard_deviation(data: ph.Trajectories) -> None:
    assert data.scale == pytest.approx([np.std(data.states[0].double().numpy(), ddof=1)])
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


# --- windows ---


@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_windows_are_slices(steps: int, data: ph.Trajectories) -> None:
    windows = data.windows(steps)
    starts = STEPS - steps + 1
    assert len(windows) == 4 * starts
    seen = []
    for trajectory in range(4):
        for start in range(starts):
            window = windows[len(seen)]
            assert window.steps == steps
            assert torch.equal(window.states[0][0], data.states[0][trajectory, start : start + steps + 1])
            assert torch.equal(window.inputs[0][0], data.inputs[0][trajectory, start : start + steps])
            assert torch.equal(window.initial[0], data.states[0][trajectory, start][None])
            assert torch.equal(window.targets[0][0], data.states[0][trajectory, start + 1 : start + steps + 1])
            frames = data.trajectory.trajectory[trajectory].time[start]
            assert torch.equal(
                component_values(window.initial_state, ("trajectory",))[0][0], component_values(frames)[0]
            )
            seen.append(window)
    assert torch.equal(windows[-1].states[0], seen[-1].states[0])
    with pytest.raises(IndexError):
        windows[len(windows)]
    with pytest.raises(IndexError):
        windows[-len(windows) - 1]


def test_inputs_of_a_window_belong_to_its_steps(data: ph.Trajectories) -> None:
    inputs = data.windows(3)[1 * 3 + 2].step_inputs  # second trajectory, from state 2 on
    for n in range(3):
        assert torch.equal(inputs.at(n)[0][0], data.inputs[0][1, 2 + n])


def test_constant_inputs_are_not_cut(block: ph.PhysicsBlock) -> None:
    constant = generate(block, line(0, b=2), STEPS, (line(1, b=2),))
    window = constant.windows(2)[5]
    assert torch.equal(window.inputs[0], constant.inputs[0][1:]) and torch.equal(
        window.step_inputs.at(1)[0], window.inputs[0]
    )


def test_loader_shuffles_and_collates(data: ph.Trajectories) -> None:
    windows = data.windows(2)
    loader = DataLoader(
        windows, batch_size=3, shuffle=True, collate_fn=windows.collate, generator=torch.Generator().manual_seed(0)
    )
    batches = list(loader)
    assert [len(b.states[0]) for b in batches] == [3] * 5 + [1]
    found = torch.cat([b.states[0] for b in batches]).flatten(1)
    forces = torch.cat([b.inputs[0] for b in batches]).flatten(1)
    expected = torch.cat([windows[n].states[0] for n in range(len(windows))]).flatten(1)
    expected_forces = torch.cat([windows[n].inputs[0] for n in range(len(windows))]).flatten(1)
    order = [int((expected == row).all(1).nonzero()) for row in found]
    assert sorted(order) == list(range(len(windows))) and order != sorted(order)
    assert torch.equal(forces, expected_forces[order])


@pytest.mark.parametrize("steps", [0, STEPS + 1, -1])
def test_windows_that_do_not_fit(steps: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=f"windows of {steps} steps do not fit in trajectories of 5; use 1 … 5"):
        Windows(data, steps)


# --- files ---

DIRECTION = extrapolation.combine_by_direction(extrapolation.ZERO, ZERO_GRADIENT)
STORED = {
    "periodic": PERIODIC,
    "number": 0.125,
    "inflow": {"x": ZERO_GRADIENT, "y-": vec(x=0.0, y=0.1), "y+": ZERO_GRADIENT},
    "by direction": DIRECTION,
    "mixed": {"x": PERIODIC, "y-": DIRECTION, "y+": vec(x=0.3, y=-0.7)},
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("boundary", STORED)
def test_files_are_exact(boundary: str, bits: int, tmp_path: Path) -> None:
    """Values, precision, boundary, bounds with fractions and metadata come back as they were."""
    with math.precision(bits):
        values = math.vec(x=math.wrap(noise(2, seed=1, dtype=torch.float64), batch("b")), y=0.3)
        u = StaggeredGrid(values, STORED[boundary], bounds=Box(x=(-0.1, 1.1), y=(0.3, 0.7)), x=4, y=3)
        metadata = {"dt": 0.1, "seed": 3, "nested": {"list": [1, 2.5, "ν", None, True]}}
        data = generate(lambda v, f: v.with_values(v.values * 0.7 + f.values), u, 3, (u * 0.3,), metadata=metadata)
    path = tmp_path / "folder" / "data.h5"
    data.save(path)
    loaded = ph.Trajectories.load(path)  # in single precision, whatever it was saved in
    assert equal(loaded.states, data.states) and equal(loaded.inputs, data.inputs)
    assert loaded.states[0].dtype == (torch.float32 if bits == 32 else torch.float64)
    assert loaded.state_layout == data.state_layout and loaded.input_layout == data.input_layout
    assert loaded.metadata == metadata
    assert loaded.trajectory.boundary == data.trajectory.boundary
    with math.precision(bits):
        assert same(loaded.trajectory, data.trajectory) and loaded.trajectory.bounds == u.bounds
        assert same(loaded.step_inputs, data.step_inputs)


def test_tuple_states_and_numbers_are_exact(tmp_path: Path) -> None:
    def both(state: dict, number: float, flag: bool, name: str, nothing: None) -> dict:
        return {"v": state["v"] * number, "s": [state["s"][0] * 2]}

    state = {"v": faces("closed", b=2), "s": [scalar(1, b=2)]}
    path = tmp_path / "data.h5"
    data = generate(both, state, 2, (0.5, True, "name", None), path=path)
    loaded = ph.Trajectories.load(path)
    assert equal(loaded.states, data.states)
    assert loaded.state_layout == data.state_layout and loaded.input_layout == data.input_layout
    assert loaded.step_inputs == (0.5, True, "name", None)
    assert set(loaded.trajectory) == {"v", "s"} and isinstance(loaded.trajectory["s"], list)


def test_a_loaded_set_trains_like_the_original(data: ph.Trajectories, tmp_path: Path) -> None:
    """Layouts that are equal share graphs: no new capture for states from a file."""
    data.save(tmp_path / "data.h5")
    loaded = ph.Trajectories.load(tmp_path / "data.h5")
    block = ph.capture(forced_step)
    first = ph.rollout(block, data.initial_state, 2, *data.step_inputs)
    assert same(ph.rollout(block, loaded.initial_state, 2, *loaded.step_inputs), first)
    assert len(block.known) == 1


def test_failed_write_leaves_the_old_file(
    data: ph.Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.h5"
    data.save(path)
    before = path.read_bytes()
    original, calls = h5py.Group.create_dataset, []

    def failing(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", failing)
    with pytest.raises(OSError, match="no space left"):
        data[:2].save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]


def test_interrupted_write_leaves_nothing(
    data: ph.Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.save(tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []


def test_saved_files_can_be_read_by_others(data: ph.Trajectories, tmp_path: Path) -> None:
    """mkstemp makes files that only their owner may read; data are to be shared like other new files."""
    mask = os.umask(0o022)
    try:
        data.save(tmp_path / "data.h5")
    finally:
        os.umask(mask)
    assert (tmp_path / "data.h5").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(keep: float, data: ph.Trajectories, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    data.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ph.DataError, match="data.h5 .*generate it again"):
        ph.Trajectories.load(path)


def test_text_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "data.h5").write_text("time,value\n0,1\n")
    for path in (tmp_path / "data.h5", tmp_path):
        with pytest.raises(ph.DataError, match="damaged or truncated"):
            ph.Trajectories.load(path)


def test_foreign_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("u", data=np.zeros(3))
    with pytest.raises(ph.DataError, match="was not written by phi_hybrid"):
        ph.Trajectories.load(tmp_path / "data.h5")


@pytest.fixture
def stored(data: ph.Trajectories, tmp_path: Path) -> Path:
    data.save(tmp_path / "data.h5")
    return tmp_path / "data.h5"


def test_newer_version(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(ph.DataError, match="version 99, newer than 1; update"):
        ph.Trajectories.load(stored)


def replace_dataset(path: Path, name: str, change: Any) -> None:
    with h5py.File(path, "r+") as file:
        values = change(file[name][...])
        del file[name]
        if values is not None:
            file.create_dataset(name, data=values)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("states/0", lambda v: v[:, :, :7]),
        ("states/0", lambda v: v[..., 0]),
        ("states/0", lambda v: v[0, 0, 0]),
        ("states/0", lambda v: None),
        ("states/0", lambda v: v[:, :1]),
        ("states/0", lambda v: v[:2]),
        ("states/0", lambda v: v.astype(str).astype("S8")),
        ("inputs/0", lambda v: v[:, :3]),
        ("inputs/0", lambda v: v[:3]),
        ("inputs/0", lambda v: v[:, :, :4]),
        ("inputs/0", lambda v: None),
    ],
)
def test_tampered_shapes(name: str, change: Any, stored: Path) -> None:
    replace_dataset(stored, name, change)
    with pytest.raises(ph.DataError, match="data.h5 .*generate it again"):
        ph.Trajectories.load(stored)


def test_components_of_different_length(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    generate(step, faces("closed", b=2), 3, path=path)
    replace_dataset(path, "states/1", lambda v: v[:, :2])
    with pytest.raises(ph.DataError, match="data.h5 .*generate it again"):
        ph.Trajectories.load(path)


def test_nan_in_a_file(stored: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[1, 2, 3, 0] = np.nan
        return values

    replace_dataset(stored, "states/0", spoil)
    with pytest.raises(ph.DataError, match=r"trajectory 1 at index \[2, 3, 0\]"):
        ph.Trajectories.load(stored)


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "{}", '{"states": {}, "inputs": {}, "metadata": {}}'])
def test_damaged_header(header: str, stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file.attrs["header"] = header
    with pytest.raises(ph.DataError, match="damaged"):
        ph.Trajectories.load(stored)


def test_header_is_plain_json(stored: Path) -> None:
    with h5py.File(stored, "r") as file:
        header = json.loads(file.attrs["header"])
        assert file.attrs["version"] == 1 and file["states/0"].shape == (4, STEPS + 1, 8, 1)
    assert header["metadata"] == {"dt": 0.1, "names": ["a", "b"]}


def test_metadata_that_is_no_json(data: ph.Trajectories, tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match="metadata must be JSON values"):
        generate(forced_step, line(0), 1, (line(1),), metadata={"a": object()}, path=tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []
