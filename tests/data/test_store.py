"""Trajectories in files, read as a whole or mapped into memory; checks in pieces; damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.bodies import BODIES
from cases.full_disk import FullDisk
from cases.small import equal, faces, forced_step, line, noise, same, scalar
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, StaggeredGrid, batch, extrapolation, math, spatial, vec

import phi_hybrid as ph
from phi_hybrid.data import files, pieces

STEPS = 3
SCRIPT = Path(__file__).parents[1] / "cases" / "memory.py"


def generate(step: Any, *args: Any, **kwargs: Any) -> ph.Trajectories:
    return ph.Trajectories.generate(step, *args, progress=False, **kwargs)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    """Velocity on faces, a scalar, a number and a name; a force that changes with time and a number per trajectory."""

    def both(state: dict, force: Any, number: math.Tensor, flag: bool, name: str, nothing: None) -> dict:
        return {"v": state["v"] * 0.9, "s": [state["s"][0] + number * force]}

    inputs = scalar(2, b=4, time=STEPS), math.wrap(torch.arange(4.0), batch("b")), True, "name", None
    state = {"v": faces("inflow", b=4), "s": [scalar(1, b=4)]}
    return generate(both, state, STEPS, inputs, metadata={"dt": 0.1, "names": ["a", "b"]})


@pytest.fixture
def path(data: ph.Trajectories, tmp_path: Path) -> Path:
    data.save(tmp_path / "data.h5")
    return tmp_path / "data.h5"


@pytest.mark.parametrize("size", [1, 7, 25, 1000])
def test_pieces_are_the_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    for shape in [(5,), (1, 1), (2, 9, 4), (3, 5, 2, 6), (4, 1, 30)]:
        tensor, seen = noise(*shape, seed=1), torch.zeros(shape)
        for (*outer, first), piece in pieces.pieces(tensor):
            place = (*outer, slice(first, first + len(piece)))
            assert torch.equal(tensor[place], piece) and (piece.numel() <= max(size, 1) or piece.ndim > 1)
            seen[place] += 1
        assert torch.equal(seen, torch.ones(shape))
        expected = np.std(tensor.double().numpy(), ddof=1) if tensor.numel() > 1 else np.nan
        mean, deviation = pieces.mean_and_deviation(tensor)
        assert deviation == pytest.approx(expected, rel=1e-12, nan_ok=True)
        assert mean == pytest.approx(abs(tensor.double().numpy().mean()), rel=1e-12)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_first_infinity_is_named(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    tensor = noise(4, 5, 6)
    pieces.look_through(tensor, "state tensor 0")
    tensor[2, 3, 4], tensor[3, 0, 0] = float("inf"), float("nan")
    with pytest.raises(ph.DataError, match=r"state tensor 0 .*trajectory 2 at index \[3, 4\]"):
        pieces.look_through(tensor, "state tensor 0")


# --- round trips ---

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


@pytest.mark.smoke
@pytest.mark.parametrize("lazy", [False, True])
def test_loaded_is_what_was_saved(lazy: bool, data: ph.Trajectories, path: Path) -> None:
    loaded = ph.Trajectories.load(path, lazy=lazy)
    assert equal(loaded.states, data.states) and equal(loaded.inputs, data.inputs)
    assert loaded.state_layout == data.state_layout and loaded.input_layout == data.input_layout
    assert loaded.metadata == data.metadata and loaded.scale == data.scale
    assert loaded.step_inputs[2:] == (True, "name", None)
    assert set(loaded.trajectory) == {"v", "s"} and isinstance(loaded.trajectory["s"], list)
    assert same(loaded.trajectory, data.trajectory)
    assert equal(loaded[1:3].states, data[1:3].states) and equal(loaded[[3, 0]].inputs, data[[3, 0]].inputs)
    assert equal(loaded.windows(2)[5].states, data.windows(2)[5].states)


@pytest.mark.parametrize("lazy", [False, True])
def test_loaded_sets_evaluate_alike_and_share_graphs(lazy: bool, tmp_path: Path) -> None:
    """Layouts that are equal share graphs: no new capture for states from a file."""
    block, f = ph.capture(forced_step, check=False), line(1, b=5, time=4)
    data = generate(forced_step, line(0, b=5), 4, (f,), path=tmp_path / "data.h5")
    loaded = ph.Trajectories.load(tmp_path / "data.h5", lazy=lazy)
    rollouts = [ph.rollout(block, d.initial_state, 4, *d.step_inputs) for d in (data, loaded)]
    assert same(*rollouts) and len(block.known) == 1
    first, second = (ph.evaluate({"worse": lambda u, f: 0.9 * u + f}, d, batch_size=2) for d in (data, loaded))
    for metric, values in first.values.items():
        assert torch.equal(second[metric]["worse"], values["worse"])


def test_lazy_tensors_and_their_file_are_independent(data: ph.Trajectories, path: Path) -> None:
    before, lazy = path.read_bytes(), ph.Trajectories.load(path, lazy=True)
    lazy.states[0][0] = 7.0
    assert float(lazy.states[0][0].min()) == 7.0 and path.read_bytes() == before
    lazy = ph.Trajectories.load(path, lazy=True)
    data[:2].save(path)
    assert equal(lazy.states, data.states) and len(ph.Trajectories.load(path, lazy=True)) == 2


def test_compressed_files_cannot_be_mapped(data: ph.Trajectories, path: Path) -> None:
    """Other programs may compress files, into copies that have no checksums."""
    without_checksums(path, compression="gzip", shuffle=True, fletcher32=True)
    with pytest.raises(ph.DataError, match="data.h5.*/states/0 .*lazy=False"):
        ph.Trajectories.load(path, lazy=True)
    again = ph.Trajectories.load(path)
    assert equal(again.states, data.states)
    again.save(path)
    assert equal(ph.Trajectories.load(path, lazy=True).states, data.states)


def test_header_is_plain_json(path: Path) -> None:
    """Other programs see a plain HDF5 file: nothing needs phi_hybrid."""
    with h5py.File(path, "r") as file:
        header = json.loads(file.attrs["header"])
        assert file.attrs["version"] == 2 and file["states/0"].shape[:2] == (4, STEPS + 1)
    assert header["metadata"] == {"dt": 0.1, "names": ["a", "b"]}


def test_other_kinds_of_tensors(tmp_path: Path) -> None:
    """Not contiguous, conjugate, of any type that NumPy knows, and empty."""
    layouts = ph.bridge.flatten(math.wrap(torch.zeros(3), spatial("x")))[1], ph.bridge.flatten(())[1]
    path = tmp_path / "data.h5"
    for kind in (torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64):
        states = noise(3, 4, 5, dtype=torch.float64).mul(3).to(kind).permute(2, 1, 0)
        states = states.conj() if kind.is_complex else states
        ph.Trajectories((states,), (), *layouts).save(path)
        for lazy in (False, True):
            (found,) = ph.Trajectories.load(path, lazy=lazy).states
            assert found.dtype == kind and torch.equal(found, states.resolve_conj())
    with pytest.raises(ph.StateError, match="bfloat16.*float32"):
        ph.Trajectories((states.real.to(torch.bfloat16),), (), *layouts).save(path)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_grows_neither_with_the_data_nor_with_the_rollouts(tmp_path: Path) -> None:
    """Anonymous memory of loading and evaluating, in a process of its own: four times the rollouts are 32 MB more."""
    paths = [str(SCRIPT.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What is freed goes back to the system at once, so that the numbers do not depend on the history of the heap.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["file"] > 40
    assert found["lazy"] < 8 and found["loaded"] > 0.9 * found["file"]  # or else this test would notice nothing
    assert found["32"] - found["8"] < 8 and found["32"] < 20


# --- writing ---


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("writes", [0, 1, 2, 4, 8, 12])
def test_failed_write_leaves_the_old_file(
    writes: int, data: ph.Trajectories, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(pieces, "PIECE", 20)
    monkeypatch.setattr(
        files,
        "open",
        lambda n, mode: FullDisk(open(n, mode), writes=writes) if mode == "wb" else open(n, mode),
        raising=False,
    )
    with pytest.raises(ph.DataError, match="data.h5 could not be written.*No space left"):
        data[:2].save(path)
    assert path.read_bytes() == before and names(path.parent) == ["data.h5"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_process_survives_a_full_disk(path: Path) -> None:
    """In a process of its own, since the HDF5 library can end it."""
    before = path.read_bytes()
    code = """
import resource, sys, torch, phi_hybrid as ph
from phi.torch.flow import math, spatial
layouts = ph.bridge.flatten(math.wrap(torch.zeros(100), spatial("x")))[1], ph.bridge.flatten(())[1]
data = ph.Trajectories((torch.ones(50, 50, 100),), (), *layouts)
for limit in (0, 100, 3000, 20_000, 200_000, 900_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        data.save(sys.argv[1])
    except ph.DataError as error:
        print(str(error).count("could not be written"), end=" ")
"""
    paths = os.pathsep.join([str(Path(ph.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0 and run.stdout == "1 " * 6, run.stderr
    assert path.read_bytes() == before and names(path.parent) == ["data.h5"]


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


def test_metadata_that_is_no_json(data: ph.Trajectories, tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match="metadata"):
        generate(forced_step, line(0), 1, (line(1),), metadata={"a": object()}, path=tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []


def test_states_that_files_do_not_hold(tmp_path: Path) -> None:
    """Bodies, and constants other than numbers and strings, are kept in memory alone."""

    def step(state: dict) -> dict:
        return {**state, "u": state["u"] * 0.9}

    for kind in ("sphere", "mesh"):
        data = generate(step, {"u": scalar(1, b=2), "more": BODIES[kind]()}, 2)
        assert len(data) == 2
        with pytest.raises(ph.StateError, match="cannot be written to a file.*parts of the state"):
            data.save(tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []


# --- files that are missing, foreign or damaged ---


def refused(path: Path, message: str, *lazy: bool) -> None:
    for how in lazy or (False, True):
        with pytest.raises(ph.DataError, match=message):
            ph.Trajectories.load(path, lazy=how)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    refused(path, "data.h5")
    path.write_text("time,value\n0,1\n")
    refused(path, "data.h5")
    refused(tmp_path, str(tmp_path))
    with h5py.File(path, "w") as file:
        file.create_dataset("u", data=np.zeros(3))
    refused(path, "data.h5.*phi_hybrid")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(keep: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path, "data.h5")


def without_checksums(path: Path, changes: dict[str, Callable] = {}, header: str | None = None, **packing: Any) -> None:  # noqa: B006
    """Replaces a file by a copy as other programs would make it, with other values, or `None` for none."""
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs) | ({} if header is None else {"header": header})
        values = {f"{group}/{n}": file[group][n][...] for group in ("states", "inputs") for n in file[group]}
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, value in values.items():
            value = changes.get(name, lambda v: v)(value)
            if value is not None:
                file.create_dataset(name, data=value, **packing)


TAMPERED: list[tuple[str, Callable]] = [
    ("states/0", lambda v: v[:, :, :3]),
    ("states/0", lambda v: v[..., 0]),
    ("states/0", lambda v: v[0, 0, 0]),
    ("states/0", lambda v: None),
    ("states/0", lambda v: v[:, :1]),
    ("states/0", lambda v: v[:2]),
    ("states/1", lambda v: v[:, :2]),
    ("states/0", lambda v: v.astype(str).astype("S8")),
    ("inputs/0", lambda v: v[:, :2]),
    ("inputs/0", lambda v: v[:3]),
    ("inputs/0", lambda v: v[:, :, :4]),
    ("inputs/0", lambda v: None),
]


@pytest.mark.parametrize("number", range(len(TAMPERED)))
def test_tampered_shapes(number: int, path: Path) -> None:
    name, change = TAMPERED[number]
    without_checksums(path, {name: change})
    refused(path, "data.h5")


def test_files_that_another_program_changed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["header"] = file.attrs["header"].replace("0.1", "0.2")
    refused(path, "data.h5: it is damaged, or another program changed it")


def test_nan_in_a_file(data: ph.Trajectories, path: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[1, 2, 3, 0] = np.nan
        return values

    without_checksums(path, {"states/0": spoil})
    refused(path, r"data.h5: state tensor 0 .*trajectory 1 at index \[2, 3, 0\]")
    states = (torch.from_numpy(spoil(data.states[0].numpy().copy())), *data.states[1:])
    ph.Trajectories(states, data.inputs, data.state_layout, data.input_layout, checked=True).save(path)
    refused(path, r"data.h5: state tensor 0 .*trajectory 1 at index \[2, 3, 0\]")


def test_newer_version(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"trajectories 2\n", b"trajectories 3\n", 1))
    refused(path, "version 3, newer")
    path.write_bytes(content)
    without_checksums(path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    refused(path, "version 99")


def test_long_headers_and_many_tensors(tmp_path: Path) -> None:
    """More than HDF5 keeps in one piece, and more rows than the smallest block has room for."""
    parts = {f"part {n}": math.wrap(noise(2, 3, seed=n), batch("b"), spatial("x")) for n in range(60)}
    data = generate(lambda state: {k: v * 0.9 for k, v in state.items()}, parts, 2, metadata={"log": "ν" * 300_000})
    data.save(tmp_path / "data.h5")
    for lazy in (False, True):
        loaded = ph.Trajectories.load(tmp_path / "data.h5", lazy=lazy)
        assert equal(loaded.states, data.states) and loaded.metadata == data.metadata
        assert loaded.state_layout == data.state_layout
