"""PDEBench's layouts of HDF5 files, written here as its scripts write them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.small import equal, line, noise, trained_on
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, Field, advect, batch, channel, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import read_pdebench

TRAJECTORIES, FRAMES, CELLS = 4, 6, 8


def centres(lower: float, upper: float, cells: int) -> np.ndarray:
    dx = (upper - lower) / cells
    return (np.linspace(lower, upper, cells + 1)[:-1] + dx / 2).astype(np.float32)


def write(path: Path, attributes: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name.replace("_", "-"), data=values)
        file.attrs.update(attributes or {})
    return path


def write_tensor(path: Path, values: np.ndarray, times: np.ndarray | None = None, **changed: Any) -> Path:
    times = np.arange(values.shape[1] + 1, dtype=np.float32) * np.float32(0.01) if times is None else times
    arrays = {"tensor": values, "x_coordinate": centres(0, 2, values.shape[2]), "t_coordinate": times} | changed
    return write(path, {"Nu": 0.02}, **{n: a for n, a in arrays.items() if a is not None})


def write_flow(path: Path, dims: int = 2, dtype: type = np.float32) -> dict[str, np.ndarray]:
    sizes = (CELLS, 4, 3)[:dims]
    names = ["density", "pressure", *("Vx", "Vy", "Vz")[:dims]]
    shape = (2, FRAMES, *sizes)
    arrays = {n: noise(*shape, seed=k).numpy().astype(dtype) for k, n in enumerate(names)}
    points = {f"{d}_coordinate": centres(0, 1, n) for d, n in zip("xyz", sizes)}
    write(path, {"eta": 0.01, "M": 0.1}, **arrays, **points, t_coordinate=np.linspace(0, 1, FRAMES, dtype=np.float32))
    return arrays


def write_samples(path: Path, channels: int = 2, sizes: tuple[int, ...] = (CELLS, 4)) -> np.ndarray:
    values = noise(3, FRAMES, *sizes, channels).numpy()
    with h5py.File(path, "w") as file:
        for number, sample in enumerate(values):
            group = file.create_group(f"{number:04d}")
            group.create_dataset("data", data=sample, compression="lzf")
            for dim, cells in zip("xy", sizes):
                group.create_dataset(f"grid/{dim}", data=centres(-2.5, 2.5, cells), compression="lzf")
            group.create_dataset("grid/t", data=np.linspace(0, 5, FRAMES, dtype=np.float32))
            group.attrs["config"] = "sim: {seed: 0}"
    return values


# --- what is read ---


def test_one_dimension(tmp_path: Path) -> None:
    values = noise(TRAJECTORIES, FRAMES, CELLS).numpy()
    data = read_pdebench(write_tensor(tmp_path / "burgers.hdf5", values), PERIODIC)
    assert np.array_equal(data.states[0].numpy(), values)
    assert data.metadata == {"source": "PDEBench", "dt": 0.01, "start": 0.0, "parameters": {"Nu": 0.02}}
    u = data.initial_state
    assert u.boundary == PERIODIC and u.bounds == Box(x=2) and u.resolution == spatial(x=CELLS) and not u.shape.channel
    data.save(tmp_path / "again.h5")
    assert ph.Trajectories.load(tmp_path / "again.h5").layouts == data.layouts


def test_parts_of_a_file(tmp_path: Path) -> None:
    values = noise(TRAJECTORIES, FRAMES, CELLS).numpy()
    path = write_tensor(tmp_path / "u.hdf5", values)
    data = read_pdebench(
        path, PERIODIC, trajectories=slice(1, 3), times=slice(1, None, 2), channels=channel(vector="x")
    )
    assert np.array_equal(data.states[0].numpy(), values[1:3, 1::2, :, None])
    assert data.metadata["dt"] == 0.02 and data.metadata["start"] == pytest.approx(0.01)
    assert data.state_layout == ph.bridge.flatten(line())[1]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_compressible_flow(dims: int, dtype: Any, tmp_path: Path) -> None:
    arrays = write_flow(tmp_path / "cfd.hdf5", dims, dtype)
    data = read_pdebench(tmp_path / "cfd.hdf5", PERIODIC)
    state = data.trajectory
    assert list(state) == ["density", "pressure", "velocity"] and data.metadata["dt"] == 0.2
    names = ["trajectory", "time", *"xyz"[:dims]]
    with math.precision(32 if np.dtype(dtype).itemsize == 4 else 64):
        assert np.array_equal(state["pressure"].values.numpy(names), arrays["pressure"])
        for dim in "xyz"[:dims]:
            assert np.array_equal(state["velocity"].vector[dim].values.numpy(names), arrays[f"V{dim}"])
    assert data.metadata["parameters"] == {"eta": 0.01, "M": 0.1}


def test_fields_and_their_boundaries(tmp_path: Path) -> None:
    write_flow(tmp_path / "cfd.hdf5")
    boundaries = {"velocity": {"x": PERIODIC, "y": 0}, "pressure": ZERO_GRADIENT}
    data = read_pdebench(tmp_path / "cfd.hdf5", boundaries, fields=["velocity", "pressure"])
    state = data.initial_state
    assert list(state) == ["velocity", "pressure"] and state["pressure"].boundary == ZERO_GRADIENT
    expected = CenteredGrid(0, {"x": PERIODIC, "y": 0}, x=3, y=3).boundary
    assert state["velocity"].boundary == expected
    alone = read_pdebench(tmp_path / "cfd.hdf5", ZERO_GRADIENT, fields=["density"])
    assert isinstance(alone.initial_state, Field)
    with pytest.raises(ph.StateError, match="nothing about 'density'"):
        read_pdebench(tmp_path / "cfd.hdf5", boundaries)
    with pytest.raises(ph.StateError, match=r"\['speed'\]"):
        read_pdebench(tmp_path / "cfd.hdf5", {"speed": 0})
    with pytest.raises(ph.StateError, match=r"\['speed'\].*velocity"):
        read_pdebench(tmp_path / "cfd.hdf5", PERIODIC, fields=["speed"])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_group_for_each_trajectory(channels: int, tmp_path: Path) -> None:
    values = write_samples(tmp_path / "2D.h5", channels)
    data = read_pdebench(tmp_path / "2D.h5", ZERO_GRADIENT)
    assert np.array_equal(data.states[0].numpy(), values[..., 0] if channels == 1 else values)
    u = data.initial_state
    assert u.bounds == Box(x=(-2.5, 2.5), y=(-2.5, 2.5)) and u.shape.channel.rank == channels - 1
    assert data.metadata["dt"] == 1.0 and data.metadata["parameters"] == {"config": "sim: {seed: 0}"}
    one = read_pdebench(tmp_path / "2D.h5", ZERO_GRADIENT, trajectories=slice(2, 3))
    assert torch.equal(one.states[0], data.states[0][2:])
    if channels == 2:
        named = read_pdebench(tmp_path / "2D.h5", ZERO_GRADIENT, channels=channel(species="u,v"))
        assert "species" in named.initial_state.shape and equal(named.states, data.states)


def test_diffusion_sorption(tmp_path: Path) -> None:
    values = write_samples(tmp_path / "1D.h5", 1, (CELLS,))
    data = read_pdebench(tmp_path / "1D.h5", {"x-": 1, "x+": ZERO_GRADIENT})
    assert np.array_equal(data.states[0].numpy(), values[..., 0])


def write_incompressible(path: Path, **changed: Any) -> dict[str, np.ndarray]:
    """As PDEBench's script for incompressible flow writes: float32, the same times for every trajectory."""
    times = np.tile(np.linspace(0, 0.1 * FRAMES, FRAMES, endpoint=False, dtype=np.float32), (2, 1))
    shapes = {"velocity": (2, FRAMES, CELLS, 4, 2), "particles": (2, FRAMES, CELLS, 4, 1), "force": (2, CELLS, 4, 2)}
    arrays = {n: noise(*shape, seed=k).numpy() for k, (n, shape) in enumerate(shapes.items())} | {"t": times} | changed
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="lzf", shuffle=True)
        file.attrs.update({"config": "NU: 0.01", "latestIndex": FRAMES - 1})
    return arrays


SIDES = {"velocity": 0, "particles": ZERO_GRADIENT}


def test_incompressible_flow(tmp_path: Path) -> None:
    arrays = write_incompressible(tmp_path / "ns.h5")
    data = read_pdebench(tmp_path / "ns.h5", SIDES)
    state, (force,) = data.initial_state, data.step_inputs
    assert set(state) == {"velocity", "particles"} and state["velocity"].bounds == Box(x=CELLS, y=4)
    trajectory = data.trajectory
    for name, dims in (("velocity", "trajectory,time,x,y,vector"), ("particles", "trajectory,time,x,y")):
        expected = arrays[name] if name == "velocity" else arrays[name][..., 0]
        assert np.array_equal(trajectory[name].values.numpy(dims), expected)
    assert np.array_equal(force.values.numpy("trajectory,x,y,vector"), arrays["force"])
    assert data.metadata["parameters"]["config"] == "NU: 0.01" and data.metadata["dt"] == 0.1
    part = read_pdebench(
        tmp_path / "ns.h5", 0, fields=["velocity"], trajectories=slice(1, 2), times=slice(2, 5), bounds=Box(x=1, y=1)
    )
    assert np.array_equal(part.states[0].numpy(), arrays["velocity"][1:, 2:5])
    assert np.array_equal(part.inputs[0].numpy(), arrays["force"][1:]) and part.initial_state.bounds == Box(x=1, y=1)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"particles": np.zeros((2, FRAMES, CELLS, 4), np.float32)}, "particles.*expected .trajectory, time, x, y, 1"),
        ({"velocity": np.zeros((2, FRAMES, CELLS, 4, 3), np.float32)}, r"velocity.*\(2, 6, 8, 4, 2\)"),
        ({"force": np.zeros((1, CELLS, 4, 2), np.float32)}, r"force.*\(2, 8, 4, 2\)"),
        ({"t": np.arange(12.0).reshape(2, 6)}, "'t'.*same 6 times"),
        ({"t": np.array([[0, 1, 2, 3, 4, 6.0]] * 2)}, "not equally spaced"),
    ],
)
def test_incompressible_flow_that_is_damaged(changed: dict, match: str, tmp_path: Path) -> None:
    write_incompressible(tmp_path / "ns.h5", **changed)
    with pytest.raises(ph.DataError, match=match):
        read_pdebench(tmp_path / "ns.h5", SIDES)


# --- training ---


def transport(u: Field) -> Field:
    return advect.semi_lagrangian(u, u, 0.1)


def test_training_on_a_file_is_training_on_the_same_numbers(tmp_path: Path) -> None:
    generated = ph.Trajectories.generate(lambda u: 0.9 * transport(u), line(0, b=4), FRAMES - 1, progress=False)
    path = write_tensor(tmp_path / "u.hdf5", generated.states[0][..., 0].numpy())
    read = read_pdebench(path, PERIODIC, channels=channel(vector="x"))
    assert read.layouts == generated.layouts
    assert equal(trained_on(read, transport, 1), trained_on(generated, transport, 1))


def forced_transport(u: Field, force: Field) -> Field:
    return advect.semi_lagrangian(u, u, 0.1) + 0.1 * force


def test_training_on_incompressible_flow_is_training_on_the_same_numbers(tmp_path: Path) -> None:
    u, force = (
        CenteredGrid(math.wrap(noise(2, CELLS, 4, 2, seed=k), batch("trajectory"), spatial("x,y"), channel(vector="x,y")), 0, x=CELLS, y=4)
        for k in (8, 9)
    )  # fmt: skip
    generated = ph.Trajectories.generate(
        lambda v, f: 0.9 * forced_transport(v, f), u, FRAMES - 1, (force,), progress=False
    )
    arrays = {"velocity": generated.states[0].numpy(), "force": generated.inputs[0].numpy()}
    write_incompressible(tmp_path / "ns.h5", **arrays)
    read = read_pdebench(tmp_path / "ns.h5", 0, fields=["velocity"])
    assert read.layouts == generated.layouts
    assert equal(trained_on(read, forced_transport, 4, 2), trained_on(generated, forced_transport, 4, 2))


# --- what is refused ---

VALUES = np.zeros((2, 4, CELLS), np.float32)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match="no file"):
        read_pdebench(tmp_path / "none.h5", PERIODIC)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ph.DataError, match="text.h5 is no HDF5 file"):
        read_pdebench(tmp_path / "text.h5", PERIODIC)
    path = write_tensor(tmp_path / "u.h5", VALUES)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ph.DataError, match="truncated"):
        read_pdebench(path, PERIODIC)
    with pytest.raises(ph.StateError, match="path = 3"):
        read_pdebench(3, PERIODIC)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"tensor": VALUES[0]}, "expected .trajectory, time, x"),
        ({"tensor": VALUES[None]}, r"\(1, 2, 4, 8\)"),
        ({"x_coordinate": centres(0, 1, 7)}, "has shape"),
        ({"x_coordinate": np.linspace(0, 1, CELLS) ** 2}, "not equally spaced.*entry"),
        ({"x_coordinate": centres(0, 1, CELLS)[::-1]}, "ascending"),
        ({"x_coordinate": np.full(CELLS, np.nan, np.float32)}, "finite"),
        ({"x_coordinate": np.zeros(CELLS, int)}, "int64"),
        ({"t_coordinate": None}, "single states"),
        ({"t_coordinate": np.arange(3.0)}, "expected 4 times"),
        ({"t_coordinate": np.array([0, 1, 2, 4.0])}, "times.*not equally spaced"),
        ({"tensor": VALUES.astype(np.float16)}, "float16"),
        ({"tensor": VALUES + np.inf}, "infinity"),
        ({"tensor": None}, "none of PDEBench's layouts.*t-coordinate"),
        ({"tensor": VALUES[:, :1], "t_coordinate": np.zeros(1)}, "at least"),
    ],
)
def test_other_files(changed: dict, match: str, tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "u.h5", VALUES, **changed)
    with pytest.raises(ph.DataError, match=match):
        read_pdebench(path, PERIODIC)


def test_samples_that_differ(tmp_path: Path) -> None:
    write_samples(tmp_path / "2D.h5")
    with h5py.File(tmp_path / "2D.h5", "a") as file:
        file["0001/grid/x"][0] = 7
    with pytest.raises(ph.DataError, match="'/0001' has other points"):
        read_pdebench(tmp_path / "2D.h5", ZERO_GRADIENT)
    with pytest.raises(ph.StateError, match="fields"):
        read_pdebench(tmp_path / "2D.h5", ZERO_GRADIENT, fields=["data"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"channels": channel(vector="x,y")}, "1 numbers"),
        ({"channels": spatial(z=1)}, "channel dims of 1"),
        ({"channels": "x"}, "channels = 'x'"),
        ({"bounds": Box(y=1)}, r"\['x'\]"),
        ({"bounds": 1}, "bounds = 1"),
        ({"trajectories": 3}, "trajectories = 3"),
        ({"fields": "tensor"}, "list of names"),
        ({"boundary": {"y": 0}}, r"\['y'\]"),
    ],
)
def test_wrong_arguments(arguments: dict, match: str, tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "u.h5", VALUES)
    with pytest.raises(ph.StateError, match=match):
        read_pdebench(path, **({"boundary": PERIODIC} | arguments))
    for empty in (slice(5, 9), slice(None, None, -1)):
        with pytest.raises(ph.DataError, match="times = .*of 4"):
            read_pdebench(path, PERIODIC, times=empty)


# --- links ---


def link(file: h5py.File, kind: str, other: Path) -> None:
    secret = file.pop("tensor")[()]
    with h5py.File(other, "w") as elsewhere:
        elsewhere["tensor"] = secret
    if kind == "external link":
        file["tensor"] = h5py.ExternalLink(str(other), "tensor")
    elif kind == "soft link":
        file["kept"], file["tensor"] = secret, h5py.SoftLink("/kept")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(secret.shape, secret.dtype)
        layout[:] = h5py.VirtualSource(str(other), "tensor", secret.shape)
        file.create_virtual_dataset("tensor", layout)
    else:
        raw = other.with_suffix(".bin")
        raw.write_bytes(secret.tobytes())
        file.create_dataset("tensor", secret.shape, secret.dtype, external=[(str(raw), 0, secret.nbytes)])


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "raw"])
def test_links_are_not_followed(kind: str, tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "u.h5", VALUES)
    with h5py.File(path, "a") as file:
        link(file, kind, tmp_path / "other.h5")
    match = "ExternalLink" if kind == "external link" else "SoftLink" if kind == "soft link" else "other files"
    with pytest.raises(ph.DataError, match=match):
        read_pdebench(path, PERIODIC)


# --- coordinates ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("lower", "upper"), [(0, 1), (-1, 1), (0, 2 * np.pi), (-2.5, 2.5), (0.3, 22), (100, 101)])
@pytest.mark.parametrize("cells", [3, 51, 1024])
def test_bounds_are_those_of_the_domain(
    dtype: type, lower: float, upper: float, cells: int, tmp_path: Path, recwarn: Any
) -> None:
    dx = (upper - lower) / cells
    points = (lower + dx * (np.arange(cells) + 0.5)).astype(dtype)
    path = write_tensor(tmp_path / "u.h5", np.zeros((1, 2, cells), np.float64), x_coordinate=points)
    bounds = read_pdebench(path, ZERO_GRADIENT).initial_state.bounds
    with math.precision(64):
        assert float(bounds.lower.vector["x"]) == pytest.approx(lower, abs=0, rel=1e-15)
        assert float(bounds.upper.vector["x"]) == pytest.approx(upper, abs=0, rel=1e-15)
    assert not [w for w in recwarn if "faces" in str(w.message)]


@pytest.mark.parametrize("points", [np.linspace(0, 1, 9), np.arange(9.0), np.linspace(-1, 2, 9)])
def test_points_at_walls_are_noticed(points: np.ndarray, tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "u.h5", np.zeros((1, 2, 9), np.float32), x_coordinate=points)
    with pytest.warns(UserWarning, match="half a cell more") as warnings:
        data = read_pdebench(path, 0)
    assert warnings[0].filename == __file__
    dx = points[1] - points[0]
    assert data.initial_state.bounds == Box(x=(points[0] - dx / 2, points[-1] + dx / 2))
    assert read_pdebench(path, 0, bounds=Box(x=9)).initial_state.bounds == Box(x=9)


def test_points_at_faces_of_a_periodic_line_shift_it(tmp_path: Path, recwarn: Any) -> None:
    points = np.linspace(0, 8, 8, endpoint=False)
    path = write_tensor(tmp_path / "u.h5", VALUES, x_coordinate=points)
    u = read_pdebench(path, PERIODIC).initial_state
    assert u.bounds == Box(x=(-0.5, 7.5)) and np.allclose(u.points.numpy("x,vector")[:, 0], points)
    assert not recwarn


def test_the_path_may_be_a_text(tmp_path: Path) -> None:
    reader: Callable = read_pdebench
    assert len(reader(os.fspath(write_tensor(tmp_path / "u.h5", VALUES)), PERIODIC)) == 2
