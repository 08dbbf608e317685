"""Checkpoint files: exact, checked, never half; NumPy's numbers; full disks; files without checksums."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.full_disk import FullDisk
from cases.small import noise

import phi_hybrid as ph
from phi_hybrid.training.checkpoint import plain, read_checkpoint, write_checkpoint

OLD = Path(__file__).parents[1] / "cases" / "files" / "checkpoint.pt"


def make_state(seed: int = 0) -> dict[str, Any]:
    return {
        "solver": OrderedDict(weight=noise(30, 10, seed=seed), bias=noise(7, seed=seed + 1)),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]},
        "scheduler": None,
        "history": {"loss": [0.5, float("nan")], "validation": {"update": [1, 2]}},
    }


def same(a: Any, b: Any) -> bool:
    """Equal in value and type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "a.pt", make_state())
    return tmp_path / "a.pt"


def refused(path: Path, message: str = "a.pt") -> None:
    with pytest.raises(ph.DataError, match=message):
        read_checkpoint(path)


@pytest.mark.smoke
def test_what_was_written_is_read(path: Path) -> None:
    assert same(read_checkpoint(path), make_state()) and same(read_checkpoint(str(path), "cpu"), make_state())
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_others_read_checkpoints(path: Path) -> None:
    """They stay torch files and zip archives."""
    assert same(torch.load(path, weights_only=True), make_state())
    assert same(torch.load(path, weights_only=True, mmap=True), make_state())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"phi_hybrid.checkpoint 1 crc32 ")


def test_older_files_are_read(tmp_path: Path) -> None:
    assert read_checkpoint(OLD)["update"] == 5
    torch.save(make_state(), tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), make_state())


def test_attributes_of_state_dicts_are_kept(tmp_path: Path) -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    state["scale"] = np.float64(2.0)
    write_checkpoint(tmp_path / "a.pt", {"solver": state})
    found = read_checkpoint(tmp_path / "a.pt")["solver"]
    assert found._metadata == state._metadata and list(found) == list(state) and type(found["scale"]) is float


# --- NumPy's numbers ---


def test_numpy_numbers_become_those_of_python(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=np.float64(1e-3), betas=(np.float64(0.5), 0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, np.int64(2))
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), np.int32(3): {np.str_("a"): 1}}
    write_checkpoint(tmp_path / "a.pt", state)
    found = read_checkpoint(tmp_path / "a.pt")
    group = found["optimizer"]["param_groups"][0]
    assert same((group["lr"], group["betas"], found["scheduler"]["step_size"]), (1e-3, (0.5, 0.9), 2))
    assert found[3] == {"a": 1}
    assert type(optimizer.param_groups[0]["lr"]) is np.float64  # what was given stays as it is
    optimizer.load_state_dict(found["optimizer"])
    scheduler.load_state_dict(found["scheduler"])


def test_plain_values() -> None:
    for value, expected in [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int8(-3), -3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.complex64(1j), 1j),
        (np.array(2.5), 2.5),
        ([1, (np.int64(2), {"a": [np.float64(3)]})], [1, (2, {"a": [3.0]})]),
        (OrderedDict(a=np.int64(1)), OrderedDict(a=1)),
    ]:
        assert same(plain(value), expected)
    assert plain({np.int64(1)}) == {1}
    short = plain(deque([np.int64(1), 2], maxlen=2))
    assert short == deque([1, 2]) and short.maxlen == 2
    for value in ([1, (2.0, {"a": torch.ones(2)})], {"a": 1}, np.ones(3), None, torch.nn.Linear(1, 1).state_dict()):
        assert plain(value) is value


class Unknown:
    pass


@pytest.mark.parametrize(
    "value", [np.ones(3), Unknown(), deque([1]), lambda: 3], ids=["array", "object", "deque", "function"]
)
def test_what_could_not_be_read_is_not_written(value: Any, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ph.StateError, match="a checkpoint .*keep tensors, numbers"):
        write_checkpoint(path, {"optimizer": [value]})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.pt"]


# --- damage ---


def test_every_flipped_bit_is_found(path: Path) -> None:
    content, rng = path.read_bytes(), random.Random(0)
    places = [*rng.sample(range(len(content)), 100), *range(len(content) - 80, len(content))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused(path)
    for _ in range(30):
        damaged = bytearray(content)
        for place in rng.sample(range(len(content)), 50):
            damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_damage_is_named(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, "a.pt is damaged: it has the checksum .*copy of it, or start anew")


def test_truncated_and_prolonged_files(path: Path) -> None:
    content, rng = path.read_bytes(), random.Random(0)
    ends = range(len(content) - 70, len(content))
    for length in [0, 1, 21, 22, 23, *rng.sample(range(len(content)), 50), *ends]:
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


def test_files_without_checksum_are_whole_or_refused(tmp_path: Path) -> None:
    content, rng, path = OLD.read_bytes(), random.Random(0), tmp_path / "a.pt"
    for length in rng.sample(range(len(content)), 50):
        path.write_bytes(content[:length])
        refused(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused(path, "no checkpoint at .*a.pt; write one")
    refused(tmp_path, str(tmp_path))
    path.write_text("update,loss\n")
    refused(path)
    for content in ([1, 2], 3, torch.ones(2), {"a": np.ones(2)}, Unknown()):
        torch.save(content, path)
        refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    refused(path)


# --- full disks ---


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.97, 0.999])
def test_full_disk_keeps_the_old_file(share: float, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = int(share * path.stat().st_size)

    def opened(name: str, mode: str) -> Any:
        return FullDisk(open(name, mode), room=room) if mode == "wb" else open(name, mode)

    monkeypatch.setattr("phi_hybrid.data.files.open", opened, raising=False)
    with pytest.raises(ph.DataError, match="a.pt could not be written.*No space left"):
        write_checkpoint(path, make_state(seed=1))
    assert same(read_checkpoint(path), make_state()) and [p.name for p in path.parent.iterdir()] == ["a.pt"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_process_survives_a_full_disk(path: Path) -> None:
    code = """
import resource, sys, torch
from phi_hybrid.errors import DataError
from phi_hybrid.training.checkpoint import write_checkpoint
for limit in (0, 500, 100_000, 300_000, 390_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_checkpoint(sys.argv[1], {"a": torch.ones(100_000)})
    except DataError as error:
        print(str(error).count("could not be written"), end=" ")
"""
    paths = os.pathsep.join([str(Path(ph.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0 and run.stdout == "1 " * 5, run.stderr
    assert same(read_checkpoint(path), make_state()) and [p.name for p in path.parent.iterdir()] == ["a.pt"]
