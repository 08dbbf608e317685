"""Files of unknown origin: damaged bytes, links, bombs and nonsense are errors; nothing wrong is silent, nothing crashes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases.small import equal, faces, scalar

import phi_hybrid as ph
from phi_hybrid.data import checksums, probe, suspicion
from phi_hybrid.data.skeleton import SparseMemory

OLD = Path(__file__).parents[1] / "cases" / "files" / "trajectories.h5"


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    def step(state: dict, force: Any) -> dict:
        return {"v": state["v"] * 0.9, "s": state["s"] + force}

    state = {"v": faces("inflow", b=2), "s": scalar(1, b=2)}
    return ph.Trajectories.generate(step, state, 2, (scalar(2, b=2),), metadata={"dt": 0.1}, progress=False)


@pytest.fixture
def path(data: ph.Trajectories, tmp_path: Path) -> Path:
    data.save(tmp_path / "data.h5")
    return tmp_path / "data.h5"


def refused(path: Path, message: str = "data.h5", *lazy: bool) -> None:
    for how in lazy or (False, True):
        with pytest.raises(ph.DataError, match=message):
            ph.Trajectories.load(path, lazy=how)


# --- damaged bytes ---


def tensor_bytes(path: Path) -> set[int]:
    """Places of values in a file."""
    with path.open("rb") as file:
        parts = checksums.verify(file, path.stat().st_size)
    return {place for part in parts.values() for place in range(part.start, part.start + part.size)}


@pytest.mark.parametrize("where", ["values", "structure", "block"])
def test_every_flipped_bit_is_found(where: str, path: Path) -> None:
    content, values = path.read_bytes(), tensor_bytes(path)
    block = checksums.block_size(4)
    places = {
        "values": sorted(values),
        "structure": sorted(set(range(block, len(content))) - values),
        "block": range(block),
    }
    rng = random.Random(where)
    for place in rng.sample(places[where], 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_what_is_damaged_is_named(path: Path) -> None:
    content, (place, *_) = bytearray(path.read_bytes()), sorted(tensor_bytes(path))
    content[place] ^= 1
    path.write_bytes(content)
    refused(path, "data.h5: (state|input) tensor 0 is damaged.*checksum.*copy of the file, or generate")


def test_several_flips_and_exchanged_bytes(path: Path) -> None:
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(50):
        damaged = bytearray(content)
        for place in rng.sample(range(len(content)), 50):
            damaged[place] = rng.randrange(256)
        path.write_bytes(damaged)
        refused(path)
        start, length = rng.randrange(len(content) - 64), rng.randrange(1, 64)
        damaged = bytearray(content)
        damaged[start : start + length] = damaged[start : start + length][::-1]
        path.write_bytes(damaged)
        if bytes(damaged) != content:
            refused(path)


def test_truncated_and_prolonged_files(path: Path) -> None:
    content, rng = path.read_bytes(), random.Random(0)
    for length in [0, 1, 25, 60, 61, 511, 512, 600, *rng.sample(range(len(content)), 50), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


def test_files_without_their_block_are_plain_hdf5(data: ph.Trajectories, path: Path) -> None:
    path.write_bytes(path.read_bytes()[512:])
    assert equal(ph.Trajectories.load(path).states, data.states)


@pytest.mark.slow
def test_files_of_version_1_never_crash(tmp_path: Path) -> None:
    """They have no checksums: what is found is an error, what is not are values of the same shapes."""
    content, rng, path = OLD.read_bytes(), random.Random(0), tmp_path / "data.h5"
    expected = ph.Trajectories.load(OLD)
    for place in rng.sample(range(len(content)), 25):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = ph.Trajectories.load(path)
        except ph.DataError:
            continue
        assert [t.shape for t in found.states] == [t.shape for t in expected.states]


def test_crashes_of_hdf5_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not survive in a process of its own is not read here; nor what it never ends with."""
    path = tmp_path / "data.h5"
    path.write_bytes(OLD.read_bytes())
    command = probe.__file__
    for program in ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "import time; time.sleep(60)"):
        (tmp_path / "program.py").write_text(program)
        monkeypatch.setattr(probe, "__file__", str(tmp_path / "program.py"))
        monkeypatch.setattr(probe, "TIMEOUT", 2.0)
        refused(path, "data.h5: HDF5 cannot read it", False)
    monkeypatch.setattr(probe, "__file__", command)
    assert len(ph.Trajectories.load(path)) > 0
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert len(ph.Trajectories.load(path)) > 0


def test_files_with_checksums_need_no_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert len(ph.Trajectories.load(path)) == 2


# --- foreign and malicious HDF5 ---


def remade(path: Path, name: str, change: Callable[[h5py.File, np.ndarray], Any]) -> None:
    """Replaces a file by a copy that has no checksums, with another data set `name`, which `change` makes."""
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
        values = {f"{group}/{n}": file[group][n][...] for group in ("states", "inputs") for n in file[group]}
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for other, value in values.items():
            if other != name:
                file[other] = value
        change(file, values[name])


def other_file(file: h5py.File, values: np.ndarray) -> str:
    """Another file with the same values, beside this one."""
    name = file.filename + ".other"
    with h5py.File(name, "w") as other:
        other["x"] = values
    return name


def external_link(file: h5py.File, values: np.ndarray) -> None:
    file["states/0"] = h5py.ExternalLink(other_file(file, values), "x")


def soft_link(file: h5py.File, values: np.ndarray) -> None:
    file["x"] = values
    file["states/0"] = h5py.SoftLink("/x")


def virtual(file: h5py.File, values: np.ndarray) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(other_file(file, values), "x", values.shape)
    file.create_virtual_dataset("states/0", layout)


def external_storage(file: h5py.File, values: np.ndarray) -> None:
    name = file.filename + ".raw"
    values.tofile(name)
    file.create_dataset("states/0", values.shape, values.dtype, external=[(name, 0, values.nbytes)])


def never_written(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", values.shape, values.dtype)


def huge(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", (2**40, *values.shape[1:]), values.dtype)


def huge_in_chunks(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", (2**40, *values.shape[1:]), values.dtype, chunks=values.shape)


def some_chunks(file: h5py.File, values: np.ndarray) -> None:
    made = file.create_dataset("states/0", values.shape, values.dtype, chunks=(1, *values.shape[1:]))
    made[0] = values[0]


def bomb(file: h5py.File, values: np.ndarray) -> None:
    """A chunk that unpacks to 100 MB instead of its few bytes."""
    made = file.create_dataset("states/0", values.shape, values.dtype, chunks=values.shape, compression="gzip")
    made.id.write_direct_chunk((0,) * values.ndim, zlib.compress(bytes(10**8)))


def zeros(file: h5py.File, values: np.ndarray) -> None:
    """Many compressed zeros in a small file."""
    shape = (2**12, *values.shape[1:])
    made = file.create_dataset("states/0", (2**22, *values.shape[1:]), values.dtype, chunks=shape, compression="gzip")
    made[: shape[0]] = 0


def unknown_filter(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", data=values, chunks=values.shape, scaleoffset=3)


def strings(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", values.shape, h5py.string_dtype())


def references(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", values.shape, h5py.ref_dtype)


def ragged(file: h5py.File, values: np.ndarray) -> None:
    file.create_dataset("states/0", values.shape, h5py.vlen_dtype(np.float32))


def nothing(file: h5py.File, values: np.ndarray) -> None:
    file["states/0"] = h5py.Empty("f4")


def group(file: h5py.File, values: np.ndarray) -> None:
    file.create_group("states/0")


def named_type(file: h5py.File, values: np.ndarray) -> None:
    file["states/0"] = np.dtype("f4")


def other_byte_order(file: h5py.File, values: np.ndarray) -> None:
    file["states/0"] = values.astype(">f4")


HOSTILE = [
    external_link, soft_link, virtual, external_storage, never_written, huge, huge_in_chunks, some_chunks, bomb, zeros,
    unknown_filter, strings, references, ragged, nothing, group, named_type, other_byte_order,
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_data_sets(change: Callable, path: Path) -> None:
    remade(path, "states/0", change)
    refused(path)


def test_linked_groups(path: Path) -> None:
    remade(path, "states/0", lambda file, values: file.create_dataset("states/0", data=values))
    path.rename(path.with_name("other.h5"))
    with h5py.File(path.with_name("other.h5"), "r") as other, h5py.File(path, "w") as file:
        file.attrs.update(dict(other.attrs))
        file["states"], file["inputs"] = (h5py.ExternalLink("other.h5", n) for n in ("states", "inputs"))
    refused(path, "data.h5.*states/0 in it is a link")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("change", [external_link, soft_link, virtual, external_storage], ids=lambda f: f.__name__)
def test_no_other_file_is_opened(change: Callable, path: Path) -> None:
    """Opening a pipe would wait for a writer for ever."""
    remade(path, "states/0", change)
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()
            os.mkfifo(other)
    refused(path)


def test_honest_copies_load(data: ph.Trajectories, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compressed(file: h5py.File, values: np.ndarray) -> None:
        file.create_dataset("states/0", data=values, chunks=(1, *values.shape[1:]), compression="lzf", shuffle=True)

    remade(path, "states/0", compressed)
    assert equal(ph.Trajectories.load(path).states, data.states)
    monkeypatch.setattr(suspicion, "SMALL", 10)
    assert equal(ph.Trajectories.load(path).states, data.states)


# --- headers ---


def with_header(path: Path, header: Any) -> None:
    with h5py.File(path, "r") as file:
        old = json.loads(file.attrs["header"])
    remade(path, "states/0", lambda file, values: file.create_dataset("states/0", data=values))
    with h5py.File(path, "r+") as file:
        file.attrs["header"] = header(old) if callable(header) else header


def changed(*route: Any, to: Any) -> Callable[[dict], str]:
    """The header with another entry somewhere in it."""

    def change(header: dict) -> str:
        *way, last = route
        entry = header
        for key in way:
            entry = entry[key]
        entry[last] = to
        return json.dumps(header)

    return change


FIELD = ("states", "children", 1)
HEADERS: list[Any] = [
    "", "{", "[]", "3", "{}", '{"states": {}, "inputs": {}, "metadata": {}}', 3, np.zeros(1000), np.bytes_(b"{}"),
    "[" * 100_000, '{"a":' * 100_000, '{"states": ' + "9" * 10_000 + "}",
    '{"states":' + '{"tree":"list","keys":null,"children":[' * 20_000 + "]}" * 20_000 + "}",
    changed("metadata", to=[["dt", 1]]),
    changed("metadata", to=None),
    changed("states", to={"constant": 3}),
    changed("states", "keys", to=["v"]),
    changed("states", "keys", to=["v", "v"]),
    changed("states", "keys", to=[["v"], "s"]),
    changed("states", "keys", to=None),
    changed("states", "tree", to="Popen"),
    changed("inputs", to={"constant": 3}),
    changed("inputs", "keywords", to=["a", "b", "c"]),
    changed("inputs", "children", to=[]),
    changed(*FIELD, "box", 0, 1, to=-4),
    changed(*FIELD, "box", 0, 1, to=10**30),
    changed(*FIELD, "box", 0, 1, to=10**6),
    changed(*FIELD, "box", 0, 1, to=True),
    changed(*FIELD, "box", 0, 1, to=4.0),
    changed(*FIELD, "box", 0, 2, to=float("nan")),
    changed(*FIELD, "box", 0, 3, to=float("inf")),
    changed(*FIELD, "box", 0, 3, to=-1e9),
    changed(*FIELD, "box", 0, 0, to=""),
    changed(*FIELD, "box", 0, 0, to="z"),
    changed(*FIELD, "boundary", to={"primitive": "nonsense"}),
    changed(*FIELD, "boundary", to={"sides": {}}),
    changed(*FIELD, "field", to={"constant": 1}),
    changed(*FIELD, "field", "split", to=["channel", "vector", 2, ["x", "y"]]),
    changed(*FIELD, "field", "tensor", to=[]),
    changed(*FIELD, "field", "tensor", 0, 0, 0, to="code"),
    changed(*FIELD, "field", "tensor", 0, 0, 1, to=7),
    changed(*FIELD, "field", "tensor", 0, 0, 2, to=-1),
    changed(*FIELD, "field", "tensor", 0, 0, 2, to=None),
    changed(*FIELD, "field", "tensor", 0, 0, 3, to=["a"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_damaged_headers(number: int, path: Path) -> None:
    with_header(path, HEADERS[number])
    refused(path)


def test_deeply_nested_metadata(data: ph.Trajectories, path: Path) -> None:
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    before = path.read_bytes()
    with pytest.raises(ph.DataError, match="metadata"):
        ph.Trajectories(data.states, data.inputs, data.state_layout, data.input_layout, {"a": nested}).save(path)
    assert path.read_bytes() == before


# --- forged checksums ---


def forged(path: Path, parts: list[checksums.Part], count: int | None = None, size: int | None = None) -> None:
    content = path.read_bytes()
    block = checksums.make_block(len(content) if size is None else size, 0, parts)
    if count is not None:
        block = block.replace(b" %08x\n" % len(parts), b" %08x\n" % count, 1)
    path.write_bytes(block + content[len(block) :])


@pytest.mark.parametrize(
    "parts",
    [
        [checksums.Part(0, 16)],
        [checksums.Part(600, 100), checksums.Part(650, 100)],
        [checksums.Part(700, 10), checksums.Part(600, 10)],
        [checksums.Part(600, 2**62)],
        [checksums.Part(2**62, 1)],
        [],
    ],
)
def test_forged_parts(parts: list[checksums.Part], path: Path) -> None:
    forged(path, parts)
    refused(path)


@pytest.mark.parametrize("count", [0, 2, 3, 2**31, 2**32 - 1])
def test_forged_counts(count: int, path: Path) -> None:
    forged(path, [checksums.Part(600, 16)], count)
    refused(path)


def test_every_byte_is_covered(path: Path) -> None:
    with path.open("rb") as file:
        parts = sorted(checksums.verify(file, path.stat().st_size).values(), key=lambda p: p.start)
    gaps = list(checksums.gaps(parts, 512, path.stat().st_size))
    covered = sum(p.size for p in parts) + sum(stop - start for start, stop in gaps)
    assert len(parts) == 4 and covered == path.stat().st_size - 512


@pytest.mark.parametrize("tensors", [0, 1, 10, 11, 22, 23, 1000])
def test_block_has_room_for_all_rows(tensors: int) -> None:
    parts = [checksums.Part(n, 1, n) for n in range(tensors)]
    block = checksums.make_block(2**40, 2**32 - 1, parts)
    assert len(block) == checksums.block_size(tensors) and len(block) >= 512 and len(block).bit_count() == 1


def test_sparse_memory_is_a_file() -> None:
    """The same reads and writes in memory of its own kind and in a plain one."""
    import io

    rng, sparse, plain = random.Random(0), SparseMemory(), io.BytesIO()
    for _ in range(300):
        place, content = rng.randrange(20_000), rng.randbytes(rng.randrange(9000))
        for file in (sparse, plain):
            file.seek(place)
        if rng.random() < 0.5:
            assert sparse.write(content) == plain.write(content)
        else:
            assert sparse.read(len(content)) == plain.read(len(content))
        assert sparse.tell() == plain.tell() and sparse.seek(0, 2) == plain.seek(0, 2)
