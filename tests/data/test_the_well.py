"""Files of The Well, written here by its specification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.small import equal, line, noise, trained_on
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, Field, advect, channel, math

import phi_hybrid as ph
from phi_hybrid.data import read_the_well

B, T, SIZES = 3, 5, {"x": 8, "y": 4}


def add(group: h5py.Group, name: str, values: Any, sample: bool, time: bool, along: Any = None) -> None:
    data = group.create_dataset(name, data=np.asarray(values, np.float32))
    data.attrs["sample_varying"], data.attrs["time_varying"] = sample, time
    if along is not None:
        data.attrs["dim_varying"] = along


def add_side(file: h5py.File, kind: str, dim: str, *ends: int) -> None:
    group = file.create_group(f"boundary_conditions/{dim}_{kind.lower()}{'_'.join(map(str, ends))}")
    mask = np.zeros(len(file["dimensions"][dim]), bool)
    mask[list(ends)] = True
    group.attrs.update({"associated_dims": [dim], "bc_type": kind, "associated_fields": []})
    group.attrs.update({"sample_varying": False, "time_varying": False})
    group["mask"] = mask


def skeleton(file: h5py.File, sizes: dict[str, int], count: int, frames: int) -> None:
    file.attrs.update({"dataset_name": "example", "grid_type": "cartesian", "n_spatial_dims": len(sizes)})
    file.attrs.update({"n_trajectories": count, "simulation_parameters": ["Re"], "Re": 100.0})
    dimensions = file.create_group("dimensions")
    dimensions.attrs["spatial_dims"] = list(sizes)
    add(dimensions, "time", 0.1 * np.arange(frames), False, True)
    for dim, cells in sizes.items():
        add(dimensions, dim, (np.arange(cells) + 0.5) * 2 / cells, False, False)
    for name in ("t0_fields", "t1_fields", "t2_fields", "scalars", "boundary_conditions"):
        file.create_group(name).attrs["field_names"] = []


def write(path: Path, sides: dict[str, str] | None = None) -> Path:
    """Buoyancy, velocity and stress; a mask that never changes, scalars of all four kinds."""
    with h5py.File(path, "w") as file:
        skeleton(file, SIZES, B, T)
        xy, size = [True, True], tuple(SIZES.values())
        add(file["t0_fields"], "buoyancy", noise(B, T, *size), True, True, xy)
        add(file["t0_fields"], "profile", noise(T, SIZES["y"], seed=1), False, True, [False, True])
        add(file["t0_fields"], "mask", noise(B, *size, seed=2), True, False, xy)
        add(file["t0_fields"], "floor", noise(SIZES["x"], seed=3), False, False, [True, False])
        add(file["t1_fields"], "velocity", noise(B, T, *size, 2, seed=4), True, True, xy)
        add(file["t2_fields"], "stress", noise(B, T, *size, 2, 2, seed=5), True, True, xy)
        add(file["scalars"], "Re", [100.0], False, False)
        add(file["scalars"], "g", 9.81, False, False)
        count = file["scalars"].create_dataset("count", data=7)  # a whole number
        count.attrs["sample_varying"], count.attrs["time_varying"] = False, False
        add(file["scalars"], "kappa", noise(B, seed=6), True, False)
        add(file["scalars"], "forcing", noise(T, seed=7), False, True)
        add(file["scalars"], "phase", noise(B, T, seed=8), True, True)
        for group in ("t0_fields", "t1_fields", "t2_fields", "scalars"):
            file[group].attrs["field_names"] = list(file[group])
        for dim, kind in (sides or {"x": "PERIODIC", "y": "OPEN"}).items():
            add_side(file, kind, dim, 0, -1)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "well.hdf5")


# --- what is read ---


def test_fields_of_all_orders(path: Path) -> None:
    data = read_the_well(path)
    state = data.trajectory
    assert list(state) == ["buoyancy", "profile", "velocity", "stress"]
    xy = "trajectory,time,x,y"
    with h5py.File(path) as file:
        assert np.array_equal(state["buoyancy"].values.numpy(xy), file["t0_fields/buoyancy"][()])
        assert np.array_equal(state["velocity"].values.numpy(xy + ",vector"), file["t1_fields/velocity"][()])
        assert np.array_equal(state["stress"].values.numpy(xy + ",i,j"), file["t2_fields/stress"][()])
        profile = np.broadcast_to(file["t0_fields/profile"][()][None, :, None], (B, T, *SIZES.values()))
        assert np.array_equal(state["profile"].values.numpy(xy), profile)
    expected = CenteredGrid(0, {"x": PERIODIC, "y": ZERO_GRADIENT}, x=8, y=4).boundary
    assert state["velocity"].boundary == expected and state["velocity"].bounds == Box(x=2, y=2)
    assert state["velocity"].vector.item_names == ("x", "y")


def test_metadata(path: Path) -> None:
    metadata = read_the_well(path, inputs=["forcing"]).metadata
    assert metadata["dt"] == 0.1 and metadata["start"] == 0 and metadata["dataset_name"] == "example"
    assert metadata["parameters"] == {"Re": 100.0} and metadata["left_out"] == ["floor", "mask"]
    scalars = metadata["scalars"]
    assert set(scalars) == {"Re", "g", "kappa", "phase", "count"} and scalars["count"] == 7 and scalars["Re"] == 100.0
    assert scalars["g"] == pytest.approx(9.81) and len(scalars["kappa"]) == B and np.shape(scalars["phase"]) == (B, T)


def test_inputs_of_the_step(path: Path) -> None:
    names = ["kappa", "forcing", "phase", "g", "mask", "floor"]
    data = read_the_well(path, fields=["velocity"], inputs=names)
    kappa, forcing, phase, g, mask, floor = data.step_inputs
    with h5py.File(path) as file:
        scalars = file["scalars"]
        assert np.array_equal(kappa.numpy("trajectory"), scalars["kappa"][()])
        assert np.array_equal(phase.numpy("trajectory,time"), scalars["phase"][()][:, :-1])
        assert np.array_equal(data.inputs[1][2], scalars["forcing"][()][:-1]) and "time" in forcing.shape
        assert np.allclose(g.numpy("trajectory"), 9.81)
        assert np.array_equal(mask.values.numpy("trajectory,x,y"), file["t0_fields/mask"][()])
        assert np.array_equal(floor.values.trajectory[0].y[1].numpy("x"), file["t0_fields/floor"][()])
    assert isinstance(data.initial_state, Field) and mask.bounds == Box(x=2, y=2)


def test_parts_of_a_file(path: Path) -> None:
    whole = read_the_well(path, fields=["buoyancy"], inputs=["phase", "kappa"])
    part = read_the_well(
        path, fields=["buoyancy"], inputs=["phase", "kappa"], trajectories=slice(1, None), times=slice(0, None, 2)
    )
    assert torch.equal(part.states[0], whole.states[0][1:, ::2]) and part.metadata["dt"] == 0.2
    assert torch.equal(part.inputs[0], whole.inputs[0][1:, ::2][:, :2]) and torch.equal(
        part.inputs[1], whole.inputs[1][1:]
    )


def test_times_for_each_trajectory(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["dimensions/time"]
        times = 0.25 * np.arange(T) + np.arange(B)[:, None]
        add(file["dimensions"], "time", times, True, True)
    assert read_the_well(path, trajectories=slice(1, 3)).metadata["dt"] == 0.25
    with h5py.File(path, "a") as file:
        file["dimensions/time"][2] *= 2
    with pytest.raises(ph.DataError, match="differ between trajectories"):
        read_the_well(path)
    assert read_the_well(path, trajectories=slice(2, 3)).metadata["dt"] == 0.5


# --- sides ---


def test_walls_need_a_boundary(tmp_path: Path) -> None:
    path = write(tmp_path / "walls.hdf5", {"x": "PERIODIC", "y": "WALL"})
    with pytest.raises(ph.DataError, match=r"'y-': 'wall', 'y\+': 'wall'.*'buoyancy'"):
        read_the_well(path)
    names = ["velocity", "buoyancy"]
    walls = {"velocity": {"y": 0}, "buoyancy": {"y-": 1, "y+": 0}}
    state = read_the_well(path, fields=names, boundary=walls).initial_state
    for name, sides in (("velocity", {"y": 0}), ("buoyancy", {"y-": 1, "y+": 0})):
        assert state[name].boundary == CenteredGrid(0, {"x": PERIODIC, **sides}, x=8, y=4).boundary
    same = read_the_well(path, fields=names, boundary={"y": ZERO_GRADIENT}).initial_state
    assert same["velocity"].boundary == same["buoyancy"].boundary
    assert read_the_well(path, boundary=0).initial_state["velocity"].boundary == math.extrapolation.ZERO


def test_a_wall_below_and_an_open_side_above(tmp_path: Path) -> None:
    path = write(tmp_path / "sides.hdf5", {"x": "periodic"})
    with h5py.File(path, "a") as file:
        add_side(file, "WALL", "y", 0)
    with pytest.raises(ph.DataError, match=r"'y\+': 'nothing'"):
        read_the_well(path, fields=["velocity"], boundary={"y-": 0})
    with h5py.File(path, "a") as file:
        add_side(file, "OPEN", "y", -1)
    boundary = read_the_well(path, fields=["velocity"], boundary={"y-": 0}).initial_state.boundary
    assert boundary == CenteredGrid(0, {"x": PERIODIC, "y-": 0, "y+": ZERO_GRADIENT}, x=8, y=4).boundary


def test_boundaries_that_are_not_sides(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["boundary_conditions/x_periodic0_-1"].attrs["bc_type"] = "sponge"
    with pytest.raises(ph.DataError, match="sponge"):
        read_the_well(path)
    with h5py.File(path, "a") as file:
        file["boundary_conditions/x_periodic0_-1"].attrs["bc_type"] = "PERIODIC"
        add_side(file, "WALL", "y", 0, 2)
    with pytest.raises(ph.DataError, match="inside of the domain"):
        read_the_well(path)
    with h5py.File(path, "a") as file:
        file["boundary_conditions/y_wall0_2/mask"][2] = False
    with pytest.raises(ph.DataError, match="both OPEN and WALL|both WALL and OPEN"):
        read_the_well(path)


# --- training ---


def transport(u: Field, rate: Any) -> Field:
    return advect.semi_lagrangian(u, u, 0.1) * rate


def test_training_on_a_file_is_training_on_the_same_numbers(tmp_path: Path) -> None:
    rates = math.wrap(noise(4, seed=1), math.batch("trajectory"))

    def reference(u: Field, rate: Any) -> Field:
        return 0.9 * transport(u, rate)

    generated = ph.Trajectories.generate(reference, line(0, trajectory=4), 4, (rates,), progress=False)
    with h5py.File(tmp_path / "line.h5", "w") as file:
        skeleton(file, {"x": 8}, 4, 5)
        add(file["t1_fields"], "velocity", generated.states[0], True, True, [True])
        add(file["scalars"], "rate", generated.inputs[0], True, False)
        file["t1_fields"].attrs["field_names"], file["scalars"].attrs["field_names"] = ["velocity"], ["rate"]
        add_side(file, "PERIODIC", "x", 0, -1)
    read = read_the_well(tmp_path / "line.h5", inputs=["rate"])
    assert read.layouts == generated.layouts and equal(read.inputs, generated.inputs)
    assert equal(trained_on(read, transport, 2), trained_on(generated, transport, 2))


# --- what is refused ---


def no_name(file: h5py.File) -> None:
    del file.attrs["dataset_name"]


def sphere(file: h5py.File) -> None:
    file.attrs["grid_type"] = "equiangular"


def other_rank(file: h5py.File) -> None:
    file.attrs["n_spatial_dims"] = 3


def uneven_points(file: h5py.File) -> None:
    file["dimensions/y"][1] += 0.1


def uneven_times(file: h5py.File) -> None:
    file["dimensions/time"][3] += 0.05


def moving_points(file: h5py.File) -> None:
    file["dimensions/x"].attrs["time_varying"] = True


def no_attribute(file: h5py.File) -> None:
    del file["t1_fields/velocity"].attrs["time_varying"]


def lie(file: h5py.File) -> None:
    file["t1_fields/velocity"].attrs["sample_varying"] = False


def missing(file: h5py.File) -> None:
    del file["t1_fields/velocity"]


def not_finite(file: h5py.File) -> None:
    file["t1_fields/velocity"][1, 2, 3, 0, 1] = np.nan


def linked(file: h5py.File) -> None:
    file.move("t1_fields/velocity", "velocity")
    file["t1_fields/velocity"] = h5py.SoftLink("/velocity")


def linked_group(file: h5py.File) -> None:
    del file["scalars"]
    file["scalars"] = h5py.ExternalLink("/nowhere.h5", "scalars")


def twice(file: h5py.File) -> None:
    file["t1_fields"].attrs["field_names"] = ["velocity", "velocity"]


def no_trajectories(file: h5py.File) -> None:
    file.attrs["n_trajectories"] = 0


def no_times(file: h5py.File) -> None:
    del file["dimensions/time"]
    add(file["dimensions"], "time", 0.1, False, True)


def no_walls(file: h5py.File) -> None:
    del file["boundary_conditions"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_name, r"no file of The Well.*dataset_name"),
        (sphere, "equiangular"),
        (other_rank, "n_spatial_dims is 3"),
        (uneven_points, "points along y .*not equally spaced"),
        (uneven_times, "times .*not equally spaced.*entry 3"),
        (moving_points, "along x move"),
        (no_attribute, "'/t1_fields/velocity' lacks"),
        (lie, r"\(3, 5, 8, 4, 2\), expected \(5, 8, 4, 2\)"),
        (missing, "no data set 'velocity'"),
        (not_finite, r"trajectory 1 at index \[2, 3, 0, 1\]"),
        (linked, "SoftLink"),
        (linked_group, "ExternalLink"),
        (twice, "'velocity' stands for two"),
        (no_trajectories, "n_trajectories is 0"),
        (no_times, r"shape \(\), expected one time"),
        (no_walls, "no group 'boundary_conditions'"),
    ],
)
def test_other_files(change: Callable, match: str, path: Path) -> None:
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ph.DataError, match=match):
        read_the_well(path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"fields": ["mask"]}, r"\['mask'\].*velocity"),
        ({"fields": []}, r"fields = \[\]"),
        ({"inputs": ["velocity"]}, r"inputs = \['velocity'\].*kappa"),
        ({"inputs": 3}, "inputs = 3"),
        ({"fields": 3}, "fields = 3"),
        ({"inputs": "kappa"}, "inputs = 'kappa'"),
        ({"boundary": {"z": 0}}, r"\['z'\]"),
        ({"bounds": Box(y=1, x=1)}, r"\['x', 'y'\]"),
        ({"times": 4}, "times = 4"),
    ],
)
def test_wrong_arguments(arguments: dict, match: str, path: Path) -> None:
    with pytest.raises(ph.StateError, match=match):
        read_the_well(path, **arguments)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match="no file"):
        read_the_well(tmp_path / "none.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ph.DataError, match="no file of The Well"):
        read_the_well(tmp_path / "empty.h5")
    with pytest.raises(ph.StateError, match="path = None"):
        read_the_well(None)


def test_labels_of_channels(path: Path) -> None:
    u = read_the_well(path, fields=["stress"]).initial_state
    assert set(u.shape.channel.names) == {"i", "j"} and u.shape.only("i") == channel(i="x,y")
